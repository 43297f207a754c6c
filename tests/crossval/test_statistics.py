"""What may be said about the scores of folds, against formulas, scipy, scikit-learn and chance."""

import json
import math
import sys

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from dlblocks._scores import pooled_metrics
from dlblocks.crossval import CrossValidationResult
from dlblocks.crossval.statistics import (
    corrected_t_test,
    holm,
    least_error,
    least_paired_error,
    mean_interval,
    with_holm,
)
from dlblocks.tasks import PredictionTable

SCORES = [0.91, 0.94, 0.89, 0.95, 0.92]
OTHERS = [0.90, 0.90, 0.88, 0.93, 0.93]


def table(**columns):
    return PredictionTable(columns)


def result(tmp_path, scores=SCORES, *, seed=0, repeats=1, binary=False, **changes):
    """A result as a cross-validation of 5 folds of 50 samples leaves it, without the training."""
    folds = len(scores) // repeats
    rng = np.random.default_rng(seed)
    target = np.random.default_rng(9).integers(0, 2 if binary else 3, 50)
    oof = table(
        index=np.tile(np.arange(50), repeats),
        target=np.tile(target, repeats),
        prediction=rng.dirichlet(np.ones(2 if binary else 3), 50 * repeats).astype(np.float32),
        fold=np.tile(np.arange(50) % folds, repeats),
        repeat=np.repeat(np.arange(repeats), 50),
    )
    rows = [
        {
            "repeat": i // folds, "fold": i % folds, "epochs": 3, "best_epoch": 2,
            "num_train": 50 - 50 // folds, "num_val": 50 // folds, "val/accuracy": score,
            "val/loss": 1 - score, "seconds": 1.0, "checkpoint": "",
        }
        for i, score in enumerate(scores)
    ]  # fmt: skip
    made = {"run_dir": tmp_path, "folds": rows, "oof": oof, "histories": [], "info": {}}
    return CrossValidationResult(**{**made, **changes})


def slow_error(values, test_to_train):
    """Nadeau and Bengio's corrected variance of the mean of n scores, as a loop."""
    n = len(values)
    mean = 0.0
    for value in values:
        mean += value / n
    squares = 0.0
    for value in values:
        squares += (value - mean) ** 2
    return mean, math.sqrt((1 / n + test_to_train) * squares / (n - 1))


def test_interval_is_the_papers_formula():
    mean, error = slow_error(SCORES, 1 / 4)
    quantile = 2.7764451  # of Student's t at 0.975 with 4 degrees of freedom, from a table
    low, high = mean_interval(SCORES, 1 / 4)
    assert (low, high) == pytest.approx((mean - quantile * error, mean + quantile * error))
    naive = stats.t.interval(0.95, 4, loc=mean, scale=stats.sem(SCORES))
    assert mean_interval(SCORES, 0) == pytest.approx(naive)
    assert high - low == pytest.approx((naive[1] - naive[0]) * 1.5)  # √(1/5 + 1/4) / √(1/5)
    wide = mean_interval(SCORES, 1 / 4, level=0.99)
    assert wide[0] < low < high < wide[1]


def test_comparison_is_the_papers_formula():
    mean, error = slow_error([a - b for a, b in zip(SCORES, OTHERS, strict=True)], 1 / 4)
    found = corrected_t_test(SCORES, OTHERS, 1 / 4)
    assert found.difference == pytest.approx(mean)
    assert found.t == pytest.approx(mean / error)
    assert found.degrees_of_freedom == 4
    # Student's distribution of 4 degrees of freedom has a closed form.
    x = found.t / math.sqrt(4 + found.t**2)
    assert found.p == pytest.approx(1 - (1.5 * x - 0.5 * x**3))
    assert found.interval == pytest.approx((mean - 2.7764451 * error, mean + 2.7764451 * error))


