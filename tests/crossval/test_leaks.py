"""Nothing of a validation sample reaches the model that predicts it; folds are scikit-learn's.

The models here have a closed form: one remembers what it has seen, one is a ridge regression.
"""

import json

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_squared_error
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    PredefinedSplit,
    StratifiedGroupKFold,
    StratifiedKFold,
    TimeSeriesSplit,
    cross_val_predict,
)
from sklearn.model_selection import cross_validate as sklearn_cross_validate
from torch.nn import functional as F
from torch.utils.data import TensorDataset, random_split

from dlblocks.cli import main
from dlblocks.crossval import CrossValidationResult, cross_validate
from dlblocks.data import ArrayDataModule, FoldedDataModule

N = 120
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, N)
GROUPS = RNG.permutation(np.arange(N) // 4)


class ClosedForm(pl.LightningModule):
    """Learns in `learn`, not by gradients; the step of its optimizer counts."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        self.learn(*batch[:2])
        self.optimizers().step()

    def configure_optimizers(self):
        return torch.optim.SGD([self.unused], lr=0.0)


class Memory(ClosedForm):
    """Knows by heart the label of every input that it has trained on; guesses for others."""

    def __init__(self):
        super().__init__()
        self.known, self.hits, self.asked = {}, 0, 0

    def learn(self, x, y):
        self.known.update(zip(x[:, 0].tolist(), y.tolist(), strict=True))

    def forward(self, x):
        keys = x[:, 0].tolist()
        self.hits += sum(key in self.known for key in keys)
        return F.one_hot(torch.tensor([self.known.get(k, int(k) % 2) for k in keys]), 2).float()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val/accuracy", (self(x).argmax(1) == y).float().mean(), batch_size=len(x))


class LeastSquares(ClosedForm):
    """Ridge regression with an intercept, by the normal equations."""

    def __init__(self, columns=5):
        super().__init__()
        self.register_buffer("gram", torch.zeros(columns, columns, dtype=torch.float64))
        self.register_buffer("right", torch.zeros(columns, dtype=torch.float64))

    def on_train_epoch_start(self):
        self.gram.zero_()
        self.right.zero_()

    def design(self, x):
        return torch.cat([x, torch.ones(len(x), 1)], 1).double()

    def learn(self, x, y):
        x = self.design(x)
        self.gram += x.T @ x
        self.right += x.T @ y.double()

    def forward(self, x):
        penalty = torch.eye(len(self.gram), dtype=torch.float64)
        penalty[-1, -1] = 0
        return self.design(x) @ torch.linalg.solve(self.gram + penalty, self.right)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val/mse", F.mse_loss(self(x), y.double()), batch_size=len(x))


def run(make_model, data, **arguments):
    settings = {
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0},
        "monitor": "val/accuracy", "progress_bar": False, "figures": False,
        "logger": None, "run_dir": "run",
        "select": "last",  # learned in one pass over all training samples
    }  # fmt: skip
    return cross_validate(make_model, data, **{**settings, **arguments})


def accuracy(result):
    return float((result.oof.prediction.argmax(1) == result.oof.target).mean())


ARRAYS = {
    "kfold": {},
    "unstratified": {"stratify": False},
    "groups": {"groups": GROUPS},
    "time": {"split": "time_series"},
    "leave one out": {"groups": GROUPS // 3, "split": "leave_one_group_out"},
    "predefined": {"folds": np.arange(N) % 5 - 1, "split": "predefined"},
    "test": {"test_fraction": 0.2},
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("foreign", [False, True])
def test_a_model_that_memorises_scores_at_chance(name, foreign):
    """Every input is unique, labels are random: what it knows of validation is a leak."""
    x, models = np.arange(N, dtype=np.float32)[:, None], []

    def make():
        models.append(Memory())
        return models[-1]

    if foreign:
        data = TensorDataset(torch.from_numpy(x), torch.from_numpy(LABELS))
        result = run(make, FoldedDataModule(data, **ARRAYS[name]))
    else:
        result = run(make, ArrayDataModule(x, LABELS, normalize=False, **ARRAYS[name]))
    assert sum(model.hits for model in models) == 0
    assert abs(accuracy(result) - 0.5) < 4 * 0.5 / np.sqrt(len(result.oof))
    written = json.loads((result.run_dir / "folds.json").read_text())
    for model, row, fold in zip(models, result.folds, written["folds"], strict=True):
        val = set(map(float, fold["val"]))
        assert not model.known.keys() & (val | set(map(float, written["test"])))
        assert len(model.known) == row["num_train"] == fold["num_train"]
        assert row["num_val"] == len(val)


def test_a_memory_of_groups_shows_what_groups_are_for():
    """Samples of a group are alike. Without groups= a memory of them scores; with it, by chance."""
    x = GROUPS[:, None].astype(np.float32)
    y = RNG.integers(0, 2, N // 4)[GROUPS]
    leaky = run(Memory, ArrayDataModule(x, y, normalize=False), run_dir="leaky")
    assert accuracy(leaky) > 0.9
    clean = run(Memory, ArrayDataModule(x, y, normalize=False, groups=GROUPS), run_dir="clean")
    assert abs(accuracy(clean) - 0.5) < 4 * 0.5 / np.sqrt(N / 4)  # 30 independent labels


@pytest.mark.parametrize("foreign", [False, True])
def test_a_memory_of_copies_shows_what_duplicates_are_for(foreign, capsys):
    """Labels are random, and every sample is there twice."""
    labels = np.tile(RNG.integers(0, 2, N), 2)
    x = np.tile(np.arange(N, dtype=np.float32), 2)[:, None]

    def scored(name, **arguments):
        if foreign:
            samples = TensorDataset(torch.from_numpy(x), torch.from_numpy(labels))
            data = FoldedDataModule(samples, **arguments)
        else:
            data = ArrayDataModule(x, labels, normalize=False, **arguments)
        result = run(Memory, data, run_dir=name, progress_bar=True, num_folds=5)
        written = json.loads((result.run_dir / "summary.json").read_text())
        said = [note for note in written["notes"] if "exact copy" in note]
        assert capsys.readouterr().err.count("exact copy") == len(said)
        return accuracy(result), written["duplicates"], said

    score, count, said = scored("leaky")
    assert score > 0.8  # four of five samples have their copy in training
    assert 0.6 * 2 * N < count < 2 * N
    assert said == [
        f"{count} of {2 * N} validation samples have an exact copy in the training part of their "
        'fold; keep copies together by groups="duplicates".'
    ]
    score, count, said = scored("clean", groups="duplicates")
    assert abs(score - 0.5) < 4 * 0.5 / np.sqrt(N)
    assert (count, said) == (0, [])


X = RNG.normal(size=(N, 4)).astype(np.float32)
VALUES = (X @ [1.0, -2.0, 0.5, 0.0] + RNG.normal(size=N)).astype(np.float32)
FOLDS = RNG.integers(0, 4, N)
SHUFFLED = {"shuffle": True, "random_state": 3}
SPLITTERS = {
    "KFold": (KFold(4, **SHUFFLED), {"num_folds": 4}),
    "GroupKFold": (GroupKFold(4, **SHUFFLED), {"num_folds": 4, "groups": GROUPS}),
    "TimeSeriesSplit": (TimeSeriesSplit(4), {"num_folds": 4, "split": "time_series"}),
    "LeaveOneGroupOut": (
        LeaveOneGroupOut(), {"split": "leave_one_group_out", "groups": GROUPS // 5},
    ),
    "PredefinedSplit": (PredefinedSplit(FOLDS), {"split": "predefined", "folds": FOLDS}),
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITTERS)
@pytest.mark.parametrize("foreign", [False, True])
def test_scores_and_predictions_are_scikit_learns(name, foreign):
    splitter, arguments = SPLITTERS[name]
    arguments = dict(arguments)
    num_folds = arguments.pop("num_folds", None)
    if foreign:
        pair = TensorDataset(torch.from_numpy(X), torch.from_numpy(VALUES))
        data = FoldedDataModule(pair, split_seed=3, **arguments)
    else:
        data = ArrayDataModule(X, VALUES, split_seed=3, normalize=False, **arguments)
    result = run(LeastSquares, data, num_folds=num_folds, monitor="val/mse", mode="min")
    theirs = sklearn_cross_validate(
        Ridge(1.0), X, VALUES, groups=arguments.get("groups"), cv=splitter,
        scoring="neg_mean_squared_error",
    )  # fmt: skip
    np.testing.assert_allclose(result.values("val/mse"), -theirs["test_score"], rtol=1e-4)
    if name == "TimeSeriesSplit":  # scikit-learn predicts partitions alone
        assert len(result.oof) == N - N // 5
        assert result.oof.index.tolist() == list(range(N // 5, N))
        pairs = splitter.split(X)
        expected = [Ridge(1.0).fit(X[t], VALUES[t]).predict(X[v]) for t, v in pairs]
        np.testing.assert_allclose(result.oof.prediction, np.concatenate(expected), atol=1e-4)
        return
    expected = cross_val_predict(Ridge(1.0), X, VALUES, groups=arguments.get("groups"), cv=splitter)
    np.testing.assert_array_equal(result.oof.index, np.arange(N))
    np.testing.assert_allclose(result.oof.prediction, expected, atol=1e-4)


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_stratified_folds_are_scikit_learns(groups):
    """Each repeat is scikit-learn's splitter with the next seed."""
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    data = ArrayDataModule(X, LABELS, groups=groups, split_seed=5)
    result = run(Memory, data, num_folds=3, repeats=2)
    for repeat in range(2):
        theirs = splitter(3, shuffle=True, random_state=5 + repeat).split(X, LABELS, groups)
        for fold, (_, val) in enumerate(theirs):
            here = (result.oof.repeat == repeat) & (result.oof.fold == fold)
            np.testing.assert_array_equal(result.oof.index[here], val)


# Bugs of peers


def test_the_loss_of_a_fold_is_the_mean_over_its_own_samples():
    """Lightning's Fabric example divides it by the length of the whole data set."""
    result = run(LeastSquares, ArrayDataModule(X, VALUES, batch_size=7), monitor="val/mse")
    for row in result.folds:
        here = result.oof.fold == row["fold"]
        expected = mean_squared_error(result.oof.target[here], result.oof.prediction[here])
        assert row["val/mse"] == pytest.approx(expected, rel=1e-5)


def test_sorted_data_are_shuffled_and_every_fold_is_saved():
    """The same example does not shuffle, and saves its last fold alone."""
    values = np.sort(VALUES)
    result = run(LeastSquares, ArrayDataModule(X, values), monitor="val/mse", mode="min")
    for row in result.folds:
        val = result.oof.index[result.oof.fold == row["fold"]]
        assert val.min() < N // 4
        assert val.max() > 3 * N // 4
    weights = [
        torch.load(result.run_dir / row["checkpoint"], weights_only=True)["state_dict"]["right"]
        for row in result.folds
    ]
    assert len({tuple(weight.tolist()) for weight in weights}) == 5


def test_the_official_test_set_is_in_no_fold():
    """lightning-hydra-template merges it into the pool and splits anew."""
    models = []

    def make():
        models.append(Memory())
        return models[-1]

    x = np.arange(N, dtype=np.float32)[:, None]
    data = ArrayDataModule(
        x, LABELS, normalize=False, test_inputs=x + 1000, test_targets=LABELS, batch_size=7
    )
    result = run(make, data)
    assert all(max(model.known) < N for model in models)
    np.testing.assert_array_equal(result.oof.index, np.arange(N))
    assert [m.known.keys() == models[0].known.keys() for m in models] == [True] + [False] * 4


class Unseeded(pl.LightningDataModule):
    """Splits by the global seed, once: two habits that spoil folds made around them."""

    def __init__(self):
        super().__init__()
        self.train_data = None

    def setup(self, stage):
        if not self.train_data:
            pair = TensorDataset(torch.arange(N).float()[:, None], torch.from_numpy(LABELS))
            self.train_data, self.val_data = random_split(pair, [100, N - 100])

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.train_data, 32, shuffle=True, drop_last=True)


