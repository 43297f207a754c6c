"""Prediction intervals and sets, and the temperature, against loops and simulations."""

import math

import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from scipy.special import log_softmax
from sklearn.linear_model import LinearRegression
from torch.nn import functional as F

from dlblocks import load
from dlblocks.crossval import cross_validate
from dlblocks.data import ArrayDataModule, TabularDataModule
from dlblocks.models import MLPClassifier, MLPRegressor, VotingEnsemble
from dlblocks.models._conformal import Calibration

QUIET = {"progress_bar": False, "logger": None, "figures": False}
TRAINER = {"max_epochs": 3, "accelerator": "cpu"}


def by_the_paper(member, scores, each, alpha):
    """CV+ as equation (6) of Barber et al. has it, one new sample at a time."""
    n = len(scores)
    ends = []
    for x in range(each.shape[1]):
        low = sorted(each[k, x] - s for k, s in zip(member, scores, strict=True))
        high = sorted(each[k, x] + s for k, s in zip(member, scores, strict=True))
        first = math.floor(alpha * (n + 1))
        last = math.ceil((1 - alpha) * (n + 1))
        ends.append((low[first - 1] if first else -math.inf, high[last - 1]))
    return np.array(ends).T


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5])
def test_intervals_are_those_of_a_loop(alpha, monkeypatch):
    monkeypatch.setattr("dlblocks.models._conformal.CHUNK", 100)  # several chunks
    rng = np.random.default_rng(0)
    member, scores = rng.integers(0, 3, 39), rng.exponential(size=39)
    each = rng.normal(size=(3, 17))
    calibration = Calibration()
    calibration.set(torch.from_numpy(member), torch.from_numpy(scores))
    found = calibration.interval(torch.from_numpy(each), 1 - alpha)
    expected = by_the_paper(member, scores, each, alpha)
    np.testing.assert_allclose([end.numpy() for end in found], expected, rtol=1e-6)


def test_sets_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    member, scores = rng.integers(0, 3, 39), rng.random(39).astype("float32")
    each = rng.random((3, 11, 4)).astype("float32")
    calibration = Calibration()
    calibration.set(torch.from_numpy(member), torch.from_numpy(scores))
    found = calibration.classes(torch.from_numpy(each), 0.8)
    for x in range(11):
        for y in range(4):
            below = sum(s < each[k, x, y] for k, s in zip(member, scores, strict=True))
            assert bool(found[x, y]) == (below < 0.8 * 40)


def test_the_coverage_is_what_was_asked_for():
    """Over 100 data sets: at least 88 % of new values are inside, in intervals of the right width.

    The members are linear regressions, whose errors have the standard deviation 1: an interval that
    knew this would be 3.29 wide.
    """
    inside, widths = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x, new = rng.normal(size=(60, 3)), rng.normal(size=(200, 3))
        y, truth = (a @ [1, -2, 0.5] + rng.normal(size=len(a)) for a in (x, new))
        fold = rng.permutation(60) % 5
        models = [LinearRegression().fit(x[fold != k], y[fold != k]) for k in range(5)]
        scores = np.array(
            [abs(models[k].predict(one[None])[0] - t) for k, one, t in zip(fold, x, y, strict=True)]
        )
        calibration = Calibration()
        calibration.set(torch.from_numpy(fold), torch.from_numpy(scores))
        each = torch.from_numpy(np.stack([model.predict(new) for model in models]))
        lower, upper = (end.numpy() for end in calibration.interval(each, 0.9))
        inside.append(((lower <= truth) & (truth <= upper)).mean())
        widths.append((upper - lower).mean())
    assert 0.88 <= np.mean(inside) <= 0.94
    assert 3.29 * 0.95 <= np.mean(widths) <= 3.29 * 1.2


def test_the_coverage_of_sets():
    inside, sizes = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(260, 4)) * 2
        p = np.exp(log_softmax(logits, axis=1))
        labels = np.array([rng.choice(4, p=row) for row in p])
        # Members that are over-confident, each in its own way.
        each = np.exp(log_softmax(logits * (2 + np.arange(3))[:, None, None], axis=2))
        fold = rng.permutation(60) % 3
        calibration = Calibration()
        scores = 1 - each[fold, np.arange(60), labels[:60]]
        calibration.set(torch.from_numpy(fold), torch.from_numpy(scores))
        found = calibration.classes(torch.from_numpy(1 - each[:, 60:]), 0.9).numpy()
        inside.append(found[np.arange(200), labels[60:]].mean())
        sizes.append(found.sum(1).mean())
    assert 0.88 <= np.mean(inside) <= 0.94
    assert 1 < np.mean(sizes) < 3


