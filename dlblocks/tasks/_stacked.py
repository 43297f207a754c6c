"""Sum up metrics of several models at once."""

from __future__ import annotations

import torch
from torch import Tensor

from dlblocks.metrics import r2_from_sums

NUM_BINS = 15


class ClassificationSums:
    """Accuracy, macro F1 and expected calibration error of each of K models.

    As `dlblocks.metrics.classification_metrics` has them, from the samples of all models in any
    order. In training only the accuracy, of predicted classes.

    Args:
        num_models: K.
        num_classes: C.
        device: Where the samples are.
    """

    def __init__(self, num_models: int, num_classes: int, device: torch.device) -> None:
        self.shape = (num_models, num_classes, num_classes)
        self.confusion = torch.zeros(num_models * num_classes**2, device=device, dtype=torch.int64)
        # Of each bin of confidence: samples, sum of confidences, right ones. As torchmetrics has
        # it, bins are open above and a confidence of 1 has one to itself.
        self.bins = torch.zeros(3, num_models * (NUM_BINS + 1), device=device)
        self.edges = torch.linspace(0, 1, NUM_BINS + 1, device=device)

    def update(self, model: Tensor, predictions: Tensor, targets: Tensor) -> None:
        """Add samples.

        Args:
            model: Whose sample it is, int64 of shape (M,).
            predictions: Classes (M,) or probabilities (M, C).
            targets: Classes, int64 of shape (M,).
        """
        classes = predictions
        if predictions.ndim > 1:
            confidence, classes = predictions.max(1)
            right = (classes == targets).to(confidence.dtype)
            where = torch.bucketize(confidence, self.edges, right=True) - 1
            where += model * (NUM_BINS + 1)
            parts = torch.stack([torch.ones_like(confidence), confidence, right])
            self.bins.index_add_(1, where, parts.to(self.bins.dtype))
        num_classes = self.shape[1]
        cell = (model * num_classes + targets) * num_classes + classes
        self.confusion += torch.bincount(cell, minlength=len(self.confusion))

    def compute(self, *, whole: bool) -> dict[str, Tensor]:
        """Compute the accuracy, shape (K,), and if `whole` the other metrics."""
        confusion = self.confusion.view(self.shape)
        hits = confusion.diagonal(dim1=1, dim2=2)
        count = confusion.sum((1, 2))
        found = {"accuracy": hits.sum(1) / count}
        if whole:
            # 2TP / (2TP + FP + FN), over the classes that occur in targets or predictions.
            both = confusion.sum(1) + confusion.sum(2)
            occurs = both > 0
            f1 = torch.where(occurs, 2 * hits / both.clamp(min=1), 0)
            _, confidences, right = self.bins.view(3, self.shape[0], NUM_BINS + 1)
            found["calibration_error"] = (confidences - right).abs().sum(1) / count
            found["f1"] = f1.sum(1) / occurs.sum(1)
        return found


class RegressionSums:
    """RMSE, MAE and R² of each of K models.

    They are those of `dlblocks.metrics.regression_metrics`.

    Args:
        num_models: K.
        num_targets: Values a sample, D.
        device: Where the samples are.
    """

    def __init__(self, num_models: int, num_targets: int, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.count = torch.zeros(num_models, device=device, dtype=dtype)
        # One target of each model. R² is a difference of sums of squares, which are small where
        # targets are measured from one of their own.
        self.origin = torch.zeros(num_models, num_targets, device=device, dtype=dtype)
        # Of each target: squared and absolute errors, distances from the origin and their squares.
        self.sums = torch.zeros(num_models, 4, num_targets, device=device, dtype=dtype)

    def update(self, model: Tensor, predictions: Tensor, targets: Tensor) -> None:
        """Add samples of `model` (M,), with predictions and targets (M, D)."""
        predictions, targets = predictions.to(self.sums.dtype), targets.to(self.sums.dtype)
        is_new = (self.count == 0)[model, None]
        # Of a model's several samples any may be written.
        self.origin[model] = torch.where(is_new, targets, self.origin[model])
        error, distance = predictions - targets, targets - self.origin[model]
        parts = torch.stack([error.square(), error.abs(), distance, distance.square()], dim=1)
        self.sums.index_add_(0, model, parts)
        self.count.index_add_(0, model, torch.ones_like(model, dtype=self.count.dtype))

    def compute(self, *, whole: bool) -> dict[str, Tensor]:
        """Compute each metric, shape (K,)."""
        square, absolute, total, total_square = self.sums.unbind(1)
        count = self.count[:, None]
        spread = (total_square - total.square() / count).clamp(min=0)
        return {
            "mae": absolute.sum(1) / (self.count * absolute.shape[1]),
            "r2": r2_from_sums(count, spread, square).mean(1),
            "rmse": (square.sum(1) / (self.count * square.shape[1])).sqrt(),
        }