def test_without_correction_it_is_scipys_paired_test():
    naive = corrected_t_test(SCORES, OTHERS, 0)
    expected = stats.ttest_rel(SCORES, OTHERS)
    assert (naive.t, naive.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert naive.degrees_of_freedom == expected.df
    assert naive.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    back = corrected_t_test(OTHERS, SCORES, 0)
    assert (back.difference, back.p) == pytest.approx((-naive.difference, naive.p))


def test_equal_scores_have_an_unknown_spread_and_never_none():
    assert all(map(math.isnan, mean_interval([0.3] * 5, 0.25)))
    for other in ([0.3] * 5, [0.4] * 5):
        found = corrected_t_test([0.3] * 5, other, 0.25)
        assert all(map(math.isnan, (found.t, found.p, *found.interval)))
    # Differences of rounding are none.
    assert math.isnan(corrected_t_test(SCORES, [score - 0.1 for score in SCORES], 0.25).p)
    assert math.isnan(corrected_t_test([math.nan, 1.0], [1.0, 1.0], 0.25).p)
    low, high = mean_interval([0.3] * 5, 0.25, least_error=0.01)
    assert (low, high) == pytest.approx((0.3 - 0.027764451, 0.3 + 0.027764451))
    shifted = corrected_t_test([0.5, 0.75], [1.0, 1.25], 0.5, least_error=0.1)
    assert (shifted.t, shifted.degrees_of_freedom) == (-5, 1)
    assert shifted.p == pytest.approx(1 - 2 / math.pi * math.atan(5))  # Cauchy's distribution


def test_floor_bounds_and_degrees_of_freedom_of_an_interval():
    wide = mean_interval(SCORES, 1 / 4, least_error=0.1)
    mean = np.mean(SCORES)
    assert wide == pytest.approx((mean - 0.27764451, mean + 0.27764451))
    assert mean_interval(SCORES, 1 / 4, least_error=1e-9) == mean_interval(SCORES, 1 / 4)
    assert mean_interval(SCORES, 1 / 4, least_error=0.1, bounds=(0.8, 1)) == (0.8, 1)
    assert mean_interval(SCORES, 1 / 4, least_error=0.1, bounds=(None, 1)) == (wide[0], 1)
    low, high = mean_interval(SCORES, 1 / 4, degrees_of_freedom=1)
    _, error = slow_error(SCORES, 1 / 4)
    assert (low, high) == pytest.approx((mean - 12.7062047 * error, mean + 12.7062047 * error))
    test = corrected_t_test(SCORES, OTHERS, 1 / 4, degrees_of_freedom=1, bounds=(-0.01, 0.02))
    assert (test.degrees_of_freedom, test.interval) == (1, (-0.01, 0.02))
    assert test.p == pytest.approx(1 - 2 / math.pi * math.atan(test.t))


def test_the_floor_is_the_error_of_the_scored_samples():
    rng = np.random.default_rng(0)
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (2.0, 5.0)):
        for size in (3, 50, 1000):
            # One sample more at each end: of right and wrong it is the whole variance.
            ends = np.append(rng.choice([low, high], size), [low, high])
            exact = math.sqrt(ends.var() / size)
            assert least_error(ends[:-2].mean(), (low, high), size) == pytest.approx(exact)
            inside = rng.uniform(low, high, size) ** 2 / high
            inside = np.clip(inside, low, high)
            assert least_error(inside.mean(), (low, high), size) >= math.sqrt(inside.var() / size)
    assert least_error(1.0, (0, 1), 60) == pytest.approx(math.sqrt(61 / 62 / 62 / 60))
    assert least_error(0.0, (0, 1), 60) == pytest.approx(least_error(1.0, (0, 1), 60))
    for unknown in ((0.0, None), (None, 1.0), (None, None)):
        assert least_error(0.5, unknown, 60) == 0
    assert least_error(math.nan, (0, 1), 60) == 0


def test_the_paired_floor_is_mcnemars_error():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2, (2, 200))
    only_first = only_second = 0
    for a, b in zip(first, second, strict=True):
        only_first += a > b
        only_second += b > a
    z = (only_first - only_second) / math.sqrt(only_first + only_second)
    error = least_paired_error(first - second)
    with_one_more = math.sqrt((only_first + only_second) / (only_first + only_second + 1))
    assert np.mean(first - second) / error == pytest.approx(z * with_one_more)
    assert least_paired_error(np.zeros(50)) == 1 / 50


