"""Columns of a table, and their ``.npz`` file.

A column is dense or ragged. A column of more than `IN_MEMORY` bytes stays on disk, as a memory map.
"""

from __future__ import annotations

import math
import os
import struct
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from dlblocks._files import atomic_write, reading

Array = npt.NDArray[Any]
IN_MEMORY = 2**26
CHUNK = 2**22  # bytes that are handled at a time
OFFSETS = ".offsets"  # ends the name of the second array of a ragged column


class Ragged:
    """Rows of unequal length.

    Args:
        values: The rows one after another, shape (T, ...).
        offsets: Where each row starts, and T at the end, int64 of shape (N + 1,).

    Example:
        >>> column = Ragged.of([np.array([1, 2]), np.array([3])])
        >>> len(column), column[0], column.offsets
        (2, array([1, 2]), array([0, 2, 3]))
    """

    def __init__(self, values: Array, offsets: Array) -> None:
        self.values, self.offsets = values, offsets

    @classmethod
    def of(cls, rows: Sequence[Array], folder: Path | None = None) -> Ragged:
        """Join rows of shape (L, ...).

        L may differ, and be 0. The other axes must be the same.
        """
        offsets = np.cumsum([0, *map(len, rows)])
        shapes = {row.shape[1:] for row in rows} or {()}
        if len(shapes) > 1:
            raise ValueError(f"rows of a ragged column have the shapes (L, …) of {shapes}.")
        dtype = np.result_type(*rows) if len(rows) else np.dtype(float)
        values = allocate((int(offsets[-1]), *shapes.pop()), dtype, folder)
        for start, row in zip(offsets, rows, strict=False):
            values[start : start + len(row)] = row
        return cls(values, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Array:
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        return self.values[self.offsets[row] : self.offsets[row + 1]]


Column: TypeAlias = Array | Ragged


def allocate(shape: Sequence[int], dtype: Any, folder: Path | None = None) -> Array:
    """Return an empty array.

    A large one is a memory map of an unnamed file in `folder`.
    """
    if math.prod(shape) * np.dtype(dtype).itemsize <= IN_MEMORY:
        return np.empty(shape, dtype)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype, "w+", shape=tuple(shape))