def data(task, n=120, **arguments):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, 4)).astype("float32")
    y = x[:, 0] + rng.normal(size=n)
    y = y.astype("float32") if task == "values" else np.array(["no", "yes"])[(y > 0).astype(int)]
    return ArrayDataModule(x, y, num_folds=4, test_fraction=0.2, batch_size=16, **arguments), x


@pytest.fixture(scope="module", params=["values", "classes"])
def run(request, tmp_path_factory):
    datamodule, x = data(request.param)
    result = cross_validate(
        (lambda: MLPRegressor(4, hidden=[8], standardize_targets=True))
        if request.param == "values"
        else (lambda: MLPClassifier(4, 2, hidden=[8])),
        datamodule,
        run_dir=tmp_path_factory.mktemp("run"),
        trainer=TRAINER,
        **QUIET,
    )
    return request.param, result, x


def test_predictions_of_a_run_have_regions(run, tmp_path):
    task, result, x = run
    predictor = load(result.run_dir)
    predictor.save(tmp_path / "model.pt")
    table = predictor.predict(x, coverage=0.8, progress_bar=False)
    again = load(tmp_path / "model.pt").predict(x, coverage=0.8, progress_bar=False)
    oof, members = result.oof, list(predictor.model.net.members)
    inputs = torch.from_numpy(x)
    with torch.no_grad():
        each = np.stack([m.prediction(m(inputs)).squeeze(-1).numpy() for m in members])
    if task == "values":
        residuals = np.abs(oof.target - oof.prediction)
        expected = by_the_paper(oof.fold, residuals, each, 0.2)
        np.testing.assert_allclose([table["lower"], table["upper"]], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(table["lower"], again["lower"])
        assert {"lower", "upper"} <= set(table.to_pandas().columns)
        assert (table["lower"] < table["prediction"]).all()
    else:
        assert list(table.to_pandas().columns)[-2:] == ["in_set_no", "in_set_yes"]
        np.testing.assert_array_equal(table["in_set"], again["in_set"])
        likeliest = table["prediction"].argmax(1)
        sure = table["prediction"].max(1) > 0.9
        assert table["in_set"][np.arange(len(x)), likeliest][sure].all()
    plain = predictor.predict(x, progress_bar=False)  # the next one is as before
    assert not {"lower", "in_set"} & set(plain.columns)


def test_too_much_is_refused(run):
    _, result, x = run
    predictor = load(result.run_dir)
    with pytest.raises(ValueError, match=r"coverage=0\.999 needs at least 999 out-of-fold samples"):
        predictor.predict(x, coverage=0.999, progress_bar=False)
    with pytest.raises(ValueError, match=r"coverage=1\.0"):
        predictor.predict(x, coverage=1.0, progress_bar=False)
    single = load(result.run_dir / result.folds[0]["checkpoint"])
    with pytest.raises(ValueError, match="that a fold average has"):
        single.predict(x, coverage=0.9, progress_bar=False)


class Foreign(BoringModel):
    """Somebody else's regression."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def loss(self, batch):
        return F.mse_loss(self.layer(batch[0])[:, 0], batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def predict_step(self, batch, batch_idx):
        return self.layer(batch[0])[:, 0]


def test_a_module_of_somebody_else(tmp_path):
    datamodule, x = data("values")
    result = cross_validate(Foreign, datamodule, run_dir=tmp_path, trainer=TRAINER, **QUIET)
    table = load(tmp_path, module=Foreign).predict(x, coverage=0.8, progress_bar=False)
    inside = (table["lower"] <= table["prediction"]) & (table["prediction"] <= table["upper"])
    assert inside.all()
    width = np.quantile(np.abs(result.oof.target - result.oof.prediction), 0.8) * 2
    assert np.median(table["upper"] - table["lower"]) == pytest.approx(width, rel=0.2)


def test_several_values(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3)).astype("float32")
    y = (x[:, :2] + rng.normal(size=(80, 2)) * [0.1, 1.0]).astype("float32")
    result = cross_validate(
        lambda: MLPRegressor(3, 2, hidden=[16], lr=0.02), ArrayDataModule(x, y, num_folds=4),
        run_dir=tmp_path, trainer={**TRAINER, "max_epochs": 20}, **QUIET,
    )  # fmt: skip
    table = load(result.run_dir).predict(x, coverage=0.8, progress_bar=False)
    assert table["lower"].shape == (80, 2)
    narrow, wide = (table["upper"] - table["lower"]).mean(0)
    assert narrow < wide  # each value has its own


def test_several_labels_have_no_sets(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)).astype("float32"), rng.integers(0, 2, (60, 3))
    cross_validate(
        lambda: MLPClassifier(3, 3, multilabel=True, hidden=[4]), ArrayDataModule(x, y),
        num_folds=2, run_dir=tmp_path, trainer=TRAINER, **QUIET,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"coverage=0\.8 needs the out-of-fold predictions"):
        load(tmp_path).predict(x, coverage=0.8, progress_bar=False)


def test_the_temperature_is_found(tmp_path):
    """Of logits that are three times too large, it is about 3."""
    torch.manual_seed(0)
    logits = torch.randn(3000, 4)
    labels = torch.distributions.Categorical(logits=logits).sample()
    from dlblocks.crossval._calibrate_average import best_temperature
    from dlblocks.tasks import MulticlassTask, MultilabelTask, PredictionTable

    p = (3 * logits).softmax(1).numpy()
    oof = PredictionTable({"target": labels.numpy(), "prediction": p}, task="multiclass")
    assert best_temperature(MulticlassTask(4), oof) == pytest.approx(3, rel=0.1)
    several = torch.bernoulli(logits.sigmoid()).long()
    p = (3 * logits).sigmoid().numpy()
    oof = PredictionTable({"target": several.numpy(), "prediction": p}, task="multilabel")
    assert best_temperature(MultilabelTask(4), oof) == pytest.approx(3, rel=0.1)


def test_an_average_with_temperature(run, tmp_path):
    task, result, x = run
    if task == "values":
        with pytest.raises(ValueError, match="fit_temperature=True needs out-of-fold prob"):
            result.ensemble(fit_temperature=True)
        return
    plain, scaled = result.ensemble(), result.ensemble(fit_temperature=True)
    scaled.save(tmp_path / "scaled.pt")
    loaded = load(tmp_path / "scaled.pt")
    assert loaded.model.temperature == scaled.temperature != 1
    inputs = torch.from_numpy(x)
    outputs = plain.net(inputs) / scaled.temperature
    torch.testing.assert_close(scaled(inputs).softmax(1), outputs.softmax(2).mean(0))
    # The scores of the sets have the temperature, too.
    table = loaded.predict(x, coverage=0.8, progress_bar=False)
    assert 0.6 < table["in_set"].any(1).mean() <= 1
    with pytest.raises(ValueError, match="regression does not have"):
        VotingEnsemble([MLPRegressor(2), MLPRegressor(2)], temperature=2.0)


def test_the_command_line(tmp_path, capsys):
    from dlblocks.cli import main

    cross_validate(
        lambda: MLPClassifier(13, 3, hidden=[8]), TabularDataModule("wine"), num_folds=3,
        run_dir=tmp_path / "run", trainer=TRAINER, **QUIET,
    )  # fmt: skip
    from sklearn.datasets import load_wine

    load_wine(as_frame=True).data.to_csv(tmp_path / "new.csv", index=False)
    out = tmp_path / "out.csv"
    main(["predict", str(tmp_path / "run"), "--input", str(tmp_path / "new.csv"), "--output",
          str(out), "--coverage", "0.9", "--device", "cpu"])  # fmt: skip
    assert "in_set_class_0" in out.read_text().splitlines()[0]


def test_weighted_samples_have_no_intervals(run, tmp_path):
    task, _, _ = run
    datamodule, x = data(task, weights=np.arange(120.0))
    make = (lambda: MLPRegressor(4)) if task == "values" else (lambda: MLPClassifier(4, 2))
    cross_validate(make, datamodule, run_dir=tmp_path, trainer=TRAINER, **QUIET)
    with pytest.raises(ValueError, match="or its samples have weights"):
        load(tmp_path).predict(x, coverage=0.8, progress_bar=False)
