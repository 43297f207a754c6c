"""Nested cross-validation called again, by two processes, side by side, by another engine."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import forked
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from ridge import CPU, RidgeModel, X, Y, run

import dlblocks.runs.fit
from dlblocks.crossval import (
    CrossValidationResult,
    NestedResult,
    cross_validate,
    nested_cross_validate,
)
from dlblocks.data import ArrayDataModule, TabularDataModule
from dlblocks.engine import NotVectorizable
from dlblocks.models import Classifier, MLPClassifier


@pytest.fixture(autouse=True)
def _forget():
    RidgeModel.made.clear()


# Called again, side by side, failing


def small(folder, make_callbacks=None, dropout=0.1, **arguments):
    return nested_cross_validate(
        lambda lr: MLPClassifier(4, 3, hidden=[8], lr=lr, dropout=dropout),
        TabularDataModule("iris"),
        {"lr": [0.05, 0.001]},
        num_folds=2,
        inner_folds=2,
        trainer={"accelerator": "cpu", "max_epochs": 2},
        make_callbacks=make_callbacks,
        **{"progress_bar": False, "figures": False, "run_dir": folder, **arguments},
    )


def assert_same(one, other):
    for mine, theirs in zip(one.folds, other.folds, strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}
    assert one.search == other.search
    for name, values in one.oof.columns.items():
        np.testing.assert_array_equal(values, getattr(other.oof, name))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One fit after another, none of them killed."""
    return small(tmp_path_factory.mktemp("one") / "one")


def test_called_again_goes_on_where_it_was():
    class Killed(BaseException):
        pass

    class Kill(pl.Callback):
        count = at = 0

        def on_train_epoch_start(self, trainer, module):
            Kill.count += trainer.current_epoch == 1
            if Kill.count == Kill.at and trainer.current_epoch == 1:
                raise Killed

    whole = small("whole", lambda: [Kill()])
    assert Kill.count == 10  # 2 × (2 × 2 + 1) fits
    # In an inner fit; in the model of the first outer fold; in the second outer fold.
    for at in (3, 5, 7):
        Kill.count, Kill.at = 0, at
        with pytest.raises(Killed):
            small(f"at-{at}", lambda: [Kill()])
        Kill.at = 0
        again = small(f"at-{at}", lambda: [Kill()])
        assert Kill.count == 11  # all once, and what was broken off again
        assert_same(again, whole)
        rows = (again.run_dir / "fold-0" / "metrics.csv").read_text().splitlines()
        first = (whole.run_dir / "fold-0" / "metrics.csv").read_text().splitlines()
        assert rows == first
    small("whole", lambda: [Kill()])
    assert Kill.count == 11  # a finished run is read back


class Kill(pl.Callback):
    """Kills its process in the second epoch of a fit; 0 for none."""

    def __init__(self, at):
        self._when = at

    def on_train_epoch_start(self, trainer, module):
        Kill.count += trainer.current_epoch == 1
        if Kill.count == self._when:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(at):
    Kill.count, dlblocks.runs.fit.RESUME_SECONDS = 0, 0.0
    small("killed", lambda: [Kill(at)])


def test_killed_within_an_inner_fit_and_called_again(tmp_path, one):
    for at, code in ((3, -signal.SIGKILL), (0, 0)):
        forked.run(killed, at, code=code)
        assert (tmp_path / "killed" / "summary.json").exists() == (code == 0)
    assert_same(NestedResult.load("killed"), one)


@pytest.mark.slow
@pytest.mark.processes
def test_side_by_side_is_one_after_another(one):
    assert_same(small("side", n_jobs=2), one)


def test_another_configuration_is_refused():
    arguments = {
        "data": ArrayDataModule(X, Y), "grid": {"alpha": [0.01, 3.0]}, "num_folds": 2,
        "inner_folds": 2,
    }  # fmt: skip
    run(**arguments)
    RidgeModel.made.clear()
    for changed, message in (
        ({"grid": {"alpha": [0.01]}}, "points had 2 entries and has 1"),
        ({"grid": {"alpha": [0.02, 3.0]}}, r"points\[0\].hyperparameters.alpha was"),
        ({"inner_folds": 4}, "inner_folds was 2 and is 4"),
        ({"num_folds": 4}, "num_folds was 2 and is 4"),
        ({"data": ArrayDataModule(X, Y + 1)}, "fingerprint"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"resume": False}, "already holds a run"),
        ({"engine": "auto"}, "engine is new"),
    ):
        with pytest.raises(FileExistsError, match=message):
            run(**{**arguments, **changed})
        assert not any(hasattr(model, "x") for model in RidgeModel.made)