@pytest.mark.parametrize(("folds", "repeats"), [(2, 1), (5, 1), (10, 1), (10, 3)])
def test_intervals_and_tests_keep_their_level(tmp_path, folds, repeats):
    """Two equally good classifiers; samples are hard or easy, and so are whole data sets."""
    rng = np.random.default_rng(folds + repeats)
    tables, samples, truth = 600, 60, 0.9
    # Spread of the expected score between data sets, for half the variance of 60 samples.
    shift = math.sqrt(0.5 * truth * (1 - truth) / samples) / stats.norm.pdf(stats.norm.ppf(truth))
    center = stats.norm.ppf(truth) * math.sqrt(1 + shift**2)
    hard = rng.normal(size=(tables, samples)) * 0.85
    covered = found = 0
    fold = np.stack([rng.permutation(samples) % folds for _ in range(repeats)])
    for i in range(tables):
        results = []
        for _ in range(2):
            own = hard[i] + rng.normal(size=samples) * 0.45 + shift * rng.normal() + center
            noise = math.sqrt(1 - 0.85**2 - 0.45**2) * rng.normal(size=(repeats, samples))
            right = own + noise > 0
            scores = [right[r][fold[r] == k].mean() for r in range(repeats) for k in range(folds)]
            oof = table(
                index=np.tile(np.arange(samples), repeats),
                target=np.zeros(samples * repeats, dtype=int),
                prediction=np.stack([right.ravel(), ~right.ravel()], 1).astype(float),
                fold=fold.ravel(),
                repeat=np.repeat(np.arange(repeats), samples),
            )
            made = result(tmp_path, scores, repeats=repeats, oof=oof)
            for row in made.folds:
                row.update(num_val=samples // folds, num_train=samples - samples // folds)
            results.append(made)
        low, high = results[0].interval("val/accuracy")
        assert 0 <= low < high <= 1
        covered += low <= truth <= high
        found += results[0].compare(results[1], "val/accuracy").p < 0.05
    assert covered / tables > 0.93
    assert found / tables < 0.06


def test_the_corrected_test_keeps_its_level_where_the_naive_one_does_not():
    """Two models that are equally good: each is given one half of what decides the target."""
    rng = np.random.default_rng(0)
    datasets, samples, folds, repeats = 1000, 60, 5, 4
    first, second = rng.normal(size=(2, datasets, samples, 3))
    y = first.sum(2) + second.sum(2) + rng.normal(size=(datasets, samples))
    scores = []
    for _ in range(repeats):
        fold = rng.permutation(samples) % folds
        for k in range(folds):
            train, val = fold != k, fold == k
            errors = []
            for x in (first, second):
                a, b = x[:, train], y[:, train, None]
                weight = np.linalg.solve(a.swapaxes(1, 2) @ a, a.swapaxes(1, 2) @ b)
                errors.append(((x[:, val] @ weight - y[:, val, None]) ** 2).mean((1, 2)))
            scores.append(errors)
    scores = np.array(scores)  # (fits, 2, datasets)

    def rejected(test_to_train):
        tests = [corrected_t_test(*scores[:, :, i].T, test_to_train) for i in range(datasets)]
        return np.mean([test.p < 0.05 for test in tests])

    assert 0.02 < rejected(1 / (folds - 1)) < 0.08
    assert rejected(0) > 0.3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([0.9], 0.25), "1 score has no variance"),
        (lambda: mean_interval(SCORES, 0.25, level=95), "level=95 is outside"),
        (lambda: mean_interval(SCORES, -0.1), "test_to_train=-0.1"),
        (lambda: corrected_t_test(SCORES, SCORES[:4], 0.25), "first has 5 scores and second 4"),
        (lambda: pooled_metrics(np.zeros((4, 8, 8), int), np.zeros((4, 3, 8, 8))), "expected cla"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("classes", [2, 4])
def test_pooled_classes_are_scikit_learns(classes):
    rng = np.random.default_rng(0)
    target = rng.integers(0, classes, 300)
    prediction = rng.dirichlet(np.ones(classes), 300)
    found = pooled_metrics(target, prediction.astype(np.float32))
    guess = prediction.argmax(1)
    assert found["accuracy"] == np.mean(guess == target)
    assert found["f1"] == pytest.approx(metrics.f1_score(target, guess, average="macro"))
    likelihood = -np.log(prediction[np.arange(300), target]).mean()
    assert found["log_loss"] == pytest.approx(likelihood, rel=1e-5)
    assert ("auc" in found) == (classes == 2)
    if classes == 2:
        pairs = [p > q for p in prediction[target == 1, 1] for q in prediction[target == 0, 1]]
        assert found["auc"] == pytest.approx(np.mean(pairs))


def test_pooled_classes_at_the_edges():
    target, sure = np.array([0, 1, 1]), np.eye(2)[[0, 1, 1]]
    assert pooled_metrics(target, sure)["log_loss"] == pytest.approx(0)
    # A class that does not occur is no reason to fail, nor is half precision.
    third = np.full((3, 3), 1 / 3, dtype=np.float16)
    assert pooled_metrics(target, third)["log_loss"] == pytest.approx(math.log(3))
    assert math.isnan(pooled_metrics(np.array([1, 1]), sure[1:])["auc"])
    assert pooled_metrics(target, 5 * sure - 1).keys() == {"accuracy", "f1"}  # scores, not shares
    sure[1] = math.nan
    broken = pooled_metrics(target, sure)
    assert broken.keys() == {"accuracy", "f1", "log_loss", "calibration_error", "auc"}
    assert all(map(math.isnan, broken.values()))


@pytest.mark.parametrize("shape", [(80,), (80, 1), (80, 3)])
def test_pooled_values_are_scikit_learns(shape):
    rng = np.random.default_rng(0)
    target = (
        rng.normal(size=shape) * [1, 5, 9][: shape[1]] if len(shape) > 1 else rng.normal(size=80)
    )
    prediction = target + rng.normal(size=shape)
    found = pooled_metrics(target, prediction)
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((target - prediction) ** 2)))
    assert found["mae"] == pytest.approx(np.abs(target - prediction).mean())
    columns = zip(target.reshape(80, -1).T, prediction.reshape(80, -1).T, strict=True)
    assert found["r2"] == pytest.approx(np.mean([metrics.r2_score(t, p) for t, p in columns]))
    assert math.isnan(pooled_metrics(target[:1], prediction[:1])["r2"])


