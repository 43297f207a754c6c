"""Compute metrics of weighted samples, and R², from sums in float64."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

NUM_BINS = 15  # of confidence


def wide(device: torch.device) -> torch.dtype:
    """Return the dtype of sums, float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


class _WeightedClassMetric(Metric):
    """Base of weighted accuracy, macro F1 and calibration error.

    They sum weights, and `classification_metrics` counts samples.
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = True
    name: str
    confusion: Tensor
    gaps: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        # Weights by target and prediction; and in each bin of confidence the sum of
        # weight * (confidence - right).
        for state, size in (("confusion", num_classes**2), ("gaps", NUM_BINS + 1)):
            self.add_state(state, default=torch.zeros(size), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Add classes (N,) or probabilities (N, C), classes (N,) and weights (N,)."""
        dtype = wide(weights.device)
        weights, classes = weights.to(dtype), predictions
        if predictions.ndim > 1:
            confidence, classes = predictions.max(1)
            edges = torch.linspace(0, 1, NUM_BINS + 1, device=predictions.device)
            where = torch.bucketize(confidence, edges, right=True) - 1
            gaps = weights * (confidence - (classes == targets).to(dtype))
            self.gaps = self.gaps.to(dtype).index_add(0, where, gaps)
        cell = targets * self.num_classes + classes
        self.confusion = self.confusion.to(dtype).index_add(0, cell, weights)

    def compute(self) -> Tensor:
        """Return the metric, NaN if no weight is above 0."""
        return self._of(self.confusion.view(self.num_classes, self.num_classes)).float()

    def _of(self, confusion: Tensor) -> Tensor:
        raise NotImplementedError


class WeightedAccuracy(_WeightedClassMetric):
    name = "accuracy"

    def _of(self, confusion: Tensor) -> Tensor:
        return confusion.diagonal().sum() / confusion.sum()


class WeightedF1(_WeightedClassMetric):
    name = "f1"

    def _of(self, confusion: Tensor) -> Tensor:
        both = confusion.sum(0) + confusion.sum(1)
        return (2 * confusion.diagonal() / both)[both > 0].mean()


class WeightedCalibrationError(_WeightedClassMetric):
    name = "calibration_error"
    higher_is_better = False

    def _of(self, confusion: Tensor) -> Tensor:
        return self.gaps.abs().sum() / confusion.sum()


class WeightedError(Metric):
    """The error (Σ w |ŷ - y|^p / Σ w)^(1/p) of weighted samples."""

    is_differentiable = True
    higher_is_better = False
    full_state_update = False
    errors: Tensor
    total: Tensor

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power = power
        for name in ("errors", "total"):
            self.add_state(name, default=torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Add predictions and targets, (N,) or (N, D), and weights (N,)."""
        dtype = wide(targets.device)
        errors = (predictions.to(dtype) - targets.to(dtype)).abs() ** self.power
        weights = weights.to(dtype)
        self.errors = self.errors + weights @ errors.reshape(len(errors), -1).mean(1)
        self.total = self.total + weights.sum()

    def compute(self) -> Tensor:
        """Return the metric, NaN if no weight is above 0."""
        return (self.errors / self.total).float() ** (1 / self.power)


class R2Score(Metric):
    """R² that loses no digits to targets far from zero.

    torchmetrics' `R2Score` subtracts two sums of squares in float32: targets of 10,000 to 10,010
    give it any value. Here the squares are those of distances from the mean, in float64, and parts
    are merged by the formula of Chan, Golub and LeVeque (1983). Like scikit-learn's `r2_score`,
    constant targets give 1 without errors and 0 with some.
    """

    is_differentiable = True
    higher_is_better = True
    plot_upper_bound = 1.0
    full_state_update = True  # states without a reduction cannot be merged by torchmetrics
    samples: Tensor
    count: Tensor
    mean: Tensor
    spread: Tensor
    errors: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("samples", default=torch.tensor(0), dist_reduce_fx="sum")
        for name in ("count", "mean", "spread", "errors"):
            self.add_state(name, default=torch.tensor(0.0), dist_reduce_fx=None)

    def update(self, predictions: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add predictions and targets, (N,) or (N, D), and perhaps weights (N,)."""
        if weights is not None:  # samples of weight 0 do not count
            predictions, targets, weights = (
                x[weights > 0] for x in (predictions, targets, weights)
            )
        if not len(targets):
            return
        # Widened here: a module's `to(dtype)` narrows what is kept.
        dtype = wide(targets.device)
        targets, predictions = targets.to(dtype), predictions.to(dtype)
        each = torch.ones(len(targets), dtype=dtype, device=targets.device)
        each = each if weights is None else weights.to(dtype)
        # Distances from a sample, so that constant targets have none at all.
        distances = targets - targets[0]
        mean = (each @ distances) / each.sum()
        new = {
            "count": each.sum(),
            "mean": targets[0] + mean,
            "spread": each @ (distances - mean).square(),
            "errors": each @ (predictions - targets).square(),
        }
        self.samples = self.samples + len(targets)
        both = {
            name: torch.stack([getattr(self, name).to(dtype).expand_as(value), value])
            for name, value in new.items()
        }
        self.count, self.mean, self.spread, self.errors = _merge(**both)

    def compute(self) -> Tensor:
        """Return the mean of the D scores."""
        count, spread, errors = self.count, self.spread, self.errors
        if count.ndim:  # of all ranks, side by side
            count, _, spread, errors = _merge(count, self.mean, spread, errors)
        return r2_from_sums(self.samples, spread, errors).mean().float()


def r2_from_sums(count: Tensor, spread: Tensor, errors: Tensor) -> Tensor:
    """Compute R² from sums, as scikit-learn's `r2_score` defines it.

    It is NaN for fewer than two samples.

    Args:
        count: Number of samples.
        spread: Σ (y - ȳ)².
        errors: Σ (ŷ - y)².
    """
    constant = (errors == 0).to(errors.dtype)
    found = torch.where(spread != 0, 1 - errors / spread, constant)
    return torch.where(count >= 2, found, torch.nan)


def _merge(
    count: Tensor, mean: Tensor, spread: Tensor, errors: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge counts, means and sums along the first axis."""
    total, weight = count.sum(), count.reshape(-1, *(1,) * (mean.ndim - 1))
    middle = mean[0] + (weight / total * (mean - mean[0])).sum(0)
    between = weight * (mean - middle).square()
    return total, middle, (spread + between).sum(0), errors.sum(0)
