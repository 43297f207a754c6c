"""One class of C for each sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection

from dlblocks._errors import check_range
from dlblocks.losses import IGNORED, cross_entropy
from dlblocks.metrics import classification_metrics, hard_labels
from dlblocks.tasks._stacked import ClassificationSums
from dlblocks.tasks.task import Stage, Task

SHOWN = 10  # labels in a message
# The share of a class that no member votes for; its logarithm stays finite.
NO_VOTE = 1e-6


class MulticlassTask(Task):
    """Each sample is of one of C classes; the net puts out logits (N, C).

    The loss is the cross-entropy; targets are classes, int64 of shape (N,), or soft, floating point
    of shape (N, C), as mixing callbacks make them. Metrics are ``accuracy``, and for validation and
    test also ``f1`` (macro) and ``calibration_error``. Predictions are probabilities (N, C).

    Args:
        num_classes: Number of classes C.
        label_smoothing: ε in [0, 1): the share of the target spread evenly over all classes
            (Szegedy et al. 2016). In training only.
        class_weights: Weight of each class in the loss, length C, or ``"balanced"`` for
            N / (C · N_c), counted on the training part of the data. In training only.

    Example:
        >>> task = MulticlassTask(2)
        >>> task.loss(torch.zeros(1, 2), torch.tensor([1]))
        tensor(0.6931)
    """

    name = "multiclass"
    shown = ("accuracy",)
    loss_range = (0.0, None)
    votes = True

    def __init__(
        self,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | Literal["balanced"] | None = None,
    ) -> None:
        super().__init__()
        check_range("num_classes", num_classes, 2)
        check_range("label_smoothing", label_smoothing, 0, 1, high_open=True)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.is_balanced = isinstance(class_weights, str)
        self.class_weight: Tensor | None
        self.register_buffer("class_weight", _initial_weight(class_weights, num_classes))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not self.training:
            return cross_entropy(outputs, targets)
        return cross_entropy(
            outputs, targets, weight=self.class_weight, label_smoothing=self.label_smoothing
        )

    def make_metrics(self, stage: Stage) -> MetricCollection:
        metrics = classification_metrics(self.num_classes)
        if stage == "train":
            return MetricCollection({"accuracy": metrics["accuracy"]})
        return metrics

    def for_metrics(self, outputs: Tensor, targets: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        # In training there is the accuracy alone: a class a sample is all that needs keeping.
        kept = outputs.argmax(1) if stage == "train" else self.predict(outputs)
        return kept, hard_labels(targets)

    def predict(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        return outputs.float().softmax(1)

    def outputs_of(self, predictions: Tensor) -> Tensor:
        return predictions.clamp(min=torch.finfo(torch.float32).tiny).log()

    def average(self, outputs: Tensor, *, hard: bool = False) -> Tensor:
        """Log p of the mean probabilities p, or of the shares of the votes.

        Example:
            >>> logits = torch.tensor([[[0.0, 0.0]], [[0.0, 2.0]]])  # two members, one sample
            >>> MulticlassTask(2).average(logits, hard=True).exp()
            tensor([[0.5000, 0.5000]])
        """
        outputs = outputs.float()
        if hard:
            return hard_votes(outputs).mean(0).clamp_(min=NO_VOTE).log()
        return outputs.log_softmax(2).logsumexp(0) - math.log(len(outputs))

    def fit_to(self, datamodule: Any) -> None:
        if not self.is_balanced:
            return
        train_targets = getattr(datamodule, "train_targets", None)
        if not callable(train_targets):
            raise ValueError(
                "class_weights='balanced' needs a datamodule with train_targets(); "
                "pass the weights as a list."
            )
        targets = train_targets()
        self._check_labels(targets)
        counts = torch.bincount(targets, minlength=self.num_classes)
        if not counts.all():
            raise ValueError(
                f"class_weights='balanced', but class {int(counts.argmin())} of 0 … "
                f"{self.num_classes - 1} has no training sample; pass the weights as a list, or "
                "map the labels to classes that count from 0."
            )
        weight = counts.sum() / (self.num_classes * counts.to(torch.get_default_dtype()))
        assert self.class_weight is not None  # for the type checker
        self.class_weight = weight.to(self.class_weight.device)

    def check_data(self, datamodule: Any, model: str) -> None:
        found = getattr(datamodule, "num_classes", self.num_classes)
        if found is None:
            raise ValueError(
                f"{model} needs classes as targets, but the targets of "
                f"{type(datamodule).__name__} are values; use a Regressor."
            )
        if found != self.num_classes:
            raise ValueError(
                f"num_classes={self.num_classes}, but {type(datamodule).__name__} has {found} "
                f"classes; set num_classes={found}."
            )

    def check_batch(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.ndim != 2 or outputs.shape[1] != self.num_classes:
            raise ValueError(
                f"num_classes={self.num_classes}, but the net puts out shape "
                f"{tuple(outputs.shape)}; expected (N, {self.num_classes})."
            )
        if targets.is_floating_point():
            if targets.shape != outputs.shape:
                raise ValueError(
                    f"targets are floating point of shape {tuple(targets.shape)}; expected classes "
                    f"(int64, (N,)) or soft targets {tuple(outputs.shape)}."
                )
            return
        if targets.ndim != 1:
            raise ValueError(
                f"targets of integers have shape {tuple(targets.shape)}; expected classes of shape "
                "(N,): let the data set return one number a sample, such as int(label), and for "
                "one-hot rows label.argmax()."
            )
        self._check_labels(targets)

    def _check_labels(self, targets: Tensor) -> None:
        """Raises a `ValueError` unless all labels are classes of this task."""
        labels = targets.unique().tolist()  # sorted
        if labels[0] >= 0 and labels[-1] < self.num_classes:
            return
        shown = ", ".join(map(str, labels[:SHOWN])) + (", …" if len(labels) > SHOWN else "")
        cure = (
            "Classes count from 0: map the labels in the data set, or use ArrayDataModule, which "
            "maps labels of any values"
        )
        if labels[0] == 0:
            cure += f"; if these are the numbers of all classes, set num_classes={labels[-1] + 1}"
        raise ValueError(
            f"targets have the labels {shown}, but num_classes={self.num_classes} means the "
            f"classes 0 … {self.num_classes - 1}. {cure}."
        )

    def difference(self, other: Task) -> str:
        if not isinstance(other, MulticlassTask):
            return super().difference(other)
        counts = sorted({self.num_classes, other.num_classes})
        return f"{counts} classes" if len(counts) > 1 else ""

    def stacked_loss(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        if self.class_weight is not None or targets.is_floating_point() or targets.ndim != 2:
            return None
        smoothing = self.label_smoothing if self.training else 0.0
        losses = F.cross_entropy(
            outputs.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=smoothing
        )
        counted = (targets != IGNORED).sum(1)
        return losses.view(targets.shape).sum(1) / counted

    def stacked_metrics(self, num_models: int, device: torch.device) -> ClassificationSums:
        return ClassificationSums(num_models, self.num_classes, device)


def hard_votes(scores: Tensor) -> Tensor:
    """One vote for the class of the highest score.

    Args:
        scores: Shape (..., C).

    Returns:
        Floating point of the same shape: 1 for the class that is voted for, else 0.

    Example:
        >>> hard_votes(torch.tensor([[0.2, 0.8], [0.5, 0.4]]))
        tensor([[0., 1.],
                [1., 0.]])
    """
    return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)


def _initial_weight(
    class_weights: Sequence[float] | Literal["balanced"] | None, num_classes: int
) -> Tensor | None:
    if class_weights is None:
        return None
    if isinstance(class_weights, str):
        return torch.ones(num_classes)
    weight = torch.tensor([float(value) for value in class_weights])
    if len(weight) != num_classes or not (weight >= 0).all() or not weight.isfinite().all():
        raise ValueError(
            f"class_weights={list(class_weights)} must be {num_classes} numbers >= 0, one a class."
        )
    return weight
