"""Results of a stage's last steps, checked and summed together."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

# Steps between two reads of the buffered losses on an accelerator: each waits for the device.
FLUSH_EVERY = 32
# Most bytes of buffered predictions and targets. Steps with dense outputs reach this early.
FLUSH_BYTES = 2**23


class StageMetrics(nn.Module):
    """The mean loss of one stage, and its other metrics."""

    def __init__(self, others: MetricCollection) -> None:
        super().__init__()
        self.loss = MeanMetric()
        self.others = others


class StepBuffer:
    """Results of a stage's last steps, to be checked and summed."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.kept: list[tuple[Tensor, ...]] = []
        self.steps: list[int] = []
        self.counted: list[Tensor | None] = []  # see `Task.counted`
        self.checked = self.bytes = 0

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def is_full(self) -> bool:
        return len(self) >= FLUSH_EVERY or self.bytes >= FLUSH_BYTES

    def add(
        self, loss: Tensor, kept: tuple[Tensor, ...], step: int, counted: Tensor | None = None
    ) -> None:
        self.losses.append(loss)
        self.counted.append(counted)
        self.kept.append(kept)
        self.steps.append(step)
        self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def check_finite(self, model: Any) -> None:
        new = self.losses[self.checked :]
        if not new:
            return
        values = [new[0].item()] if len(new) == 1 else torch.stack(new).tolist()
        if not all(map(math.isfinite, values)):
            first = self.checked + [math.isfinite(value) for value in values].index(False)
            raise FloatingPointError(
                f"train/loss is {self.losses[first].item()} at step {self.steps[first]} "
                f"(epoch {model.current_epoch}); lower lr (now {model.lr}), clip gradients, or "
                "look for infinite or missing values in the data."
            )
        self.checked = len(self.losses)

    def take(self) -> tuple[Tensor, ...]:
        losses = torch.stack(self.losses).float()
        sizes = torch.tensor([len(kept[1]) for kept in self.kept], device=losses.device)
        columns = [*zip(*self.kept, strict=True)]
        of_samples = self.counted
        if of_samples[0] is not None:
            sizes = torch.stack([count.sum() for count in of_samples])  # type: ignore[union-attr]
        if len(columns) > 2:
            pairs = zip(columns[2], of_samples, strict=True)
            weights = [(w if n is None else w * n).sum() for w, n in pairs]
            losses, sizes = by_weight(losses, sizes, torch.stack(weights))
        # A single batch is not copied.
        joined = [p[0] if len(p) == 1 else torch.cat(p) for p in columns]
        self.losses, self.kept, self.steps, self.checked, self.bytes = [], [], [], 0, 0
        self.counted = []
        return losses, sizes, *joined


def by_weight(losses: Tensor, sizes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Turn batch means of ``weight * loss`` into weighted means.

    Args:
        losses: The means over the samples of each batch, shape (B,).
        sizes: The number of samples of each batch, shape (B,).
        weights: The sum of their weights, shape (B,).

    Returns:
        The weighted means (0 for a batch without weight), and `weights`.
    """
    return torch.where(weights > 0, losses * sizes / weights, 0), weights
