"""Numbers keep their precision until they are normalised."""

import json

import numpy as np
import pytest
import torch

from dlblocks.crossval import cross_validate
from dlblocks.data import ArrayDataModule
from dlblocks.data._normalization import needs_float64, standardisation
from dlblocks.ensembles import AdaBoost, Bagging, GradientBoosting
from dlblocks.models import MLPClassifier, MLPRegressor, VotingEnsemble, load
from dlblocks.nets.preprocess import rescale

COUNT = 240
MINUTES = np.random.default_rng(0).permutation(COUNT).astype(np.float64)
TIMES = 1_700_000_000_000 + 60_000 * MINUTES  # milliseconds since 1970, of four hours
LATE = (MINUTES % 120 >= 60).astype(int)  # every second hour
TRAINER = {"accelerator": "cpu", "max_epochs": 30}


def standardised(x, rows):
    """In long double, which neither rounds the times nor the minutes."""
    x = np.asarray(x, np.longdouble)
    return ((x - x[rows].mean(0)) / x[rows].std(0)).astype(np.float64)


@pytest.mark.parametrize(
    ("column", "wide"),
    [
        (TIMES, True),
        (TIMES / 1000, True),
        (TIMES.astype(np.int64), True),
        (2460000.5 + MINUTES / 1440, True),
        (MINUTES * 1e100, True),  # float32 has no such numbers
        (MINUTES, False),
        (MINUTES / 7, False),
        (MINUTES * 1e30, False),
        (1e6 + MINUTES, False),  # float32 holds them
        (np.full(COUNT, 1.7e12 + 0.1), False),  # a constant says nothing
        (np.where(MINUTES > 9, TIMES, np.nan), True),
        (np.where(MINUTES > 9, MINUTES, np.inf), False),
    ],
)
def test_columns_that_float32_would_round(column, wide):
    plain = np.random.default_rng(1).random(COUNT)
    inputs = np.stack([plain, column], axis=1)
    assert needs_float64(torch.from_numpy(inputs)) == wide
    if np.isfinite(column).all() and column.max() < 1e38:
        source = ArrayDataModule(inputs, LATE).source
        assert source.inputs.dtype == (torch.float64 if wide else torch.float32)


@pytest.mark.parametrize("give", [torch.from_numpy, np.asarray, lambda x: x.astype(np.int64)])
def test_batches_say_what_the_source_says(give, make_trainer):
    data = ArrayDataModule(
        give(TIMES[:, None].copy()), LATE, input_kind="features", num_folds=4, batch_size=16
    )
    rows = data.indices("train")
    made = data.transform(data.raw_inputs("train"))
    assert made.dtype == torch.float32
    assert len(made.unique()) == COUNT
    np.testing.assert_allclose(made, standardised(TIMES[:, None], rows.numpy()), atol=1e-6)
    np.testing.assert_allclose(data.inverse_transform(made)[:, 0], TIMES, atol=10, rtol=0)
    seen = []

    class Look(MLPClassifier):
        def training_step(self, batch, batch_idx):
            seen.append(batch[0])
            return super().training_step(batch, batch_idx)

    make_trainer().fit(Look(1, 2), datamodule=data)
    assert {x.dtype for x in seen} == {torch.float32}
    assert len(torch.cat(seen).unique()) == len(rows)


@pytest.mark.parametrize(
    "give", [np.asarray, torch.from_numpy, lambda x: x.tolist(), lambda x: x.astype(np.uint64)]
)
def test_integers_that_float64_would_round_are_refused(give):
    numbers = 2**53 + np.arange(COUNT)[:, None]
    with pytest.raises(ValueError, match="such as 9007199254740993, which float64 rounds"):
        ArrayDataModule(give(numbers), LATE, input_kind="features").setup()
    data = ArrayDataModule(give(numbers - 2**53), LATE, input_kind="features")
    data.setup()
    assert len(data.source.inputs.unique()) == COUNT


def test_the_largest_integers_are_refused():
    """Their floats are numbers that the dtype does not hold."""
    for dtype in (np.int64, np.uint64):
        largest = np.full((COUNT, 1), np.iinfo(dtype).max, dtype=dtype)
        with pytest.raises(ValueError, match=f"such as {np.iinfo(dtype).max}, "):
            ArrayDataModule(largest, LATE, input_kind="features").setup()


def test_float32_far_from_0_is_normalised_in_float64():
    """1e7, 1e7 + 1, … are float32 numbers, of which a float32 scale and shift lose most."""
    x = (1e7 + MINUTES).astype(np.float32)[:, None]
    data = ArrayDataModule(x, LATE)
    assert data.source.inputs.dtype == torch.float32
    rows = data.indices("train").numpy()
    np.testing.assert_allclose(data.transform(data.source.inputs), standardised(x, rows), atol=1e-6)


def test_other_data_is_normalised_in_float32():
    x = torch.randn(20, 3) * 2 + 5
    scale, shift = standardisation(x, torch.arange(20))
    assert scale.dtype == shift.dtype == torch.float32
    assert torch.equal(rescale(x, scale, shift, torch.float32), x * scale + shift)
    pixels = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8)
    assert standardisation(pixels, torch.arange(20))[0].dtype == torch.float32


