"""Intervals of test scores, against scipy, scikit-learn, torchmetrics, loops and chance."""

import json
import math
import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics
from torch.utils.data import DataLoader, TensorDataset

from dlblocks.crossval import HeldOutScores, cross_validate
from dlblocks.data import ArrayDataModule, FoldedDataModule, TabularDataModule
from dlblocks.metrics import classification_metrics
from dlblocks.models import MLPClassifier, MLPRegressor
from dlblocks.runs import fit_and_test
from dlblocks.runs.intervals import weighted_metrics, wilson

CPU = {"accelerator": "cpu", "max_epochs": 2}


def run(tmp_path, make_model, data):
    return cross_validate(
        make_model, data, num_folds=2, trainer=CPU, progress_bar=False, figures=False, logger=None,
        run_dir=tmp_path / "run",
    )  # fmt: skip


def classes(size, num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, num_classes, size)
    logits = rng.normal(size=(size, num_classes)) + 2 * np.eye(num_classes)[target]
    prediction = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return {"target": target, "prediction": prediction.astype(np.float32)}


def scored(predicted, groups=None):
    known = weighted_metrics(predicted["target"], predicted["prediction"])
    ones = np.ones((1, len(predicted["target"])))
    return HeldOutScores({f"test/{k}": float(f(ones)[0]) for k, f in known.items()},
                         predicted, groups)  # fmt: skip


def test_wilson_is_scipys():
    for right, size in ((0, 10), (3, 10), (93, 100), (400, 400)):
        for level in (0.8, 0.95, 0.99):
            expected = stats.binomtest(right, size).proportion_ci(level, method="wilson")
            found = wilson(right / size, size, stats.norm.ppf((1 + level) / 2))
            assert found == pytest.approx(tuple(expected))
    predicted = classes(80)
    right = int((predicted["prediction"].argmax(1) == predicted["target"]).sum())
    expected = stats.binomtest(right, 80).proportion_ci(0.95, method="wilson")
    assert scored(predicted).interval("test/accuracy") == pytest.approx(tuple(expected))


@pytest.mark.parametrize("num_classes", [2, 4])
def test_weights_are_how_often_a_sample_was_drawn(num_classes):
    predicted = classes(60, num_classes)
    predicted["prediction"] = predicted["prediction"].round(1)  # ties
    predicted["prediction"] /= predicted["prediction"].sum(1, keepdims=True)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 60, (20, 60))
    weights = np.stack([np.bincount(row, minlength=60) for row in rows]).astype(float)
    found = {k: f(weights) for k, f in weighted_metrics(**predicted).items()}
    assert ("auc" in found) == (num_classes == 2)
    for i, row in enumerate(rows):
        target, prediction = predicted["target"][row], predicted["prediction"][row]
        guess = prediction.argmax(1)
        assert found["accuracy"][i] == pytest.approx(metrics.accuracy_score(target, guess))
        expected = metrics.f1_score(target, guess, average="macro")
        assert found["f1"][i] == pytest.approx(expected)
        own = np.maximum(prediction[np.arange(60), target], np.finfo(np.float32).tiny)
        assert found["log_loss"][i] == pytest.approx(-np.log(own).mean(), rel=1e-5)
        if num_classes == 2:
            expected = metrics.roc_auc_score(target, prediction[:, 1])
            assert found["auc"][i] == pytest.approx(expected)


def test_weighted_calibration_error_is_that_of_training():
    predicted = classes(60, 4)
    rows = np.random.default_rng(0).integers(0, 60, (20, 60))
    weights = np.stack([np.bincount(row, minlength=60) for row in rows]).astype(float)
    found = weighted_metrics(**predicted)["calibration_error"](weights)
    for value, row in zip(found, rows, strict=True):
        error = classification_metrics(4)["calibration_error"]
        pair = (torch.tensor(predicted[key][row]) for key in ("prediction", "target"))
        assert value == pytest.approx(float(error(*pair)), abs=1e-5)


@pytest.mark.parametrize("shape", [(50,), (50, 1), (50, 3)])
def test_weighted_values_are_scikit_learns(shape):
    rng = np.random.default_rng(0)
    target = rng.normal(size=shape) + 5
    prediction = target + rng.normal(size=shape) / 2
    rows = rng.integers(0, 50, (10, 50))
    weights = np.stack([np.bincount(row, minlength=50) for row in rows]).astype(float)
    found = {k: f(weights) for k, f in weighted_metrics(target, prediction).items()}
    for i, row in enumerate(rows):
        pair = target[row], prediction[row]
        assert found["mse"][i] == pytest.approx(metrics.mean_squared_error(*pair))
        assert found["rmse"][i] == pytest.approx(metrics.mean_squared_error(*pair) ** 0.5)
        assert found["mae"][i] == pytest.approx(metrics.mean_absolute_error(*pair))
        assert found["r2"][i] == pytest.approx(metrics.r2_score(*pair))


