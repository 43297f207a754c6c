"""Means and standard deviations, of some rows of an array that may be larger than memory."""

from __future__ import annotations

import torch
from torch import Tensor

# Values taken at a time: 2 MB as float64, which a cache holds.
CHUNK = 1 << 18


def mean_and_std(inputs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (of the population) of each channel, or column, of some rows.

    One pass in float64, some rows at a time; the variance is taken about the mean of the first
    rows, so that large means lose no digits (Chan, Golub and LeVeque 1983).

    Args:
        inputs: Shape (N, C, ...), any dtype.
        rows: Which of them count, int64, shape (M,) with M >= 1.

    Returns:
        Float64 of shape (C,) each. The standard deviation of a constant channel is 0, or as near
        as rounding allows.

    Example:
        >>> mean_and_std(torch.tensor([[1.0], [3.0], [99.0]]), torch.tensor([0, 1]))
        (tensor([2.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    channels = inputs.shape[1]
    count = 0
    pivot = total = square = torch.zeros(channels, dtype=torch.float64)
    for chunk in rows.split(max(1, CHUNK // max(inputs[0].numel(), 1))):
        x = inputs.index_select(0, chunk).reshape(len(chunk), channels, -1).double()
        if count == 0:
            pivot = x.mean((0, 2))
        x -= pivot[:, None]
        count += x.numel() // channels
        total = total + x.sum((0, 2))
        square = square + x.square_().sum((0, 2))
    shift = total / count
    return pivot + shift, (square / count - shift.square()).clamp_(min=0).sqrt()


def standardisation(inputs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift that give ``x * scale + shift`` mean 0 and deviation 1 over some rows.

    Constant channels become 0. Float32, shaped to broadcast over inputs (N, C, ...).
    """
    mean, std = mean_and_std(inputs, rows)
    std[std <= 1e-12 * mean.abs().clamp(min=1)] = 1.0  # a constant column stays finite: 0
    shape = (-1,) + (1,) * (inputs.ndim - 2)
    return (1 / std).view(shape).float(), (-mean / std).view(shape).float()


def rescale(inputs: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ``inputs * scale + shift``.

    In torch's default dtype, or that of the inputs if it is wider.
    """
    if inputs.dtype in (torch.float32, torch.float64):
        dtype = torch.promote_types(inputs.dtype, torch.get_default_dtype())
        return (inputs.to(dtype) * scale.to(dtype)).add_(shift.to(dtype))
    # In place in the new memory: half the time of one fused operation out of place.
    return inputs.to(torch.get_default_dtype()).mul_(scale).add_(shift)
