"""Metrics of classification and regression."""

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

from dlblocks._errors import check_choice
from dlblocks.losses import MixedTargets
from dlblocks.metrics._weighted_metrics import (
    NUM_BINS,
    R2Score,
    WeightedAccuracy,
    WeightedCalibrationError,
    WeightedError,
    WeightedF1,
)


def hard_labels(
    targets: Tensor | MixedTargets,
    *,
    task: Literal["multiclass", "multilabel", "binary"] = "multiclass",
    ignore_index: int | None = None,
) -> Tensor:
    """Replace soft targets by their dominant labels, for metrics.

    For soft targets (N, C) torchmetrics' accuracy silently returns 0.0, and other metrics raise. So
    pass the targets of mixed batches through this function first.

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


def classification_metrics(num_classes: int, *, weighted: bool = False) -> MetricCollection:
    """Accuracy, macro F1 and expected calibration error.

    - ``accuracy``: share of samples whose largest probability is their class.
    - ``f1``: mean over the classes of 2PR / (P + R). A class that is neither among the targets nor
      among the predictions is left out.
    - ``calibration_error``: mean distance between confidence and accuracy over 15 bins of
      confidence, weighted by their samples (Naeini et al. 2015, Guo et al. 2017).

    ``update`` takes probabilities (N, C) and classes (N,); see `hard_labels`. If `weighted`, it
    takes the samples' weights, too, shape (N,).

    >>> metrics = classification_metrics(2)
    >>> metrics.update(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0]))
    >>> metrics.compute()["accuracy"]
    tensor(0.5000)
    """
    if weighted:
        kinds = (WeightedAccuracy, WeightedF1, WeightedCalibrationError)
        return MetricCollection({kind.name: kind(num_classes) for kind in kinds})
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
            "f1": MulticlassF1Score(num_classes, average="macro", validate_args=False),
            "calibration_error": MulticlassCalibrationError(
                num_classes, n_bins=NUM_BINS, validate_args=False
            ),
        },
        compute_groups=False,
    )


def regression_metrics(*, weighted: bool = False) -> MetricCollection:
    """RMSE, MAE and R², in the units of the targets.

    RMSE is ``√(mean (ŷ - y)²)`` and MAE ``mean |ŷ - y|`` over all values; R² is
    ``1 - Σ (ŷ - y)² / Σ (y - ȳ)²``, averaged over the D targets, and NaN for fewer than two
    samples.

    ``update`` takes predictions and targets, both of shape (N, D). If `weighted`, it takes the
    samples' weights, too, shape (N,).

    >>> metrics = regression_metrics()
    >>> metrics.update(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]]))
    >>> metrics.compute()["mae"]
    tensor(1.)
    """
    errors: dict[str, Metric] = {
        "rmse": MeanSquaredError(squared=False),
        "mae": MeanAbsoluteError(),
    }
    if weighted:
        errors = {"rmse": WeightedError(2), "mae": WeightedError(1)}
    return MetricCollection({**errors, "r2": R2Score()}, compute_groups=False)
