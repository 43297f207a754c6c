"""Any number of C labels for each sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from dlblocks import plots
from dlblocks._scores import (
    Weighted,
    weighted_auc,
    weighted_average_precision,
    weighted_mean,
)
from dlblocks.losses import binary_cross_entropy
from dlblocks.metrics import hard_labels
from dlblocks.tasks._class_task import ClassTask, check_num_classes, names_or_numbers
from dlblocks.tasks._label_metrics import LABEL_METRICS, LabelAccuracy, LabelMean, label_metric
from dlblocks.tasks.table import Array, Predictions, PredictionTable
from dlblocks.tasks.task import Stage, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MultilabelTask(ClassTask):
    """Tell which of C labels each sample has.

    The net puts out a logit for each label, shape (N, C).

    The loss is the binary cross-entropy, averaged over samples and labels. Targets are 0 and 1,
    integers or floating point of shape (N, C); between 0 and 1, as mixing callbacks make them, they
    are shares. Metrics are ``accuracy``, the share of right answers among all N · C, and for
    validation and test also the means over the labels of ``f1`` (at the threshold 1/2), ``auroc``
    and ``average_precision``. A label that no sample has, or for AUROC that all have, is left out
    of the mean. Predictions are probabilities (N, C), of which each is by itself.

    Args:
        num_classes: Number of labels C, at least 1.
        label_smoothing: ε in [0, 1): targets become (1 - ε) y + ε / 2. In training only.
        class_weights: Factor of each label's positive side in the loss, length C, or
            ``"balanced"`` for (N - N_c) / N_c, counted on the training part of the data, which
            gives both sides of each label the same weight. In training only.
        metrics: Further metrics of validation and test: names of torchmetrics' classes, such as
            ``"hamming_distance"``, or metrics.

    AUROC and average precision keep all predictions of an epoch, 4 bytes for each of the N · C.

    Example:
        >>> task = MultilabelTask(3)
        >>> task.loss(torch.zeros(1, 3), torch.tensor([[1, 0, 1]]))
        tensor(0.6931)
    """

    name = "multilabel"
    shown = ("f1",)
    standard = ("accuracy", *LABEL_METRICS)
    least = 1
    kind = "Multilabel"

    @property
    def sizes(self) -> dict[str, int]:
        return {"num_labels": self.num_classes}

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        if not self.training:
            return binary_cross_entropy(outputs, targets, sample_weight=weights)
        return binary_cross_entropy(
            outputs,
            targets,
            pos_weight=self.class_weight,
            label_smoothing=self.label_smoothing,
            sample_weight=weights,
        )

    def make_metrics(self, stage: Stage) -> MetricCollection:
        if stage == "train":
            return MetricCollection({"accuracy": LabelAccuracy()})
        ranked: dict[str, Metric | MetricCollection] = {
            name: LabelMean(name) for name in LABEL_METRICS
        }
        chosen: Any = self.chosen_metrics()
        # The metrics of the labels keep all predictions, and share them.
        return MetricCollection(
            {"accuracy": LabelAccuracy(), **ranked, **chosen},
            compute_groups=[list(LABEL_METRICS), *([name] for name in ["accuracy", *chosen])],
        )

    def for_metrics(self, outputs: Tensor, targets: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        return self.predict(outputs), hard_labels(targets, task="multilabel")

    def predict(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        return outputs.float().sigmoid()

    def outputs_of(self, predictions: Tensor) -> Tensor:
        # Half of a float32's precision on both sides: the logits stay finite.
        return predictions.float().clamp(1e-7, 1 - 1e-7).logit()

    def average(self, outputs: Tensor, *, hard: bool = False) -> Tensor:
        """Average the probabilities of each label, or count its votes.

        Example:
            >>> logits = torch.tensor([[[0.0, 9.0]], [[-1.0, 9.0]]])  # two members, one sample
            >>> MultilabelTask(2).average(logits, hard=True).sigmoid().round(decimals=2)
            tensor([[0.5000, 1.0000]])
        """
        shares = (outputs >= 0).float() if hard else outputs.float().sigmoid()
        return self.outputs_of(shares.mean(0))

    def balanced(self, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        self._check_targets(targets)
        known = torch.ones(len(targets)) if weights is None else weights
        positive = (targets.double() * known.double()[:, None]).sum(0)
        if not positive.all():
            raise ValueError(
                f"class_weights='balanced', but no training sample has label "
                f"{int(positive.argmin())}; pass the weights as a list."
            )
        return (known.double().sum() - positive) / positive

    def check_data(self, datamodule: Any, model: str) -> None:
        name = type(datamodule).__name__
        if getattr(datamodule, "is_multilabel", True) is False:
            raise ValueError(
                f"{model} with multilabel=True needs integers 0 and 1 of shape (N, C), C >= 2, as "
                f"targets, which {name} does not have; make them integers, or leave "
                "multilabel=True out."
            )
        found = getattr(datamodule, "num_classes", self.num_classes)
        check_num_classes(self, found, name, "labels")

    def check_batch(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.ndim != 2 or outputs.shape[1] != self.num_classes:
            raise ValueError(
                f"num_classes={self.num_classes}, but the net puts out shape "
                f"{tuple(outputs.shape)}; expected (N, {self.num_classes})."
            )
        self._check_targets(targets)

    def _check_targets(self, targets: Tensor) -> None:
        if targets.ndim != 2 or targets.shape[1] != self.num_classes:
            raise ValueError(
                f"targets have shape {tuple(targets.shape)}; expected 0 and 1 for each of the "
                f"{self.num_classes} labels, shape (N, {self.num_classes})."
            )
        if len(targets) and not (targets.min() >= 0 and targets.max() <= 1):
            raise ValueError(
                f"targets lie in {float(targets.min()):g} … {float(targets.max()):g}; expected 1 "
                "where a sample has a label, else 0."
            )

    def difference(self, other: Task) -> str:
        return self._size_difference(other, MultilabelTask, "num_classes", "{} labels")

    @classmethod
    def check_arrays(cls, target: Array, prediction: Array) -> None:
        if (
            target.ndim != 2
            or target.shape != prediction.shape
            or not np.isin(target, (0, 1)).all()
        ):
            raise ValueError(
                f"there are targets of shape {target.shape} and predictions of shape "
                f"{prediction.shape}; several labels are targets of 0 and 1 and probabilities, "
                "both (M, C)."
            )
        finite = prediction[np.isfinite(prediction)]
        if len(finite) and not (finite.min() >= 0 and finite.max() <= 1):
            raise ValueError(
                "the predictions of several labels are no probabilities, as the largest is "
                f"{finite.max():.3g} and the smallest {finite.min():.3g}; predict sigmoid(logits)."
            )

    @classmethod
    def score(cls, table: PredictionTable) -> dict[str, float]:
        """Compute the metrics that are logged, and the mean binary cross-entropy."""
        target, prediction = table.target, table.prediction
        if not np.isfinite(prediction).all():
            return dict.fromkeys(["accuracy", *LABEL_METRICS, "log_loss"], math.nan)
        right = ((prediction >= 0.5) == target).mean(1)
        found = {"accuracy": float(np.average(right, weights=table.sample_weight))}
        weight = table.sample_weight
        for name, values in cls.by_label(target, prediction, weight).items():
            known = values[~np.isnan(values)]
            found[name] = float(known.mean()) if len(known) else math.nan
        losses = _cross_entropy(target, prediction).mean(1)
        return {**found, "log_loss": float(np.average(losses, weights=weight))}

    @classmethod
    def by_label(
        cls, target: Array, prediction: Array, weight: Array | None = None
    ) -> dict[str, Array]:
        """Compute F1, AUROC and average precision of each label.

        See `label_metric`.

        Example:
            >>> target, prediction = np.array([[1, 0], [0, 0]]), np.array([[0.9, 0.2], [0.3, 0.6]])
            >>> MultilabelTask.by_label(target, prediction)["auroc"].tolist()
            [1.0, nan]
        """
        tensors = torch.from_numpy(prediction.astype(np.float32)), torch.from_numpy(target != 0)
        weights = None if weight is None else torch.from_numpy(weight)
        return {name: label_metric(name, *tensors, weights).numpy() for name in LABEL_METRICS}

    @classmethod
    def weighted_metrics(cls, target: Array, prediction: Array) -> dict[str, Weighted]:
        right = ((prediction >= 0.5) == target).astype(float)
        guess = (prediction >= 0.5).astype(float)

        def f1(weights: Array) -> Array:
            both = weights @ (target + guess)
            with np.errstate(invalid="ignore"):  # a label that is neither target nor guess
                found: Array = np.nanmean(2 * (weights @ (target * guess)) / both, axis=1)
                return found

        def mean_of(metric: Callable[[Array, Array], Weighted]) -> Weighted:
            each = [metric(t, p) for t, p in zip(target.T, prediction.T, strict=True)]

            def mean(weights: Array) -> Array:
                found = np.stack([one(weights) for one in each])
                known = ~np.isnan(found)  # of labels that the weighted samples have
                with np.errstate(invalid="ignore"):
                    result: Array = np.where(known, found, 0).sum(0) / known.sum(0)
                    return result

            return mean

        return {
            "accuracy": weighted_mean(right.mean(1)),
            "f1": f1,
            "auroc": mean_of(weighted_auc),
            "average_precision": mean_of(weighted_average_precision),
            "log_loss": weighted_mean(_cross_entropy(target, prediction).mean(1)),
        }

    @classmethod
    def columns(
        cls, target: Array, prediction: Array, class_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        names = names_or_numbers(class_names, target.shape[1])
        targets = {f"target_{name}": target[:, i] for i, name in enumerate(names)}
        return targets | {f"probability_{name}": prediction[:, i] for i, name in enumerate(names)}

    @classmethod
    def answers(
        cls, prediction: Array, class_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Return ``prediction_<label>``, 1 from a probability of 0.5 on, and the probabilities."""
        names = names_or_numbers(class_names, prediction.shape[1])
        likely = (prediction >= 0.5).astype(np.int64)
        return {f"prediction_{name}": likely[:, i] for i, name in enumerate(names)} | {
            f"probability_{name}": prediction[:, i] for i, name in enumerate(names)
        }

    @classmethod
    def sample_losses(cls, table: PredictionTable) -> Array:
        found: Array = _cross_entropy(table.target, table.prediction).mean(1)
        return found

    @classmethod
    def show(cls, table: Predictions, *, title: str | None = None) -> Figure:
        names = names_or_numbers(table.class_names, table.target.shape[1])
        guess, target = table.prediction >= 0.5, table.target != 0

        def said(row: Array) -> str:
            return ", ".join(names[i] for i in np.flatnonzero(row)) or "–"

        return plots.answers(
            table.images(),
            [f"{said(t)}\n→ {said(g)}" for t, g in zip(target, guess, strict=True)],
            captions=table.captions(),
            right=(guess == target).all(1),
            title=title and f"{title}: true → predicted",
        )

    @classmethod
    def figures(
        cls, table: Predictions, *, title: str, scores: Mapping[str, float] | None = None
    ) -> dict[str, Callable[[], Figure]]:
        """Draw the metrics of each label."""
        names = names_or_numbers(table.class_names, table.target.shape[1])
        return {
            "labels": lambda: plots.labels(
                cls.by_label(table.target, table.prediction),
                names,
                counts=table.target.sum(0) // table.repeats,
                title=title,
            )
        }


def _cross_entropy(target: Array, prediction: Array) -> Array:
    """Compute the binary cross-entropy of each sample and label."""
    smallest = np.finfo(np.float32).tiny
    p = prediction.astype(float)
    found: Array = -np.where(target != 0, np.log(p.clip(smallest)), np.log((1 - p).clip(smallest)))
    return found
