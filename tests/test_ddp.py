"""Two real processes, started by a script as a user would start them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import json, sys
import numpy as np
import lightning.pytorch as pl
from lightning.pytorch import Callback
from dlblocks.callbacks import MixUp
from dlblocks.crossval import cross_validate
from dlblocks.data import DigitsDataModule
from dlblocks.models import MLPClassifier

devices = int(sys.argv[1])


class Draws(MixUp):
    def transform(self, inputs, targets, generator):
        with open(f"draws-{self.rank}.txt", "a") as file:
            file.write(f"{generator.initial_seed()}\\n")
        return super().transform(inputs, targets, generator)

    def on_train_start(self, trainer, module):
        self.rank = trainer.global_rank
        super().on_train_start(trainer, module)


pl.seed_everything(0, workers=True)
# Learning rate 0: what is measured is the same model, whoever measures.
model = MLPClassifier(64, 10, hidden=[16], optimizer="sgd", lr=0.0)
# 1,438 samples of development in batches of 33: ranks get unequal numbers of validation samples.
data = DigitsDataModule(batch_size=33, val_fraction=0.15)
settings = dict(accelerator="cpu", devices=devices, enable_progress_bar=False, logger=False,
                enable_model_summary=False, enable_checkpointing=False)
if devices > 1:
    settings["strategy"] = "ddp"
trainer = pl.Trainer(max_epochs=1, callbacks=[Draws(0.5)] if devices > 1 else [], **settings)
trainer.fit(model, datamodule=data)
(validated,) = trainer.validate(model, datamodule=data, verbose=False)
(tested,) = trainer.test(model, datamodule=data, verbose=False)

for key in ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"):
    settings.pop(key)
result = cross_validate(
    lambda: MLPClassifier(64, 10, hidden=[16], lr=0.01), DigitsDataModule(batch_size=33),
    num_folds=2, trainer={"max_epochs": 2, **settings}, progress_bar=False,
    run_dir=f"cv-{devices}",
)
if trainer.is_global_zero:
    assert len(result.oof) == 1438
    json.dump({**validated, **tested}, open(f"metrics-{devices}.json", "w"))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    (folder / "script.py").write_text(SCRIPT)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for devices in (1, 2):
        done = subprocess.run(
            [sys.executable, "script.py", str(devices)], cwd=folder, env=env,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    return Path(folder)


@pytest.mark.slow
def test_metrics_of_two_processes_are_those_of_one(runs):
    one, two = (json.loads((runs / f"metrics-{n}.json").read_text()) for n in (1, 2))
    assert one.keys() == two.keys()
    assert {"val/loss", "val/accuracy", "val/f1", "test/calibration_error"} <= one.keys()
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=1e-5), name


@pytest.mark.slow
def test_cross_validation_predicts_each_sample_once(runs):
    with np.load(runs / "cv-1" / "oof.npz") as one, np.load(runs / "cv-2" / "oof.npz") as two:
        for name in ("index", "target", "fold"):
            np.testing.assert_array_equal(one[name], two[name])
        assert len(np.unique(two["index"])) == len(two["index"]) == 1438
    summary = json.loads((runs / "cv-2" / "summary.json").read_text())
    accuracy = summary["metrics"]["val/accuracy"]
    with np.load(runs / "cv-2" / "oof.npz") as two:
        right = two["prediction"].argmax(1) == two["target"]
        for fold, expected in enumerate(accuracy["folds"]):
            assert right[two["fold"] == fold].mean() == pytest.approx(expected, abs=1e-6)
    assert (runs / "cv-2" / "figures" / "confusion_matrix.png").is_file()


@pytest.mark.slow
def test_ranks_draw_differently(runs):
    draws = [(runs / f"draws-{rank}.txt").read_text().split() for rank in (0, 1)]
    assert len(draws[0]) == len(draws[1]) > 10
    assert not set(draws[0]) & set(draws[1])
