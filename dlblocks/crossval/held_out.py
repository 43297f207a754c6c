"""Test a model once, with intervals from the test samples.

References:
    - Wilson: Probable inference, the law of succession, and statistical inference. Journal of the
      American Statistical Association 22, 1927.
    - Efron, Tibshirani: An introduction to the bootstrap. Chapman and Hall, 1993.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt

from dlblocks._errors import check_range, did_you_mean
from dlblocks._files import read_json, write_json
from dlblocks._npz import is_finite
from dlblocks._quiet import isolated
from dlblocks._scores import Weighted
from dlblocks.crossval._report import TESTED
from dlblocks.crossval._splits import FOLDS
from dlblocks.data import DataModule, SplitDataModule
from dlblocks.models._predict_batches import NoPredictions
from dlblocks.runs._tables import number
from dlblocks.runs._trainer import check_trainer_arguments, quiet_trainer
from dlblocks.runs.predict_part import predict_part
from dlblocks.tasks import PredictionTable, Task, find_task

DRAWS = 2000
TOLERANCE = 1e-3  # between a logged value and that of the predictions
CHUNK = 4_000_000  # numbers in memory at once

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
                self._keys = {n: "accuracy" for n in metrics if _names(n) == ["accuracy"]}
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
        """Find the metric logged under a name, or keep the reason."""
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


def score_once(
    run_dir: Path,
    model: pl.LightningModule,
    datamodule: SplitDataModule,
    *,
    trainer: Mapping[str, Any] | None,
    allow_shared: bool,
    task: str | None,
) -> HeldOutScores:
    """Compute metrics of the test set, once.

    See `CrossValidationResult.test`.
    """
    path = run_dir / TESTED
    if path.is_file():
        raise FileExistsError(
            f"{path} says that the test set was looked at already: "
            f"{json.loads(path.read_text())['metrics']}. Choosing a model by a second look would "
            "make its score too good; delete the file if that is not why."
        )
    arguments = check_trainer_arguments(trainer)
    with isolated():
        tester = quiet_trainer(run_dir, arguments)
        data = datamodule.without_validation()  # all folds have the same test set
        check_data_of(run_dir, data)
        data.trainer = tester  # as Lightning does; their loaders may ask it
        shared = data.shared_with_test()
        note = _note_on_shared(data, shared, allow_shared)
        logged = tester.test(model, datamodule=data, verbose=False)
        # One dictionary a loader; Lightning tells their names apart.
        metrics = {name: float(value) for loader in logged for name, value in loader.items()}
        if not metrics:
            raise ValueError(
                f"nothing was logged in the test of {type(model).__name__}; log metrics in its "
                "test_step, and leave out limit_test_batches=0."
            )
        written: dict[str, Any] = {
            "metrics": metrics,
            "model": type(model).__name__,
            "shared_with_training": shared,
            **({"notes": [note]} if note else {}),
        }
        if tester.is_global_zero:
            write_json(path, written)  # before what may fail: the test set was looked at
        scores = HeldOutScores(
            metrics,
            *_test_predictions(tester, model, data, len(logged)),
            num_samples=_count_tested(data, tester, len(logged)),
            notes=[note] if note else [],
            task=task,
        )
    if tester.is_global_zero:
        intervals = {name: list(scores.interval(name)) for name in scores}
        write_json(path, {**written, "intervals": intervals})
        if note:
            print(note, file=sys.stderr, flush=True)
    return scores


def _count_tested(data: SplitDataModule, trainer: pl.Trainer, num_loaders: int) -> int:
    """Count the test samples of one loader without limits.

    Returns 0 if that is not known.
    """
    if num_loaders != 1 or trainer.limit_test_batches != 1.0:
        return 0
    try:
        return data.count_test()
    except TypeError:  # a data set without a length
        return 0


def _test_predictions(
    trainer: pl.Trainer, model: pl.LightningModule, data: SplitDataModule, num_loaders: int
) -> tuple[PredictionTable | None, np.ndarray | None]:
    """Return predictions and groups of the test samples, or None."""
    rows = data.indices("test")
    if num_loaders != 1 or not len(rows):  # loaders of somebody else's datamodule
        return None, None
    try:
        predicted = predict_part(trainer, model, data, "test")
    except NoPredictions:
        return None, None
    # Ranks get as many samples each, some of them twice.
    index, first = np.unique(predicted["index"], return_index=True)
    predicted = predicted[first]
    groups = data.columns.groups
    # A test set of its own is numbered anew, and has no groups.
    own = bool(np.isin(index, data.indices("train").numpy()).any())
    return predicted, None if groups is None or own else np.asarray(groups)[index]


def check_data_of(run_dir: Path, data: SplitDataModule) -> None:
    """Raise a `ValueError` for data or a test set of another run.

    A new datamodule may split in another way. Then the run has trained on some of its test samples.
    """
    path = run_dir / FOLDS
    if not path.is_file():
        return
    splits = read_json(path, "choose another run_dir: nothing says what its folds are")
    same = data.fingerprint() == splits["fingerprint"]
    if not same or data.splits(splits["num_folds"])[0]["test"].tolist() != splits["test"]:
        raise ValueError(
            f"the datamodule has other samples, or holds out others, than the run in "
            f"'{run_dir}', which may have trained on some of them; give the datamodule of "
            "that run, with splits drawn by a seeded generator. Other data are tested by "
            "Trainer.test(model, datamodule=…)."
        )


def _note_on_shared(data: SplitDataModule, shared: int | None, allow: bool) -> str | None:
    """Describe test samples that are in the development set, or refuse them."""
    if shared == 0:
        return None
    if shared is None:
        return (
            "Whether test samples are in the development set is not known: the data sets hold no "
            "arrays to compare, and their samples are too many or differ every time they are "
            "loaded."
        )
    note = f"{shared} of {data.count_test()} test samples are in the development set, too"
    if isinstance(data, DataModule):
        return f"{note}: exact copies in the official test set."
    if allow:
        return f"{note}, which allow_shared=True allows."
    raise ValueError(
        f"{note}: the score would be too good. Does setup('test') draw the split anew? Draw it in "
        "__init__, or by random_split(…, generator=torch.Generator().manual_seed(0)). If the data "
        "really hold duplicates, set allow_shared=True."
    )
