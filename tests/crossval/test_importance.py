"""Permutation importance, against scikit-learn and a loop."""

import csv

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from sklearn import inspection, metrics
from sklearn.base import BaseEstimator
from torch.nn import functional as F

from dlblocks.crossval import CrossValidationResult, cross_validate
from dlblocks.data import ArrayDataModule, DigitsDataModule, TabularDataModule
from dlblocks.models import MLPClassifier, MLPRegressor

QUIET = {"progress_bar": False, "logger": None, "figures": False}
TRAINER = {"max_epochs": 15, "accelerator": "cpu"}
RNG = np.random.default_rng(0)
X = (RNG.normal(size=(150, 4)) * [1, 10, 1, 1] + [0, 100, 0, 0]).astype("float32")
Y = {
    "classes": (X[:, 0] + (X[:, 1] - 100) / 5 + RNG.normal(size=150) > 0).astype(int),
    "values": (3 * X[:, 0] + (X[:, 1] - 100) / 10 + RNG.normal(size=150)).astype("float32"),
}


class AsEstimator(BaseEstimator):
    """A fold's model as scikit-learn wants it."""

    def __init__(self, model=None):
        self.model = model

    def fit(self, x, y):
        return self

    def predict(self, x):
        with torch.no_grad():
            return self.model.prediction(self.model(torch.from_numpy(x))).numpy()


@pytest.fixture(scope="module", params=["classes", "values"])
def run(request, tmp_path_factory):
    y = Y[request.param]
    make = {
        "classes": lambda: MLPClassifier(4, 2, hidden=[8], lr=0.02),
        "values": lambda: MLPRegressor(4, hidden=[8], lr=0.02),
    }[request.param]
    data = ArrayDataModule(X, y, num_folds=3, test_fraction=0.2, batch_size=16)
    folder = tmp_path_factory.mktemp("run")
    return request.param, cross_validate(make, data, run_dir=folder, trainer=TRAINER, **QUIET)


SCORES = {
    "log_loss": lambda e, x, y: -metrics.log_loss(y, e.predict(x).astype(float), labels=[0, 1]),
    "accuracy": lambda e, x, y: metrics.accuracy_score(y, e.predict(x).argmax(1)),
    "rmse": lambda e, x, y: -(metrics.mean_squared_error(y, e.predict(x)) ** 0.5),
    "r2": lambda e, x, y: metrics.r2_score(y, e.predict(x)),
}


@pytest.mark.filterwarnings("ignore:The y_prob values do not sum to one")
@pytest.mark.parametrize("metric", [None, "other"])
def test_it_is_that_of_scikit_learn_for_the_same_permutations(run, metric):
    kind, result = run
    metric = {"classes": "accuracy", "values": "r2"}[kind] if metric else None
    found = result.importance(metric=metric, repeats=4, seed=7, progress_bar=False)
    assert found.metric == (metric or {"classes": "log_loss", "values": "rmse"}[kind])
    score = SCORES[found.metric]
    for k, member in enumerate(result.ensemble().net.members):
        part = result.oof[result.oof.fold == k]
        expected = inspection.permutation_importance(
            AsEstimator(member), X[part.index], part.target, scoring=score, n_repeats=4,
            random_state=7,
        )  # fmt: skip
        mine = found.values[k][[found.names.index(str(j)) for j in range(4)]]
        np.testing.assert_allclose(mine, expected.importances, rtol=1e-4, atol=1e-5)