def test_bootstrap_is_scipys():
    rng = np.random.default_rng(0)
    target = rng.normal(size=80)
    prediction = target + rng.normal(size=80) ** 3
    found = scored({"target": target, "prediction": prediction})
    for name, function in (
        ("mae", lambda t, p: np.abs(t - p).mean()),
        ("r2", lambda t, p: 1 - ((t - p) ** 2).sum() / ((t - t.mean()) ** 2).sum()),
    ):
        expected = stats.bootstrap(
            (target, prediction), function, paired=True, vectorized=False, n_resamples=10_000,
            method="percentile", rng=np.random.default_rng(1),
        ).confidence_interval  # fmt: skip
        low, high = found.interval(f"test/{name}")
        assert (low, high) == pytest.approx(tuple(expected), abs=0.06 * (high - low))
    assert found.interval("test/mae") == scored(
        {"target": target, "prediction": prediction}
    ).interval("test/mae")
    low, high = found.interval("test/mae", level=0.5)
    assert found.interval("test/mae")[0] < low < high < found.interval("test/mae")[1]


def test_intervals_cover_the_score_of_all_samples():
    """One model; its scores on 20,000 samples are the truth."""
    everything = classes(20_000, 2)
    truth = scored(everything)
    rng = np.random.default_rng(0)
    names = ["test/accuracy", "test/f1", "test/log_loss", "test/auc"]
    covered = dict.fromkeys(names, 0)
    for _ in range(60):
        rows = rng.integers(0, 20_000, 100)
        found = scored({key: values[rows] for key, values in everything.items()})
        for name in names:
            low, high = found.interval(name)
            covered[name] += low <= truth[name] <= high
    assert all(52 <= count < 60 for count in covered.values()), covered


def test_groups_are_drawn_whole():
    """Samples of a group are all right or all wrong: only as many count as there are groups."""
    rng = np.random.default_rng(0)
    covered, alone = 0, 0
    for _ in range(60):
        group = np.repeat(np.arange(40), 10)
        right = (rng.random(40) < 0.7)[group]
        prediction = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
        predicted = {"target": np.zeros(400, dtype=int), "prediction": prediction}
        low, high = scored(predicted, group).interval("test/accuracy")
        covered += low <= 0.7 <= high
        low, high = scored(predicted).interval("test/accuracy")
        alone += low <= 0.7 <= high
    assert covered > 51
    assert alone < 36


def test_a_perfect_score_has_an_interval():
    target = np.arange(40) % 2
    perfect = {"target": target, "prediction": np.eye(2)[target] * 0.9 + 0.05}
    found = scored(perfect)
    expected = stats.binomtest(40, 40).proportion_ci(0.95, method="wilson")
    for name in ("test/accuracy", "test/f1", "test/auc"):
        assert found[name] == 1
        assert found.interval(name) == pytest.approx(tuple(expected))
    one_group = scored(perfect, np.zeros(40))
    assert one_group.interval("test/accuracy")[0] < 0.3
    exact = np.arange(5.0)
    assert math.isnan(scored({"target": exact, "prediction": exact}).interval("test/mae")[0])


def test_no_interval_without_reason():
    predicted = classes(50)
    values = dict(scored(predicted))
    found = HeldOutScores({**values, "test/accuracy": 0.5, "test/it": 1.0}, predicted)
    assert math.isnan(found.interval("test/accuracy")[0])
    assert math.isnan(found.interval("test/it")[0])
    assert not math.isnan(found.interval("test/f1")[0])
    said = str(found)
    assert f"no interval: the predictions give {values['test/accuracy']:.4g}" in said
    assert "test/it" in said and "it cannot be computed from the predictions" in said
    assert "95 % interval" in said and "50 samples" in said
    assert "no predictions" in str(HeldOutScores({"test/loss": 1.0}))
    broken = {**predicted, "prediction": predicted["prediction"] * np.nan}
    assert math.isnan(HeldOutScores(values, broken).interval("test/f1")[0])
    again = pickle.loads(pickle.dumps(found))
    assert again == found and str(again) == said
    with pytest.raises(KeyError, match="did you mean 'test/f1'"):
        found.interval("test/f2")


