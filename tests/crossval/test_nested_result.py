"""What a nested cross-validation leaves: files, tables, models, W&B runs."""

import json

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from ridge import CPU, RidgeModel, X, Y, run
from sklearn.model_selection import ParameterGrid
from wandb_offline import read_runs

from dlblocks.crossval import (
    CrossValidationResult,
    NestedResult,
    cross_validate,
    nested_cross_validate,
)
from dlblocks.data import ArrayDataModule, TabularDataModule
from dlblocks.models import MLPClassifier, load


@pytest.fixture(autouse=True)
def _forget():
    RidgeModel.made.clear()


# What a fit of what was chosen is


def test_one_point_and_one_epoch_is_the_plain_cross_validation():
    data = TabularDataModule("iris", test_fraction=0)
    settings = {"num_folds": 3, "monitor": "val/loss", "seed": 4}
    nested = run(
        data, lambda lr: MLPClassifier(4, 3, hidden=[8], dropout=0.2, lr=lr),
        {"lr": [0.05]}, inner_folds=2, **settings,
    )  # fmt: skip
    plain = cross_validate(
        lambda: MLPClassifier(4, 3, hidden=[8], dropout=0.2, lr=0.05), data, trainer=CPU,
        progress_bar=False, figures=False, logger=None, run_dir="plain", select="last", **settings,
    )  # fmt: skip
    assert nested.values("val/loss") == plain.values("val/loss")
    for name, values in plain.oof.columns.items():
        np.testing.assert_array_equal(values, getattr(nested.oof, name))
    assert nested.compare(plain, "val/loss").difference == 0


@pytest.fixture(scope="module")
def iris(tmp_path_factory):
    """A search that was run whole, with its arguments but `run_dir`."""
    arguments = {
        "make_model": lambda lr, hidden: MLPClassifier(
            4, 3, hidden=hidden, lr=lr, lr_schedule="cosine", dropout=0.1
        ),
        "datamodule": TabularDataModule("iris", test_fraction=0.2),
        "grid": {"lr": [0.001, 0.05], "hidden": [[8], [8, 8]]},
        "num_folds": 2,
        "inner_folds": 2,
        "trainer": {"accelerator": "cpu", "max_epochs": 4},
        "make_callbacks": lambda: [pl.callbacks.EarlyStopping("val/loss", patience=2)],
        "progress_bar": False,
    }
    folder = tmp_path_factory.mktemp("nested") / "iris"
    return nested_cross_validate(**arguments, run_dir=folder, repeats=2), arguments


def test_what_is_chosen_is_what_its_cross_validation_says(iris):
    result, arguments = iris
    assert len(result.search) == 16
    for row, choice in zip(result.folds, result.choices, strict=True):
        point = result.run_dir / row["checkpoint"].split("/refit")[0]
        inner = CrossValidationResult.load(point)
        assert inner.values("val/loss") == choice["scores"]
        assert inner.mean("val/loss") == choice["mean"]
        best = [each["best_epoch"] for each in inner.folds]
        assert row["epochs"] == choice["epochs"] == round(np.median(best))
        mine = [
            r for r in result.search if (r["repeat"], r["fold"]) == (row["repeat"], row["fold"])
        ]
        assert choice["mean"] == min(r["mean"] for r in mine)
        assert [r["hyperparameters"] for r in mine] == list(ParameterGrid(arguments["grid"]))
        model = load(result.run_dir / row["checkpoint"])
        assert dict(model.hparams)["lr"] == choice["hyperparameters"]["lr"]
    assert not list(result.run_dir.rglob("best.ckpt"))
    assert len(list(result.run_dir.rglob("model.ckpt"))) == 4


class Dips(RidgeModel):
    """Its error is least in an epoch from 2 to 5 that its training rows decide."""

    def on_train_epoch_start(self):
        self.rows, self.epochs = [], self.current_epoch + 1

    def on_train_epoch_end(self):
        pass

    def validation_step(self, batch, batch_idx):
        x = torch.cat([x for x, _ in self.rows]).double()
        self.goal = 2 + int(x.abs().sum() * 1e3) % 4
        self.log("val/mse", abs(self.epochs - self.goal) + 0.0, batch_size=len(batch[0]))


