"""Make batches of new data, and join their predictions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dlblocks._ragged import entries_of
from dlblocks.data._csv_chunks import CsvChunks
from dlblocks.data._images import images_below
from dlblocks.data._read_csv import COMPRESSED, ENDINGS
from dlblocks.data.encoders import Samples
from dlblocks.fields import Padded
from dlblocks.models._predict_batches import NoPredictions
from dlblocks.nets import Preprocess
from dlblocks.runs._table_writer import different


def by_hand(data: Any, size: int, preprocess: Callable[[Any], Any]) -> Samples:
    """Cut what was given into pieces, and make a batch of each."""
    pieces: Iterator[Any]
    names: Sequence[str] | None = None
    if isinstance(data, (str, PathLike)):
        path = Path(data)
        plain_name = path.name.lower()
        for ending in COMPRESSED:
            plain_name = plain_name.removesuffix(ending)
        if not path.exists():
            raise FileNotFoundError(f"data={str(path)!r} is neither a file nor a folder.")
        if plain_name.endswith(ENDINGS):
            tables = iter(CsvChunks(path, {}, {}, size))
            return Samples(((preprocess(table), None) for table in tables), is_batched=True)
        if plain_name.endswith(".npy"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            starts = range(0, len(array), size)
            parts = (np.array(array[start : start + size]) for start in starts)
            return Samples(((preprocess(part), None) for part in parts), is_batched=True)
        data = names = images_below(path) if path.is_dir() else [os.fspath(path)]
        if not data:
            raise FileNotFoundError(f"data={str(path)!r} is a folder without images.")
    if isinstance(data, DataLoader):
        pieces = iter(data)
    elif hasattr(data, "iloc"):
        pieces = (data.iloc[i : i + size] for i in range(0, len(data), size))
    elif isinstance(data, (Tensor, np.ndarray, list, tuple)):
        pieces = (data[i : i + size] for i in range(0, len(data), size))
    else:
        pieces = iter([data])
    if names is None:
        return Samples(((preprocess(piece), None) for piece in pieces), is_batched=True)
    called = (names[i : i + size] for i in range(0, len(names), size))
    chunks = ((preprocess(piece), some) for piece, some in zip(pieces, called, strict=True))
    return Samples(chunks, "file", is_batched=True)


def prepared(batch: Any, statistics: Preprocess) -> Any:
    """Return a batch as the steps of the model take it."""
    entries = entries_of(batch)
    if not entries or not isinstance(entries[0], (Tensor, Padded)):
        return batch  # nobody knows what its inputs are
    inputs, *rest = entries
    if hasattr(batch, "_fields") and not isinstance(batch, Padded):  # a namedtuple
        return type(batch)(statistics(inputs), *rest)
    return [statistics(inputs), *rest]


def split(batch: Any, size: int) -> list[Any]:
    """Cut ``[inputs]`` into batches."""
    (inputs,) = batch
    return [[part] for part in inputs.split(size)]


def joined(batches: Sequence[tuple[dict[str, Any], int]]) -> tuple[dict[str, Any], int]:
    """Join the columns that all batches have."""
    if len(batches) == 1:
        return batches[0]
    found: dict[str, Any] = {}
    for name in batches[0][0]:
        parts = [columns[name] for columns, _ in batches if name in columns]
        if len(parts) < len(batches):
            continue
        if all(isinstance(part, Tensor) for part in parts):
            if len({part.shape[1:] for part in parts}) > 1:
                raise NoPredictions(different(name))
            found[name] = torch.cat(parts)
        else:
            found[name] = [row for part in parts for row in part]
    return found, sum(count for _, count in batches)
