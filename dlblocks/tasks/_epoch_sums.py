"""Sums over an epoch, of which metrics are computed at its end."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class EpochSums(Metric):
    """The base of metrics that are ratios of sums.

    Args:
        columns: Number of sums K.
        weighted: Whether `update` takes weights of samples.
    """

    is_differentiable = False
    full_state_update = False
    sums: Tensor

    def __init__(self, columns: int, *, weighted: bool = False) -> None:
        super().__init__()
        self.weighted = weighted
        self.add_state("sums", torch.zeros(columns), "sum")

    def update(self, sums: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add the sums of samples, shape (N, K)."""
        each = sums if weights is None else sums * weights[:, None].to(sums)
        self.sums = self.sums.to(sums.dtype) + each.sum(0)