HOLD = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("there", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def hold(path):
    """Another process that has the lock for as long; its first line is empty if it cannot."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-S", "-c", HOLD, path], text=True, **pipes) as other:
        yield other.stdout.readline()


def test_a_second_process_is_refused_and_cannot_begin(tmp_path):
    (tmp_path / "run").mkdir()
    arguments = {"data": ArrayDataModule(X, Y), "num_folds": 2, "inner_folds": 2}
    with hold("run/.lock") as got:
        assert got == "there\n"
        with pytest.raises(BlockingIOError, match="run_dir='run' is in use by"):
            run(**arguments)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]  # the other's
    assert not any(hasattr(model, "x") for model in RidgeModel.made)
    tried = []

    class Try(pl.Callback):
        def on_train_start(self, trainer, module):
            if len(tried) < 2:
                for path in ("run/.lock", "run/fold-0/point-0/.lock"):
                    with hold(path) as got:
                        tried.append(got)

    run(**arguments, make_callbacks=lambda: [Try()])
    assert tried == ["", ""]
    assert not list((tmp_path / "run").rglob(".*"))


def test_the_inner_folds_as_one_fit(tmp_path):
    alone, together = (
        small(engine, engine=engine, dropout=0.0) for engine in ("sequential", "vectorized")
    )
    assert {row["engine"] for row in together.search} == {"vectorized"}
    inner = json.loads((tmp_path / "vectorized/fold-1/point-0/plan.json").read_text())
    assert inner["config"]["engine"] == "vectorized"
    assert [row["point"] for row in together.choices] == [row["point"] for row in alone.choices]
    for mine, theirs in zip(together.search, alone.search, strict=True):
        np.testing.assert_allclose(mine["scores"], theirs["scores"], atol=1e-4)
    # The models of the outer folds are fits of their own, and bit for bit the same.
    assert together.values("val/loss") == alone.values("val/loss")
    np.testing.assert_array_equal(together.oof.prediction, alone.oof.prediction)
    with pytest.raises(FileExistsError, match="engine was 'vectorized' and is 'auto'"):
        small("vectorized", engine="auto", dropout=0.0)
    with pytest.raises(FileExistsError, match="engine is gone"):
        small("vectorized", dropout=0.0)
    together.refit()
    assert CrossValidationResult.load("vectorized/refit/point-1").info["engine"] == "vectorized"


def test_auto_decides_for_each_point_and_keeps_to_it(monkeypatch, capsys):
    class Branching(torch.nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y if y.sum() > 0 else 2 * y

    class Killed(BaseException):
        pass

    def make(branching):
        made.append(branching)
        if len(made) == stop:
            raise Killed
        return Classifier(Branching(4, 3) if branching else torch.nn.Linear(4, 3), 3)

    def call():
        return run(TabularDataModule("iris"), make, {"branching": [False, True]}, num_folds=2,
                   inner_folds=2, engine="auto", monitor="val/loss")  # fmt: skip

    made, stop = [], 0
    assert [row["engine"] for row in call().search] == ["vectorized", "sequential"] * 2
    assert "engine:" not in capsys.readouterr().err  # a line a point and fold would be too many
    count, made = len(made), []
    assert json.loads(Path("run/plan.json").read_text())["config"]["engine"] == "auto"
    # Killed after the first outer fold; whatever would be measured now, what was begun goes on.
    shutil.move("run", "whole")
    stop = count - 1
    with pytest.raises(Killed):
        call()
    monkeypatch.setattr("dlblocks.engine.choose.STEP_SECONDS", -1e9)
    stop = 0
    assert [row["engine"] for row in call().search] == ["vectorized", "sequential"] * 2


def test_a_point_that_cannot_be_vectorized_is_said_before_any_fit(tmp_path):
    class Own(MLPClassifier):
        def training_step(self, batch, batch_idx):
            return 2 * super().training_step(batch, batch_idx)

    with pytest.raises(NotVectorizable, match=r"own=True: engine='vectorized' cannot.*'auto'"):
        run(
            TabularDataModule("iris"), lambda own: (Own if own else MLPClassifier)(4, 3),
            {"own": [False, True]}, monitor="val/loss", engine="vectorized", on_error="continue",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_cross_validation_and_a_nested_one_are_not_mixed():
    data = ArrayDataModule(X, Y)
    run(data, num_folds=2, inner_folds=2)
    with pytest.raises(FileExistsError, match="points is gone"):
        cross_validate(
            RidgeModel, data, num_folds=2, trainer=CPU, monitor="val/mse", run_dir="run",
            progress_bar=False,
        )  # fmt: skip


class Unsynced(MLPClassifier):
    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        sign = 1 if self.global_rank else -1  # the ranks would choose differently
        self.log("odd", sign * self.hparams.lr, sync_dist=False)


def choose(devices):
    for monitor in ("val/loss", "odd") if devices == 2 else ("val/loss",):
        nested_cross_validate(
            lambda lr: Unsynced(4, 3, hidden=[8], lr=lr),
            TabularDataModule("iris", batch_size=40 // devices),
            {"lr": [0.05, 0.2]},
            num_folds=2,
            inner_folds=2,
            monitor=monitor,
            mode="min",
            trainer={
                "accelerator": "cpu", "max_epochs": 2, "devices": devices,
                "strategy": "ddp" if devices > 1 else "auto",
            },
            run_dir=f"{devices}-{monitor[:3]}",
            figures=False,
            progress_bar=False,
        )  # fmt: skip


def test_two_processes_choose_as_one():
    forked.torchrun(choose, 2)
    choose(1)
    one, two, odd = (NestedResult.load(name) for name in ("1-val", "2-val", "2-odd"))
    assert [c["point"] for c in one.choices] == [c["point"] for c in two.choices]
    np.testing.assert_allclose(two.values("val/loss"), one.values("val/loss"), rtol=1e-4)
    np.testing.assert_array_equal(two.oof.index, one.oof.index)
    np.testing.assert_allclose(two.oof.prediction, one.oof.prediction, atol=1e-4)
    assert [c["hyperparameters"]["lr"] for c in odd.choices] == [0.2, 0.2]  # as rank 0 has it
    assert len(odd.oof) == 120


def test_a_function_makes_the_data_anew():
    made = []

    def make():
        made.append(ArrayDataModule(X, Y, normalize=False))
        return made[-1]

    result = run(make, num_folds=2, inner_folds=2, grid={"alpha": [1.0, 2.0]})
    expected = run(
        ArrayDataModule(X, Y, normalize=False), num_folds=2, inner_folds=2,
        grid={"alpha": [1.0, 2.0]}, run_dir="other",
    )  # fmt: skip
    assert result.search == expected.search
    assert len(made) > 5