def test_float64_as_default_keeps_all_digits():
    torch.set_default_dtype(torch.float64)
    try:
        data = ArrayDataModule(TIMES[:, None], LATE)
        data.setup()
        made = data.transform(data.source.inputs)
        assert made.dtype == torch.float64
        expected = standardised(TIMES[:, None], data.indices("train").numpy())
        np.testing.assert_allclose(made, expected, atol=1e-8)
    finally:
        torch.set_default_dtype(torch.float32)


def test_without_normalisation_a_warning_says_what_is_lost():
    with pytest.warns(UserWarning, match="normalize=False: batches are float32, which rounds"):
        ArrayDataModule(TIMES[:, None], LATE, normalize=False).setup()
    ArrayDataModule(MINUTES[:, None], LATE, normalize=False).setup()


def test_a_test_set_is_kept_alike():
    some = MINUTES[:, None]
    for train, test in ((TIMES[:, None], some), (some, TIMES[:, None])):
        data = ArrayDataModule(train, LATE, test_inputs=test, test_targets=LATE)
        assert data.source.inputs.dtype == data.source.test_inputs.dtype == torch.float64
    data = ArrayDataModule(TIMES[:, None], LATE, test_inputs=TIMES[:5, None], test_targets=LATE[:5])
    assert data.shared_with_test() == 5


def classifier():
    return MLPClassifier(1, 2, hidden=[32], lr=0.06)


def module(**arguments):
    return ArrayDataModule(TIMES[:, None], LATE, batch_size=32, **arguments)


def test_both_engines_learn_from_minutes_within_milliseconds(tmp_path):
    """As well as from the minutes themselves, and every fold alike."""
    results = {
        name: cross_validate(
            classifier,
            data,
            num_folds=3,
            engine=engine,
            trainer=TRAINER,
            run_dir=tmp_path / name,
            figures=False,
        )
        for name, data, engine in (
            ("sequential", module(), "sequential"),
            ("vectorized", module(), "vectorized"),
            ("minutes", ArrayDataModule(MINUTES[:, None], LATE, batch_size=32), "sequential"),
        )
    }
    for name, result in results.items():
        assert result.pooled()["accuracy"] > 0.9, name
        for ours, theirs in zip(result.folds, results["sequential"].folds, strict=True):
            assert ours["val/loss"] == pytest.approx(theirs["val/loss"], rel=2e-2)
    # The average of the folds takes the units of the source.
    model = results["vectorized"].ensemble()
    with torch.no_grad():
        raw = model(torch.from_numpy(TIMES[:, None])).argmax(1).numpy()
        half = model.to(torch.bfloat16)(torch.from_numpy(TIMES[:, None])).argmax(1).numpy()
    assert (raw == LATE).mean() > 0.9
    assert (half == LATE).mean() > 0.9
    nested = VotingEnsemble([results["vectorized"].ensemble()])
    with torch.no_grad():
        assert (nested(torch.from_numpy(TIMES[:, None])).argmax(1).numpy() == raw).all()
    kept = json.loads((tmp_path / "vectorized" / "fold-0" / "fold.json").read_text())
    expected = module().for_fold(0, 3).with_selection(0.15).preprocess
    assert kept["preprocess"]["scale"] == ["float64", expected.scale.tolist()]
    assert kept["preprocess"]["shift"] == ["float64", expected.shift.tolist()]


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_bagging_learns_from_minutes_within_milliseconds(tmp_path, engine, make_trainer):
    settings = {"num_members": 2, "engine": engine, "trainer": TRAINER, "logger": None}
    result = Bagging(classifier, module(), **settings, run_dir=tmp_path / "run").fit()
    assert result.oob_score["oob/accuracy"] > 0.9
    # By itself the ensemble takes the units of the source, under a Trainer the module's batches.
    times = torch.from_numpy(TIMES[:, None])
    with torch.no_grad():
        raw = result.model(times).argmax(1).numpy()
        again = load(tmp_path / "run" / "ensemble.ckpt").eval()(times).argmax(1).numpy()
    assert (raw == LATE).mean() > 0.9
    np.testing.assert_array_equal(again, raw)
    data = module()
    data.predict_on = "val"
    batches = make_trainer().predict(result.model, datamodule=data)
    predicted = torch.cat([batch["prediction"] for batch in batches]).argmax(1).numpy()
    np.testing.assert_array_equal(predicted, raw[data.indices("val")])


def test_boosting_learns_from_minutes_within_milliseconds(tmp_path):
    settings = {"num_stages": 4, "logger": None, "progress_bar": False, "trainer": TRAINER}
    result = AdaBoost(classifier, module(), **settings).fit()
    data = module()
    data.setup()
    inputs, targets, _ = data.arrays("val")
    with torch.no_grad():
        found = result.model(inputs).argmax(1)
    assert (found == targets).float().mean() > 0.9

    def learner():
        return MLPRegressor(1, hidden=[32], lr=0.06)

    data = ArrayDataModule(TIMES[:, None], LATE.astype(float), batch_size=32)
    result = GradientBoosting(learner, data, shrinkage=1.0, **settings).fit()
    data.setup()
    inputs, targets, _ = data.arrays("val")
    with torch.no_grad():
        found = result.model(inputs).flatten()
    assert (found - targets).square().mean() < 0.1  # 0.25 is that of the mean
