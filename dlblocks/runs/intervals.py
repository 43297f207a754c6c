"""Scores of the test set, with intervals from its samples.

References:
    - Wilson: Probable inference, the law of succession, and statistical inference. Journal of the
      American Statistical Association 22, 1927.
    - Efron, Tibshirani: An introduction to the bootstrap. Chapman and Hall, 1993.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt

from dlblocks._errors import check_range, did_you_mean
from dlblocks._npz import is_finite
from dlblocks._scores import Weighted
from dlblocks.data import SplitDataModule
from dlblocks.models._predict_batches import NoPredictions
from dlblocks.runs._text_table import number
from dlblocks.runs.predict_part import predict_part
from dlblocks.tasks import PredictionTable, Task, find_task

DRAWS = 2000
TOLERANCE = 1e-3  # between a logged value and that of the predictions
CHUNK = 4_000_000  # numbers in memory at once
UNTESTED = "it is not of the test set"

# Other names of metrics, without "test" and separators → metrics of the predictions.
ALIASES = {
    "acc": ["accuracy"],
    "f1score": ["f1"],
    "calibrationerror": ["calibration_error"],
    "ece": ["calibration_error"],
    "auroc": ["auc", "auroc"],
    "averageprecision": ["average_precision"],
    "loss": ["log_loss", "mse", "mae"],
    "logloss": ["log_loss"],
    "nll": ["log_loss"],
    "map50": ["map_50"],
    "map75": ["map_75"],
}


class HeldOutScores(dict[str, float]):
    """Metrics of the test set with their intervals, name → value.

    Accuracy has Wilson's (1927) interval. Other metrics that can be computed from the predictions
    have percentiles of the bootstrap: 2,000 draws of as many samples, with replacement. Where the
    data have groups, whole groups are drawn, for accuracy too. Intervals are about this one model
    on new samples, or groups, of the same population. They are computed when they are asked for.
    ``print`` the scores for a table.

    Attributes:
        predicted: ``target`` and ``prediction`` of the test samples, or None.
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
        tested: Collection[str] | None = None,
    ) -> None:
        """Keep what the intervals need.

        Args:
            metrics: Logged values.
            predicted: ``target`` and ``prediction`` of the same samples, and their ``weight`` if
                they have some; or None.
            groups: The group of each sample, shape (N,), or None.
            num_samples: Number of test samples; accuracy has Wilson's interval without predictions.
            notes: Sentences to show below.
            task: Name of the model's task, if it is known.
            tested: The metrics that are of the test set; None for all.
        """
        super().__init__(metrics)
        self.predicted, self._groups = predicted, groups
        self.notes = list(notes)
        self._num_samples, self._task, self._tested = num_samples, task, tested
        self._why: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_known"}

    @cached_property
    def _units(self) -> int:
        """Number of samples, or of groups."""
        if self.predicted is None or "prediction" not in self.predicted:
            return self._num_samples
        size = len(self.predicted["target"])
        return size if self._groups is None else len(np.unique(self._groups))

    @cached_property
    def _weight(self) -> npt.NDArray[Any] | None:
        if self.predicted is None:
            return None
        found: npt.NDArray[Any] | None = getattr(self.predicted, "columns", self.predicted).get(
            "weight"
        )
        return found

    @cached_property
    def _known(self) -> dict[str, Weighted]:
        """Metrics of the predictions, as functions of the samples' weights."""
        predicted = self.predicted
        if predicted is None or "prediction" not in predicted:
            return {}
        return weighted_metrics(predicted["target"], predicted["prediction"], self._task)

    @cached_property
    def _keys(self) -> dict[str, str]:
        """Logged name → name of the same metric of the predictions."""
        names = self if self._tested is None else [name for name in self if name in self._tested]
        self._why = dict.fromkeys(self, UNTESTED)
        self._why |= dict.fromkeys(names, "there are no predictions of these test samples")
        predicted = self.predicted
        if predicted is None or "prediction" not in predicted:
            counted = self._num_samples and not self._partly
            return {n: "accuracy" for n in names if counted and _names(n) == ["accuracy"]}
        size = len(predicted["target"])
        matches = {name: self._match(name, self[name], size) for name in names}
        return {name: key for name, key in matches.items() if key is not None}

    @cached_property
    def _draws(self) -> dict[str, npt.NDArray[np.floating]]:
        """Metric of the predictions → its values in all draws."""
        predicted = self.predicted
        if predicted is None or "prediction" not in predicted:
            return {}
        # Each sample is right or wrong, by itself, and counts as the others do.
        counts = self._groups is None and not self._partly and self._weight is None
        drawn = {key for key in self._keys.values() if key != "accuracy" or not counts}
        resamples = _resamples(len(predicted["target"]), self._groups) if drawn else ()
        chunks = [{key: self._known[key](w * self._each) for key in drawn} for w in resamples]
        return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in drawn}

    @property
    def _partly(self) -> bool:
        """True if a sample may be right in part."""
        return self._task not in (None, "multiclass")

    @property
    def _each(self) -> Any:
        return 1.0 if self._weight is None else self._weight.astype(float)

    def _match(self, name: str, value: float, size: int) -> str | None:
        """Find the metric logged under a name, or keep the reason."""
        known = self._known
        self._why[name] = "it cannot be computed from the predictions"
        for key in reversed([key for key in _names(name) if key in known]):
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
                interval = f"no interval: {self._why.get(name, UNTESTED)}"
            lines.append(f"{name:<{width}}  {number(value):<10}  {interval}")
        if self._keys:
            counted = "accuracy" in self._keys.values() and "accuracy" not in self._draws
            kinds = ["Wilson"] if counted else []
            kinds += ["bootstrap"] if self._draws else []
            what = "samples" if self._groups is None else "groups"
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


