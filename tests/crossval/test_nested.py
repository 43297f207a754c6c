"""Nested cross-validation against scikit-learn's, and what its choice may not see."""

import json
import os
import signal
import subprocess
import sys

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    ParameterGrid,
    PredefinedSplit,
    StratifiedKFold,
    TimeSeriesSplit,
)
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from wandb_offline import read_runs

from dlblocks.crossval import (
    CrossValidationResult,
    NestedResult,
    cross_validate,
    nested_cross_validate,
)
from dlblocks.crossval.lock import locked
from dlblocks.crossval.search import grid_points
from dlblocks.data import ArrayDataModule, FoldedDataModule, TabularDataModule
from dlblocks.models import MLPClassifier, load

N = 60
RNG = np.random.default_rng(1)
X = RNG.normal(size=(N, 6)).astype(np.float32)
Y = (X @ [1.0, -2.0, 0.5, 0.0, 0.0, 0.0] + 2 * RNG.normal(size=N)).astype(np.float32)
GROUPS = RNG.permutation(np.arange(N) // 4)
FOLDS = RNG.integers(0, 4, N)
ALPHAS = [0.01, 10.0, 3.0]  # of these the choices differ between folds
CPU = {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0}


class RidgeModel(pl.LightningModule):
    """scikit-learn's `Ridge` as a LightningModule; keeps the rows that it has trained on."""

    made: list = []  # noqa: RUF012

    def __init__(self, alpha=1.0):
        super().__init__()
        self.alpha, self.rows = alpha, []
        self.automatic_optimization = False
        self.unused = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("weights", torch.zeros(7, dtype=torch.float64))
        self.made.append(self)

    def training_step(self, batch, batch_idx):
        self.rows.append(batch)
        self.optimizers().step()

    def on_train_epoch_end(self):
        x, y = (torch.cat(parts).numpy() for parts in zip(*self.rows, strict=True))
        self.x, self.y = x, y
        ridge = Ridge(self.alpha).fit(x.astype(np.float64), y)
        self.weights[:] = torch.from_numpy(np.append(ridge.coef_, ridge.intercept_))

    def forward(self, x):
        return x.double() @ self.weights[:-1] + self.weights[-1]

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val/mse", F.mse_loss(self(x), y.double()), batch_size=len(x))

    def configure_optimizers(self):
        return torch.optim.SGD([self.unused], lr=0.0)


@pytest.fixture(autouse=True)
def _forget():
    RidgeModel.made.clear()


def run(data, make_model=RidgeModel, grid=None, **arguments):
    settings = {
        "trainer": CPU, "monitor": "val/mse", "mode": "min", "progress_bar": False,
        "figures": False, "logger": None, "run_dir": "run",
    }  # fmt: skip
    return nested_cross_validate(
        make_model, data, {"alpha": ALPHAS} if grid is None else grid, **{**settings, **arguments}
    )


# Against scikit-learn

SHUFFLED = {"shuffle": True, "random_state": 3}
SPLITTERS = {
    "KFold": (KFold(4, **SHUFFLED), KFold(3, **SHUFFLED), {}, (4, 3)),
    "GroupKFold": (
        GroupKFold(4, **SHUFFLED), GroupKFold(3, **SHUFFLED), {"groups": GROUPS}, (4, 3),
    ),
    "TimeSeriesSplit": (
        TimeSeriesSplit(4), TimeSeriesSplit(3), {"split": "time_series"}, (4, 3),
    ),
    "LeaveOneGroupOut": (
        LeaveOneGroupOut(), LeaveOneGroupOut(),
        {"split": "leave_one_group_out", "groups": GROUPS // 4}, (None, None),
    ),
    "PredefinedSplit": (
        PredefinedSplit(FOLDS), None, {"split": "predefined", "folds": FOLDS}, (None, None),
    ),
}  # fmt: skip


def nested_by_scikit_learn(outer, inner, groups):
    """`cross_val_score(GridSearchCV(...))`, written out for the groups and predefined folds."""
    scores, chosen, means, predictions = [], [], [], np.full(N, np.nan)
    for train, val in outer.split(X, Y, groups):
        search = GridSearchCV(
            Ridge(),
            {"alpha": ALPHAS},
            cv=inner or PredefinedSplit(FOLDS[train]),
            scoring="neg_mean_squared_error",
        )
        search.fit(X[train].astype(np.float64), Y[train], groups=None if groups is None else
                   groups[train])  # fmt: skip
        predictions[val] = search.predict(X[val])
        scores.append(((predictions[val] - Y[val]) ** 2).mean())
        chosen.append(search.best_params_)
        means.append(-search.cv_results_["mean_test_score"])
    return scores, chosen, np.array(means), predictions


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("name", SPLITTERS)
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
    folds = {"split": "predefined", "folds": FOLDS, "normalize": False}
    clean = run(ArrayDataModule(X, Y, **folds), run_dir="clean")
    poisoned = FOLDS == 2
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
        ArrayDataModule(X, labels, normalize=False), Guess, {"alpha": list(range(12))},
        num_folds=3, inner_folds=2, monitor="val/accuracy", mode="max",
    )  # fmt: skip
    inner = np.mean([choice["mean"] for choice in result.choices])
    assert inner > 0.6
    assert result.mean("val/accuracy") < inner
    assert abs(result.mean("val/accuracy") - 0.5) < 4 * 0.5 / np.sqrt(N)


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
        progress_bar=False, figures=False, logger=None, run_dir="plain", **settings,
    )  # fmt: skip
    assert nested.values("val/loss") == plain.values("val/loss")
    for name, values in vars(plain.oof).items():
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
            expected = model(data.transform(inputs)).softmax(1)
        here = (result.oof.fold == row["fold"]) & (result.oof.repeat == row["repeat"])
        np.testing.assert_array_equal(result.oof.index[here], index)
        np.testing.assert_allclose(result.oof.prediction[here], expected, atol=1e-6)
    together = result.ensemble()
    scores = result.test(together)
    assert 0 <= scores["test/accuracy"] <= 1