def test_pooled_is_averaged_over_repeats(tmp_path):
    scores = [*SCORES, *OTHERS]
    found = result(tmp_path, scores, repeats=2, binary=True)
    oof = found.oof
    each = [metrics.roc_auc_score(oof.target[oof.repeat == r], oof.prediction[oof.repeat == r, 1])
            for r in (0, 1)]  # fmt: skip
    assert found.pooled()["auc"] == pytest.approx(np.mean(each))
    mixed = metrics.roc_auc_score(oof.target, oof.prediction[:, 1])
    assert found.pooled()["auc"] != pytest.approx(mixed, rel=1e-6)


def test_interval_in_result_summary_and_table(tmp_path):
    found = result(tmp_path)
    low, high = found.interval("val/accuracy")
    floor = least_error(np.mean(SCORES), (0, 1), 50)
    settings = {"least_error": floor, "bounds": (0, 1)}
    assert (low, high) == mean_interval(SCORES, 1 / 4, **settings)
    assert high == 1  # without its bound, 1.04
    found.write()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["metrics"]["val/accuracy"]["interval"] == [low, high]
    assert summary["pooled"] == pytest.approx(found.pooled())
    lines = found.table().split("\n")
    assert f"{low:.4f} … {high:.4f}" in lines[-3]
    pooled = {name: f"{value:.4f}" for name, value in found.pooled().items()}
    assert lines[-2].split() == ["pooled", pooled.pop("accuracy")]
    assert lines[-1] == "pooled: " + ", ".join(map(" ".join, pooled.items()))
    assert max(map(len, lines)) <= 80
    # Repeats score the same 50 samples in 5 folds.
    twice = [*SCORES, *OTHERS]
    settings = {"least_error": least_error(np.mean(twice), (0, 1), 50), "bounds": (0, 1)}
    again = result(tmp_path, scores=twice, repeats=2)
    assert again.interval("val/accuracy") == mean_interval(
        twice, 1 / 4, degrees_of_freedom=4, **settings
    )


def test_the_range_of_a_metric_ends_its_interval(tmp_path):
    losses = [1 - score for score in SCORES]
    free = mean_interval(losses, 1 / 4, level=0.999)
    assert free[0] < 0
    assert result(tmp_path).interval("val/loss", level=0.999) == free
    info = {"ranges": {"val/loss": [0.0, None]}}  # as a run writes it for our own models
    known = result(tmp_path, info=info)
    assert known.interval("val/loss", level=0.999) == (0, free[1])
    known.write()
    assert json.loads((tmp_path / "summary.json").read_text())["ranges"] == info["ranges"]
    # Per cent: the name's range cannot be meant.
    percent = [100 * score for score in SCORES]
    assert result(tmp_path, percent).interval("val/accuracy") == mean_interval(percent, 1 / 4)


