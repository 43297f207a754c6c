"""Scores of the test set, with intervals from its samples.

References:
    - Wilson: Probable inference, the law of succession, and statistical inference. Journal of the
      American Statistical Association 22, 1927.
    - Efron, Tibshirani: An introduction to the bootstrap. Chapman and Hall, 1993.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dlblocks._errors import check_range, did_you_mean
from dlblocks._npz import is_finite
from dlblocks._scores import Weighted
from dlblocks.runs._tables import number
from dlblocks.tasks import PredictionTable, find_task

DRAWS = 2000
TOLERANCE = 1e-3  # between a logged value and that of the predictions
CHUNK = 4_000_000  # numbers in memory at once

# Names of metrics, without "test" and separators → metrics of the predictions.
NAMES = {
    "accuracy": ["accuracy"],
    "acc": ["accuracy"],
    "f1": ["f1"],
    "f1score": ["f1"],
    "calibrationerror": ["calibration_error"],
    "ece": ["calibration_error"],
    "auc": ["auc"],
    "auroc": ["auc", "auroc"],
    "averageprecision": ["average_precision"],
    "loss": ["log_loss", "mse", "mae"],
    "logloss": ["log_loss"],
    "nll": ["log_loss"],
    "mse": ["mse"],
    "rmse": ["rmse"],
    "mae": ["mae"],
    "r2": ["r2"],
    "iou": ["iou"],
    "dice": ["dice"],
}


class HeldOutScores(dict[str, float]):
    """Metrics of the test set with their intervals, name → value.

    Accuracy has Wilson's (1927) interval. Other metrics that can be computed from the predictions
    have percentiles of the bootstrap: 2,000 draws of as many samples, with replacement. Where the
    data have groups, whole groups are drawn, for accuracy too. Intervals are about this one model
    on new samples, or groups, of the same population. ``print`` the scores for a table.
    """

    def __init__(
        self,
        metrics: Mapping[str, float],
        predicted: PredictionTable | Mapping[str, npt.NDArray[Any]] | None = None,
        groups: npt.NDArray[Any] | None = None,
        *,
        num_samples: int = 0,
        notes: Sequence[str] = (),
        task: str | None = None,
    ) -> None:
        """Compute the draws.

        Args:
            metrics: Logged values.
            predicted: ``target`` and ``prediction`` of the same samples, and their ``weight`` if
                they have some; or None.
            groups: The group of each sample, shape (N,), or None.
            num_samples: Number of test samples; accuracy has Wilson's interval without predictions.
            notes: Sentences to show below.
            task: Name of the model's task, if it is known.
        """
        super().__init__(metrics)
        self.notes = list(notes)
        self._why = dict.fromkeys(metrics, "there are no predictions of these test samples")
        self._keys: dict[str, str] = {}  # logged name → name in `weighted_metrics`
        self._draws: dict[str, npt.NDArray[np.floating]] = {}
        self._units, self._grouped = 0, groups is not None
        self._weight: npt.NDArray[Any] | None = None
        several = task not in (None, "multiclass")  # a sample may be right in part
        if predicted is None or "prediction" not in predicted:
            self._units = num_samples
            if num_samples and not several:
                self._keys = {name: "accuracy" for name in metrics if _is_accuracy(name)}
            return
        size = len(predicted["target"])
        self._units = size if groups is None else len(np.unique(groups))
        columns = getattr(predicted, "columns", predicted)
        self._weight = columns.get("weight")
        known = weighted_metrics(predicted["target"], predicted["prediction"], task)
        matches = {name: self._match(name, value, known, size) for name, value in metrics.items()}
        self._keys = {name: key for name, key in matches.items() if key is not None}
        # Each sample is right or wrong, by itself, and counts as the others do.
        counts = not (self._grouped or several or self._weight is not None)
        drawn = {key for key in self._keys.values() if key != "accuracy" or not counts}
        chunks = [
            {key: known[key](weights * self._each) for key in drawn}
            for weights in (_resamples(size, groups) if drawn else ())
        ]
        self._draws = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in drawn}

    @property
    def _each(self) -> Any:
        return 1.0 if self._weight is None else self._weight.astype(float)

    def _match(
        self, name: str, value: float, known: Mapping[str, Weighted], size: int
    ) -> str | None:
        """Find the metric logged under a name; keep the reason if none is."""
        word = _word(name)
        self._why[name] = "it cannot be computed from the predictions"
        keys = [key for key in NAMES.get(word, ()) if key in known]
        for key in reversed(keys):
            (found,) = known[key](np.ones((1, size)) * self._each)
            scale = abs(value) if key in ("log_loss", "mse", "rmse", "mae") else max(1, abs(value))
            if abs(found - value) <= TOLERANCE * scale:
                self._why[name] = "all draws of the bootstrap are equal"
                return key
            self._why[name] = f"the predictions give {found:.4g}"
        return None

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Interval of a metric's value on new samples for this model.

        NaN for a metric that does not follow from the predictions; ``print`` says why.

        Args:
            name: A metric of the test set.
            level: Share of intervals that should hold the value.

        Raises:
            KeyError: No metric was logged under `name`.
        """
        from scipy.stats import norm

        check_range("level", level, 0, 1, low_open=True, high_open=True)
        if name not in self:
            raise KeyError(
                f"name={name!r} was not logged in the test{did_you_mean(name, self) or '.'} "
                f"There are: {', '.join(self)}."
            )
        key = self._keys.get(name, "")
        draws = self._draws.get(key, np.array([]))
        draws = draws[np.isfinite(draws)]
        if len(draws) and np.ptp(draws) > 0:
            low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
            return float(low), float(high)
        # Of a perfect score all draws are equal, and say nothing of the samples to come.
        if key in ("accuracy", "f1", "auc"):
            units: float = self._units
            if self._weight is not None:  # Kish's effective size, for equal weights the number
                units = self._each.sum() ** 2 / (self._each**2).sum()
            return wilson(self[name], units, float(norm.ppf((1 + level) / 2)))
        return math.nan, math.nan

    def __str__(self) -> str:
        width = max(map(len, self), default=0)
        lines = []
        for name, value in self.items():
            low, high = self.interval(name)
            interval = f"95 % interval {number(low)} … {number(high)}"
            if math.isnan(low):
                interval = f"no interval: {self._why[name]}"
            lines.append(f"{name:<{width}}  {number(value):<10}  {interval}")
        if self._keys:
            counted = "accuracy" in self._keys.values() and "accuracy" not in self._draws
            kinds = ["Wilson"] if counted else []
            kinds += ["bootstrap"] if self._draws else []
            what = "groups" if self._grouped else "samples"
            lines.append(f"Intervals from {self._units} {what}, by {' and '.join(kinds)}.")
        lines += self.notes
        return "\n".join(lines)