def test_refit_searches_all_development_data(iris):
    result, arguments = iris
    with pytest.raises(ValueError, match="takes no arguments"):
        result.refit(seed=3)
    model = result.refit()
    rows = json.loads((result.run_dir / "refit" / "search.json").read_text())
    (chosen,) = [row for row in rows if row["chosen"]]
    plain = cross_validate(
        lambda: arguments["make_model"](**chosen["hyperparameters"]), arguments["datamodule"],
        num_folds=2, trainer=arguments["trainer"], make_callbacks=arguments["make_callbacks"],
        progress_bar=False, figures=False, run_dir="plain", logger=None,
    )  # fmt: skip
    assert plain.values("val/loss") == chosen["scores"]
    for name, weights in plain.refit().state_dict().items():
        assert torch.equal(weights, model.state_dict()[name])


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


KILLED = """
import os, signal, sys
import lightning.pytorch as pl
import torch
import dlblocks.fitting
from dlblocks.crossval import nested_cross_validate
from dlblocks.data import TabularDataModule
from dlblocks.models import MLPClassifier

torch.set_num_threads(1)
dlblocks.fitting.RESUME_SECONDS = 0.0
count, at = 0, int(sys.argv[1])

class Kill(pl.Callback):
    def on_train_epoch_start(self, trainer, module):
        global count
        count += trainer.current_epoch == 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

nested_cross_validate(
    lambda lr: MLPClassifier(4, 3, hidden=[8], lr=lr, dropout=0.1),
    TabularDataModule("iris"),
    {"lr": [0.05, 0.001]},
    num_folds=2,
    inner_folds=2,
    trainer={"accelerator": "cpu", "max_epochs": 3},
    make_callbacks=lambda: [Kill()],
    run_dir="killed",
    progress_bar=False,
    figures=False,
)
"""


@pytest.mark.slow
def test_killed_within_an_inner_fit_and_called_again(tmp_path):
    (tmp_path / "script.py").write_text(KILLED)
    for at, code in ((3, -signal.SIGKILL), (0, 0)):
        done = subprocess.run(
            [sys.executable, "script.py", str(at)], capture_output=True, text=True, timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert (tmp_path / "killed" / "summary.json").exists() == (code == 0)
    assert_same(NestedResult.load("killed"), small("whole"))


@pytest.mark.slow
def test_side_by_side_is_one_after_another():
    assert_same(small("side", n_jobs=2), small("one"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"grid": {"alpha": [0.01]}}, "points had 2 entries and has 1"),
        ({"grid": {"alpha": [0.02, 3.0]}}, r"points\[0\].hyperparameters.alpha was"),
        ({"inner_folds": 4}, "inner_folds was 2 and is 4"),
        ({"num_folds": 4}, "num_folds was 2 and is 4"),
        ({"data": ArrayDataModule(X, Y + 1)}, "fingerprint"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"resume": False}, "already holds a run"),
    ],
    ids=str,
)
def test_another_configuration_is_refused(changed, message):
    arguments = {
        "data": ArrayDataModule(X, Y), "grid": {"alpha": [0.01, 3.0]}, "num_folds": 2,
        "inner_folds": 2,
    }  # fmt: skip
    run(**arguments)
    RidgeModel.made.clear()
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

for devices, monitor in ((1, "val/loss"), (2, "val/loss"), (2, "odd")):
    nested_cross_validate(
        lambda lr: Unsynced(4, 3, hidden=[8], lr=lr),
        TabularDataModule("iris", batch_size=40 // devices),
        {"lr": [0.05, 0.2]},
        num_folds=2,
        inner_folds=2,
        monitor=monitor,
        trainer={
            "accelerator": "cpu", "max_epochs": 2, "devices": devices,
            "strategy": "ddp" if devices > 1 else "auto",
        },
        run_dir=f"{devices}-{monitor[:3]}",
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


def test_a_second_call_in_the_same_folder_is_refused(tmp_path):
    data = ArrayDataModule(X, Y)
    with locked(tmp_path / "run"), pytest.raises(BlockingIOError, match="is in use by process"):
        # Taken for a point that fails, it would be left out of the choice.
        run(data, Sometimes, {"alpha": [1.0]}, num_folds=2, inner_folds=2, on_error="continue",
            run_dir=tmp_path / "run")  # fmt: skip


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