def _names(name: str) -> list[str]:
    """Return the metrics of the predictions that a logged name may mean."""
    word = re.sub("[^a-z0-9]|test", "", name.rpartition("/")[2].lower())
    return ALIASES.get(word, [word])


def weighted_metrics(
    target: npt.NDArray[Any], prediction: npt.NDArray[Any], task: str | None = None
) -> dict[str, Weighted]:
    """Return the task's metrics as functions of the samples' weights.

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
        found: type[Task] = find_task(target, prediction, task)
        return found.weighted_metrics(target, prediction)
    except ValueError:
        return {}


def _resamples(size: int, groups: npt.NDArray[Any] | None) -> Iterator[npt.NDArray[np.floating]]:
    """Count how often each draw has each sample."""
    rng = np.random.default_rng(0)
    _, group = np.unique(np.arange(size) if groups is None else groups, return_inverse=True)
    units = group.max() + 1
    left = DRAWS
    while left:
        rows = min(left, max(1, CHUNK // size))
        counts = rng.multinomial(units, np.full(units, 1 / units), size=rows)
        yield counts[:, group].astype(float)
        left -= rows


def count_tested(data: SplitDataModule, trainer: pl.Trainer, num_loaders: int) -> int:
    """Count the test samples of one loader without limits.

    Returns 0 if that is not known.
    """
    if num_loaders != 1 or trainer.limit_test_batches != 1.0:
        return 0
    try:
        return data.count_test()
    except TypeError:  # a data set without a length
        return 0


def predict_test(
    trainer: pl.Trainer, model: pl.LightningModule, datamodule: SplitDataModule, num_loaders: int
) -> tuple[PredictionTable | None, npt.NDArray[Any] | None]:
    """Return predictions and groups of the test samples, or None."""
    rows = datamodule.indices("test")
    if num_loaders != 1 or not len(rows):  # loaders of somebody else's datamodule
        return None, None
    try:
        predicted = predict_part(trainer, model, datamodule, "test")
    except NoPredictions:
        return None, None
    # Ranks get as many samples each, some of them twice.
    index, first = np.unique(predicted["index"], return_index=True)
    predicted = predicted[first]
    groups = datamodule.columns.groups
    # A test set of its own is numbered anew, and has no groups.
    others = [datamodule.indices(part).numpy() for part in ("train", "val")]
    own = bool(np.isin(index, np.concatenate(others)).any())
    return predicted, None if groups is None or own else np.asarray(groups)[index]
