"""``engine="vectorized"``: the files, results and runs of the sequential engine, in one fit."""

import contextlib
import gc
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import forked
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from few_digits import FewDigits
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from wandb_offline import read_runs

from dlblocks.callbacks import MixUp
from dlblocks.crossval import CrossValidationResult, cross_validate
from dlblocks.data import DigitsDataModule, TabularDataModule
from dlblocks.engine import fit_many
from dlblocks.engine import run_fits as run_fits_module
from dlblocks.models import Classifier, MLPClassifier, MLPRegressor, VotingEnsemble, load

EXTRA = 100_000_000  # bytes
CPU = {"accelerator": "cpu", "max_epochs": 3}


def run(folder, make_model=None, data=None, **arguments):
    settings = {"num_folds": 3, "trainer": CPU, "progress_bar": False, "figures": False,
                "run_dir": folder, "engine": "vectorized"}  # fmt: skip
    return cross_validate(
        make_model or (lambda: MLPClassifier(64, 10, hidden=[16], lr=0.01)),
        data or DigitsDataModule(batch_size=128),
        **{**settings, **arguments},
    )


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_the_same_files_and_numbers(tmp_path):
    arguments = {
        "make_callbacks": lambda: [MixUp(0.2), EarlyStopping("val/loss", patience=2)],
        "repeats": 2,
        "figures": True,
    }
    one = run(tmp_path / "vectorized", **arguments)
    other = run(tmp_path / "sequential", **arguments, engine="sequential")
    assert files(tmp_path / "vectorized") == files(tmp_path / "sequential")
    assert (tmp_path / "vectorized/folds.json").read_text() == (
        tmp_path / "sequential/folds.json"
    ).read_text()
    assert one.metrics == other.metrics
    for name in one.metrics:
        np.testing.assert_allclose(one.values(name), other.values(name), atol=1e-3)
    for name in ("index", "target", "fold", "repeat"):
        np.testing.assert_array_equal(getattr(one.oof, name), getattr(other.oof, name))
    np.testing.assert_allclose(one.oof.prediction, other.oof.prediction, atol=1e-3)
    assert one.oof.prediction.dtype == other.oof.prediction.dtype
    assert [row.keys() for row in one.folds] == [row.keys() for row in other.folds]
    mine, theirs = (
        json.loads((tmp_path / name / "summary.json").read_text())
        for name in ("vectorized", "sequential")
    )
    assert mine.pop("engine") == "vectorized" and theirs.pop("engine") == "sequential"
    assert mine.keys() == theirs.keys()
    for part in ("metrics.csv", "history.csv"):
        header, sample = (
            (tmp_path / name / "fold-1" / part).read_text().splitlines()
            for name in ("vectorized", "sequential")
        )
        assert header[0] == sample[0] and len(header) == len(sample)


def test_what_comes_after(tmp_path):
    data = DigitsDataModule(batch_size=128, test_fraction=0.2)
    result = run(tmp_path / "cv", data=data)
    again = CrossValidationResult.load(tmp_path / "cv")
    assert again.mean("val/accuracy") == result.mean("val/accuracy")
    first = load(tmp_path / "cv" / result.folds[0]["checkpoint"]).eval()
    fold = data.for_fold(0, 3).with_selection(0.15)
    inputs, _, rows = fold.arrays("val")
    with torch.no_grad():
        probabilities = first(inputs).softmax(1)
    mine = result.oof.prediction[np.isin(result.oof.index, rows)]
    np.testing.assert_allclose(probabilities, mine, atol=1e-6)
    # Lightning itself takes the checkpoint, and so do the ensemble and the refit.
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False,
                         enable_checkpointing=False)  # fmt: skip
    (tested,) = trainer.test(
        MLPClassifier(64, 10, hidden=[16], lr=0.01),
        datamodule=fold,
        ckpt_path=str(tmp_path / "cv" / result.folds[0]["checkpoint"]),
        verbose=False,
    )
    assert 0.5 < tested["test/accuracy"] <= 1
    ensemble = result.ensemble()
    assert isinstance(ensemble, VotingEnsemble)
    assert isinstance(result.refit(), MLPClassifier)
    # Called again, everything is read back.
    stamp = (tmp_path / "cv/fold-1/fold.json").stat().st_mtime_ns
    assert run(tmp_path / "cv", data=data).mean("val/loss") == result.mean("val/loss")
    assert (tmp_path / "cv/fold-1/fold.json").stat().st_mtime_ns == stamp


