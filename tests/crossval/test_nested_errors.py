"""Nested cross-validation: fits that fail, and bad input."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from ridge import FOLDS, GROUPS, N, RidgeModel, X, Y, run
from sklearn.model_selection import ParameterGrid

from dlblocks.crossval import NestedResult
from dlblocks.crossval._search import grid_points
from dlblocks.data import ArrayDataModule, TabularDataModule
from dlblocks.models import MLPClassifier


@pytest.fixture(autouse=True)
def _forget():
    RidgeModel.made.clear()


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
        ({"grid": {"alpa": [1.0]}}, TypeError, r"make_model\(alpa=1.0\): .* argument 'alpa'"),
        ({"grid": {"alpha": "0.1"}}, TypeError, r"'alpha' needs to be a list .* got '0.1'"),
        ({"grid": {"alpha": 0.1}}, TypeError, "wrapped in a list with one element"),
        ({"grid": {"alpha": []}}, ValueError, "'alpha' need to be a non-empty sequence"),
        ({"grid": [{}]}, ValueError, "grid is empty"),
        ({"grid": []}, ValueError, "grid is empty"),
        ({"grid": "alpha"}, TypeError, "must be a dictionary or a list"),
        ({"grid": [3]}, ValueError, "grid="),
        ({"grid": {"alpha": [8, 8]}}, ValueError, "grid has alpha=8 twice"),
        ({"make_model": lambda alpha, beta: 3}, TypeError, "missing .* argument: 'beta'"),
        ({"make_model": lambda alpha: 3}, TypeError, "must return a LightningModule, got int"),
        ({"make_model": 3}, TypeError, "make_model=3 is not a function; give one that returns"),
        ({"num_folds": 1}, ValueError, "num_folds=1"),
        ({"inner_folds": 1}, ValueError, "inner_folds=1"),
        ({"repeats": 0}, ValueError, "repeats=0"),
        ({"mode": "lowest"}, ValueError, "mode='lowest'"),
        ({"on_error": "ignore"}, ValueError, "on_error='ignore'"),
        ({"logger": "wandbb"}, ValueError, "did you mean 'wandb'"),
        ({"trainer": {"max_epoch": 3}}, ValueError, "did you mean 'max_epochs'"),
        ({"n_jobs": 0}, ValueError, "n_jobs=0"),
        ({"engine": "vectorised"}, ValueError, "did you mean 'vectorized'"),
        ({"engine": "vectorized", "n_jobs": 2}, ValueError, "n_jobs=2 has no effect"),
        (
            {"inner_folds": 41}, ValueError,
            "inner_folds=41 of the 40 training samples of outer fold 0: .*num_folds=41 is outside",
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


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("point", [0, 1])
def test_a_plateau_schedule_of_their_own_is_refused_before_the_first_fit(tmp_path, inside, point):
    class Own(RidgeModel):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            monitor = {"monitor": "val/mse" if self.alpha == point else "train/mse"}
            if inside:
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, **monitor}}
            return {"optimizer": optimizer, "lr_scheduler": schedule, **monitor}

    said = "trained again, .* plateau schedule monitors 'val/mse'; use another schedule"
    with pytest.raises(ValueError, match=said):
        run(ArrayDataModule(X, Y), Own, {"alpha": [0, 1]}, num_folds=2, inner_folds=2)
    assert not any(hasattr(model, "x") for model in RidgeModel.made)
    assert not (tmp_path / "run").exists()


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
