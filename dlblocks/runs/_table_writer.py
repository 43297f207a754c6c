"""Write rows to their places in a prediction table, on all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from dlblocks._npz import Column, Ragged, allocate, chunks, take
from dlblocks.models._predict_batches import (
    NoPredictions,
    gather,
    to_numpy,
)
from dlblocks.tasks import PredictionTable

# Bytes that ranks exchange at a time.
EXCHANGED = 2**24


class TableWriter:
    """Collect the rows of a table, each in its place.

    Dense columns are allocated once. Rows of a ragged column wait in memory for the last of them.

    Args:
        index: The index of every sample, in the order of the samples.
        folder: Where columns lie that are too large for memory.
    """

    def __init__(self, index: np.ndarray, folder: Path) -> None:
        order = np.argsort(index, kind="stable")
        self.index, self.folder = index[order], folder
        self.place = np.empty_like(order)  # of each sample, in the sorted table
        self.place[order] = np.arange(len(order))
        self.columns: dict[str, np.ndarray | dict[int, np.ndarray]] = {}
        self.counts: dict[str, int] = {}  # rows that each column has
        self.filled = np.zeros(len(index), bool)
        self.uneven: set[str] = set()  # columns without a row shape of their own

    def add(self, positions: np.ndarray, rows: Mapping[str, Tensor | Sequence[Tensor]]) -> None:
        """Add rows.

        Args:
            positions: Which samples they are, from 0 on.
            rows: A tensor, or a list of one tensor a sample, for each column.

        Raises:
            NoPredictions: Targets or predictions have another shape than before.
        """
        arrays: dict[str, Any] = {
            name: to_numpy(values) if isinstance(values, Tensor) else [*map(to_numpy, values)]
            for name, values in rows.items()
        }
        self._put(self.place[positions], arrays)

    def _put(self, places: np.ndarray, rows: Mapping[str, Any]) -> None:
        for name, values in rows.items():
            column = self.columns.get(name)
            if isinstance(values, list):
                if column is None:
                    column = self.columns[name] = {}
                if not isinstance(column, dict):
                    self._refuse(name)
                    continue
                column.update(zip(places.tolist(), values, strict=True))
            else:
                if column is None:
                    shape = len(self.index), *values.shape[1:]
                    column = self.columns[name] = allocate(shape, values.dtype, self.folder)
                if isinstance(column, dict) or column.shape[1:] != values.shape[1:]:
                    self._refuse(name)
                    continue
                dtype = np.promote_types(column.dtype, values.dtype)
                if dtype != column.dtype:
                    narrow, column = column, allocate(column.shape, dtype, self.folder)
                    for some in chunks(column):
                        column[some] = narrow[some]
                    self.columns[name] = column
                column[places] = values
            self.counts[name] = self.counts.get(name, 0) + len(places)
        self.filled[places] = True

    def _refuse(self, name: str) -> None:
        if name in ("target", "prediction"):
            raise NoPredictions(different(name))
        self.uneven.add(name)

    def exchange(self) -> None:
        """Give the rows of every rank to all others."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        mine, rank = self.filled.copy(), torch.distributed.get_rank()
        width = sum(_width(column) for column in self.columns.values())
        step = max(1, EXCHANGED // max(1, *gather([width])))
        errors: list[NoPredictions] = []
        for start in range(0, len(mine), step):
            places = start + np.flatnonzero(mine[start : start + step])
            rows = {
                name: [column[i] for i in places.tolist() if i in column]
                if isinstance(column, dict)
                else column[places]
                for name, column in self.columns.items()
                if self.counts.get(name) == mine.sum()
            }
            for other, (theirs, received) in enumerate(gather([(places, rows)])):
                if other != rank and len(theirs):
                    try:
                        self._put(theirs, received)
                    except NoPredictions as error:
                        errors.append(error)
        for first in gather(errors):
            raise first

    def finish(self) -> PredictionTable:
        """Return the table of the rows that were added, sorted by index."""
        count = int(self.filled.sum())
        uneven = sorted(name for name in self.columns if name in self.uneven)
        if uneven:
            rank_zero_warn(
                f"predict_step returns {', '.join(uneven)} of different shapes in different "
                "batches, which are left out of the predictions; return a list of one tensor a "
                "sample instead."
            )
        columns: dict[str, Column] = {"index": self.index}
        rows = np.flatnonzero(self.filled)
        for name in list(self.columns):
            column = self.columns.pop(name)
            if name in self.uneven or self.counts.get(name) != count:
                continue  # some batches are without it
            if isinstance(column, dict):
                try:
                    ragged = Ragged.of([column[row] for row in rows.tolist()], self.folder)
                except ValueError as error:
                    raise NoPredictions(f"the {name} is no column: {error}") from error
                columns[name] = ragged
            else:
                columns[name] = column
        if count < len(self.index):  # limit_predict_batches
            columns = {
                name: column if isinstance(column, Ragged) else take(column, rows, self.folder)
                for name, column in columns.items()
            }
        return PredictionTable(columns)


def _width(column: np.ndarray | dict[int, np.ndarray]) -> int:
    """Bytes of a row, of ragged columns those of the longest."""
    if isinstance(column, dict):
        return max((row.nbytes for row in column.values()), default=0)
    return column.nbytes // max(1, len(column))


def different(name: str) -> str:
    """Say that batches have different shapes, and the cure."""
    return (
        f"the {name}s have different shapes in different batches; return the same shape for every "
        "sample, or a list of one tensor a sample."
    )