def test_values_are_predicted_in_the_shape_of_the_targets(tmp_path):
    def make():
        return MLPRegressor(10, hidden=[8], standardize_targets=True)

    data = TabularDataModule("diabetes", test_fraction=0)
    one = run(tmp_path / "a", make, data)
    other = run(tmp_path / "b", make, data, engine="sequential")
    assert one.oof.prediction.shape == other.oof.prediction.shape == (442,)
    np.testing.assert_allclose(one.oof.prediction, other.oof.prediction, rtol=1e-3, atol=0.5)


def test_another_engine_is_another_run(tmp_path):
    run(tmp_path / "a")
    with pytest.raises(FileExistsError, match="engine"):
        run(tmp_path / "a", engine="sequential")
    # "auto" goes on with what is there.
    assert len(run(tmp_path / "a", engine="auto").folds) == 3


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        y = self.layer(x.flatten(1))
        return y if y.sum() > 0 else 2 * y


def test_auto_says_what_it_chose_and_why(tmp_path, capsys):
    result = run(tmp_path / "small", engine="auto", progress_bar=True)
    said = capsys.readouterr().err
    assert "engine: vectorized; a step takes" in said
    summary = json.loads((tmp_path / "small/summary.json").read_text())
    assert summary["engine"] == "vectorized" and "for 3 folds at once" in summary["engine_reason"]
    assert CrossValidationResult.load(tmp_path / "small").oof is not None
    assert result.mean("val/accuracy") > 0.3

    run(
        tmp_path / "branching",
        lambda: Classifier(Branching(), 10),
        engine="auto",
        progress_bar=True,
    )
    assert "engine: sequential; the folds cannot be fitted together" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"engine='vectorized' cannot run these fits.*'auto'"):
        run(tmp_path / "demanded", lambda: Classifier(Branching(), 10))
    assert not (tmp_path / "demanded").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"engine": "vectorised"}, "did you mean 'vectorized'"), ({"n_jobs": 2}, "n_jobs=2 has no")],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "a", **arguments)


def test_a_fold_that_fails(tmp_path):
    def make():
        # Fold number k is seeded with k.
        return MLPClassifier(
            64, 10, hidden=[16], optimizer="sgd", lr=1e30 if torch.initial_seed() == 1 else 0.1
        )

    with pytest.raises(FloatingPointError, match=r"^fold 1: train/loss"):
        run(tmp_path / "a", make)
    result = run(tmp_path / "b", make, on_error="continue")
    assert [row["fold"] for row in result.folds] == [0, 2]
    summary = json.loads((tmp_path / "b/summary.json").read_text())
    assert [failure["fold"] for failure in summary["failed"]] == [1]


def test_what_fails_before_the_first_step_is_raised(tmp_path):
    def make():
        # Fold number k is seeded with k.
        if torch.initial_seed() == 1:
            raise ValueError("no luck")
        return MLPClassifier(64, 10, hidden=[16])

    for on_error in ("raise", "continue"):
        with pytest.raises(ValueError, match=r"^fold 1: no luck$"):
            run(tmp_path / "a", make, on_error=on_error)
        assert not (tmp_path / "a").exists()
        # What is no fold's own.
        with pytest.raises(ValueError, match=r"^all folds: monitor='val/los' was not logged"):
            run(tmp_path / on_error, on_error=on_error, monitor="val/los", mode="min")


def wide(folder, engine="vectorized"):
    return run(
        folder,
        lambda: MLPClassifier(64, 10, hidden=[1024, 1024]),
        FewDigits(batch_size=128),
        num_folds=8,
        trainer={"max_epochs": 1, "limit_train_batches": 2, "accelerator": "cpu"},
        engine=engine,
    )


def with_little_memory(folder):
    """Memory for some folds, not for eight: each takes some 25 MB."""
    wide(folder / "first")  # what the first run takes for itself
    gc.collect()
    status = Path("/proc/self/status").read_text().split()
    size = 1024 * int(status[status.index("VmSize:") + 1])
    resource.setrlimit(resource.RLIMIT_AS, (size + EXTRA, resource.RLIM_INFINITY))
    with (folder / "said.txt").open("w") as file, contextlib.redirect_stderr(file):
        wide(folder / "little")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own figures")
