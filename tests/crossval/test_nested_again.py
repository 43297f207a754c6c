"""Nested cross-validation called again, side by side, by another engine, failing."""

import os
import signal
import subprocess
import sys

import forked
import lightning.pytorch as pl
import numpy as np
import pytest
from ridge import CPU, FOLDS, GROUPS, N, RidgeModel, X, Y, run
from sklearn.model_selection import (
    ParameterGrid,
)

import dlblocks.fitting
from dlblocks.crossval import (
    NestedResult,
    cross_validate,
    nested_cross_validate,
)
from dlblocks.crossval.search import grid_points
from dlblocks.data import ArrayDataModule, TabularDataModule
from dlblocks.models import MLPClassifier


@pytest.fixture(autouse=True)
def _forget():
    RidgeModel.made.clear()


# Called again, side by side, failing


def small(folder, make_callbacks=None, **arguments):
    return nested_cross_validate(
        lambda lr: MLPClassifier(4, 3, hidden=[8], lr=lr, dropout=0.1),
        TabularDataModule("iris"),
        {"lr": [0.05, 0.001]},
        num_folds=2,
        inner_folds=2,
        trainer={"accelerator": "cpu", "max_epochs": 3},
        make_callbacks=make_callbacks,
        **{"progress_bar": False, "figures": False, "run_dir": folder, **arguments},
    )


def assert_same(one, other):
    for mine, theirs in zip(one.folds, other.folds, strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}
    assert one.search == other.search
    for name, values in vars(one.oof).items():
        np.testing.assert_array_equal(values, getattr(other.oof, name))


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
        self._at = at

    def on_train_epoch_start(self, trainer, module):
        Kill.count += trainer.current_epoch == 1
        if Kill.count == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(at):
    Kill.count, dlblocks.fitting.RESUME_SECONDS = 0, 0.0
    small("killed", lambda: [Kill(at)])


def test_killed_within_an_inner_fit_and_called_again(tmp_path):
    for at, code in ((3, -signal.SIGKILL), (0, 0)):
        forked.run(killed, at, code=code)
        assert (tmp_path / "killed" / "summary.json").exists() == (code == 0)
    assert_same(NestedResult.load("killed"), small("whole"))


@pytest.mark.slow
def test_side_by_side_is_one_after_another():
    assert_same(small("side", n_jobs=2), small("one"))


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


def test_a_cross_validation_and_a_nested_one_are_not_mixed():
    data = ArrayDataModule(X, Y)
    run(data, num_folds=2, inner_folds=2)
    with pytest.raises(FileExistsError, match="points is gone"):
        cross_validate(
            RidgeModel, data, num_folds=2, trainer=CPU, monitor="val/mse", run_dir="run",
            progress_bar=False,
        )  # fmt: skip


TWO_RANKS = """
import sys
import torch
from dlblocks.crossval import nested_cross_validate
from dlblocks.data import TabularDataModule
from dlblocks.models import MLPClassifier

torch.set_num_threads(1)

class Unsynced(MLPClassifier):
    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        sign = 1 if self.global_rank else -1  # the ranks would choose differently
        self.log("odd", sign * self.hparams.lr, sync_dist=False)

for monitor in ("val/loss", "odd"):
    nested_cross_validate(
        lambda lr: Unsynced(4, 3, hidden=[8], lr=lr),
        TabularDataModule("iris", batch_size=20),
        {"lr": [0.05, 0.2]},
        num_folds=2,
        inner_folds=2,
        monitor=monitor,
        trainer={
            "accelerator": "cpu", "max_epochs": 2, "devices": 2, "strategy": "ddp",
        },
        run_dir=monitor[:3],
        figures=False,
        progress_bar=False,
    )
"""


@pytest.mark.slow
def test_two_processes_choose_as_one(tmp_path):
    (tmp_path / "script.py").write_text(TWO_RANKS)
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    one = nested_cross_validate(
        lambda lr: MLPClassifier(4, 3, hidden=[8], lr=lr), TabularDataModule("iris", batch_size=40),
        {"lr": [0.05, 0.2]}, num_folds=2, inner_folds=2, progress_bar=False, figures=False,
        trainer={"accelerator": "cpu", "max_epochs": 2}, run_dir="one",
    )  # fmt: skip
    two, odd = (NestedResult.load(name) for name in ("val", "odd"))
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


class Sometimes(RidgeModel):
    """Fails for negative alpha, and diverges for that of 99."""

    def on_train_epoch_end(self):
        if self.alpha < 0:
            raise RuntimeError("negative alpha")
        super().on_train_epoch_end()
        if self.alpha == 99:
            self.weights *= float("nan")


def test_points_that_fail_are_not_chosen(capsys):
    data = ArrayDataModule(X, Y)
    grid = {"alpha": [-1.0, 99, 1.0]}
    with pytest.raises(RuntimeError, match=r"outer fold 0: alpha=-1.0: fold 0: negative alpha"):
        run(data, Sometimes, grid, num_folds=2, inner_folds=2)
    result = run(data, Sometimes, grid, num_folds=2, inner_folds=2, on_error="continue",
                 run_dir="continued")  # fmt: skip
    assert [choice["point"] for choice in result.choices] == [2, 2]
    assert "negative alpha" in result.search[0]["error"]
    assert np.isnan([result.search[0]["mean"], result.search[1]["mean"]]).all()
    assert "error" not in result.search[1]
    loaded = NestedResult.load(result.run_dir)
    assert np.isnan(loaded.search[0]["mean"])
    assert loaded.table() == result.table()
    assert "negative alpha" in loaded.report().read_text()
    with pytest.raises(ValueError, match=r"no point of grid has a mean of monitor='val/mse'"):
        run(data, Sometimes, {"alpha": [99]}, num_folds=2, inner_folds=2, run_dir="nothing")


