"""Hashes of whole data sets and of single samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlblocks.data._cache import read_only_tensor

# Inputs up to this many bytes are hashed completely, which takes a tenth of a second.
MAX_BYTES = 2**26
CHUNK_BYTES = 2**22
# Larger data are searched for duplicates only on request: 4 GiB take about ten seconds.
MAX_SEARCHED_BYTES = 2**32


def fingerprint(inputs: Mapping[str, Any], columns: Mapping[str, Any]) -> str:
    """Hash names, dtypes, shapes and bytes of arrays.

    The result is SHA-256 as 64 hexadecimal digits. Inputs of more than 64 MiB, such as memory maps,
    are sampled: as many complete rows as fit into 64 MiB, evenly spaced from the first to the last.
    A change in other rows alone then goes unnoticed. Columns are always hashed completely.

    Args:
        inputs: Arrays or tensors of shape (N, ...), by name.
        columns: Arrays, tensors or texts of shape (N, ...), or None, by name.

    Example:
        >>> one = fingerprint({"inputs": np.zeros((3, 2))}, {"targets": np.array([0, 1, 0])})
        >>> one == fingerprint({"inputs": np.zeros((3, 2))}, {"targets": np.array([0, 1, 1])})
        False
    """
    digest = hashlib.sha256()
    for arrays, bound in ((inputs, MAX_BYTES), (columns, None)):
        for name, values in arrays.items():
            tensor = None if values is None else _as_tensor(values)
            kind = None if tensor is None else (str(tensor.dtype), tuple(tensor.shape))
            digest.update(f"{name} {kind}\n".encode())
            for chunk in () if tensor is None else _chunks(tensor, bound):
                digest.update(chunk.tobytes())
    return digest.hexdigest()


def row_keys(values: Tensor | np.ndarray | Sequence[Any]) -> np.ndarray:
    """Return one number per row, equal for equal rows.

    It is a 64-bit hash of the row's bytes (BLAKE2b). The probability that any two different rows
    among a million get the same number is 3e-8. Rows of different dtypes are not equal.

    Args:
        values: Shape (N, ...), or a list of N texts, numbers, arrays or tensors.

    Returns:
        int64 of shape (N,).

    Example:
        >>> one, two, three = row_keys(np.array([[1.0, 0.0], [2.0, 0.0], [1.0, -0.0]]))
        >>> bool(one == three), bool(one == two)
        (True, False)
    """
    if not isinstance(values, Tensor):
        if not isinstance(values, np.ndarray):
            return _keys([_bytes(value) for value in values])
        if values.dtype.kind in "USO":
            return _keys([str(value).encode() for value in values.tolist()])
    tensor = _as_tensor(values)
    width = tensor[:1].numel() * tensor.element_size()
    step = max(1, CHUNK_BYTES // max(width, 1))
    found = [np.empty(0, dtype=np.int64)]
    for rows in torch.split(tensor, step):
        memory = _row_bytes(rows)
        found.append(_keys([memory[i * width : (i + 1) * width] for i in range(len(rows))]))
    return np.concatenate(found)


def first_copies(keys: np.ndarray) -> np.ndarray:
    """Return the row of each sample's first copy, int64 of shape (N,)."""
    first, copy_of = np.unique(keys, return_index=True, return_inverse=True)[1:]
    rows: np.ndarray = first[copy_of]
    return rows


def _row_bytes(rows: Tensor) -> memoryview:
    if rows.is_floating_point():
        rows = rows + 0.0  # -0.0 becomes the equal 0.0
    array: Any = rows.reshape(-1).cpu().contiguous().view(torch.uint8).numpy()
    return memoryview(array)


def _bytes(value: Any) -> bytes:
    if isinstance(value, (Tensor, np.ndarray)):
        tensor = _as_tensor(value)[None]
        return f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + bytes(_row_bytes(tensor))
    return f"{type(value).__name__} {value}".encode()


def _keys(rows: Sequence[bytes | memoryview]) -> np.ndarray:
    digests = [hashlib.blake2b(row, digest_size=8).digest() for row in rows]
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)


def _as_tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    array = np.asarray(values)
    if array.dtype.kind in "USO":
        text = "\0".join(str(value) for value in array.ravel().tolist())
        array = np.frombuffer(text.encode() or b"\0", dtype=np.uint8)
    elif array.dtype.kind not in "fib" and array.dtype != np.uint8:
        array = np.frombuffer(array.tobytes(), dtype=np.uint8)  # torch lacks this dtype
    return read_only_tensor(array)


def _chunks(tensor: Tensor, bound: int | None) -> Iterator[np.ndarray]:
    """Yield the bytes of the rows, a few rows at a time."""
    if tensor.numel() == 0:
        return
    tensor = tensor.reshape(len(tensor), -1) if tensor.ndim else tensor.reshape(1, 1)
    row_bytes = tensor.shape[1] * tensor.element_size()
    count = len(tensor)
    if bound is not None and count * row_bytes > bound:
        count = min(count, max(2, bound // row_bytes))
    rows = torch.from_numpy(np.linspace(0, len(tensor) - 1, count).round().astype(np.int64))
    for some in torch.split(rows, max(1, CHUNK_BYTES // row_bytes)):
        yield tensor.index_select(0, some.to(tensor.device)).cpu().view(torch.uint8).numpy()