@pytest.mark.parametrize("function", [False, True])
def test_a_split_by_the_global_seed_is_the_same_in_every_fold(function):
    """Else the validation folds overlap, as each fold has its own seed (215 of 300 samples)."""
    models = []

    class Noted(Memory):
        def on_validation_start(self):
            self.validated = []
            models.append(self)

        def validation_step(self, batch, batch_idx):
            self.validated += batch[0][:, 0].tolist()
            super().validation_step(batch, batch_idx)

    data = (lambda: FoldedDataModule(Unseeded())) if function else FoldedDataModule(Unseeded())
    result = run(Noted, data)
    validated = {id(model): model.validated for model in models}.values()
    together = [key for keys in validated for key in keys]
    assert len(together) == len(set(together)) == 100  # and drop_last drops nothing here
    np.testing.assert_array_equal(result.oof.index, np.arange(100))
    for model in models:
        assert not model.known.keys() & set(model.validated)


def test_a_function_that_makes_other_data_is_refused():
    made = []

    def other_seed():
        made.append(ArrayDataModule(X, LABELS, split_seed=len(made)))
        return made[-1]

    with pytest.raises(ValueError, match="made for fit 1 has other data or splits"):
        run(Memory, other_seed)
    x = X.copy()

    def other_data():
        x[3, 2] += 1
        return ArrayDataModule(x.copy(), LABELS)

    with pytest.raises(ValueError, match="made for fit 1 has other data or splits"):
        run(Memory, other_data, run_dir="other")