def test_what_it_says_and_leaves(run):
    _, result = run
    found = result.importance(progress_bar=False)
    assert set(found.names[:2]) == {"0", "1"}  # the others are noise
    for name in found.names[:2]:
        low, high = found.interval(name)
        assert low < found.mean(name) < high
    assert abs(found.mean(found.names[3])) < 0.2 * found.mean(found.names[0])
    with (result.run_dir / "importance.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["column"] for row in rows] == found.names == found.to_pandas()["column"].tolist()
    assert float(rows[0]["importance"]) == pytest.approx(found.mean(found.names[0]))
    assert (result.run_dir / "figures" / "importance.png").stat().st_size > 1000
    assert "changed places" in result.report().read_text()
    assert str(found).startswith("How much worse")


def table():
    city = np.array(["Rome", "Oslo", "Lima"])[RNG.integers(0, 3, 150)]
    frame = pd.DataFrame({"a": X[:, 0], "city": city, "noise": X[:, 2]})
    frame["y"] = frame.a + frame.city.map({"Rome": 3.0, "Oslo": 0.0, "Lima": -3.0})
    return frame


def test_features_of_a_column_and_groups_change_places_together(tmp_path):
    """A city is three features of 0 and 1: a permutation must leave a row one city."""
    frame = table()
    data = TabularDataModule(frame, "y", num_folds=3, batch_size=16, test_fraction=0)
    result = cross_validate(
        lambda: MLPRegressor(5, hidden=[16], lr=0.02), data, run_dir=tmp_path, trainer=TRAINER,
        **QUIET,
    )  # fmt: skip
    assert data.column_features == {"a": [0], "city": [1, 2, 3], "noise": [4]}
    found = result.importance(repeats=3, groups={"both": ["a", "noise"]}, progress_bar=False)
    assert sorted(found.names) == ["both", "city"]
    inputs = data.source.inputs
    for k, member in enumerate(result.ensemble().net.members):
        part = result.oof[result.oof.fold == k]
        for name, features in {"both": [0, 4], "city": [1, 2, 3]}.items():
            seed = np.random.RandomState(0).randint(2**31)
            random, order = np.random.RandomState(seed), np.arange(len(part))
            x = inputs[part.index].clone()
            for r in range(3):
                random.shuffle(order)
                x[:, features] = x[order][:, features]
                assert (x[:, 1:4].sum(1) == 1).all()
                with torch.no_grad():
                    worse = (member(x)[:, 0].numpy() - part.target) ** 2
                base = (part.prediction - part.target) ** 2
                expected = np.sqrt(worse.mean()) - np.sqrt(base.mean())
                mine = found.values[k, found.names.index(name), r]
                assert mine == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_weights_and_a_loaded_result(tmp_path):
    weights = RNG.integers(1, 5, 150).astype("float32")
    data = ArrayDataModule(X, Y["values"], weights=weights, num_folds=2, test_fraction=0)
    cross_validate(
        lambda: MLPRegressor(4, hidden=[8], lr=0.02), data, run_dir=tmp_path, trainer=TRAINER,
        **QUIET,
    )  # fmt: skip
    result = CrossValidationResult.load(tmp_path)
    with pytest.raises(ValueError, match="does not know datamodule"):
        result.importance()
    found = result.importance(data, repeats=1, progress_bar=False)
    part = result.oof[result.oof.fold == 0]
    expected = metrics.mean_squared_error(
        part.target, part.prediction, sample_weight=weights[part.index]
    )
    assert found.scores[0] == pytest.approx(expected**0.5, rel=1e-5)


class Foreign(BoringModel):
    """Somebody else's regression, whose batches are normalised by the datamodule."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def loss(self, batch):
        inputs, targets = batch
        return F.mse_loss(self.layer(inputs)[:, 0], targets)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def predict_step(self, batch, batch_idx):
        inputs, _ = batch
        return self.layer(inputs)[:, 0]


def test_a_module_of_somebody_else(tmp_path):
    data = ArrayDataModule(X, Y["values"], num_folds=3, test_fraction=0.2, batch_size=16)
    result = cross_validate(Foreign, data, run_dir=tmp_path, trainer=TRAINER, **QUIET)
    found = result.importance(repeats=2, progress_bar=False)
    # The same as in the folds, which is the score without a permutation.
    part = result.oof[result.oof.fold == 0]
    rmse = metrics.mean_squared_error(part.target, part.prediction) ** 0.5
    assert found.scores[0] == pytest.approx(rmse, rel=1e-5)
    assert set(found.names[:2]) == {"0", "1"}


def test_errors(run, tmp_path):
    _, result = run
    with pytest.raises(ValueError, match="metric='acuracy' is not a score"):
        result.importance(metric="acuracy")
    with pytest.raises(ValueError, match="which is no column"):
        result.importance(groups={"a": ["7"]})
    with pytest.raises(ValueError, match="has '1' in 'a' and in 'b'"):
        result.importance(groups={"a": ["1"], "b": ["1"]})
    with pytest.raises(ValueError, match="repeats=0"):
        result.importance(repeats=0)
    other = ArrayDataModule(X + 1, Y["values"], num_folds=3, test_fraction=0.2)
    with pytest.raises(ValueError, match="has other samples"):
        result.importance(other)
    images = cross_validate(
        lambda: MLPClassifier(64, 10, hidden=[4]), DigitsDataModule(batch_size=500), num_folds=2,
        run_dir=tmp_path, trainer={"max_epochs": 1, "accelerator": "cpu"}, **QUIET,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\) are not a table"):
        images.importance()
