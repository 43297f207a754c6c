"""Intervals and comparisons of the scores of folds.

Folds share training samples, so their scores are not independent, and the variance of their mean is
more than s² / n. There is no unbiased estimate of it from one cross-validation (Bengio and
Grandvalet 2004). Nadeau and Bengio (2003) replace 1 / n by 1 / n + n_test / n_train. That is used
here, with two additions:

- The standard error has a floor, `least_error` or `least_paired_error`. The variance s² of few
  scores may be zero by chance: two folds of 30 samples have equal accuracies in one run of ten.
  But N scored samples cannot say more than N samples can.
- Student's distribution has K - 1 degrees of freedom for K folds, however often they are repeated.
  Bouckaert and Frank (2004) take n - 1 for the n fits of all repeats. But repeats score the same
  samples again. With n - 1, the test of two equally good nearest-neighbour classifiers found a
  difference in 8 % of runs of 10 folds × 3, with K - 1 in 5 %. ``benchmarks/trust.py`` counts both.

References:
    - Nadeau, Bengio: Inference for the generalization error. Machine Learning 52, 2003.
    - Bengio, Grandvalet: No unbiased estimator of the variance of K-fold cross-validation.
      Journal of Machine Learning Research 5, 2004.
    - Bouckaert, Frank: Evaluating the replicability of significance tests for comparing learning
      algorithms. PAKDD 2004.
    - Bhatia, Davis: A better bound on the variance. American Mathematical Monthly 107, 2000.
    - Schmeiser: Batch size effects in the analysis of simulation output. Operations Research 30,
      1982.
    - McNemar: Note on the sampling error of the difference between correlated proportions or
      percentages. Psychometrika 12, 1947.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dlblocks._errors import check_range
from dlblocks.metrics import Range

Name = TypeVar("Name", bound=str)


@dataclass(frozen=True)
class Comparison:
    """A test of one metric of two cross-validations, by `CrossValidationResult.compare`.

    Attributes:
        metric: Its name.
        difference: Mean of the first minus mean of the second.
        interval: 95 % interval of the difference.
        t: The difference over its corrected standard error.
        p: Two-sided p-value of "both have the same expected score".
        degrees_of_freedom: Number of folds minus one.
    """

    metric: str
    difference: float
    interval: tuple[float, float]
    t: float
    p: float
    degrees_of_freedom: int

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.metric}: difference {self.difference:+.4g}, 95 % interval {low:+.4g} … "
            f"{high:+.4g}, p = {self.p:.3g} (corrected resampled t-test, "
            f"t({self.degrees_of_freedom}) = {self.t:.2f})"
        )


def mean_interval(
    values: Sequence[float] | npt.NDArray[np.floating],
    test_to_train: float,
    *,
    level: float = 0.95,
    least_error: float = 0.0,
    bounds: Range = (None, None),
    degrees_of_freedom: int | None = None,
) -> tuple[float, float]:
    """Interval of the mean score, by Nadeau and Bengio's variance.

    mean ± t · √((1 / n + n_test / n_train) · s²), where s² is the variance of the scores with n - 1
    in the denominator, and t the quantile of Student's distribution. NaN where all scores are equal
    and there is no `least_error`: their spread is then unknown, not zero.

    It is about the expected score of the training procedure, on training sets of this size from the
    same population. It is not about one trained model, nor the range in which folds fall, nor data
    of another kind. It is an approximation. A bias of the scores, such as that of an epoch chosen
    on the same samples, stays in it. It was derived for folds drawn at random; for blocks of time
    or whole groups it is a rough guide.

    Args:
        values: The metric of each fit, at least two.
        test_to_train: Validation over training samples of a fit: 1 / (K - 1) for K folds. Zero
            gives the plain interval of independent scores.
        level: Share of intervals that should hold the expected score.
        least_error: The smallest standard error of the mean; see the function of this name.
        bounds: Lowest and highest possible score, which end the interval; None for no bound.
        degrees_of_freedom: Of Student's distribution. None: n - 1. K - 1 for repeats of K folds.

    Raises:
        ValueError: There are fewer than two values, or an argument is out of range.

    Example:
        >>> low, high = mean_interval([0.9, 0.92, 0.94], 0.5)
        >>> round(low, 4), round(high, 4)
        (0.8414, 0.9986)
    """
    from scipy.stats import t as student

    check_range("level", level, 0, 1, low_open=True, high_open=True)
    mean, error = _mean_and_error(values, test_to_train, least_error, np.max(np.abs(values)))
    freedom = len(values) - 1 if degrees_of_freedom is None else degrees_of_freedom
    half = float(student.ppf((1 + level) / 2, freedom)) * error
    ends = -np.inf if bounds[0] is None else bounds[0], np.inf if bounds[1] is None else bounds[1]
    return float(np.clip(mean - half, *ends)), float(np.clip(mean + half, *ends))


def block_interval(
    values: npt.ArrayLike, times: npt.ArrayLike, block: int, *, level: float = 0.95
) -> tuple[float, float]:
    """Interval of a mean over windows of time series, which overlap.

    Neighbouring origins share targets, so that N windows say less than N samples. Values of one
    time are averaged first, since series move together. The times are cut into K blocks of at least
    `block` times, and the means of the blocks taken for independent (batch means; Schmeiser 1982):
    mean ± t · s / √K, with Student's distribution of K - 1 degrees of freedom. It is about more
    times like these. With blocks of two horizons a little dependence is left: intervals for 95 %
    held the mean in 90 to 93 % of simulated runs, and those of independent windows in 60 %.

    Args:
        values: One value a window, such as the difference of two methods' errors, shape (N,).
        times: The origin of each window, shape (N,).
        block: Least number of times of a block, such as two horizons.
        level: Share of intervals that should hold the mean.

    Raises:
        ValueError: There are fewer than three blocks, or lengths differ.

    Example:
        >>> low, high = block_interval([1.0, 2.0, 1.0, 2.0, 2.0, 1.0], range(6), block=2)
        >>> low == high == 1.5
        True
    """
    check_range("block", block, 1)
    scores, when = np.asarray(values, dtype=float), np.asarray(times)
    if scores.shape != when.shape or scores.ndim != 1:
        raise ValueError(
            f"values has shape {scores.shape} and times {when.shape}; give one of each a window."
        )
    unique, place = np.unique(when, return_inverse=True)
    each = np.bincount(place, scores) / np.bincount(place)
    if len(unique) < 3 * block:
        raise ValueError(
            f"{len(unique)} origins are fewer than three blocks of {block}; hold out more of the "
            "series, or use a smaller block or shorter horizon."
        )
    parts = np.array_split(each, len(unique) // block)
    means = np.array([part.mean() for part in parts])
    if np.ptp(means) == 0:
        return float(each.mean()), float(each.mean())
    low, high = mean_interval(means, 0.0, level=level)
    shift = each.mean() - means.mean()
    return low + shift, high + shift


def corrected_t_test(
    first: Sequence[float] | npt.NDArray[np.floating],
    second: Sequence[float] | npt.NDArray[np.floating],
    test_to_train: float,
    *,
    metric: str = "score",
    least_error: float = 0.0,
    bounds: Range = (None, None),
    degrees_of_freedom: int | None = None,
) -> Comparison:
    """The corrected resampled t-test of two models' scores on the same folds.

    With the differences d of n fits, t = mean(d) / √((1 / n + n_test / n_train) · s²(d)), which is
    compared with Student's distribution (Nadeau and Bengio 2003). Where all differences are equal
    and there is no `least_error`, t, p and the interval are NaN.

    Args:
        first: The metric of each fit of one model.
        second: The metric of the other model on the same fits.
        test_to_train: Validation over training samples of a fit; zero gives the usual paired
            t-test, which takes the folds for independent and finds differences where there are
            none.
        metric: Name of the metric, for the answer.
        least_error: The smallest standard error of the difference; see `least_paired_error`.
        bounds: Lowest and highest possible difference, which end the interval.
        degrees_of_freedom: Of Student's distribution. None: n - 1. K - 1 for repeats of K folds.

    Raises:
        ValueError: Lengths differ, or there are fewer than two values.
    """
    from scipy.stats import t as student

    if len(first) != len(second):
        raise ValueError(
            f"first has {len(first)} scores and second {len(second)}; give one a fold, of the same "
            "folds."
        )
    scores = np.asarray([first, second], dtype=float)
    differences = scores[0] - scores[1]
    mean, error = _mean_and_error(differences, test_to_train, least_error, np.abs(scores).max())
    freedom = len(differences) - 1 if degrees_of_freedom is None else degrees_of_freedom
    if np.isnan(error):
        interval = (np.nan, np.nan)
    else:
        interval = mean_interval(
            differences,
            test_to_train,
            least_error=error,
            bounds=bounds,
            degrees_of_freedom=freedom,
        )
    return Comparison(
        metric=metric,
        difference=mean,
        interval=interval,
        t=mean / error,
        p=float(2 * student.sf(abs(mean / error), freedom)),
        degrees_of_freedom=freedom,
    )


def least_error(mean: float, bounds: Range, num_samples: int) -> float:
    """Floor of a metric's standard error, from the number of samples.

    √((b - μ)(μ - a) / N) for N scores between a and b: no distribution with mean μ has a larger
    variance (Bhatia and Davis 2000), and right or wrong, as in accuracy, has exactly this one. μ is
    the mean, moved to the middle as by one sample at each end, (N μ + a + b) / (N + 2), so that a
    perfect score has an error too. For a metric that is not a mean over samples, such as F1, it is
    a guide to the size.

    Args:
        mean: The metric.
        bounds: The lowest and highest possible score, a and b.
        num_samples: Number N of different samples. Repeats do not count.

    Returns:
        The error; 0.0 if a bound is not known.

    Example:
        >>> round(least_error(1.0, (0.0, 1.0), 98), 4)
        0.0101
    """
    low, high = bounds
    if low is None or high is None:
        return 0.0
    mean = (num_samples * mean + low + high) / (num_samples + 2)
    return math.sqrt(max(0.0, (high - mean) * (mean - low)) / num_samples)


def least_paired_error(differences: npt.NDArray[np.floating]) -> float:
    """Floor of a mean difference's standard error, from each sample's difference.

    √(Σ dᵢ² + 1) / N. Where d is 1 for a sample that the first model alone predicts right, -1 for
    one that the second alone does, and else 0, this is the error in McNemar's (1947) test, with one
    more sample on which they disagree.

    Args:
        differences: The difference of each sample's scores, averaged over repeats, shape (N,).

    Example:
        >>> least_paired_error(np.array([1.0, -1.0, 1.0, 0.0]))
        0.5
    """
    found: float = float(np.sum(differences**2) + 1) ** 0.5 / len(differences)
    return found


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's (1979) adjusted p-values, in the order given.

    Of tables whose smallest value is below 0.05, one in 20 is wrong.

    The smallest of m is multiplied by m, the next by m - 1, …; none is less than the one before it,
    and none more than 1. A table in which many methods are compared with one is held to one error,
    whether or not the tests depend on each other.

    Args:
        p: The p-values.

    Example:
        >>> [round(value, 3) for value in holm([0.04, 0.01, 0.03])]
        [0.06, 0.03, 0.06]
    """
    order = np.argsort(p)
    scaled = np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    found: list[float] = adjusted.tolist()
    return found