def test_what_is_chosen_is_trained_for_the_median_of_the_best_epochs():
    result = run(
        ArrayDataModule(X, Y), Dips, {"alpha": [1.0]}, num_folds=3, inner_folds=3,
        trainer={**CPU, "max_epochs": 7},
        make_callbacks=lambda: [pl.callbacks.EarlyStopping("val/mse", patience=3)],
    )  # fmt: skip
    fitted = [model for model in Dips.made if hasattr(model, "epochs")]
    goals = [[inner.goal for inner in fitted[4 * fold : 4 * fold + 3]] for fold in range(3)]
    expected = np.median(goals, axis=1).tolist()
    assert len(set(expected)) > 1
    assert [model.epochs for model in fitted[3::4]] == expected
    assert [row["epochs"] for row in result.folds] == expected


def test_files_tables_and_what_is_loaded(iris):
    result, _ = iris
    summary = json.loads((result.run_dir / "summary.json").read_text())
    assert summary["metrics"]["val/accuracy"]["mean"] == result.mean("val/accuracy")
    loaded = NestedResult.load(result.run_dir)
    assert loaded.folds == result.folds
    assert loaded.search == result.search
    assert loaded.table() == result.table()
    assert "inner val/loss" in result.table()
    assert "hidden=[8" in result.table()
    frame = result.to_pandas("search")
    assert frame["chosen"].sum() == 4
    assert len(frame) == 16
    assert list(result.to_pandas()["param_lr"]) == [c["hyperparameters"]["lr"] for c in
                                                    result.choices]  # fmt: skip
    assert len(result.to_pandas("oof")) == len(result.oof) == 240
    assert (result.run_dir / "search.csv").read_text().count("\n") == 17
    for name in ("inner_and_outer", "confusion_matrix", "scores"):
        assert (result.run_dir / "figures" / f"{name}.png").is_file()
    page = loaded.report().read_text()
    assert page.count("chosen</td>") == 4
    with pytest.raises(ValueError, match="call nested_cross_validate again"):
        loaded.refit()


def test_the_models_of_the_outer_folds_predict_their_folds(iris):
    result, arguments = iris
    for row in result.folds:
        data = arguments["datamodule"].for_fold(row["fold"], 2, repeat=row["repeat"])
        inputs, _, index = data.arrays("val")
        model = load(result.run_dir / row["checkpoint"]).eval()
        with torch.no_grad():
            expected = model(inputs).softmax(1)
        here = (result.oof.fold == row["fold"]) & (result.oof.repeat == row["repeat"])
        np.testing.assert_array_equal(result.oof.index[here], index)
        np.testing.assert_allclose(result.oof.prediction[here], expected, atol=1e-6)
    together = result.ensemble()
    scores = result.test(together)
    assert 0 <= scores["test/accuracy"] <= 1


def test_refit_searches_all_development_data(iris):
    result, arguments = iris
    with pytest.raises(TypeError, match="unexpected keyword argument 'seed'"):
        result.refit(seed=3)
    model = result.refit()
    rows = json.loads((result.run_dir / "refit" / "search.json").read_text())
    (chosen,) = [row for row in rows if row["chosen"]]
    plain = cross_validate(
        lambda: arguments["make_model"](**chosen["hyperparameters"]), arguments["datamodule"],
        num_folds=2, trainer=arguments["trainer"], make_callbacks=arguments["make_callbacks"],
        progress_bar=False, figures=False, run_dir="plain", logger=None, select="fold",
    )  # fmt: skip
    assert plain.values("val/loss") == chosen["scores"]
    for name, weights in plain.refit().state_dict().items():
        assert torch.equal(weights, model.state_dict()[name])


def test_wandb_has_a_run_an_outer_fold_and_a_summary(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = run(
        TabularDataModule("iris"), lambda lr: MLPClassifier(4, 3, hidden=[4], lr=lr),
        {"lr": [0.01, 0.1]}, num_folds=2, inner_folds=2, monitor="val/loss", logger="wandb",
        run_dir="grouped",
    )  # fmt: skip
    runs = {logged["name"]: logged for logged in read_runs(result.run_dir)}
    assert sorted(runs) == ["grouped-fold-0", "grouped-fold-1", "grouped-summary"]
    assert {logged["group"] for logged in runs.values()} == {"grouped"}
    for row, choice in zip(result.folds, result.choices, strict=True):
        logged = runs[f"grouped-fold-{row['fold']}"]
        assert logged["job_type"] == "fold"
        assert logged["config"]["chosen"] == choice["hyperparameters"]
        assert logged["summary"]["val/loss"] == pytest.approx(row["val/loss"])
        assert "train/loss" in logged["summary"]
    assert runs["grouped-summary"]["summary"]["val/loss/mean"] == result.mean("val/loss")
