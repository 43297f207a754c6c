"""Permutation importance of columns, on out-of-fold data.

A model predicts its validation samples again after the values of one column have changed places
among them. The column is important if the score gets much worse (Breiman, "Random Forests", 2001;
Fisher, Rudin and Dominici, "All Models are Wrong, but Many are Useful", 2019)::

    importance of column j in fold k = mean over repeats of ±(score - score with column j permuted)

with the sign that makes a loss of quality positive. It describes the model, not the world: of two
columns that say the same, each looks unimportant. Give such columns as a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlblocks._errors import check_range, did_you_mean
from dlblocks.crossval.statistics import mean_interval
from dlblocks.metrics import Mode, metric_mode
from dlblocks.models._predict_batches import predictor, to_numpy
from dlblocks.nets import Preprocess
from dlblocks.runs._text_table import number
from dlblocks.tasks import PredictionTable, Task
from dlblocks.tasks.table import data_frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 4096  # predicted at a time
FIRST = ("log_loss", "rmse")  # metrics that are taken if none is named


@dataclass(frozen=True)
class Importance:
    """The importance of each column for the models of a cross-validation.

    Attributes:
        metric: Name of the metric that became worse.
        names: The columns, or groups of columns, the most important first.
        values: Loss of quality in each fit, for each column and repeat, shape (K, J, R), in units
            of the metric. Positive: the column is needed.
        scores: The metric of each fit without a permutation, shape (K,).
        test_to_train: Validation over training samples, for the intervals.
        num_folds: Folds in one repeat of the cross-validation.
    """

    metric: str
    names: list[str]
    values: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    test_to_train: float
    num_folds: int

    def mean(self, name: str) -> float:
        """Return the mean over fits and repeats."""
        return float(self.values[:, self._at(name)].mean())

    def interval(self, name: str, *, level: float = 0.95) -> tuple[float, float]:
        """Interval of the expected importance, corrected for training data that folds share.

        See `dlblocks.crossval.statistics.mean_interval`. NaN for a single fit.
        """
        each = self.values[:, self._at(name)].mean(1)
        if len(each) < 2:
            return math.nan, math.nan
        freedom = self.num_folds - 1
        return mean_interval(each, self.test_to_train, level=level, degrees_of_freedom=freedom)

    def rows(self) -> list[dict[str, Any]]:
        """Return column, mean and interval, the most important first."""
        ends = {name: self.interval(name) for name in self.names}
        return [
            {"column": name, "importance": self.mean(name), "low": low, "high": high}
            for name, (low, high) in ends.items()
        ]

    def to_pandas(self) -> Any:
        """Return `rows` as a `pandas.DataFrame`."""
        return data_frame(self.rows())

    def figure(self, *, most: int = 30) -> Figure:
        """Draw the most important columns with their intervals."""
        from dlblocks import plots

        some = self.names[:most]
        return plots.ranking(
            {name: self.values[:, self._at(name)].mean(1).tolist() for name in some},
            intervals={name: self.interval(name) for name in some},
            label=f"how much worse {self.metric} is without the column",
        )

    def __str__(self) -> str:
        width = max(len(name) for name in self.names)
        lines = [
            f"{row['column']:<{width}}  {number(row['importance']):<10}  95 % interval "
            f"{number(row['low'])} … {number(row['high'])}"
            for row in self.rows()
        ]
        said = f"How much worse {self.metric} is without each column (mean of the folds "
        return "\n".join([f"{said}{number(float(self.scores.mean()))})", *lines])

    def _at(self, name: str) -> int:
        if name not in self.names:
            raise KeyError(f"{name!r} is no column{did_you_mean(name, self.names) or '.'}")
        return self.names.index(name)


def permutation_importance(
    fits: Sequence[tuple[pl.LightningModule, Preprocess, PredictionTable]],
    inputs: Tensor,
    columns: Mapping[str, Sequence[int]],
    *,
    metric: str | None,
    repeats: int,
    seed: int,
    test_to_train: float,
    num_folds: int,
    step: Callable[[], Any] = lambda: None,
) -> Importance:
    """Compute the permutation importance of columns.

    Permutations are those of `sklearn.inspection.permutation_importance` for this ``random_state``.
    They are the same for all columns of a fit.

    Args:
        fits: For each fit the model, what prepares its inputs, and its out-of-fold predictions.
        inputs: Raw inputs of the data set, shape (N, F).
        columns: For each column or group its features.
        metric: Name of a metric of `Task.score`; None for the loss.
        repeats: Permutations of each column.
        seed: Seed of the permutations.
        test_to_train: As for `Importance`.
        num_folds: As for `Importance`.
        step: Called after each column of each fit.
    """
    check_range("repeats", repeats, 1)
    scores, values = [], []
    for model, prepare, table in fits:
        known = table.score()
        name, mode = _metric(known, metric)
        sign = 1 if mode == "max" else -1
        rows = inputs[torch.from_numpy(table.index)]
        base = _score(model, prepare, rows, table)[name]
        random_seed = np.random.RandomState(seed).randint(np.iinfo(np.int32).max + 1)
        found = np.zeros((len(columns), repeats))
        for j, features in enumerate(columns.values()):
            random, order = np.random.RandomState(random_seed), np.arange(len(rows))
            changed = rows.clone()
            for r in range(repeats):
                random.shuffle(order)
                # As in scikit-learn, each permutation starts from the one before.
                changed[:, features] = changed[torch.from_numpy(order)][:, features]
                found[j, r] = sign * (base - _score(model, prepare, changed, table)[name])
            step()
        scores.append(base)
        values.append(found)
    stacked, names = np.stack(values), list(columns)
    order = np.argsort(-stacked.mean((0, 2)), kind="stable")
    return Importance(
        metric=name,
        names=[names[j] for j in order],
        values=stacked[:, order],
        scores=np.array(scores),
        test_to_train=test_to_train,
        num_folds=num_folds,
    )


def named_columns(
    known: Mapping[str, Sequence[int]], groups: Mapping[str, Sequence[str]] | None
) -> dict[str, list[int]]:
    """Join columns into groups and keep the others.

    Example:
        >>> named_columns({"a": [0], "b": [1, 2], "c": [3]}, {"both": ["a", "c"]})
        {'both': [0, 3], 'b': [1, 2]}
    """
    found, taken = dict[str, list[int]](), dict[str, str]()
    for group, names in (groups or {}).items():
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known) or f"; there are {', '.join(known)}."
                raise ValueError(f"groups[{group!r}] has {name!r}, which is no column{hint}")
            if name in taken:
                raise ValueError(f"groups has {name!r} in {taken[name]!r} and in {group!r}.")
            taken[name] = group
        found[group] = [feature for name in names for feature in known[name]]
    rest = {name: list(features) for name, features in known.items() if name not in taken}
    twice = [name for name in rest if name in found]
    if twice:
        raise ValueError(f"groups has the name {twice[0]!r}, which is that of a column.")
    return found | rest


def _metric(known: Mapping[str, float], metric: str | None) -> tuple[str, Mode]:
    """Return the metric and its direction."""
    if metric is None:
        metric = next((name for name in (*FIRST, *known) if name in known), None)
    if metric is None or metric not in known:
        hint = did_you_mean(str(metric), known) or f"; there are {', '.join(known) or 'none'}."
        raise ValueError(f"metric={metric!r} is not a score of these predictions{hint}")
    mode = metric_mode(metric)
    if mode is None:
        raise ValueError(f"metric={metric!r} says not whether high or low is best; choose another.")
    return metric, mode


def _score(
    model: pl.LightningModule, prepare: Preprocess, rows: Tensor, table: PredictionTable
) -> dict[str, float]:
    """Score the predictions of changed inputs."""
    predict = predictor(model)
    found: dict[str, list[np.ndarray]] = {}
    task = getattr(model, "task", None)
    targets = torch.from_numpy(np.array(table.target))
    with torch.inference_mode():
        for start in range(0, len(rows), ROWS):
            some = slice(start, start + ROWS)
            output = predict([prepare(rows[some]), targets[some]], 0)
            prediction = output["prediction"] if isinstance(output, Mapping) else output
            kept = {"target": targets[some], "prediction": prediction}
            if isinstance(task, Task):
                kept = task.keep(prediction, targets[some])
            for name, values in kept.items():
                found.setdefault(name, []).append(to_numpy(values))
    columns = {name: np.concatenate(parts) for name, parts in found.items()}
    if table.sample_weight is not None:
        columns["weight"] = table.sample_weight
    return PredictionTable(columns, task=table.task).score()
