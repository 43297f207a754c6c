"""Nested cross-validation against scikit-learn's, and what its choice may not see."""

import json

import numpy as np
import pytest
import torch
from ridge import ALPHAS, FOLDS, GROUPS, RNG, N, RidgeModel, X, Y, run
from sklearn.linear_model import Ridge
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    PredefinedSplit,
    StratifiedKFold,
    TimeSeriesSplit,
)
from torch.utils.data import TensorDataset

from dlblocks.data import ArrayDataModule, FoldedDataModule, TabularDataModule
from dlblocks.models import MLPClassifier


@pytest.fixture(autouse=True)
def _forget():
    RidgeModel.made.clear()


# Against scikit-learn

SHUFFLED = {"shuffle": True, "random_state": 3}
SPLITTERS = {
    "KFold": (KFold(3, **SHUFFLED), KFold(2, **SHUFFLED), {}, (3, 2)),
    "GroupKFold": (
        GroupKFold(3, **SHUFFLED), GroupKFold(2, **SHUFFLED), {"groups": GROUPS}, (3, 2),
    ),
    "TimeSeriesSplit": (
        TimeSeriesSplit(3), TimeSeriesSplit(2), {"split": "time_series"}, (3, 2),
    ),
    "LeaveOneGroupOut": (
        LeaveOneGroupOut(), LeaveOneGroupOut(),
        {"split": "leave_one_group_out", "groups": GROUPS // 5}, (None, None),
    ),
    "PredefinedSplit": (
        PredefinedSplit(FOLDS % 3), None, {"split": "predefined", "folds": FOLDS % 3}, (None, None),
    ),
}  # fmt: skip


def nested_by_scikit_learn(outer, inner, groups):
    """`cross_val_score(GridSearchCV(...))`, written out for the groups and predefined folds."""
    scores, chosen, means, predictions = [], [], [], np.full(N, np.nan)
    for train, val in outer.split(X, Y, groups):
        search = GridSearchCV(
            Ridge(),
            {"alpha": ALPHAS},
            cv=inner or PredefinedSplit(FOLDS[train] % 3),
            scoring="neg_mean_squared_error",
        )
        search.fit(X[train].astype(np.float64), Y[train], groups=None if groups is None else
                   groups[train])  # fmt: skip
        predictions[val] = search.predict(X[val])
        scores.append(((predictions[val] - Y[val]) ** 2).mean())
        chosen.append(search.best_params_)
        means.append(-search.cv_results_["mean_test_score"])
    return scores, chosen, np.array(means), predictions


@pytest.mark.parametrize(
    ("name", "foreign"),
    # Splits are told to data of others as to ours: alone, with groups, and with folds.
    [*((name, False) for name in SPLITTERS),
     ("KFold", True), ("GroupKFold", True), ("PredefinedSplit", True)],
)  # fmt: skip
def test_scores_and_choices_are_scikit_learns(name, foreign):
    outer, inner, arguments, (num_folds, inner_folds) = SPLITTERS[name]
    if foreign:
        pair = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
        data = FoldedDataModule(pair, split_seed=3, **arguments)
    else:
        data = ArrayDataModule(X, Y, split_seed=3, normalize=False, **arguments)
    result = run(data, num_folds=num_folds, inner_folds=inner_folds)
    scores, chosen, means, predictions = nested_by_scikit_learn(
        outer, inner, arguments.get("groups")
    )
    assert [choice["hyperparameters"] for choice in result.choices] == chosen
    assert len({choice["alpha"] for choice in chosen}) > 1
    np.testing.assert_allclose(result.values("val/mse"), scores, rtol=1e-4)
    found = np.reshape([row["mean"] for row in result.search], means.shape)
    np.testing.assert_allclose(found, means, rtol=1e-4)
    seen = ~np.isnan(predictions)
    np.testing.assert_array_equal(result.oof.index, np.arange(N)[seen])
    np.testing.assert_allclose(result.oof.prediction, predictions[seen], atol=1e-4)


def test_classes_are_stratified_within_and_normalised_by_inner_training_rows():
    data = TabularDataModule("wine", test_fraction=0, split_seed=2)
    x, y = data.source.inputs.numpy(), data.source.targets.numpy()

    class Seen(MLPClassifier):
        made: list = []  # noqa: RUF012

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.trained = batch[0]

        def on_train_end(self):
            self.made.append(self.trained)

    result = run(
        TabularDataModule("wine", test_fraction=0, split_seed=2, batch_size=200),
        lambda lr: Seen(13, 3, hidden=[4], lr=lr),
        {"lr": [0.01, 0.02]}, num_folds=3, inner_folds=2, monitor="val/loss", run_dir="wine",
    )  # fmt: skip
    theirs = []
    for train, _ in StratifiedKFold(3, shuffle=True, random_state=2).split(x, y):
        inner = StratifiedKFold(2, shuffle=True, random_state=2).split(x[train], y[train])
        theirs += 2 * [train[rows] for rows, _ in inner] + [train]  # two points, then the refit
    assert len(Seen.made) == len(theirs) == 15
    for trained, rows in zip(Seen.made, theirs, strict=True):
        expected = (x[rows] - x[rows].mean(0)) / x[rows].std(0)
        # Full batches, shuffled: the same values in every column.
        np.testing.assert_allclose(np.sort(trained, axis=0), np.sort(expected, axis=0), atol=2e-4)
    assert sorted(result.oof.index) == list(range(178))


# Nothing leaks


def test_the_outer_fold_has_no_part_in_the_choice():
    """Rubbish in one outer fold changes its score, and nothing else of what is found for it."""
    of = FOLDS % 3
    folds = {"split": "predefined", "folds": of, "normalize": False}
    clean = run(ArrayDataModule(X, Y, **folds), run_dir="clean")
    poisoned = of == 2
    x, y = X.copy(), Y.copy()
    x[poisoned] = 1e3 * RNG.normal(size=(poisoned.sum(), 6))
    y[poisoned] = 1e6
    RidgeModel.made.clear()
    dirty = run(ArrayDataModule(x, y, **folds), run_dir="dirty")
    before, after = ([r for r in res.search if r["fold"] == 2] for res in (clean, dirty))
    assert before == after
    weights = [
        torch.load(result.run_dir / result.folds[2]["checkpoint"], weights_only=True)["state_dict"]
        for result in (clean, dirty)
    ]
    assert torch.equal(weights[0]["weights"], weights[1]["weights"])
    assert dirty.values("val/mse")[2] > 1e6 > clean.values("val/mse")[2]
    # And the other way round: folds that train on it do notice.
    assert clean.search[0]["mean"] != dirty.search[0]["mean"]


def test_every_fit_trains_within_its_outer_training_part():
    x = np.arange(N, dtype=np.float32)[:, None].repeat(6, 1)
    x[:, 1:] = X[:, 1:]
    data = ArrayDataModule(
        x, Y, normalize=False, groups=GROUPS, test_fraction=0.2, split_seed=5, stratify=True
    )
    result = run(data, grid={"alpha": [1.0, 2.0]}, num_folds=3, inner_folds=2)
    fitted = [model for model in RidgeModel.made if hasattr(model, "x")]
    assert len(fitted) == 3 * (2 * 2 + 1)
    outer = json.loads((result.run_dir / "folds.json").read_text())
    test = set(outer["test"])
    for fold, split in enumerate(outer["folds"]):
        mine = fitted[5 * fold : 5 * fold + 5]
        outside = set(split["val"]) | test
        rows = [set(model.x[:, 0].astype(int).tolist()) for model in mine]
        assert not any(some & outside for some in rows)
        assert rows[4] == set(range(N)) - outside
        assert rows[0] == rows[2]  # the same inner folds for both points
        assert rows[1] == rows[3]
        # Both inner folds validate the rest, and no group is torn.
        written = [
            json.loads((result.run_dir / f"fold-{fold}/point-{i}/folds.json").read_text())
            for i in range(2)
        ]
        assert written[0] == written[1]
        for i, inner in enumerate(written[0]["folds"]):
            assert set(inner["val"]) == rows[4] - rows[i]
            assert not set(GROUPS[inner["val"]]) & set(GROUPS[list(rows[i])])
    assert set(result.oof.index) == set(range(N)) - test


def test_a_best_of_noise_is_no_better_than_chance():
    """The best of many useless points looks good on its inner folds, and outside does not."""
    labels = RNG.integers(0, 2, N)

    class Guess(RidgeModel):
        """Labels that depend at random on what it has trained on, and on its point."""

        def on_train_epoch_end(self):
            rows = torch.cat([x for x, _ in self.rows]).abs().double().sum()
            self.weights[0] = float(int(rows * 1e4) % 10_000)

        def forward(self, x):
            bits = np.random.default_rng([self.alpha, int(self.weights[0])]).integers(0, 2, 10_000)
            return torch.from_numpy(bits[(x[:, 0].numpy() * 1e6).astype(int) % 10_000])

        def validation_step(self, batch, batch_idx):
            hits = (self(batch[0]) == batch[1]).float().mean()
            self.log("val/accuracy", hits, batch_size=len(batch[0]))

    result = run(
        ArrayDataModule(X, labels, normalize=False), Guess, {"alpha": list(range(8))},
        num_folds=2, inner_folds=2, monitor="val/accuracy", mode="max",
    )  # fmt: skip
    inner = np.mean([choice["mean"] for choice in result.choices])
    assert inner > 0.6
    assert result.mean("val/accuracy") < inner
    assert abs(result.mean("val/accuracy") - 0.5) < 4 * 0.5 / np.sqrt(N)