def wilson(share: float, size: float, quantile: float) -> tuple[float, float]:
    """Wilson's (1927) interval of a share.

    It holds every π whose distance from the share p is at most z · √(π (1 - π) / N).

    Args:
        share: The share p.
        size: Number of samples N.
        quantile: The normal distribution's quantile z.

    Example:
        >>> low, high = wilson(0.9, 100, 1.959964)
        >>> round(low, 4), round(high, 4)
        (0.8256, 0.9448)
    """
    square = quantile**2 / size
    center = (share + square / 2) / (1 + square)
    half = math.sqrt(square * share * (1 - share) + square**2 / 4) / (1 + square)
    return max(0.0, center - half), min(1.0, center + half)


def _word(name: str) -> str:
    """A logged name without its part and what separates words."""
    return re.sub("[^a-z0-9]|test", "", name.rpartition("/")[2].lower())


def _is_accuracy(name: str) -> bool:
    return NAMES.get(_word(name)) == ["accuracy"]


def weighted_metrics(
    target: npt.NDArray[Any], prediction: npt.NDArray[Any], task: str | None = None
) -> dict[str, Weighted]:
    """Metrics of predictions as functions of the samples' weights, as the task defines them.

    Each takes weights W (B, N), such as how often a bootstrap has drawn each sample, and returns B
    values. For weights of one they are the metrics that our models log. Empty for predictions that
    no task explains, or that are not finite.

    Args:
        target: Classes (N,), or values (N,) or (N, D), or labels (N, C).
        prediction: Probabilities (N, C), or values.
        task: Name of the task, if it is known.
    """
    if not is_finite(prediction):
        return {}
    try:
        return find_task(target, prediction, task).weighted_metrics(target, prediction)
    except ValueError:
        return {}


def _resamples(size: int, groups: npt.NDArray[Any] | None) -> Iterator[npt.NDArray[np.floating]]:
    """Count how often each draw has each sample, some draws at a time."""
    rng = np.random.default_rng(0)
    _, group = np.unique(np.arange(size) if groups is None else groups, return_inverse=True)
    units = group.max() + 1
    left = DRAWS
    while left:
        rows = min(left, max(1, CHUNK // size))
        counts = rng.multinomial(units, np.full(units, 1 / units), size=rows)
        yield counts[:, group].astype(float)
        left -= rows
