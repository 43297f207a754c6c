"""Predictions of new samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dlblocks._npz import Column, Growing, Ragged
from dlblocks._scores import are_probabilities
from dlblocks.models._predict_batches import NoPredictions, to_numpy
from dlblocks.runs._table_writer import different
from dlblocks.tasks import PredictionTable, Task, task_names
from dlblocks.tasks.table import Array


class Predictions(PredictionTable):
    """Predictions of new samples, one row each, in the given order.

    Columns are those of a `PredictionTable`, without targets: ``index``, from 0, ``prediction``,
    and of ensembles ``std``, the standard deviation over the members (with M in the denominator).

    Args:
        columns: The columns by name.
        task: Name of the task, if it is known.
        class_names: Names of the classes 0 … C-1.
        names: What the samples are called, such as their files; None for ``index`` alone.
        title: Name of the column of `names`.
    """

    def __init__(
        self,
        columns: Mapping[str, Column],
        *,
        task: str | None = None,
        class_names: Sequence[str] | None = None,
        names: Array | None = None,
        title: str = "index",
    ) -> None:
        super().__init__(columns, task=task)
        self.class_names, self.names, self.title = class_names, names, title

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if isinstance(key, str):
            return found
        names = None if self.names is None else self.names[key]
        return Predictions(
            found.columns,
            task=self.task,
            class_names=self.class_names,
            names=names,
            title=self.title,
        )

    def __reduce__(self) -> Any:
        state = self.columns, self.task, self.class_names, self.names, self.title
        return _rebuilt, state

    def of_task(self) -> type[Task]:
        """Return the task of the predictions, or `Task` if it is not known."""
        known = task_names()
        if self.task in known:
            return known[self.task]
        prediction = self.columns.get("prediction")
        if self.class_names is None or not isinstance(prediction, np.ndarray):
            return Task
        is_class = prediction.shape[1:] == (len(self.class_names),) or (
            prediction.ndim == 1 and prediction.dtype.kind in "iu"
        )
        is_class &= prediction.ndim == 1 or are_probabilities(prediction[: 2**16])
        return known["multiclass"] if is_class else Task

    def flat(self, class_names: Sequence[str] | None = None) -> dict[str, Array]:
        """Return columns of one number or name a row.

        First what the sample is called: ``index``, ``file``, or the identifier. Then
        ``prediction``, of classes the name of the likeliest, and ``probability_<class>``; of
        several labels ``prediction_<label>`` and ``probability_<label>``; else values. Of ensembles
        also ``std`` of each probability or value. Boxes have a row each, and samples without boxes
        none. Predicted tokens are texts.

        Args:
            class_names: Names of the classes 0 … C-1 in place of the model's.
        """
        names = class_names or self.class_names
        columns = self.narrow_columns()
        index = columns.pop("index")
        found = {self.title: index if self.names is None else self.names}
        boxes = self.columns.get("prediction")
        if isinstance(boxes, Ragged):
            parts = self.of_task().ragged_columns(boxes.values, names)
            if parts:
                sample = np.repeat(np.arange(len(self)), np.diff(boxes.offsets))
                return {name: values[sample] for name, values in found.items()} | parts
            if "text" in columns:  # of predicted tokens
                found["prediction"] = columns.pop("text")
        if "prediction" in columns:
            found |= self.of_task().answers(columns.pop("prediction"), names)
        for name, column in columns.items():
            rows = column.reshape(len(column), -1)
            width = rows.shape[1]
            ends = names if names is not None and len(names) == width else range(width)
            if width == 1:
                found[name] = rows[:, 0]
            else:
                found |= {f"{name}_{end}": rows[:, i] for i, end in enumerate(ends)}
        return found


def _rebuilt(columns: Any, task: Any, class_names: Any, names: Any, title: Any) -> Predictions:
    return Predictions(columns, task=task, class_names=class_names, names=names, title=title)


class Rows:
    """Collect columns of unknown length.

    A column of more than 64 MiB lies in a file.

    Args:
        folder: Where such files lie; None for the folder of temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.count = folder, 0
        self.columns: dict[str, Growing | list[Array]] = {}
        self.lengths: dict[str, int] = {}

    def add(self, rows: Mapping[str, Tensor | Sequence[Tensor]], count: int) -> None:
        """Add rows.

        Args:
            rows: For each column a tensor, or a list of one tensor a sample.
            count: How many samples they are.
        """
        for name, values in rows.items():
            column = self.columns.get(name)
            if isinstance(values, Tensor):
                if column is None:
                    column = self.columns[name] = Growing(self.folder)
                if not isinstance(column, Growing):
                    raise NoPredictions(different(name))
                try:
                    column.add(to_numpy(values))
                except ValueError as error:
                    raise NoPredictions(different(name)) from error
            else:
                if column is None:
                    column = self.columns[name] = []
                if not isinstance(column, list):
                    raise NoPredictions(different(name))
                column += [to_numpy(row) for row in values]
            self.lengths[name] = self.lengths.get(name, 0) + count
        self.count += count

    def finish(self) -> dict[str, Column]:
        """Return the columns that all rows have, and their ``index``."""
        found: dict[str, Column] = {"index": np.arange(self.count)}
        for name, column in self.columns.items():
            if self.lengths[name] == self.count:
                whole = isinstance(column, Growing)
                found[name] = column.finish() if whole else Ragged.of(column, self.folder)  # type: ignore[union-attr, arg-type]
        return found