def test_equal_scores_in_a_result(tmp_path):
    same = result(tmp_path, [0.9] * 5)
    low, high = same.interval("val/accuracy")
    assert high - low == pytest.approx(1 - 0.9 + 2.7764451 * least_error(0.9, (0, 1), 50))
    assert all(map(math.isnan, same.interval("val/loss")))
    other = result(tmp_path, [0.9] * 5, seed=1)
    assert same.compare(other, "val/accuracy").p == 1
    assert math.isnan(same.compare(other, "val/loss").p)
    same.write()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["metrics"]["val/loss"]["interval"] == [None, None]


def test_a_result_of_other_predictions_is_still_written(tmp_path):
    mask = np.zeros((50, 4, 4), int)
    odd = result(tmp_path)
    odd.oof.target = mask
    odd.write()
    assert json.loads((tmp_path / "summary.json").read_text())["pooled"] == {}
    with pytest.raises(ValueError, match="expected classes") as error:
        odd.pooled()
    assert odd.table().split("\n")[-1] == f"note: no pooled metrics: {error.value}"
    none = result(tmp_path, oof=None)
    assert none.summary()["pooled"] == {}
    with pytest.raises(ValueError, match="must return one prediction a sample") as error:
        none.pooled()
    assert none.summary()["notes"] == [f"no pooled metrics: {error.value}"]


def test_compare(tmp_path):
    first, second = result(tmp_path, info={"monitor": "val/loss"}), result(tmp_path, OTHERS, seed=1)
    alone = 0
    for row in range(50):
        right = [one.oof.prediction[row].argmax() == one.oof.target[row] for one in (first, second)]
        alone += right[0] != right[1]
    found = first.compare(second, "val/accuracy")
    assert found == corrected_t_test(
        SCORES, OTHERS, 1 / 4, metric="val/accuracy", bounds=(-1, 1),
        least_error=math.sqrt(alone + 1) / 50,
    )  # fmt: skip
    low, high = found.interval
    for part in ("val/accuracy", f"{found.difference:+.4g}", f"{low:+.4g} … {high:+.4g}",
                 f"p = {found.p:.3g}", f"t(4) = {found.t:.2f}"):  # fmt: skip
        assert part in str(found)
    losses = first.compare(second)
    assert losses == first.compare(second, "val/loss")
    others = [1 - score for score in OTHERS]
    assert losses == corrected_t_test(first.values("val/loss"), others, 1 / 4, metric="val/loss")
    with pytest.raises(KeyError, match="did you mean 'val/accuracy'"):
        first.compare(second, "val/acuracy")
    for row in second.folds:
        del row["val/loss"]
    with pytest.raises(
        KeyError, match=r"'val/loss' .* of the other result; give metric= .*: val/a"
    ):
        first.compare(second)


def test_compare_averages_the_repeats_of_a_sample(tmp_path):
    twice = [[*SCORES, *OTHERS], [*OTHERS, *SCORES]]
    first, second = (result(tmp_path, twice[i], repeats=2, seed=i) for i in (0, 1))
    squares = 0.0
    for sample in range(50):
        difference = 0.0
        for one, sign in ((first, 1), (second, -1)):
            for row in np.flatnonzero(one.oof.index == sample):
                difference += sign * (one.oof.prediction[row].argmax() == one.oof.target[row]) / 2
        squares += difference**2
    found = first.compare(second, "val/accuracy")
    assert found.degrees_of_freedom == 4
    assert found == corrected_t_test(
        *twice, 1 / 4, metric="val/accuracy", bounds=(-1, 1), degrees_of_freedom=4,
        least_error=math.sqrt(squares + 1) / 50,
    )  # fmt: skip


def test_compare_bounded_metrics_of_other_predictions(tmp_path):
    results = [result(tmp_path, scores, seed=i) for i, scores in enumerate((SCORES, OTHERS))]
    for one in results:
        one.oof.prediction = one.oof.prediction[:, 0]
    floor = math.hypot(*(least_error(np.mean(x), (0, 1), 50) for x in (SCORES, OTHERS)))
    assert results[0].compare(results[1], "val/accuracy") == corrected_t_test(
        SCORES, OTHERS, 1 / 4, metric="val/accuracy", bounds=(-1, 1), least_error=floor
    )


