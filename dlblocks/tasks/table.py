"""Hold predictions as a table of named columns, and write it to files."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dlblocks._errors import check_range
from dlblocks._files import atomic_write
from dlblocks._npz import (
    Column,
    Ragged,
    is_mapped,
    join,
    names_of,
    read_columns,
    take,
    write_columns,
)
from dlblocks.tasks._registry import find_task, task_names

Array = npt.NDArray[Any]
PLACE = ("repeat", "fold", "index")
WIDE = 1000  # numbers a row; a data frame has no columns for more
CSV_ROWS = 2**16  # written at a time


class PredictionTable:
    """Predictions of samples, one row each, with named columns.

    A column is an array with one row a sample, or a `Ragged` of rows of unequal length. Columns
    that mean nothing for a table are not there:

    - ``index``: the sample's row in its data set, int64.
    - ``fold``, ``repeat``: of a cross-validation, which fold of which repeat predicted it.
    - ``target`` and ``prediction``: what the task keeps of them; see `Task.keep`. For classes these
      are classes (N,) and probabilities (N, C). For values both have one shape. A module of
      somebody else has its predictions as it gives them.
    - Further entries of what `predict_step` returns, such as ``std``.

    ``table["prediction"]`` or ``table.prediction`` is a column. ``table[rows]`` is the table of
    some rows, by a mask, a slice or numbers. A column of more than 64 MiB stays on disk, as a
    memory map.

    Args:
        columns: The columns by name, all of one length.
        task: Name of the task, if it is known.

    Example:
        >>> table = PredictionTable({"index": np.arange(3), "prediction": np.array([0.5, 1.5, 2])})
        >>> table[table.prediction > 1]
        PredictionTable of 2 rows: index (), prediction ()
    """

    index: npt.NDArray[np.int64]
    fold: npt.NDArray[np.int64]
    repeat: npt.NDArray[np.int64]
    target: Array
    prediction: Array

    def __init__(self, columns: Mapping[str, Column], *, task: str | None = None) -> None:
        self.columns, self.task = dict(columns), task
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len({*lengths.values()}) > 1:
            raise ValueError(f"columns of a table must have as many rows each, got {lengths}.")
        self._path: Path | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __getitem__(self, key: Any) -> Any:
        """Return a column by its name, or the table of some rows."""
        if isinstance(key, str):
            return self.columns[key]
        rows = key
        if not isinstance(key, slice):
            rows = np.asarray(key)
            rows = np.flatnonzero(rows) if rows.dtype == bool else rows
            if len(rows) and (np.diff(rows) == 1).all() and rows[0] >= 0:
                rows = slice(int(rows[0]), int(rows[-1]) + 1)  # which needs no copy
        found = {name: take(column, rows) for name, column in self.columns.items()}
        return PredictionTable(found, task=self.task)

    def __getattr__(self, name: str) -> Any:
        columns = vars(self).get("columns", {})
        if name in columns:
            return columns[name]
        raise AttributeError(f"the table has no column {name!r}; it has {', '.join(columns)}.")

    def __repr__(self) -> str:
        """Return the number of rows, and the names of the columns with the shape of a row."""
        shapes = (
            f"{name} {'ragged' if isinstance(column, Ragged) else column.shape[1:]}"
            for name, column in self.columns.items()
        )
        return f"PredictionTable of {len(self)} rows: {', '.join(shapes)}"

    def __reduce__(self) -> Any:
        if self._path is not None:  # not what is mapped
            return PredictionTable.read, (self._path, "write it again", self.task)
        return _table, (self.columns, self.task)

    @property
    def sample_weight(self) -> Array | None:
        """How much each sample counts, the column ``weight``; None if all count the same."""
        return self["weight"] if self.has("weight") else None

    def has(self, *names: str) -> bool:
        """Return True if there are dense columns of these names."""
        return all(isinstance(self.columns.get(name), np.ndarray) for name in names)

    def with_columns(self, **columns: Column | int) -> PredictionTable:
        """Return the table with further columns; a number is the value of all rows."""
        new = {
            name: np.full(len(self), value) if isinstance(value, int) else value
            for name, value in columns.items()
        }
        return PredictionTable(self.columns | new, task=self.task)

    @classmethod
    def concatenate(
        cls,
        tables: Sequence[PredictionTable],
        *,
        sort_by: Sequence[str] = ("repeat", "index"),
        folder: Path | None = None,
    ) -> PredictionTable:
        """Join tables by the columns that all of them have, with rows of one shape.

        Args:
            tables: At least one table.
            sort_by: Columns by which rows are sorted, the first one first.
            folder: Where columns lie that are too large for memory; None for that of temporary
                files.
        """
        names = names_of([table.columns for table in tables])
        keys = [np.concatenate([table[name] for table in tables]) for name in sort_by[::-1]]
        order = np.lexsort(keys)
        found = {name: join([table[name] for table in tables], order, folder) for name in names}
        return cls(found, task=tables[0].task)

    def mean(self) -> PredictionTable:
        """Average the rows of each sample, sorted by index.

        Probabilities and values are averaged, as `Task.average` does; of ``target`` there is the
        first. Other columns that are not floating point have no mean and are left out.
        """
        _, first, where, counts = np.unique(
            self.index, return_index=True, return_inverse=True, return_counts=True
        )
        found = {name: self[name][first] for name in ("index", "target") if self.has(name)}
        for name, column in self.columns.items():
            if name in found or isinstance(column, Ragged) or column.dtype.kind != "f":
                continue
            sums = np.zeros((len(first), *column.shape[1:]))
            np.add.at(sums, where, column)
            found[name] = sums / counts.reshape(-1, *(1,) * (sums.ndim - 1))
        return PredictionTable(found, task=self.task)

    def of_task(self) -> type[Any]:
        """Return the task of the predictions.

        Raises:
            ValueError: It is not clear; see `find_task`.
        """
        if self.has("target", "prediction"):
            return find_task(self.target, self.prediction, self.task)
        known = task_names()
        if self.task not in known:
            raise ValueError(
                "the predictions are of no known task, and there is not one array of targets and "
                f"one of predictions; there are the columns {', '.join(self.columns)}."
            )
        return known[self.task]

    def worst(self, count: int = 20) -> PredictionTable:
        """Return the rows with the largest loss, the worst first.

        The column ``loss`` is that of each row: the cross-entropy of classes, 1 for a wrong class
        without probabilities, the squared error of values, 1 - IoU of masks, and of boxes the
        number of errors. Each sample is returned once: if several repeats have predicted it, by its
        worst row.

        Args:
            count: Number of rows.

        Raises:
            ValueError: The task has no loss of each row, or is not known.
        """
        check_range("count", count, 1)
        losses = self.of_task().sample_losses(self)
        if losses is None:
            raise ValueError(
                f"predictions of the task {self.task!r} have no loss of each sample; define "
                "sample_losses(table) in the task."
            )
        order = np.argsort(-np.where(np.isnan(losses), -np.inf, losses), kind="stable")
        order = order[~np.isnan(losses[order])]
        _, first = np.unique(self.index[order], return_index=True)
        rows = order[np.sort(first)[:count]]
        found: PredictionTable = self[rows].with_columns(loss=losses[rows])
        return found

    def score(self) -> dict[str, float]:
        """Compute the task's metrics over all rows at once.

        Raises:
            ValueError: As for `of_task`.
        """
        scores: dict[str, float] = self.of_task().score(self)
        return scores

    def narrow_columns(self) -> dict[str, Array]:
        """Return the columns that a data frame has room for."""
        return {
            name: column
            for name, column in self.columns.items()
            if isinstance(column, np.ndarray) and column[:1].size <= WIDE
        }

    def flat(self, class_names: Sequence[str] | None = None) -> dict[str, Array]:
        """Return columns of one number a row: repeat, fold, index, and those of the task.

        Ragged columns and those of more than 1,000 numbers a row are left out. The others follow,
        as ``std_0``, ``std_1``, ….

        Args:
            class_names: Names of the classes 0 … C-1.
        """
        narrow = self.narrow_columns()
        found = {name: narrow.pop(name) for name in PLACE if name in narrow}
        if {"target", "prediction"} <= {*narrow}:
            try:
                columns = self.of_task().columns
            except ValueError:
                columns = plain_columns
            found |= columns(narrow.pop("target"), narrow.pop("prediction"), class_names)
        for name, column in narrow.items():
            found |= numbered(name, column)
        return found

    def to_pandas(self, class_names: Sequence[str] | None = None) -> Any:
        """Return the columns of `flat` as a `pandas.DataFrame`.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return data_frame(self.flat(class_names))

    def to_csv(self, path: str | PathLike[str], class_names: Sequence[str] | None = None) -> None:
        """Write the columns of `flat` as CSV, whole or not at all, some rows at a time.

        Args:
            path: The file; ``.gz`` compresses it.
            class_names: Names of the classes 0 … C-1.
        """
        with atomic_write(path) as part:
            for start in range(0, max(1, len(self)), CSV_ROWS):
                frame = self[start : start + CSV_ROWS].to_pandas(class_names)
                frame.to_csv(part, mode="a", header=not start, index=False)

    def write(self, path: Path) -> PredictionTable:
        """Write an ``.npz`` file, whole or not at all, which `np.load` reads without pickle.

        Returns:
            The table; columns that were on disk are now those of the file.
        """
        write_columns(path, self.columns)
        if any(map(is_mapped, self.columns.values())):
            return self.read(path, "write it again", self.task)
        return self

    @classmethod
    def read(cls, path: Path, cure: str, task: str | None = None) -> PredictionTable:
        """Read what `write` has written; errors name file and `cure`."""
        table = cls(read_columns(path, cure), task=task)
        if any(map(is_mapped, table.columns.values())):
            table._path = path
        return table