class Growing:
    """A dense column of unknown length. A large one lies in a file.

    Args:
        folder: Where the file lies; None for the folder of temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.parts: list[Array] = []
        self.file: Any = None
        self.rows = self.bytes = 0

    def add(self, values: Array) -> None:
        """Add rows, all of one shape."""
        if self.parts and values.shape[1:] != self.parts[0].shape[1:]:
            raise ValueError(
                f"rows have the shapes {self.parts[0].shape[1:]} and {values.shape[1:]}; give one."
            )
        if self.file is not None:
            values = values.astype(self.parts[0].dtype, copy=False)
        self.parts.append(values)
        self.rows += len(values)
        self.bytes += values.nbytes
        if self.bytes > IN_MEMORY:
            self._spill()

    def _spill(self) -> None:
        dtype = np.result_type(*self.parts)
        if self.file is None:
            self.file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
        for part in self.parts:  # not joined, which would take their memory twice
            self.file.write(np.ascontiguousarray(part, dtype))
        # The first part says shape and dtype.
        self.parts, self.bytes = [np.empty((0, *self.parts[0].shape[1:]), dtype)], 0

    def finish(self) -> Array:
        """Return the column."""
        if self.file is None:
            return np.concatenate(self.parts)
        self._spill()
        self.file.flush()
        row, dtype = self.parts[0].shape[1:], self.parts[0].dtype
        with self.file:
            return np.memmap(self.file, dtype, "r+", shape=(self.rows, *row))


def is_mapped(column: Column) -> bool:
    """Return True for a column on disk."""
    return isinstance(column.values if isinstance(column, Ragged) else column, np.memmap)


def chunks(column: Array) -> Iterator[slice]:
    """Slices of rows of about `CHUNK` bytes."""
    step = max(1, CHUNK // max(1, column.nbytes // max(1, len(column))))
    return (slice(start, start + step) for start in range(0, len(column), step))


def is_finite(column: Column) -> bool:
    """Return True if all numbers are finite.

    The column is not copied.
    """
    values = column.values if isinstance(column, Ragged) else column
    return all(np.isfinite(values[rows]).all() for rows in chunks(values))


def take(column: Column, rows: Array | slice, folder: Path | None = None) -> Column:
    """Select rows.

    A slice of a dense column is not copied.
    """
    if isinstance(column, Ragged):
        return Ragged.of([column[i] for i in np.arange(len(column))[rows]], folder)
    if isinstance(rows, slice) or not is_mapped(column):
        return column[rows]
    found = allocate((len(rows), *column.shape[1:]), column.dtype, folder)
    for part in chunks(found):
        found[part] = column[rows[part]]
    return found


def join(parts: Sequence[Column], order: Array, folder: Path | None = None) -> Column:
    """Join columns, and put the rows into an order."""
    if any(isinstance(part, Ragged) for part in parts):
        rows = [part[i] for part in parts for i in range(len(part))]
        return Ragged.of([rows[i] for i in order], folder)
    dense: Any = parts
    dtype = np.result_type(*(part.dtype for part in dense))
    found = allocate((len(order), *dense[0].shape[1:]), dtype, folder)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    start = 0
    for part in dense:
        found[place[start : start + len(part)]] = part
        start += len(part)
    return found


def write_columns(path: Path, columns: Mapping[str, Column]) -> None:
    """Write columns atomically.

    `np.load` reads the file without pickle. A ragged column is two arrays, ``name`` and
    ``name.offsets``. Large arrays are not compressed, so that `read_columns` can map them.
    """
    arrays: dict[str, Array] = {}
    for name, column in columns.items():
        if isinstance(column, Ragged):
            arrays |= {name: column.values, name + OFFSETS: column.offsets}
        else:
            arrays[name] = column
    with atomic_write(path) as part, zipfile.ZipFile(part, "w") as file:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            large = array.nbytes > IN_MEMORY
            entry.compress_type = zipfile.ZIP_STORED if large else zipfile.ZIP_DEFLATED
            with file.open(entry, "w", force_zip64=True) as opened:
                np.lib.format.write_array(opened, array, allow_pickle=False)


def read_columns(path: Path, cure: str) -> dict[str, Column]:
    """Read what `write_columns` wrote, as `read_json` does."""
    arrays: dict[str, Any] = {}
    with reading(path, cure), path.open("rb") as file, zipfile.ZipFile(file) as entries:
        for entry in entries.infolist():
            name = entry.filename.removesuffix(".npy")
            stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size > IN_MEMORY
            with entries.open(entry) as opened:
                if stored:
                    while opened.read(CHUNK):
                        pass  # checks the sum
                else:
                    arrays[name] = np.lib.format.read_array(opened, allow_pickle=False)
            if stored:
                arrays[name] = _map(path, file, entry)
        offsets = {name: arrays.pop(name) for name in [*arrays] if name.endswith(OFFSETS)}
        for name, starts in offsets.items():
            name = name.removesuffix(OFFSETS)
            arrays[name] = Ragged(arrays[name], starts)
    return arrays


def _map(path: Path, file: BinaryIO, entry: zipfile.ZipInfo) -> Array:
    """Map an array that lies uncompressed in a zip file."""
    # The entry begins with 30 bytes, of which the last four are the lengths of two fields after
    # them.
    file.seek(entry.header_offset + 26)
    file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
    np.lib.format.read_magic(file)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    order: Any = "F" if fortran else "C"
    return np.memmap(path, dtype, "r", file.tell(), shape, order)


def names_of(tables: Iterable[Mapping[str, Column]]) -> list[str]:
    """Names of columns that all tables have, with rows of one shape."""
    found = [{name: _kind(column) for name, column in table.items()} for table in tables]
    return [name for name in found[0] if all(each.get(name) == found[0][name] for each in found)]


def _kind(column: Column) -> tuple[bool, tuple[int, ...]]:
    values = column.values if isinstance(column, Ragged) else column
    return isinstance(column, Ragged), values.shape[1:]
