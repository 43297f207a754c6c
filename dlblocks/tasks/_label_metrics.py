"""Accuracy, F1, AUROC and average precision of labels."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multilabel_auroc, multilabel_average_precision
from torchmetrics.utilities import dim_zero_cat

from dlblocks.metrics import wide

LABEL_METRICS = ("f1", "auroc", "average_precision")


def _weighted_label_metric(
    what: str, predictions: Tensor, positive: Tensor, weights: Tensor, some: Tensor, all_: Tensor
) -> Tensor:
    """Compute AUROC or average precision by scikit-learn, since torchmetrics' take no weights."""
    from sklearn import metrics

    auroc = what == "auroc"
    known = some & ~all_ if auroc else some
    function = metrics.roc_auc_score if auroc else metrics.average_precision_score
    target, score, weight = (x.cpu().numpy() for x in (positive, predictions, weights))
    found = [
        function(target[:, i], score[:, i], sample_weight=weight) if is_known else math.nan
        for i, is_known in enumerate(known.tolist())
    ]
    return torch.tensor(found, device=predictions.device)


class LabelAccuracy(Metric):
    """The share of right answers among all samples and labels."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    right: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "count"):
            self.add_state(name, default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        right = ((predictions >= 0.5) == (targets >= 0.5)).sum(1)
        if weights is None:
            self.right += right.sum()
            self.count += targets.numel()
            return
        weights = weights.to(wide(weights.device))
        self.right = self.right + weights @ right.to(weights)
        self.count = self.count + weights.sum() * targets.shape[1]

    def compute(self) -> Tensor:
        return self.right / self.count


class LabelMean(Metric):
    """The mean of a metric over the labels that have it."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    predictions: list[Tensor]
    targets: list[Tensor]
    weights: list[Tensor]

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.add_state("predictions", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")
        self.add_state("weights", default=[], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        self.predictions.append(predictions)
        self.targets.append(targets.bool())
        if weights is not None:
            self.weights.append(weights)

    def compute(self) -> Tensor:
        predictions, targets = dim_zero_cat(self.predictions), dim_zero_cat(self.targets)
        weights = dim_zero_cat(self.weights) if len(self.weights) else None
        return label_metric(self.what, predictions, targets, weights).nanmean()


def label_metric(
    what: str, predictions: Tensor, targets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Compute a metric of each label, shape (C,).

    It is NaN where the metric is not defined.

    Args:
        what: ``"f1"``, at the threshold 1/2, for labels that a target or a prediction has;
            ``"auroc"``, for labels that some samples have and some have not; or
            ``"average_precision"``, for labels that a sample has.
        predictions: Probabilities (N, C).
        targets: Shape (N, C), bool or 0 and 1.
        weights: How much each sample counts, shape (N,); those of weight 0 are left out.

    Example:
        >>> label_metric("f1", torch.tensor([[0.9, 0.2], [0.6, 0.1]]), torch.tensor([[1, 0]] * 2))
        tensor([1., nan])
    """
    positive = targets.bool()
    if weights is not None:
        counts = weights > 0
        predictions, positive, weights = predictions[counts], positive[counts], weights[counts]
    some, all_ = positive.any(0), positive.all(0)
    if what == "f1":
        guessed = predictions >= 0.5
        each = torch.ones(len(guessed), device=guessed.device) if weights is None else weights
        each = each.to(wide(each.device))
        hits, both = each @ (guessed & positive).to(each), each @ (guessed.to(each) + positive)
        return torch.where(both > 0, 2 * hits / both, torch.nan).float()
    if weights is not None:
        return _weighted_label_metric(what, predictions, positive, weights, some, all_)
    functions = {"auroc": multilabel_auroc, "average_precision": multilabel_average_precision}
    columns = predictions.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels that are left out below
        if columns == 1:  # torchmetrics wants several
            predictions, positive = predictions.expand(-1, 2), positive.expand(-1, 2)
        found = functions[what](
            predictions, positive.long(), predictions.shape[1], average="none", validate_args=False
        )[:columns]
    return torch.where(some & ~all_ if what == "auroc" else some, found, torch.nan)