def _table(columns: Mapping[str, Column], task: str | None) -> PredictionTable:
    return PredictionTable(columns, task=task)


def data_frame(data: Any) -> Any:
    """Make a `pandas.DataFrame` of columns or rows."""
    try:
        pandas = importlib.import_module("pandas")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "to_pandas needs pandas, which dlblocks does not install: pip install pandas."
        ) from error
    return pandas.DataFrame(data)


def numbered(name: str, column: Array) -> dict[str, Array]:
    """Return the numbers of each row as columns, such as ``target_0``, ``target_1``."""
    values = column.reshape(len(column), -1).T
    names = [f"{name}_{i}" for i in range(len(values))] if len(values) > 1 else [name]
    return dict(zip(names, values, strict=True))


def plain_columns(
    target: Array, prediction: Array, class_names: Sequence[str] | None = None
) -> dict[str, Array]:
    """Make the columns of any targets and predictions, one row a sample."""
    return numbered("target", target) | numbered("prediction", prediction)


class Predictions(PredictionTable):
    """Predictions with what figures need of the data.

    Args:
        table: The predictions.
        class_names: Names of the classes, as far as they are known.
        inputs: Gives the raw inputs of rows, or None where they are not arrays in memory.
        input_shape: The shape of one input.
        repeats: How often each sample is among them.
    """

    def __init__(
        self,
        table: PredictionTable,
        *,
        class_names: Sequence[str] = (),
        inputs: Callable[[Array], Array] | None = None,
        input_shape: tuple[int, ...] = (),
        repeats: int = 1,
    ) -> None:
        super().__init__(table.columns, task=table.task)
        self.class_names, self.repeats = class_names, repeats
        self.inputs, self.input_shape = inputs, input_shape

    def images(self) -> Array:
        """Return the raw images of all rows, shape (N, C, H, W)."""
        assert self.inputs is not None  # for the type checker
        return self.inputs(self.index)

    def captions(self) -> list[str]:
        """Describe each row by its sample and its loss."""
        losses = [f"loss {value:.3g}\n" for value in self["loss"]] if self.has("loss") else ()
        said = [f"sample {i}" for i in self.index.tolist()]
        return [f"{loss}{one}" for loss, one in zip(losses, said, strict=True)] if losses else said