def with_holm(tests: Mapping[Name, Comparison]) -> dict[Name, dict[str, Any]]:
    """Return the numbers of several comparisons with one model, by name.

    Args:
        tests: Name of a method → its comparison.

    Returns:
        Name → ``difference``, its 95 % ``difference_interval``, ``p``, and ``p_holm`` by `holm`.
    """
    adjusted = holm([test.p for test in tests.values()])
    return {
        name: {
            "difference": test.difference,
            "difference_interval": test.interval,
            "p": test.p,
            "p_holm": p_holm,
        }
        for (name, test), p_holm in zip(tests.items(), adjusted, strict=True)
    }


def _mean_and_error(
    values: Sequence[float] | npt.NDArray[np.floating],
    test_to_train: float,
    least_error: float,
    scale: float,
) -> tuple[float, float]:
    """Mean of n scores and its corrected standard error, NaN if unknown.

    Args:
        values: The scores, or their differences.
        test_to_train: See `mean_interval`.
        least_error: See `mean_interval`.
        scale: Size of the scores; what is much smaller comes from rounding.
    """
    check_range("test_to_train", test_to_train, 0)
    check_range("least_error", least_error, 0)
    if len(values) < 2:
        raise ValueError(
            f"{len(values)} score has no variance; give the scores of two fits at least."
        )
    mean = float(np.mean(values))
    if np.ptp(values) <= 1e-12 * scale:
        return mean, least_error or np.nan
    variance = (1 / len(values) + test_to_train) * np.var(values, ddof=1)
    return mean, float(np.maximum(variance**0.5, least_error))