def test_memory_for_some_of_the_folds(tmp_path):
    forked.run(with_little_memory, tmp_path)
    said = (tmp_path / "said.txt").read_text()
    assert "8 folds at once need more memory than there is; continuing with 4" in said
    assert files(tmp_path / "little") == files(tmp_path / "first")
    with np.load(tmp_path / "little/oof.npz") as one, np.load(tmp_path / "first/oof.npz") as other:
        np.testing.assert_array_equal(one["index"], other["index"])
        np.testing.assert_allclose(one["prediction"], other["prediction"], atol=1e-5)


def test_wandb_runs(tmp_path):
    run(tmp_path / "cv", logger="wandb")
    found = {r["name"]: r for r in read_runs(tmp_path / "cv")}
    assert set(found) == {"cv-fold-0", "cv-fold-1", "cv-fold-2", "cv-summary"}
    for k in range(3):
        one = found[f"cv-fold-{k}"]
        assert one["group"] == "cv" and one["job_type"] == "fold" and one["finished"]
        assert one["config"]["fold"] == k and one["config"]["lr"] == 0.01
        assert one["summary"]["val/accuracy"] > 0.3
        curve = [row["epoch"] for row in one["history"] if "selection/loss" in row]
        assert curve == [0, 1, 2]
        assert [row["epoch"] for row in one["history"] if "val/loss" in row] == [3]  # the score


def train(folder, moment):
    """Kills itself at the beginning of an epoch, or when fold 0 is finished; or never."""
    fit_many.SAVE_SECONDS = 0.0
    if moment.startswith("epoch"):
        real = fit_many.StackedFit.on_train_epoch_start

        def on_train_epoch_start(self):
            if self.epoch == int(moment[-1]):
                os.kill(os.getpid(), signal.SIGKILL)
            real(self)

        fit_many.StackedFit.on_train_epoch_start = on_train_epoch_start
    elif moment == "finish":
        real_finish = run_fits_module._finish

        def _finish(plan, job, *rest):
            if job.fold == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return real_finish(plan, job, *rest)

        run_fits_module._finish = _finish
    cross_validate(
        lambda: MLPClassifier(64, 10, hidden=[16], dropout=0.2, lr=0.05, lr_schedule="one_cycle"),
        DigitsDataModule(batch_size=128), num_folds=3, engine="vectorized",
        make_callbacks=lambda: [MixUp(0.2), EarlyStopping("val/loss", patience=1)],
        trainer={"max_epochs": 6, "accelerator": "cpu"}, run_dir=folder, figures=False,
        progress_bar=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder.parent)
        forked.run(train, folder, "never")
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Killed in its fourth epoch."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder.parent)
        forked.run(train, folder, "epoch3", code=-signal.SIGKILL)
    return folder


@pytest.mark.parametrize("how", ["empty", "truncated", "another"])
def test_a_damaged_state_restarts_the_fits(tmp_path, whole, killed, how):
    shutil.copytree(killed, tmp_path / "a")
    state = tmp_path / "a" / "together.ckpt"
    other = whole / "fold-0" / "checkpoints" / "best.ckpt"
    content = {"empty": b"", "truncated": state.read_bytes()[:-9], "another": other.read_bytes()}
    state.write_bytes(content[how])
    forked.run(train, tmp_path / "a", "never")
    assert not state.exists()
    assert files(tmp_path / "a") == files(whole)
    for k in range(3):
        logged = [path / f"fold-{k}" / "metrics.csv" for path in (tmp_path / "a", whole)]
        assert logged[0].read_text() == logged[1].read_text()


def test_killed_and_called_again(tmp_path, whole, killed):
    for moment in ("epoch1", "epoch3", "finish"):
        folder = tmp_path / moment
        if moment == "epoch3":
            shutil.copytree(killed, folder)
        else:
            forked.run(train, folder, moment, code=-signal.SIGKILL)
        forked.run(train, folder, "never")
        assert files(folder) == files(whole)
        with np.load(folder / "oof.npz") as one, np.load(whole / "oof.npz") as other:
            for name in other:
                np.testing.assert_array_equal(one[name], other[name])
        for k in range(3):
            part = f"fold-{k}/checkpoints/best.ckpt"
            one, other = (torch.load(path / part, weights_only=True) for path in (folder, whole))
            assert one["epoch"] == other["epoch"]
            for name, value in other["state_dict"].items():
                assert torch.equal(one["state_dict"][name], value), name
            for part in ("metrics.csv", "history.csv"):
                logged = [path / f"fold-{k}" / part for path in (folder, whole)]
                assert logged[0].read_text() == logged[1].read_text()