def test_compare_refuses_other_folds_and_says_what_differs(tmp_path):
    first = result(tmp_path)

    def refused(other, message):
        with pytest.raises(ValueError, match=message):
            first.compare(other, "val/accuracy")

    def changed(name, rows, values):
        other = result(tmp_path, OTHERS)
        array = other.oof[name].copy()
        array[rows] = values
        other.oof = other.oof.with_columns(**{name: array})
        return other

    refused(changed("fold", [7, 8], [3, 2]), r"fold differs in 2 of 50 rows, first for sample 7 in"
            r" repeat 0: 2 here and 3 there; run both with the same data, split_seed")  # fmt: skip
    refused(changed("index", 49, 60), "index differs in 1 of 50 rows, first for sample 49")
    refused(changed("target", 0, 99), "target differs in 1 of 50 rows")
    refused(changed("repeat", 3, 1), "repeat differs in 1 of 50 rows")
    refused(result(tmp_path, OTHERS[:2]), "repeats × folds are 1 × 5 here and 1 × 2 there")
    refused(result(tmp_path, OTHERS, oof=None), "the other has no out-of-fold predictions")
    fewer = result(tmp_path, OTHERS)
    fewer.oof = fewer.oof[:40]
    refused(fewer, "50 out-of-fold predictions here and 40 there")
    wide = result(tmp_path, OTHERS)
    wide.oof = wide.oof.with_columns(target=wide.oof.target[:, None])
    refused(wide, r"targets have shape \(50,\) here and \(50, 1\) there")


def test_to_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    found = result(tmp_path, info={"class_names": ["cat", "dog", "owl"]})
    folds = found.to_pandas()
    assert isinstance(folds, pandas.DataFrame)
    assert folds.to_dict("records") == found.folds
    oof = found.to_pandas("oof")
    probabilities = ["probability_cat", "probability_dog", "probability_owl"]
    assert list(oof) == ["repeat", "fold", "index", "target", "prediction", *probabilities]
    np.testing.assert_array_equal(oof[probabilities], found.oof.prediction)
    accuracy = (oof["target"] == oof["prediction"]).mean()
    assert accuracy == pytest.approx(found.pooled()["accuracy"])
    assert oof.groupby("fold").size().tolist() == [10] * 5

    values = np.arange(100.0).reshape(50, 2)
    found.oof = found.oof.with_columns(target=values, prediction=values + 1)
    assert list(found.to_pandas("oof"))[3:] == [
        "target_0",
        "target_1",
        "prediction_0",
        "prediction_1",
    ]
    assert found.to_pandas("oof")["prediction_1"].tolist() == (values[:, 1] + 1).tolist()
    found.oof = found.oof.with_columns(target=values[:, 0], prediction=values[:, :1])
    assert list(found.to_pandas("oof"))[3:] == ["target", "prediction"]


def test_to_pandas_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="what='oofs' is not known; did you mean 'oof'"):
        result(tmp_path).to_pandas("oofs")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas"):
        result(tmp_path).to_pandas()


def test_to_pandas_without_predictions(tmp_path):
    pytest.importorskip("pandas")
    with pytest.raises(ValueError, match="no out-of-fold predictions"):
        result(tmp_path, oof=None).to_pandas("oof")


def test_holms_values_are_those_at_which_its_procedure_rejects():
    """The procedure of 1979, step by step: from the smallest on, reject while p <= level / left."""
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 7):
        p = rng.beta(0.5, 3, size=size)
        p[: size // 2] = p[:1].repeat(size // 2)  # ties
        adjusted = holm(p.tolist())
        assert len(adjusted) == size
        for level in rng.uniform(0, 1, 200):
            rejected = set()
            for rank, i in enumerate(np.argsort(p)):
                if p[i] > level / (size - rank):
                    break
                rejected.add(int(i))
            assert rejected == {i for i, value in enumerate(adjusted) if value <= level}


def test_several_comparisons_have_the_p_values_of_holm():
    tests = {
        name: corrected_t_test(scores, SCORES, 0.25)
        for name, scores in {"same": [*SCORES[:4], 0.93], "other": OTHERS}.items()
    }
    found = with_holm(tests)
    for name, test in tests.items():
        assert found[name]["difference"] == test.difference
        assert (found[name]["p"], found[name]["difference_interval"]) == (test.p, test.interval)
    adjusted = [row["p_holm"] for row in found.values()]
    assert adjusted == holm([test.p for test in tests.values()])
