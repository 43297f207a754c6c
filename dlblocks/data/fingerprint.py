"""Whether two runs had the same data, by a hash of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlblocks.data.cache import read_only_tensor

# Inputs up to so many bytes are hashed whole, which takes a tenth of a second.
MAX_BYTES = 2**26
CHUNK_BYTES = 2**22


def fingerprint(inputs: Mapping[str, Any], columns: Mapping[str, Any]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of arrays, as 64 hexadecimal digits.

    Inputs of more than 64 MiB, such as memory maps, are sampled: as many whole rows as fit into
    64 MiB, evenly spaced, the first and the last among them. A change of other rows alone is then
    not seen. Columns are always hashed whole.

    Args:
        inputs: Arrays or tensors of shape (N, ...), by name.
        columns: Arrays, tensors or texts of shape (N, ...), by name; None stands for none.

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


def _as_tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    array = np.asarray(values)
    if array.dtype.kind in "USO":
        text = "\0".join(str(value) for value in array.ravel().tolist())
        array = np.frombuffer(text.encode() or b"\0", dtype=np.uint8)
    elif array.dtype.kind not in "fib" and array.dtype != np.uint8:
        array = np.frombuffer(array.tobytes(), dtype=np.uint8)  # torch has no such numbers
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    return read_only_tensor(array)


def _chunks(tensor: Tensor, bound: int | None) -> Iterator[np.ndarray]:
    """The bytes of the rows, a few at a time."""
    if tensor.numel() == 0:
        return
    tensor = tensor.reshape(len(tensor), -1) if tensor.ndim else tensor.reshape(1, 1)
    row_bytes = tensor.shape[1] * tensor.element_size()
    count = len(tensor)
    if bound is not None and count * row_bytes > bound:
        count = min(count, max(2, bound // row_bytes))
    rows = torch.from_numpy(np.linspace(0, len(tensor) - 1, count).round().astype(np.int64))
    for some in rows.split(max(1, CHUNK_BYTES // row_bytes)):
        yield tensor.index_select(0, some.to(tensor.device)).cpu().view(torch.uint8).numpy()
