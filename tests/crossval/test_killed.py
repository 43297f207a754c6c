"""Cross-validations that were killed by SIGKILL, and called again, against one that was not."""

import os
import signal

import forked
import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import EarlyStopping
from same_runs import assert_same

import dlblocks.runs._fits
import dlblocks.runs.fit
from dlblocks.callbacks import Augment, MixUp
from dlblocks.crossval import cross_validate
from dlblocks.data import DigitsDataModule
from dlblocks.models import MLPClassifier


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Kill(pl.Callback):
    def __init__(self, at):
        fold, self._moment = at.split("-") if at != "never" else (-1, None)
        self._fold = int(fold)

    def _at(self, trainer, name):
        if self._moment == name and trainer.datamodule.fold == self._fold:
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


# Epochs, folds, batches: 3 epochs of 5 batches in each of 3 folds.
def train(folder, kill="never", every=0.0, n_jobs=1):
    dlblocks.runs.fit.RESUME_SECONDS = every
    if kill.endswith("write"):
        real = dlblocks.runs._fits.write_record

        def write_record(path, *args):
            if path.parent.name == f"fold-{kill[0]}":
                die()
            real(path, *args)

        dlblocks.runs._fits.write_record = write_record
    cross_validate(
        lambda: MLPClassifier(64, 10, hidden=[16], dropout=0.2, lr=0.01, lr_schedule="one_cycle"),
        DigitsDataModule(batch_size=200),
        num_folds=3,
        make_callbacks=lambda: [
            Augment(rotation=10), MixUp(0.2), EarlyStopping("val/loss", patience=5), Kill(kill)
        ],
        trainer={"max_epochs": 3, "accelerator": "cpu"},
        run_dir=folder,
        n_jobs=n_jobs,
        progress_bar=n_jobs > 1,
        figures=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder.parent)
        forked.run(train, folder)
    return folder


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
def test_killed_and_called_again(tmp_path, whole, kill, every):
    run_dir = tmp_path / "killed"
    forked.run(train, run_dir, kill, every, code=-signal.SIGKILL)
    finished = int(kill[0])
    kept = {path: path.stat().st_mtime_ns for path in run_dir.glob("fold-*/fold.json")}
    assert len(kept) == finished
    assert not (run_dir / "summary.json").exists()
    forked.run(train, run_dir, "never", every)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # not run again
    assert_same(run_dir, whole)
    leftovers = [path.name for path in run_dir.rglob("*") if ".ckpt" in path.name]
    assert leftovers == ["best.ckpt"] * 3


@pytest.mark.slow
@pytest.mark.processes
def test_folds_side_by_side_are_those_one_after_another(tmp_path, whole):
    train(tmp_path / "side-by-side", n_jobs=2)
    assert_same(tmp_path / "side-by-side", whole)