def test_an_outer_fold_that_fails_is_named():
    class FailsLast(RidgeModel):
        def on_train_epoch_end(self):
            super().on_train_epoch_end()
            if len(self.x) == N // 2 and 0.0 in FailsLast.bad & set(self.x[:, 0].tolist()):
                raise RuntimeError("refit fails")

    x = X.copy()
    x[0, 0] = 0.0
    FailsLast.bad = {0.0}
    data = ArrayDataModule(x, Y, normalize=False)
    result = run(data, FailsLast, {"alpha": [1.0]}, num_folds=2, inner_folds=2, on_error="continue")
    assert [f["error"] for f in result.info["failed"]] == ["RuntimeError('refit fails')"]
    assert len(result.folds) == len(result.choices) == 1
    assert "1 of 2 folds" in result.table()
    FailsLast.bad = set()
    again = run(data, FailsLast, {"alpha": [1.0]}, num_folds=2, inner_folds=2, on_error="continue")
    assert len(again.folds) == 2
    assert "failed" not in again.info


# Bad input


def test_points_are_scikit_learns():
    grid = [{"b": [1, 2], "a": ["x"]}, {"c": np.logspace(-2, 0, 3)}, {"d": np.arange(2)}]
    assert grid_points(grid) == list(ParameterGrid(grid))
    assert {type(point["d"]) for point in grid_points(grid)[-2:]} == {int}
    assert grid_points({"a": [True, 1, 1.0]}) == [{"a": True}, {"a": 1}, {"a": 1.0}]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"grid": {"alpa": [1.0]}}, ValueError, "'alpa', which make_model does not take; did you"),
        ({"grid": {"beta_of": [1.0]}}, ValueError, "does not take. It takes: alpha"),
        ({"grid": {"alpha": "0.1"}}, TypeError, r"grid\['alpha'\]='0.1' must be a list"),
        ({"grid": {"alpha": 0.1}}, TypeError, r"write \[0.1\]"),
        ({"grid": {"alpha": []}}, ValueError, r"grid\['alpha'\] is empty"),
        ({"grid": [{}]}, ValueError, "has no names"),
        ({"grid": []}, ValueError, "grid is empty"),
        ({"grid": "alpha"}, TypeError, "must map names to lists"),
        ({"grid": [3]}, ValueError, "has no names"),
        ({"grid": {"alpha": [8, 8]}}, ValueError, "grid has alpha=8 twice"),
        ({"make_model": lambda alpha, beta: None}, ValueError, "make_model needs 'beta'"),
        ({"make_model": lambda alpha: 3}, TypeError, "must return a LightningModule, got int"),
        ({"make_model": 3}, TypeError, "make_model=3 must be a function"),
        ({"num_folds": 1}, ValueError, "num_folds=1"),
        ({"inner_folds": 1}, ValueError, "inner_folds=1"),
        ({"repeats": 0}, ValueError, "repeats=0"),
        ({"mode": "lowest"}, ValueError, "mode='lowest'"),
        ({"on_error": "ignore"}, ValueError, "on_error='ignore'"),
        ({"logger": "wandbb"}, ValueError, "did you mean 'wandb'"),
        ({"trainer": {"max_epoch": 3}}, ValueError, "did you mean 'max_epochs'"),
        ({"n_jobs": 0}, ValueError, "n_jobs=0"),
        (
            {"inner_folds": 41}, ValueError,
            "inner_folds=41 of the 40 training samples of outer fold 0: .*num_folds=41 is more",
        ),
        ({"data": pl.LightningDataModule()}, TypeError, "datamodule must be a dlblocks DataModule"),
        ({"data": 3}, TypeError, "callable|DataModule"),
        (
            {"data": ArrayDataModule(X, Y, folds=FOLDS % 2, split="predefined"),
             "num_folds": None}, ValueError, "outer fold 0: folds has 1 different value",
        ),
        (
            {"data": ArrayDataModule(X, Y, groups=GROUPS % 3), "inner_folds": 3}, ValueError,
            "outer fold 0: 3 folds need at least 3 groups",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_said_before_any_fit(tmp_path, arguments, error, message):
    settings = {"data": ArrayDataModule(X, Y), "num_folds": 3, "inner_folds": 2}
    with pytest.raises(error, match=message):
        run(**{**settings, **arguments})
    assert not any(hasattr(model, "x") for model in RidgeModel.made)
    assert not (tmp_path / "run").exists()


def test_models_that_cannot_be_searched():
    shared = RidgeModel()
    with pytest.raises(ValueError, match="same model for two points"):
        run(ArrayDataModule(X, Y), lambda alpha: shared)
    with pytest.raises(ValueError, match="lr_schedule='plateau'"):
        run(
            TabularDataModule("iris"), lambda s: MLPClassifier(4, 3, lr_schedule=s),
            {"s": ["cosine", "plateau"]}, monitor="val/loss",
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"make_model\(width=-1\): "):
        run(
            TabularDataModule("iris"), lambda width: MLPClassifier(4, 3, hidden=[width]),
            {"width": [4, -1]},
        )  # fmt: skip
    assert not any(hasattr(model, "x") for model in RidgeModel.made)


def test_a_monitor_that_validation_lacks():
    with pytest.raises(ValueError, match=r"monitor='train/loss' is not logged in validation.*val/"):
        run(
            TabularDataModule("iris"), lambda lr: MLPClassifier(4, 3, lr=lr), {"lr": [0.1, 0.2]},
            num_folds=2, inner_folds=2, monitor="train/loss",
        )  # fmt: skip


def test_progress_names_fold_and_point(capsys):
    run(ArrayDataModule(X, Y), num_folds=2, inner_folds=2, progress_bar=True)
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "outer fold 1 | training: alpha=" in shown
