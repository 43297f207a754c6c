"""Cross-validations that were killed by SIGKILL, and called again, against one that was not."""

import os
import signal
import subprocess
import sys

import pytest
from same_runs import assert_same

# Epochs, folds, batches: 3 epochs of 5 batches in each of 3 folds.
SCRIPT = """
import os, signal, sys
import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping
import torch
torch.set_num_threads(1)
import dlblocks.crossval.fold, dlblocks.fitting
from dlblocks.callbacks import Augment, MixUp
from dlblocks.crossval import cross_validate
from dlblocks.data import DigitsDataModule
from dlblocks.models import MLPClassifier

folder, kill, n_jobs, every = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
dlblocks.fitting.RESUME_SECONDS = every
fold, moment = kill.split("-") if kill != "never" else (None, None)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Kill(pl.Callback):
    def _at(self, trainer, name):
        if moment == name and trainer.datamodule.fold == int(fold):
            die()
    def on_train_start(self, trainer, module):
        self._at(trainer, "start")
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 3:
            self._at(trainer, "middle")
    def on_train_end(self, trainer, module):
        self._at(trainer, "end")
    def on_predict_start(self, trainer, module):
        self._at(trainer, "predict")

if moment == "write":
    real = dlblocks.crossval.fold.write_json
    def write_json(path, value):
        if path.parent.name == f"fold-{fold}":
            die()
        real(path, value)
    dlblocks.crossval.fold.write_json = write_json

result = cross_validate(
    lambda: MLPClassifier(64, 10, hidden=[16], dropout=0.2, lr=0.01, lr_schedule="one_cycle"),
    DigitsDataModule(batch_size=200),
    num_folds=3,
    make_callbacks=lambda: [
        Augment(rotation=10), MixUp(0.2), EarlyStopping("val/loss", patience=5), Kill()
    ],
    trainer={"max_epochs": 3, "accelerator": "cpu"},
    run_dir=folder,
    n_jobs=n_jobs,
    progress_bar=n_jobs > 1,
    figures=False,
)
print("OOF", len(result.oof))
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    (folder / "script.py").write_text(SCRIPT)

    def start(name, kill="never", n_jobs=1, every=0.0):
        done = subprocess.run(
            [sys.executable, "script.py", name, kill, str(n_jobs), str(every)],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        expected = 0 if kill == "never" else -signal.SIGKILL
        assert done.returncode == expected, done.stdout + done.stderr
        return folder / name

    return start


@pytest.fixture(scope="module")
def whole(start):
    return start("whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "every"),
    [
        ("0-start", 0.0),
        ("1-middle", 0.0),
        ("1-middle", 10.0),  # from the start of the fold
        ("1-end", 0.0),
        ("1-end", 10.0),
        ("2-predict", 0.0),
        ("0-write", 0.0),
    ],
)
def test_killed_and_called_again(start, whole, kill, every):
    name = f"{kill}-{every}"
    run_dir = start(name, kill, every=every)
    finished = int(kill[0])
    kept = {path: path.stat().st_mtime_ns for path in run_dir.glob("fold-*/fold.json")}
    assert len(kept) == finished
    assert not (run_dir / "summary.json").exists()
    start(name, every=every)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # not run again
    assert_same(run_dir, whole)
    leftovers = [path.name for path in run_dir.rglob("*") if ".ckpt" in path.name]
    assert leftovers == ["best.ckpt"] * 3


@pytest.mark.slow
def test_folds_side_by_side_are_those_one_after_another(start, whole):
    run_dir = start("side-by-side", n_jobs=2)
    assert_same(run_dir, whole)
