"""Metrics of the two learning problems, and the label helper that lets them take soft targets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
)

from dlblocks.errors import check_choice
from dlblocks.losses import MixedTargets


def hard_labels(
    targets: Tensor | MixedTargets,
    *,
    task: Literal["multiclass", "multilabel", "binary"] = "multiclass",
    ignore_index: int | None = None,
) -> Tensor:
    """Targets as metrics take them: soft ones by their dominant label, hard ones as they are.

    torchmetrics' accuracy gives 0.0 for soft targets (N, C), without a word, and others raise: pass
    the targets of mixed batches through here first.

    Args:
        targets: Integers, which stay; floating point of shape (N, C, ...) for ``"multiclass"``, of
            any shape for the others; or `MixedTargets`.
        task: ``"multiclass"``: the class with the largest share, of equal ones the first, shape
            (N, ...). ``"multilabel"`` and ``"binary"``: 1 where the share is at least one half.
        ignore_index: The class of rows of zeros, which come from ignored targets; None gives
            them class 0 as any row without a largest value.

    Returns:
        int64 labels, or the integers given.

    Example:
        >>> hard_labels(torch.tensor([[0.3, 0.7], [0.5, 0.5]]))
        tensor([1, 0])
        >>> hard_labels(torch.tensor([[0.3, 0.7], [0.5, 0.5]]), task="multilabel")
        tensor([[0, 1],
                [1, 1]])
    """
    check_choice("task", task, ["multiclass", "multilabel", "binary"])
    if isinstance(targets, MixedTargets):
        first, second, lam = targets
        lam = lam.reshape(-1, *(1,) * (first.ndim - 1))
        if task == "multiclass" and not first.is_floating_point():
            return first.where(lam >= 0.5, second)
        targets = torch.lerp(second.to(lam.dtype), first.to(lam.dtype), lam)
    if not targets.is_floating_point():
        return targets
    if task != "multiclass":
        return (targets >= 0.5).long()
    if targets.ndim < 2:
        raise ValueError(
            f"hard_labels expects soft targets (N, C, ...), got shape {tuple(targets.shape)}; set "
            "task='binary' for the probabilities of one label."
        )
    labels = targets.argmax(1)
    return labels if ignore_index is None else labels.where(targets.any(1), ignore_index)


def classification_metrics(num_classes: int) -> MetricCollection:
    """Accuracy, macro F1 and expected calibration error.

    - ``accuracy``: share of samples whose largest probability is their class.
    - ``f1``: mean over the classes of 2PR / (P + R). A class that is neither among the targets nor
      among the predictions is left out.
    - ``calibration_error``: mean distance between confidence and accuracy over 15 bins of
      confidence, weighted by their samples (Naeini et al. 2015, Guo et al. 2017).

    ``update`` takes probabilities (N, C) and classes (N,); see `hard_labels`.

    >>> metrics = classification_metrics(2)
    >>> metrics.update(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0]))
    >>> metrics.compute()["accuracy"]
    tensor(0.5000)
    """
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
            "f1": MulticlassF1Score(num_classes, average="macro", validate_args=False),
            "calibration_error": MulticlassCalibrationError(
                num_classes, n_bins=15, validate_args=False
            ),
        },
        compute_groups=False,
    )


def regression_metrics() -> MetricCollection:
    """RMSE, MAE and R², in the units of the targets.

    RMSE = √(mean (ŷ - y)²) and MAE = mean |ŷ - y| over all values; R² is
    1 - Σ (ŷ - y)² / Σ (y - ȳ)², averaged over the D targets, and NaN for fewer than two samples.

    ``update`` takes predictions and targets, both of shape (N, D).

    >>> metrics = regression_metrics()
    >>> metrics.update(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]]))
    >>> metrics.compute()["mae"]
    tensor(1.)
    """
    return MetricCollection(
        {"rmse": MeanSquaredError(squared=False), "mae": MeanAbsoluteError(), "r2": _R2Score()},
        compute_groups=False,
    )


class _R2Score(Metric):
    """R² that loses no digits to targets far from zero.

    torchmetrics' `R2Score` subtracts two sums of squares in float32: targets of 10,000 to 10,010
    give it any value. Here the squares are those of distances from the mean, in float64, and parts
    are merged by the formula of Chan, Golub and LeVeque (1983). Like scikit-learn's `r2_score`,
    constant targets give 1 without errors and 0 with some.
    """

    full_state_update = True  # states without a reduction cannot be merged by torchmetrics
    count: Tensor
    mean: Tensor
    spread: Tensor
    errors: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("count", "mean", "spread", "errors"):
            self.add_state(name, default=torch.tensor(0.0), dist_reduce_fx=None)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Adds predictions and targets, both of shape (N,) or (N, D)."""
        if not len(targets):
            return
        # Widened here: a module's `to(dtype)` narrows what is kept, and MPS has no float64.
        wide = torch.float32 if targets.device.type == "mps" else torch.float64
        targets, predictions = targets.to(wide), predictions.to(wide)
        # Distances from a sample, so that constant targets have none at all.
        distances = targets - targets[0]
        mean = distances.mean(0)
        new = {
            "count": torch.tensor(len(targets), dtype=wide, device=targets.device),
            "mean": targets[0] + mean,
            "spread": (distances - mean).square().sum(0),
            "errors": (predictions - targets).square().sum(0),
        }
        both = {
            name: torch.stack([getattr(self, name).to(wide).expand_as(value), value])
            for name, value in new.items()
        }
        self.count, self.mean, self.spread, self.errors = _merge(**both)

    def compute(self) -> Tensor:
        """Return the mean of the D scores."""
        count, spread, errors = self.count, self.spread, self.errors
        if count.ndim:  # of all ranks, side by side
            count, _, spread, errors = _merge(count, self.mean, spread, errors)
        return r2_from_sums(count, spread, errors).mean().float()


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