def test_scores_of_a_run(tmp_path):
    data = TabularDataModule("wine", test_fraction=0.3)
    result = run(tmp_path, lambda: MLPClassifier(13, 3, hidden=[16], lr=0.01), data)
    found = result.test(result.refit())
    assert {"test/accuracy", "test/loss", "test/f1", "test/calibration_error"} == found.keys()
    for name, value in found.items():
        low, high = found.interval(name)
        assert low < high
        assert low <= value <= high or "calibration" in name  # which is biased upwards
    size = len(data.indices("test"))
    right = round(found["test/accuracy"] * size)
    expected = stats.binomtest(right, size).proportion_ci(0.95, method="wilson")
    assert found.interval("test/accuracy") == pytest.approx(tuple(expected))
    written = json.loads((result.run_dir / "test.json").read_text())
    assert written["metrics"] == found
    assert written["intervals"] == {name: list(found.interval(name)) for name in found}


def test_values_and_groups_of_a_run(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4))
    data = ArrayDataModule(
        x, x @ np.arange(4.0) * 7, groups=np.repeat(np.arange(30), 4), test_fraction=0.3
    )
    result = run(
        tmp_path, lambda: MLPRegressor(4, hidden=[8], lr=0.01, standardize_targets=True), data
    )
    found = result.test(result.refit())
    for name in ("test/rmse", "test/mae", "test/r2"):
        low, high = found.interval(name)
        assert low < found[name] < high
    # In units of standardised targets.
    assert math.isnan(found.interval("test/loss")[0])
    groups = len(np.unique(data.columns.groups[data.indices("test")]))
    assert f"{groups} groups" in str(found)


class Theirs(pl.LightningModule):
    def __init__(self, logs=True):
        super().__init__()
        self.net, self.logs = torch.nn.Linear(4, 3), logs

    def loss(self, batch):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        if self.logs:
            self.log("test/loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class TwoTests(pl.LightningDataModule):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.parts = [
            TensorDataset(torch.randn(30, 4, generator=generator), torch.arange(30) % 3)
            for _ in range(3)
        ]

    def train_dataloader(self):
        return DataLoader(self.parts[0], 10)

    def test_dataloader(self):
        return [DataLoader(part, 10) for part in self.parts[1:]]


def test_several_test_loaders(tmp_path):
    torch.manual_seed(0)
    result = run(tmp_path, Theirs, FoldedDataModule(TwoTests()))
    model = result.refit()
    found = result.test(model)
    with torch.no_grad():
        expected = {
            f"test/loss/dataloader_idx_{i}": float(model.loss(part.tensors))
            for i, part in enumerate(TwoTests().parts[1:])
        }
    assert found == pytest.approx(expected)
    assert all(math.isnan(found.interval(name)[0]) for name in found)
    written = json.loads((result.run_dir / "test.json").read_text())
    assert set(map(tuple, written["intervals"].values())) == {(None, None)}


def test_a_test_that_logs_nothing(tmp_path):
    x = np.random.default_rng(0).random((60, 4))
    data = ArrayDataModule(x, np.arange(60) % 3, test_fraction=0.3)
    result = run(tmp_path, lambda: Theirs(logs=False), data)
    with pytest.raises(ValueError, match="nothing was logged in the test of Theirs"):
        result.test(result.refit())
    assert not (result.run_dir / "test.json").exists()


def test_a_single_fit_has_intervals_of_its_test(tmp_path):
    data = ArrayDataModule(*grouped_samples(), test_fraction=0.3, val_fraction=0.3)
    found = fit_and_test(
        MLPClassifier(2, 2, hidden=[4]), data, trainer=CPU, logger=None, run_dir=tmp_path / "run",
        progress_bar=False,
    )  # fmt: skip
    right = round(found["test/accuracy"] * data.count_test())
    expected = stats.binomtest(right, data.count_test()).proportion_ci(0.95, method="wilson")
    assert found.interval("test/accuracy") == pytest.approx(tuple(expected))
    low, high = found.interval("test/loss")
    assert low < found["test/loss"] < high
    # Validation has chosen the epoch, and is not what the intervals are about.
    assert math.isnan(found.interval("val/accuracy")[0])
    assert "val/accuracy" in str(found) and "it is not of the test set" in str(found)
    predicted = dict(found.predicted.columns)
    by_hand = HeldOutScores({"test/loss": found["test/loss"]}, predicted)
    assert by_hand.interval("test/loss") == (low, high)
    again = pickle.loads(pickle.dumps(found))
    assert again.interval("test/loss") == (low, high)


def test_a_single_fit_draws_whole_groups(tmp_path):
    x, y = grouped_samples()
    data = ArrayDataModule(x, y, groups=np.arange(80) // 8, test_fraction=0.3, val_fraction=0.3)
    found = fit_and_test(
        MLPClassifier(2, 2, hidden=[4]), data, trainer=CPU, logger=None, run_dir=tmp_path / "run",
        progress_bar=False,
    )  # fmt: skip
    found.interval("test/loss")
    assert "3 groups" in str(found)


def grouped_samples():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(80, 2)).astype(np.float32)
    return x, (x.sum(1) + rng.normal(size=80) > 0).astype(int)
