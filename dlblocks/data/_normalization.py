"""Compute means and standard deviations of arrays larger than memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlblocks.data._threads import in_threads
from dlblocks.fields import Ragged

# Values at a time: 2 MB as float64, which fit into the processor's cache.
CHUNK = 1 << 18
# Largest tolerated rounding error, as a share of a column's standard deviation.
TOLERATED = 1e-3
FLOAT32_EPS = 2.0**-24  # the largest relative error of rounding to float32
FLOAT32_MAX = torch.finfo(torch.float32).max


def mean_and_std(inputs: Tensor | Ragged, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean and standard deviation of each channel over some rows.

    The standard deviation is that of the population. One pass in float64 reads some rows at a time.
    The variance is taken about the mean of the first rows, so that large means lose no digits
    (Chan, Golub and LeVeque 1983).

    Args:
        inputs: Shape (N, C, ...), any dtype. The channels of a table are its columns. Of `Ragged`
            sequences with values (T, C, ...), all steps of the rows count.
        rows: Rows to use, int64, shape (M,) with M >= 1.

    Returns:
        Both float64 of shape (C,). The standard deviation of a constant channel is 0 within
        rounding.

    Example:
        >>> mean_and_std(torch.tensor([[1.0], [3.0], [99.0]]), torch.tensor([0, 1]))
        (tensor([2.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    if isinstance(inputs, Ragged):
        rows, inputs = inputs.positions(rows), inputs.values
    channels = inputs.shape[1]

    def read(chunk: Tensor) -> Tensor:
        return inputs.index_select(0, chunk).reshape(len(chunk), channels, -1).double()

    def sums(chunk: Tensor) -> tuple[Tensor, Tensor]:
        x = read(chunk).sub_(pivot[:, None])
        return x.sum((0, 2)), x.square_().sum((0, 2))

    chunks = torch.split(rows, max(1, CHUNK // max(inputs[0].numel(), 1)))
    pivot = read(chunks[0]).mean((0, 2))
    total = square = torch.zeros(channels, dtype=torch.float64)
    pays = len(chunks) > 4 and inputs[0].numel() <= CHUNK
    # Threads cost more than a few chunks, and several large images at once cost memory.
    for part, squares in in_threads(sums, chunks, pays=pays):
        total, square = total + part, square + squares
    shift = total / (count := len(rows) * (inputs[0].numel() // channels))
    return pivot + shift, (square / count - shift.square()).clamp_(min=0).sqrt()


def needs_float64(inputs: Tensor | Ragged) -> bool:
    """Tell whether float32 would round a column too much.

    It does if rounding changes a value by more than 1e-3 of its column's standard deviation. An
    example is times in milliseconds since 1970. Values that are not finite are ignored.

    Args:
        inputs: Features of shape (N, F), or `Ragged` with values (T, F), any dtype.

    Example:
        >>> needs_float64(torch.tensor([[1.7e12], [1.7e12 + 60_000]], dtype=torch.float64))
        True
    """
    if isinstance(inputs, Ragged):
        inputs = inputs.values
    wide = inputs.dtype in (torch.float64, torch.int64, torch.int32)
    if inputs.ndim != 2 or not wide or not inputs.numel():
        return False
    columns = inputs.detach().cpu().numpy().T
    low, high = (of(axis=1).astype(np.float64) for of in (columns.min, columns.max))
    safe = fits_float32(low, high, len(inputs))
    return any(_is_rounded(inputs[:, int(i)]) for i in np.flatnonzero(~safe))


def fits_float32(low: Any, high: Any, count: int) -> Any:
    """Tell from a range of values if float32 is precise enough.

    False means that the `count` values must be checked one by one.
    """
    # A standard deviation is at least (high - low) / √(2N). Most columns need no further check.
    with np.errstate(invalid="ignore", over="ignore"):
        largest = np.maximum(abs(low), abs(high))
        safe = FLOAT32_EPS * largest <= TOLERATED * (high - low) / np.sqrt(2 * count)
        return safe & (largest < FLOAT32_MAX)


def rounded_integer(values: np.ndarray) -> int | None:
    """Return the first whole number above 2**53 that float64 rounds, or None.

    Example:
        >>> rounded_integer(np.array([1, 2**53 + 1])) == 2**53 + 1
        True
        >>> rounded_integer(np.array([1, 2**60])) is None
        True
    """
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 8 or not values.size:
        return None
    if int(values.min()) >= -(2**53) and int(values.max()) <= 2**53:
        return None
    floats = values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        rounded = floats.astype(values.dtype) != values
    rounded |= floats >= float(np.iinfo(values.dtype).max)  # too large for the dtype
    return int(values[rounded][0]) if rounded.any() else None


def _is_rounded(column: Tensor) -> bool:
    """Tell whether float32 would round one column too much."""
    x = column.double()
    x = x[x.isfinite()]
    if not len(x):
        return False
    mean = x.mean()
    std = (x - mean).square().mean().sqrt()
    lost = (x - x.float()).abs().max()
    return bool(lost > TOLERATED * std) and not _is_constant(mean, std)


def standardisation(inputs: Tensor | Ragged, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale and shift that standardise channels over some rows.

    ``x * scale + shift`` has mean 0 and standard deviation 1, and is 0 for constant channels. Both
    have shape (C,), or (1, C, 1, ...) for `Ragged` values (T, C, ...). They are float32, but
    float64 for float64 inputs, and where a mean is so far from 0 that float32 would lose more than
    1e-3 standard deviations.
    """
    mean, std = mean_and_std(inputs, rows)
    constant = _is_constant(mean, std)
    std[constant] = 1.0  # a constant column stays finite: 0
    far = (FLOAT32_EPS * mean.abs() > TOLERATED * std) & ~constant
    wide = inputs.dtype == torch.float64 or bool(far.any())
    dtype = torch.float64 if wide else torch.float32
    scale, shift = (1 / std).to(dtype), (-mean / std).to(dtype)
    if isinstance(inputs, Ragged):
        shape = 1, -1, *[1] * (inputs.values.ndim - 2)
        return scale.reshape(shape), shift.reshape(shape)
    return scale, shift


def _is_constant(mean: Tensor, std: Tensor) -> Tensor:
    """Tell which standard deviations are rounding errors only."""
    return std <= 1e-14 * mean.abs().clamp(min=1)
