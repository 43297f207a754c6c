"""Intervals and comparisons of the scores of folds.

Folds share training samples, so their scores are not independent, and the variance of their mean is
more than s² / n. There is no unbiased estimate of it from one cross-validation (Bengio and
Grandvalet 2004). Nadeau and Bengio (2003) replace 1 / n by 1 / n + n_test / n_train, which is what
is used here; Bouckaert and Frank (2004) found it to keep its promise for repeated K-fold.

References:
    - Nadeau, Bengio: Inference for the generalization error. Machine Learning 52, 2003.
    - Bengio, Grandvalet: No unbiased estimator of the variance of K-fold cross-validation.
      Journal of Machine Learning Research 5, 2004.
    - Bouckaert, Frank: Evaluating the replicability of significance tests for comparing learning
      algorithms. PAKDD 2004.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dlblocks.errors import check_range


@dataclass(frozen=True)
class Comparison:
    """What `CrossValidationResult.compare` found: one metric of two cross-validations.

    Attributes:
        metric: Its name.
        difference: Mean of the first minus mean of the second.
        interval: 95 % interval of the difference.
        t: The difference over its corrected standard error.
        p: Two-sided p-value of "both have the same expected score".
        degrees_of_freedom: Number of fits minus one.
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
    values: Sequence[float] | npt.NDArray[np.floating], test_to_train: float, *, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean score of n fits by Nadeau and Bengio's corrected variance.

    mean ± t · √((1 / n + n_test / n_train) · s²), where s² is the variance of the scores with n - 1
    in the denominator, and t the quantile of Student's distribution with n - 1 degrees of freedom.

    It is about the expected score of the training procedure, on training sets of this size from the
    same population. It is not about one trained model, nor the range in which folds fall, nor data
    of another kind; and it is an approximation, which knows nothing of a score's bounds: the end of
    an accuracy's interval may lie above 1. A bias of the scores, such as that of an epoch chosen on
    the same samples, stays in it. It was derived for folds drawn at random; for blocks of time or
    whole groups it is a rough guide.

    Args:
        values: The metric of each fit, at least two.
        test_to_train: Validation over training samples of a fit: 1 / (K - 1) for K folds. Zero
            gives the plain interval of independent scores.
        level: Share of intervals that should hold the expected score.

    Raises:
        ValueError: There are fewer than two values, or an argument is out of range.

    Example:
        >>> low, high = mean_interval([0.9, 0.92, 0.94], 0.5)
        >>> round(low, 4), round(high, 4)
        (0.8414, 0.9986)
    """
    from scipy.stats import t as student

    check_range("level", level, 0, 1, low_open=True, high_open=True)
    mean, error = _mean_and_error(values, test_to_train)
    half = float(student.ppf((1 + level) / 2, len(values) - 1)) * error
    return mean - half, mean + half


def corrected_t_test(
    first: Sequence[float] | npt.NDArray[np.floating],
    second: Sequence[float] | npt.NDArray[np.floating],
    test_to_train: float,
    *,
    metric: str = "score",
) -> Comparison:
    """The corrected resampled t-test of two models' scores on the same folds.

    With the differences d of n fits, t = mean(d) / √((1 / n + n_test / n_train) · s²(d)), which is
    compared with Student's distribution with n - 1 degrees of freedom (Nadeau and Bengio 2003).
    Where all differences are equal, p is 1 for zero and 0 for any other.

    Args:
        first: The metric of each fit of one model.
        second: The metric of the other model on the same fits.
        test_to_train: Validation over training samples of a fit; zero gives the usual paired
            t-test, which takes the folds for independent and finds differences where there are
            none.
        metric: Name of the metric, for the answer.

    Raises:
        ValueError: Lengths differ, or there are fewer than two values.
    """
    from scipy.stats import t as student

    if len(first) != len(second):
        raise ValueError(
            f"first has {len(first)} scores and second {len(second)}; give one a fold, of the same "
            "folds."
        )
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    mean, error = _mean_and_error(differences, test_to_train)
    freedom = len(differences) - 1
    t = mean / error if error else float(np.copysign(np.inf, mean)) if mean else 0.0
    return Comparison(
        metric=metric,
        difference=mean,
        interval=mean_interval(differences, test_to_train),
        t=t,
        p=float(2 * student.sf(abs(t), freedom)),
        degrees_of_freedom=freedom,
    )


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given; below 0.05, one in 20 tables is wrong.

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
    return adjusted.tolist()


def _mean_and_error(
    values: Sequence[float] | npt.NDArray[np.floating], test_to_train: float
) -> tuple[float, float]:
    """The mean of n scores and its corrected standard error."""
    check_range("test_to_train", test_to_train, 0)
    if len(values) < 2:
        raise ValueError(
            f"{len(values)} score has no variance; give the scores of two fits at least."
        )
    variance = (1 / len(values) + test_to_train) * float(np.var(values, ddof=1))
    return float(np.mean(values)), variance**0.5
