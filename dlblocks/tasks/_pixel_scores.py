"""Scores of maps of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from dlblocks.metrics import wide

Array = npt.NDArray[Any]
# In the columns of tables and between steps: classes as uint8 where there is room for this label.
IGNORED_BYTE = 255
IGNORED_SHORT = -1
CHUNK = 2**22  # pixels at a time


def hard_map(targets: Tensor, ignore_index: int) -> Tensor:
    """Return soft masks (N, C, H, W) as classes (N, H, W); rows of zeros do not count."""
    if not targets.is_floating_point():
        return targets
    return targets.argmax(1).where(targets.sum(1) > 0, ignore_index)


def narrow(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return classes in a small dtype, in which 255 of uint8, or a negative number, is ignored."""
    byte = num_classes <= IGNORED_BYTE
    known = labels != ignore_index
    labels = labels.where(known, IGNORED_BYTE if byte else IGNORED_SHORT)
    return labels.to(torch.uint8 if byte else torch.int16)


class PixelScores(Metric):
    """IoU, Dice and accuracy of all pixels of an epoch, from one matrix of counts.

    With the pixels n_tp of each target t and prediction p, of class c::

        IoU_c = n_cc / (Σ_p n_cp + Σ_t n_tc - n_cc)
        Dice_c = 2 n_cc / (Σ_p n_cp + Σ_t n_tc)

    ``iou`` and ``dice`` are means over the classes that occur among targets or predictions of the
    data set; NaN if no pixel counts.

    Args:
        num_classes: Number of classes C.
        ignore_index: The label of pixels that do not count, beside those of `narrow`.
        weighted: Whether `update` takes weights of samples.
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = True
    confusion: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255, *, weighted: bool = False):
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.weighted = weighted
        dtype = torch.get_default_dtype() if weighted else torch.int64
        empty = torch.zeros(num_classes**2, dtype=dtype)
        self.add_state("confusion", default=empty, dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add maps of classes (N, H, W), or of probabilities (N, C, H, W), and targets (N, H, W).

        Args:
            predictions: Classes, or the probability of each.
            targets: Classes.
            weights: Of each sample, shape (N,), if they have some.
        """
        if predictions.ndim > targets.ndim:
            predictions = predictions.argmax(1)
        cells = self.num_classes**2
        # Of small integers the product would not fit.
        cell = targets.int() * self.num_classes + predictions.int()
        # The labels of `narrow`, negative ones included, lie outside of the classes.
        known = (targets >= 0) & (targets < self.num_classes) & (targets != self.ignore_index)
        cell = cell.where(known, cells).flatten()
        if weights is None:
            found = torch.bincount(cell, minlength=cells + 1)
        else:
            each = weights.to(wide(weights.device)).repeat_interleave(targets[0].numel())
            found = torch.bincount(cell, each, minlength=cells + 1)
            self.confusion = self.confusion.to(found.dtype)
        self.confusion = self.confusion + found[:cells].to(self.confusion.dtype)

    def compute(self) -> dict[str, Tensor]:
        """Return ``iou``, ``dice`` and ``accuracy``."""
        found = scores_of_matrix(self._matrix())
        return {name: value.float() for name, value in found.items()}

    def class_iou(self) -> Tensor:
        """Return the IoU of each class, shape (C,); NaN for one that does not occur."""
        matrix = self._matrix()
        hits = matrix.diagonal()
        return (hits / (matrix.sum(0) + matrix.sum(1) - hits)).float()

    def _matrix(self) -> Tensor:
        return self.confusion.view(self.num_classes, self.num_classes).to(wide(self.device))


class PixelSums:
    """`PixelScores` of each of M models at once.

    Args:
        num_models: M.
        num_classes: C.
        ignore_index: The label of pixels that do not count.
        device: Where the samples are.
    """

    def __init__(
        self, num_models: int, num_classes: int, ignore_index: int, device: torch.device
    ) -> None:
        self.shape = (num_models, num_classes, num_classes)
        self.ignore_index = ignore_index
        self.confusion = torch.zeros(num_models * num_classes**2, device=device, dtype=torch.int64)

    def update(self, model: Tensor, predictions: Tensor, targets: Tensor) -> None:
        """Add maps of classes and targets (N, H, W) of the models (N,)."""
        num_classes, cells = self.shape[1], len(self.confusion)
        if predictions.ndim > targets.ndim:
            predictions = predictions.argmax(1)
        first = model.view(-1, *(1,) * (targets.ndim - 1)) * num_classes
        cell = (first + targets) * num_classes + predictions
        known = (targets >= 0) & (targets < num_classes) & (targets != self.ignore_index)
        found = torch.bincount(cell.where(known, cells).flatten(), minlength=cells + 1)
        self.confusion += found[:cells]

    def compute(self, *, whole: bool) -> dict[str, Tensor]:
        """Compute each metric, shape (M,)."""
        return scores_of_matrix(self.confusion.view(self.shape).to(wide(self.confusion.device)))