# The folds in their file


def test_folds_are_written_before_the_first_fit():
    class Fails(Memory):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("power failure")

    data = ArrayDataModule(X, LABELS, groups=GROUPS, test_fraction=0.2, split_seed=2)
    with pytest.raises(RuntimeError, match="power failure"):
        run(Fails, data, num_folds=3, repeats=2, run_dir="failed")
    result = run(Memory, data, num_folds=3, repeats=2)
    with open("failed/folds.json") as failed:
        written = json.load(failed)
    assert written == json.loads((result.run_dir / "folds.json").read_text())
    assert written["fingerprint"] == data.fingerprint()
    keys = ("split", "num_folds", "repeats", "split_seed", "num_samples", "num_test")
    assert [written[k] for k in keys] == ["kfold", 3, 2, 2, N, len(data.indices("test"))]
    assert written["test"] == data.indices("test").tolist()
    assert len(written["folds"]) == 6
    for fold, row in zip(written["folds"], result.folds, strict=True):
        here = (result.oof.repeat == fold["repeat"]) & (result.oof.fold == fold["fold"])
        assert fold["val"] == result.oof.index[here].tolist()
        assert (fold["num_train"], fold["num_val"]) == (row["num_train"], row["num_val"])
    assert not list(result.run_dir.glob(".*"))


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        ({"split": "time_series"}, {"repeats": 2}, "repeats=2, but split='time_series'"),
        (
            {"split": "predefined", "folds": FOLDS}, {"num_folds": 5},
            "num_folds=5, but split='predefined' gives 4 folds",
        ),
        ({"split": "leave_one_group_out"}, {}, "needs groups"),
        ({"groups": np.ones(N)}, {}, "groups, but groups has 1"),
        ({"stratify": False}, {"num_folds": 121}, r"num_folds=121 is outside \[2, 120\]"),
        ({}, {"num_folds": 1}, "num_folds=1"),
    ],
)  # fmt: skip
def test_impossible_folds_leave_no_file(tmp_path, data, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(Memory, ArrayDataModule(X, LABELS, **data), **arguments)
    assert not list(tmp_path.rglob("folds.json"))


def test_an_own_number_of_folds_counts():
    assert len(run(Memory, ArrayDataModule(X, LABELS, num_folds=3)).folds) == 3


def test_the_command_line_counts_the_groups_of_a_file(tmp_path):
    rows = [f"{i},{i % 7},{'abcd'[i // 9]},{i % 2}\n" for i in range(36)]
    (tmp_path / "table.csv").write_text("".join(["x,z,who,y\n", *rows]))
    main([
        "cross-validate", "--model=MLPClassifier", "--model.in_features=2", "--model.num_classes=2",
        "--data=TabularDataModule", "--data.data=table.csv", "--data.target=y", "--data.group=who",
        "--data.split=leave_one_group_out", "--data.test_fraction=0", "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--run_dir=cli",
    ])  # fmt: skip
    written = json.loads((tmp_path / "cli" / "folds.json").read_text())
    assert [fold["val"] for fold in written["folds"]] == [
        list(range(9 * i, 9 * i + 9)) for i in range(4)
    ]


def test_a_fold_without_predictions_leaves_no_table():
    class Silent(Memory):
        def predict_step(self, batch, batch_idx):
            return "nothing", "of the kind"

    result = run(Silent, ArrayDataModule(X, LABELS), num_folds=2)
    assert result.oof is None
    assert not (result.run_dir / "oof.npz").exists()
    assert CrossValidationResult.load(result.run_dir).folds == result.folds
