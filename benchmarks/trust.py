"""Whether intervals and comparisons of a cross-validation keep what they promise.

A 95 % interval should hold the expected score in 95 % of runs, and a test of two equally good
models should find a difference in 5 % of them at most. Both are counted over many cross-validations
of accuracy, by the formulas of `CrossValidationResult.interval` and `compare`, and, for comparison,
by Nadeau and Bengio's (2003) alone, without a floor of the error and with n - 1 degrees of freedom.

- *Simulated scores*: 10,000 tables of scores for each row. Each sample is hard or easy, for both
  models and in every repeat; each data set is good or bad for training, and each fit a little. The
  strength c of that is the variance of a data set's expected score, over the variance of the score
  of as many independent samples. The true score is known.
- *Learners*: nearest neighbours and least squares, trained on 2,000 data sets of two Gaussian
  classes. Two models have features of their own and are equally good. The true score is the mean
  over all data sets, and c is what these runs show.

Measured (numbers do not depend on the machine; 10×3 is 10 folds, repeated three times; found is the
share of tests with p < 0.05, plain the formula alone):

    simulated, worst of 9    coverage  found    plain coverage  found
    n=60     2×1              1.000  0.000             0.605  0.108
    n=60     5×1              0.949  0.011             0.724  0.028
    n=60    10×1              0.950  0.021             0.744  0.024
    n=60    10×3              0.931  0.030             0.777  0.051
    n=400    2×1              1.000  0.000             0.907  0.078
    n=400    5×1              0.959  0.014             0.949  0.031
    n=400   10×1              0.952  0.028             0.950  0.032
    n=400   10×3              0.945  0.032             0.918  0.052
    learners, worst of 4     coverage  found    plain coverage  found
    n=60     2×1              1.000  0.000             0.847  0.095
    n=60     5×1              0.978  0.015             0.959  0.045
    n=60    10×1              0.955  0.029             0.951  0.039
    n=60    10×3              0.927  0.048             0.894  0.083

Two folds tell almost nothing: intervals are long, and the test hardly ever finds a difference. The
lowest coverage is that of one nearest neighbour, of which a training set decides much (c = 0.7).

Run: python benchmarks/trust.py [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from dlblocks.crossval.statistics import (
    corrected_t_test,
    least_error,
    least_paired_error,
    mean_interval,
)

Array = npt.NDArray[np.floating]
Classes = npt.NDArray[np.integer]
LAYOUTS = ((2, 1), (5, 1), (10, 1), (10, 3))  # folds, repeats
SIZES = (60, 400)
STRENGTHS = (0.0, 0.4, 0.8)
TRUTHS = (0.6, 0.9, 0.97)
# Shares of a sample's difficulty that both models have, and that both repeats have.
SHARED, KEPT = 0.7, 0.97
CHECKED = 20  # tables of a row by which the formulas here are held against the package's


@dataclass
class Scores:
    """Many cross-validations of two equally good models.

    Attributes:
        fits: Accuracies, shape (2, T, n) for n fits.
        right: Share of the repeats in which each sample is right, shape (2, T, N).
        folds: Number of folds K.
        truth: The expected accuracy.
    """

    fits: Array
    right: Array
    folds: int
    truth: float


@dataclass
class Row:
    """A line of the table.

    Attributes:
        what: What was run.
        coverage: Share of 95 % intervals that hold the truth.
        width: Mean width of these intervals.
        false_positives: Share of tests with p < 0.05.
        plain_coverage: `coverage` by Nadeau and Bengio's formula alone.
        plain_false_positives: Likewise.
    """

    what: str
    coverage: float
    width: float
    false_positives: float
    plain_coverage: float
    plain_false_positives: float


def judge(what: str, scores: Scores) -> Row:
    """Counts how often the intervals hold the truth and the tests find a difference."""
    tables, fits = scores.fits.shape[1:]
    samples = scores.right.shape[2]
    ratio = 1 / (scores.folds - 1)
    freedom = scores.folds - 1
    quantiles = {n: stats.t.ppf(0.975, n) for n in (freedom, fits - 1)}

    def error(values: Array) -> Array:
        return np.sqrt((1 / fits + ratio) * values.var(1, ddof=1))

    values, differences = scores.fits[0], scores.fits[0] - scores.fits[1]
    mean, gap = values.mean(1), differences.mean(1)
    share = (samples * mean + 1) / (samples + 2)
    mean_error = np.maximum(error(values), np.sqrt(share * (1 - share) / samples))
    discordant = ((scores.right[0] - scores.right[1]) ** 2).sum(1)
    gap_error = np.maximum(error(differences), np.sqrt(discordant + 1) / samples)
    low, high = (np.clip(mean + s * quantiles[freedom] * mean_error, 0, 1) for s in (-1, 1))
    found = np.abs(gap) > quantiles[freedom] * gap_error

    for i in range(min(CHECKED, tables)):
        expected = mean_interval(
            values[i], ratio, least_error=least_error(float(mean[i]), (0, 1), samples),
            bounds=(0, 1), degrees_of_freedom=freedom,
        )  # fmt: skip
        np.testing.assert_allclose((low[i], high[i]), expected, atol=1e-9)
        test = corrected_t_test(
            scores.fits[0, i], scores.fits[1, i], ratio, degrees_of_freedom=freedom,
            least_error=least_paired_error(scores.right[0, i] - scores.right[1, i]),
        )  # fmt: skip
        assert found[i] == (test.p < 0.05)

    near = 1e-9  # rounding of equal scores
    plain = quantiles[fits - 1]
    return Row(
        what,
        coverage=float(np.mean((low - near <= scores.truth) & (scores.truth <= high + near))),
        width=float((high - low).mean()),
        false_positives=float(found.mean()),
        plain_coverage=float(np.mean(np.abs(mean - scores.truth) <= plain * error(values) + near)),
        plain_false_positives=float(np.mean(np.abs(gap) > plain * error(differences) + near)),
    )


def fold_means(right: npt.NDArray[Any], fold: Classes, folds: int) -> Array:
    """Accuracy of each fold, shape (T, K), of right or wrong samples (T, N)."""
    order = np.argsort(fold, kind="stable")
    counts = np.bincount(fold, minlength=folds)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.add.reduceat(right[:, order], starts, axis=1, dtype=float) / counts


# Simulated scores


def simulate(
    samples: int, folds: int, repeats: int, *, truth: float, strength: float, tables: int
) -> Scores:
    """Scores of two models over samples that are right where a normal variable is above zero."""
    rng = np.random.default_rng([samples, folds, repeats, int(1000 * truth), int(10 * strength)])
    at = stats.norm.ppf(truth)
    shift = np.sqrt(strength * truth * (1 - truth) / samples) / stats.norm.pdf(at)
    center = at * np.sqrt(1 + 2 * shift**2)
    both = stats.multivariate_normal([0, 0], [[1, SHARED], [SHARED, 1]]).cdf([at, at])
    # Of being right, between the models: what a data set does to them is as alike.
    alike = (both - truth**2) / (truth * (1 - truth))

    def normal(*shape: int, variance: float) -> Array:
        return np.float32(np.sqrt(variance)) * rng.standard_normal(shape, dtype=np.float32)

    shared = normal(tables, samples, variance=SHARED)
    set_shared = normal(tables, 1, variance=alike * shift**2)
    fold = [rng.permutation(samples) % folds for _ in range(repeats)]
    fits, right = [], []
    for _ in range(2):
        own = shared + normal(tables, samples, variance=KEPT - SHARED)
        own += set_shared + normal(tables, 1, variance=(1 - alike) * shift**2) + center
        scores, counts = [], np.zeros((tables, samples), dtype=np.float32)
        for r in range(repeats):
            of_fit = normal(tables, folds, variance=shift**2)[:, fold[r]]
            is_right = own + of_fit + normal(tables, samples, variance=1 - KEPT) > 0
            scores.append(fold_means(is_right, fold[r], folds))
            counts += is_right
        fits.append(np.concatenate(scores, 1))
        right.append(counts / repeats)
    return Scores(np.stack(fits), np.stack(right), folds, truth)


def simulated(quick: bool) -> Iterator[Row]:
    for samples in SIZES:
        for folds, repeats in LAYOUTS:
            for strength in STRENGTHS:
                for truth in TRUTHS:
                    scores = simulate(
                        samples, folds, repeats, truth=truth, strength=strength,
                        tables=500 if quick else 10_000,
                    )  # fmt: skip
                    yield judge(
                        f"n={samples:<4} {folds:>2}×{repeats}  c={strength}  accuracy {truth}",
                        scores,
                    )


# Learners


def least_squares(inputs: Array, targets: Classes, others: Array) -> npt.NDArray[np.bool_]:
    """Predictions (T, M) of many least-squares classifiers at once."""
    one = np.pad(inputs, ((0, 0), (0, 0), (0, 1)), constant_values=1)
    turned = one.swapaxes(1, 2)
    ridge = 1e-3 * np.eye(one.shape[2])
    weight = np.linalg.solve(turned @ one + ridge, turned @ (2 * targets - 1)[..., None])
    return (others @ weight[:, :-1] + weight[:, -1:])[..., 0] > 0


def neighbours(count: int) -> Callable[[Array, Classes, Array], npt.NDArray[np.bool_]]:
    """Predictions (T, M) by the majority of the nearest neighbours."""

    def predict(inputs: Array, targets: Classes, others: Array) -> npt.NDArray[np.bool_]:
        distance = (inputs**2).sum(2)[:, None] - 2 * others @ inputs.swapaxes(1, 2)
        nearest = np.argpartition(distance, count - 1, axis=2)[:, :, :count]
        return np.take_along_axis(targets[:, None], nearest, axis=2).mean(2) > 0.5

    return predict


LEARNERS = {
    "least squares, 5 features": (least_squares, 5),
    "least squares, 20 features": (least_squares, 20),
    "1 neighbour, 5 features": (neighbours(1), 5),
    "5 neighbours, 5 features": (neighbours(5), 5),
}


def learn(name: str, samples: int, folds: int, repeats: int, *, tables: int) -> Scores:
    """Scores of a learner on two sets of features of the same samples."""
    learner, features = LEARNERS[name]
    rng = np.random.default_rng([samples, folds, repeats, features])
    targets = rng.integers(0, 2, (tables, samples))
    inputs = rng.normal(size=(2, tables, samples, features))
    inputs[..., 0] += 2 * targets - 1
    fits, right = [], np.zeros((2, tables, samples))
    for _ in range(repeats):
        fold = rng.permutation(samples) % folds
        is_right = np.zeros((2, tables, samples))
        for k in range(folds):
            train, val = fold != k, fold == k
            for model in range(2):
                x, y = inputs[model], targets
                is_right[model][:, val] = learner(x[:, train], y[:, train], x[:, val]) == y[:, val]
        fits.append([fold_means(is_right[model], fold, folds) for model in range(2)])
        right += is_right / repeats
    scores = np.concatenate(fits, 2)
    return Scores(scores, right, folds, float(scores.mean()))


def learned(quick: bool) -> Iterator[Row]:
    for name in LEARNERS:
        for folds, repeats in LAYOUTS:
            scores = learn(name, 60, folds, repeats, tables=200 if quick else 2000)
            spread = scores.fits[0].mean(1).var() * 60 / (scores.truth * (1 - scores.truth)) - 1
            yield judge(f"n=60   {folds:>2}×{repeats}  c={spread:.1f}  {name}", scores)


PARTS = {"Simulated scores": simulated, "Learners": learned}


def show(title: str, rows: Iterator[Row]) -> None:
    """Prints a table, row by row as they come."""
    print(f"\n{title:<48}{'coverage':>9}{'width':>8}{'found':>8}{'plain coverage, found':>24}")
    for row in rows:
        print(
            f"{row.what:<48}{row.coverage:>9.3f}{row.width:>8.3f}{row.false_positives:>8.3f}"
            f"{row.plain_coverage:>16.3f}{row.plain_false_positives:>8.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="Few tables, to see that it runs.")
    quick = parser.parse_args().quick
    for title, part in PARTS.items():
        started = time.monotonic()
        show(title, part(quick))
        print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