def scores_of_matrix(matrix: Tensor) -> dict[str, Tensor]:
    """Compute ``iou``, ``dice`` and ``accuracy`` (...) of counts (..., C, C).

    IoU and Dice are NaN if no pixel counts.
    """
    hits, both = matrix.diagonal(dim1=-2, dim2=-1), matrix.sum(-2) + matrix.sum(-1)
    occurs = both > 0
    count = occurs.sum(-1)
    iou = torch.where(occurs, hits / (both - hits), 0).sum(-1) / count
    dice = torch.where(occurs, 2 * hits / both, 0).sum(-1) / count
    return {"iou": iou, "dice": dice, "accuracy": hits.sum(-1) / both.sum(-1) * 2}


def class_sums(target: Array, prediction: Array, num_classes: int | None = None) -> Array:
    """Count the pixels of each class in each sample.

    Args:
        target: Classes (N, H, W). Those outside of the classes do not count, and of uint8 255.
        prediction: Classes (N, H, W), or probabilities (N, C, H, W).
        num_classes: C; None for one more than the largest class, or the columns of probabilities.

    Returns:
        Hits, pixels of targets and pixels of predictions, int64 of shape (3, N, C).
    """
    rows = max(1, CHUNK // max(1, target[:1].size))
    scores = prediction.ndim > target.ndim
    if num_classes is None:
        num_classes = prediction.shape[1] if scores else 1
        for start in range(0, 0 if scores else len(target), rows):
            labels = target[start : start + rows]
            labels = labels[known_pixels(labels)]
            most = max(labels.max(initial=0), prediction[start : start + rows].max(initial=0))
            num_classes = max(num_classes, int(most) + 1)
    found = np.zeros((3, len(target), num_classes), np.int64)
    for start in range(0, len(target), rows):
        true, guess = (np.asarray(a[start : start + rows]) for a in (target, prediction))
        guess = guess.argmax(1) if scores else guess.astype(np.int64)
        known = known_pixels(true) & (true < num_classes)
        offset = np.arange(len(true)).reshape(-1, *(1,) * (true.ndim - 1)) * num_classes
        cells = len(true) * num_classes
        true = true.astype(np.int64)
        for i, (labels, where) in enumerate(
            ((true, known & (true == guess)), (true, known), (guess, known))
        ):
            counts = np.bincount((labels + offset)[where], minlength=cells)
            found[i, start : start + rows] = counts.reshape(-1, num_classes)
    return found


def confusion(target: Array, prediction: Array, num_classes: int) -> Array:
    """Count the pixels of each true class (row) and predicted class, shape (C, C); as `class_sums`.

    Example:
        >>> confusion(np.array([[[0, 1, -1]]]), np.array([[[1, 1, 1]]]), 2)
        array([[0, 1],
               [0, 1]])
    """
    found = np.zeros(num_classes**2, np.int64)
    rows = max(1, CHUNK // max(1, target[:1].size))
    for start in range(0, len(target), rows):
        true, guess = (np.asarray(a[start : start + rows]) for a in (target, prediction))
        known = known_pixels(true) & (true < num_classes)
        guess = guess.argmax(1) if guess.ndim > true.ndim else guess.astype(np.int64)
        cell = true[known].astype(np.int64) * num_classes + guess[known]
        found += np.bincount(cell, minlength=num_classes**2)
    return found.reshape(num_classes, num_classes)


def known_pixels(target: Array) -> Array:
    """Tell which pixels count.

    255 does not, as in masks everywhere, nor do negative labels. In int16, which `narrow` makes of
    more than 255 classes, 255 is a class; likewise where there are larger labels.
    """
    known: Array = target >= 0
    may_be_class = target.dtype == np.int16 or target.max(initial=0) > IGNORED_BYTE
    if target.dtype == np.uint8 or not may_be_class:
        known &= target != IGNORED_BYTE
    return known


def scores_of(sums: Array) -> dict[str, Array]:
    """Compute ``iou``, ``dice`` and ``accuracy`` of counts (3, ..., C), each of shape (...)."""
    hits, true, guess = sums
    both = true + guess
    occurs = both > 0
    count = occurs.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = np.where(occurs, hits / (both - hits), 0).sum(-1) / count
        dice = np.where(occurs, 2 * hits / both, 0).sum(-1) / count
        accuracy = hits.sum(-1) / true.sum(-1)
    return {"iou": iou, "dice": dice, "accuracy": accuracy}
