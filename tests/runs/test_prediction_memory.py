"""Outputs three times as large as the memory that a process may still take."""

import json
import os
import re

import forked
import pytest

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="needs Linux's account of memory"
)

MARGIN = 128 * 2**20
FULL = re.compile("Unable to allocate|can't allocate memory")
ROW = 3 * 256 * 256 * 4  # bytes that the net returns for a sample
COUNT = 3 * MARGIN // ROW

# RLIMIT_DATA bounds private writable memory: what is allocated, not what is mapped from a file.
LIMITED = f"""
import ctypes, json, os, resource, warnings
from pathlib import Path
import numpy as np, torch, lightning.pytorch as pl
from torch import nn
from dlblocks import _npz
from dlblocks.crossval import cross_validate
from dlblocks.data import ArrayDataModule
from dlblocks.models import Model, _step_buffer
from dlblocks.runs.predict_part import predict_part
from dlblocks.tasks import Task

warnings.simplefilter("ignore")
torch.set_num_threads(1)
# Large arrays outside of the heap (M_MMAP_THRESHOLD): holes in the heap would count as well.
ctypes.CDLL(None).mallopt(-3, 2**20)
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # each thread takes a stack


class Large(nn.Module):
    # Every number that it returns is that of the sample, so that rows cannot change places unseen.
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return (x[:, 0, None, None, None] * self.scale).expand(-1, 3, 256, 256).contiguous()


class Dense(Task):
    name = "dense"

    def loss(self, outputs, targets):
        return (outputs.mean((1, 2, 3)) - targets).square().mean()


NUMBERS = np.arange({COUNT}, dtype=np.float32)


def data(count={COUNT}):
    return ArrayDataModule(
        NUMBERS[:count, None], NUMBERS[:count], test_inputs=NUMBERS[:count, None],
        test_targets=NUMBERS[:count], batch_size=4, normalize=False,
    )


def trainer(**more):
    return pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir="root", **more,
    )


def new():
    return Model(Large(), Dense(), lr=0.0)


def predict(rows={COUNT}):
    return predict_part(trainer(), new(), data(rows), "test")


def validate():
    return trainer().validate(new(), data(), verbose=False)[0]["val/loss"]


def memory(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


# What the first run of a process takes for good is no part of the margin.
predict(8)
trainer().validate(new(), data(40), verbose=False)
before = memory("VmData")
resource.setrlimit(resource.RLIMIT_DATA, (before + {MARGIN}, before + {MARGIN}))
anonymous, said = memory("RssAnon"), {{}}


def fails(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        said["control"] = str(error)


def is_right(table, name="prediction"):
    return all((table[name][i] == table.index[i]).all() for i in range(len(table)))


def report():
    said["grown"] = memory("RssAnon") - anonymous
    with open("said.json", "w") as file:
        json.dump(said, file)
"""


def run(folder, script):
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        forked.run(exec, LIMITED + script + "\nreport()", {"__name__": "limited"})
    return json.loads((folder / "said.json").read_text())


def test_validation_stays_within_the_limit(tmp_path):
    said = run(
        tmp_path,
        """
said["loss"] = validate()
_step_buffer.FLUSH_BYTES = 2**40
fails(validate)
""",
    )
    assert said["loss"] == 0
    assert FULL.search(said["control"])
    assert said["grown"] < MARGIN


@pytest.mark.parametrize(
    "control", ["_npz.IN_MEMORY = 2**40; fails(predict)", "fails(trainer().predict, new(), data())"]
)
def test_predictions_stay_within_the_limit(tmp_path, control):
    said = run(
        tmp_path,
        f"""
table = predict()
said["rows"], said["right"] = len(table), is_right(table)
del table
{control}
""",
    )
    assert said["rows"] == COUNT
    assert said["right"]
    assert FULL.search(said["control"])
    assert said["grown"] < MARGIN


@pytest.mark.slow
def test_out_of_fold_predictions_stay_within_the_limit(tmp_path):
    said = run(
        tmp_path,
        """
def crossed(folder):
    return cross_validate(
        new, data(), num_folds=3, run_dir=folder, progress_bar=False, figures=False, logger=None,
        trainer={"accelerator": "cpu", "max_epochs": 1}, engine="sequential", select="last",
    ).oof


oof = crossed("cv")
said["rows"], said["right"] = len(oof), is_right(oof)
said["files"] = [str(path) for path in Path("cv").rglob("*") if path.stat().st_size > 2**24]
_npz.IN_MEMORY = 2**40
assert crossed("control") is None
said["control"] = " ".join(path.read_text() for path in Path("control").rglob("fold.json"))
""",
    )
    assert said["rows"] == COUNT
    assert said["right"]
    assert said["grown"] < MARGIN
    assert sorted(said["files"]) == [*(f"cv/fold-{i}/oof.npz" for i in range(3)), "cv/oof.npz"]
    assert FULL.search(said["control"])


def test_scores_of_an_average_stay_within_the_limit(tmp_path):
    said = run(
        tmp_path,
        """
from dlblocks.models import VotingModule


class Foreign(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Large()

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])


def score():
    average = VotingModule([Foreign()], task_name="dense")
    trainer().validate(average, data(), verbose=False)


score()
said["control"] = ""
_npz.IN_MEMORY = 2**40
fails(score)
""",
    )
    assert FULL.search(said["control"])
    assert said["grown"] < MARGIN
