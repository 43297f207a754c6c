"""A class for each pixel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from dlblocks import plots
from dlblocks._errors import check_choice, check_range
from dlblocks._scores import Weighted
from dlblocks.fields import Mask, kinds_of
from dlblocks.losses import dice_loss, focal_loss, pixel_cross_entropy
from dlblocks.tasks._class_task import (
    ClassTask,
    check_num_classes,
    names_or_numbers,
    score_figure,
    worst_figure,
)
from dlblocks.tasks._pixel_scores import (
    PixelScores,
    PixelSums,
    class_sums,
    confusion,
    hard_map,
    known_pixels,
    narrow,
    scores_of,
)
from dlblocks.tasks.table import Array, Predictions, PredictionTable
from dlblocks.tasks.task import Stage, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSSES = ("cross_entropy", "dice", "focal")
MAX_CLASSES = 200  # in figures
ROWS = 64  # masks at a time
NO_VOTE = 1e-6  # the share of a class that no member votes for; its logarithm stays finite


class SegmentationTask(ClassTask):
    """Classify each pixel of an image into one of C classes.

    The net puts out logits (N, C, H, W). Targets are classes, integers (N, H, W), or soft masks,
    floating point (N, C, H, W), as mixing callbacks make them. Predictions are probabilities
    (N, C, H, W).

    The loss is a mean over all pixels that count, of the batch and of the epoch. Without any it is
    0. Metrics are ``iou`` and ``dice``, each a mean over the classes that occur among targets or
    predictions, and ``accuracy``, the share of right pixels. They come from the pixels of the whole
    data set, not from means over images.

    Out-of-fold, out-of-bag and test predictions keep maps of classes, ``target`` and
    ``prediction``, as uint8 (ignored pixels are 255; int16 and -1 for more than 255 classes), and
    the ``iou`` of each sample.

    Args:
        num_classes: Number of classes C, with that of the background.
        loss: ``"cross_entropy"``, ``"dice"`` (`dlblocks.losses.dice_loss`), ``"focal"``
            (`dlblocks.losses.focal_loss`), or a sum such as ``"cross_entropy+dice"``.
        ignore_index: The label of pixels that do not count, in loss and metrics.
        gamma: γ of the focal loss.
        label_smoothing: ε in [0, 1) of the cross-entropy. In training only.
        class_weights: Weight of each class in the loss, length C, or ``"balanced"`` for
            N / (C · N_c), counted in pixels of the training part. In training only.
        metrics: Further metrics of validation and test: names of torchmetrics' classes, such as
            ``"cohen_kappa"``, or metrics.
        aux_weight: Weight of the loss of auxiliary logits, for nets that in training put out
            (N, 2C, H, W): the logits, then those of an auxiliary classifier. 0 for other nets.

    Example:
        >>> task = SegmentationTask(2)
        >>> task.loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[1, 255]]]))
        tensor(0.6931)
    """

    name = "segmentation"
    shown = ("iou",)
    standard = ("iou", "dice", "accuracy")
    kind = "Multiclass"

    def __init__(
        self,
        num_classes: int,
        *,
        loss: str = "cross_entropy",
        ignore_index: int = 255,
        gamma: float = 2.0,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | Literal["balanced"] | None = None,
        metrics: Sequence[str | Metric] | None = None,
        aux_weight: float = 0.0,
    ) -> None:
        super().__init__(
            num_classes,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            metrics=metrics,
        )
        self.losses = [part.strip() for part in loss.split("+")]
        for part in self.losses:
            check_choice("loss", part, list(LOSSES))
        if label_smoothing and "cross_entropy" not in self.losses:
            raise ValueError(
                f"label_smoothing={label_smoothing} is that of the cross-entropy, and loss={loss!r}"
                "; leave it out, or use loss='cross_entropy'."
            )
        check_range("aux_weight", aux_weight, 0)
        self.ignore_index, self.gamma = int(ignore_index), float(gamma)
        self.aux_weight = float(aux_weight)

    @property
    def sizes(self) -> dict[str, int]:
        return {"num_classes": self.num_classes, "ignore_index": self.ignore_index}

    def _main(self, outputs: Tensor) -> Tensor:
        """Leave out auxiliary logits."""
        return outputs[:, : self.num_classes]

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        if self.aux_weight and outputs.shape[1] == 2 * self.num_classes:
            main, auxiliary = outputs.chunk(2, 1)
            aux_loss = self._loss(auxiliary, targets, weights)
            return self._loss(main, targets, weights) + self.aux_weight * aux_loss
        return self._loss(outputs, targets, weights)

    def _loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        shared: dict[str, Any] = {
            "weight": self.class_weight if self.training else None,
            "ignore_index": self.ignore_index,
            "sample_weight": weights,
        }
        smoothing = self.label_smoothing if self.training else 0.0
        parts = []
        for part in self.losses:
            if part == "dice":
                loss = dice_loss(outputs, targets, **shared)
            elif part == "focal":
                loss = focal_loss(outputs, targets, gamma=self.gamma, **shared)
            else:
                loss = pixel_cross_entropy(outputs, targets, label_smoothing=smoothing, **shared)
            parts.append(loss)
        return sum(parts[1:], parts[0])

    def counted(self, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            return targets.flatten(1).sum(1, dtype=torch.float32)
        return (targets != self.ignore_index).flatten(1).sum(1)

    def make_metrics(self, stage: Stage) -> MetricCollection:
        scores: dict[str, Any] = {
            "pixels": PixelScores(self.num_classes, self.ignore_index, weighted=self.weighted)
        }
        if stage != "train":
            scores |= self.chosen_metrics()
        return MetricCollection(scores, compute_groups=False)

    def for_metrics(self, outputs: Tensor, targets: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        targets = hard_map(targets, self.ignore_index)
        if self.chosen and stage != "train":
            return self.predict(outputs), targets
        # Of all that waits for the metrics, only classes, in one byte each.
        kept = narrow(targets, self.num_classes, self.ignore_index)
        return self._main(outputs).argmax(1).to(kept.dtype), kept

    def stacked_metrics(self, num_models: int, device: torch.device) -> PixelSums | None:
        if self.chosen or self.weighted:
            return None
        return PixelSums(num_models, self.num_classes, self.ignore_index, device)

    def predict(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        return self._main(outputs).float().softmax(1)

    def outputs_of(self, predictions: Tensor) -> Tensor:
        if not predictions.is_floating_point():
            raise ValueError(
                "predictions of segmentation are kept as maps of classes, without probabilities; "
                "leave fit_temperature= out."
            )
        return predictions.clamp(min=torch.finfo(torch.float32).tiny).log()

    def keep(self, prediction: Any, target: Any) -> dict[str, Tensor | list[Tensor]]:
        """Keep maps of classes in small dtypes, and the IoU of each sample."""
        if not isinstance(prediction, Tensor) or not isinstance(target, Tensor):
            return super().keep(prediction, target)
        if prediction.ndim > target.ndim:
            prediction = prediction.argmax(1)
        target = narrow(target, self.num_classes, self.ignore_index)
        prediction = prediction.to(target.dtype)
        sums = class_sums(target.cpu().numpy(), prediction.cpu().numpy(), self.num_classes)
        iou = torch.from_numpy(scores_of(sums)["iou"].astype(np.float32))
        return {"target": target, "prediction": prediction, "iou": iou}

    def average(self, outputs: Tensor, *, hard: bool = False) -> Tensor:
        outputs = outputs.float()
        if hard:
            votes = torch.zeros_like(outputs).scatter_(2, outputs.argmax(2, keepdim=True), 1.0)
            return votes.mean(0).clamp_(min=NO_VOTE).log()
        return outputs.log_softmax(2).logsumexp(0) - math.log(len(outputs))

    def fit_to(self, datamodule: Any) -> None:
        kind, source = kinds_of(datamodule).get("targets"), getattr(datamodule, "source", None)
        if not self.is_balanced or not isinstance(kind, Mask) or source is None:
            super().fit_to(datamodule)
            return
        counts = torch.zeros(self.num_classes, dtype=torch.int64)
        for rows in datamodule.indices("train").split(ROWS):
            labels = source.targets.index_select(0, rows)
            known = labels[labels != self.ignore_index].long()
            counts += torch.bincount(known, minlength=self.num_classes)
        assert self.class_weight is not None  # for the type checker
        self.class_weight = self._balanced(counts).to(self.class_weight)

    def balanced(self, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        known = targets != self.ignore_index
        of_pixels = None
        if weights is not None:
            of_pixels = weights.double()[:, None, None].expand(targets.shape)[known]
        return self._balanced(torch.bincount(targets[known], of_pixels, self.num_classes))

    def _balanced(self, counts: Tensor) -> Tensor:
        if not counts.all():
            raise ValueError(
                f"class_weights='balanced', but class {int(counts.argmin())} of 0 … "
                f"{self.num_classes - 1} has no training pixel; pass the weights as a list."
            )
        return counts.sum() / (self.num_classes * counts.to(torch.get_default_dtype()))

    def check_data(self, datamodule: Any, model: str) -> None:
        kind, data = kinds_of(datamodule).get("targets"), type(datamodule).__name__
        if kind is None:
            return
        if not isinstance(kind, Mask):
            raise ValueError(
                f"{model} needs masks (N, H, W) as targets, but the targets of {data} are of kind "
                f"{kind.name!r}; set target_kind='mask', or use another model."
            )
        if kind.ignore_index != self.ignore_index:
            raise ValueError(
                f"ignore_index={self.ignore_index}, but pixels of {data} that do not count have "
                f"label {kind.ignore_index}; set ignore_index={kind.ignore_index}."
            )
        source = getattr(datamodule, "source", None)
        for argument in ("targets", "test_targets"):
            masks = getattr(source, argument, None)
            if masks is not None:
                self._check_masks(masks, argument)
                self._check_ink(masks, argument)
        if (names := getattr(source, "class_names", None)) is not None:
            check_num_classes(self, len(names), data)

    def check_batch(self, outputs: Tensor, targets: Tensor) -> None:
        allowed = [self.num_classes, *([2 * self.num_classes] if self.aux_weight else [])]
        if outputs.ndim != 4 or outputs.shape[1] not in allowed:
            raise ValueError(
                f"num_classes={self.num_classes}, but the net puts out shape "
                f"{tuple(outputs.shape)}; expected (N, {self.num_classes}, H, W)."
            )
        outputs = self._main(outputs)
        expected = tuple(outputs.shape)
        if not targets.is_floating_point():
            expected = expected[:1] + expected[2:]
        if tuple(targets.shape) != expected:
            raise ValueError(
                f"targets are {targets.dtype} of shape {tuple(targets.shape)} for outputs of shape "
                f"{tuple(outputs.shape)}; expected classes (int64, (N, H, W)) or soft masks "
                "(N, C, H, W), of the size of the outputs."
            )
        if not targets.is_floating_point():
            self._check_masks(targets, "targets")

    def _check_masks(self, masks: Tensor, argument: str) -> None:
        """Raise a `ValueError` unless all labels are classes of this task, or do not count."""
        for start in range(0, len(masks), ROWS):
            part = masks[start : start + ROWS]
            wrong = ((part < 0) | (part >= self.num_classes)) & (part != self.ignore_index)
            if wrong.any():
                sample, row, column = wrong.nonzero()[0].tolist()
                label = int(part[sample, row, column])
                raise ValueError(
                    f"{argument} has label {label} in sample {start + sample}, row {row}, "
                    f"column {column}, but num_classes={self.num_classes} means the classes 0 … "
                    f"{self.num_classes - 1}, and pixels that do not count have label "
                    f"{self.ignore_index} (ignore_index); set num_classes or ignore_index, or map "
                    "the labels."
                )

    def _check_ink(self, masks: Tensor, argument: str) -> None:
        """Refuse masks of 0 and 255 where 255 does not count: a net that puts out 0 is perfect."""
        ignored = False
        for part in masks.split(ROWS):
            known = part != self.ignore_index
            if (part[known] != 0).any():
                return
            ignored |= not bool(known.all())
        if ignored and self.num_classes > 1:
            raise ValueError(
                f"{argument} has no labels but 0 and {self.ignore_index}, and pixels of "
                f"{self.ignore_index} do not count (ignore_index), so that there is nothing to "
                "learn. If they are a class, make them 1: of arrays masks // 255, of files "
                "labels=[0, 255] with ignore_index=254, here and in the model."
            )

    def difference(self, other: Task) -> str:
        return self._size_difference(other, SegmentationTask, "num_classes", "{} classes")

    @classmethod
    def score(cls, table: PredictionTable) -> dict[str, float]:
        sums = class_sums(table.target, table.prediction)
        weight = table.sample_weight
        each = np.ones(sums.shape[1]) if weight is None else weight.astype(float)
        found = scores_of(np.einsum("n,knc->kc", each, sums))
        return {name: float(value) for name, value in found.items()}

    @classmethod
    def class_iou(cls, table: PredictionTable) -> Array:
        """Return the IoU of each class 0 … C-1; NaN for one that does not occur."""
        hits, true, guess = class_sums(table.target, table.prediction).sum(1)
        with np.errstate(invalid="ignore"):
            iou: Array = hits / (true + guess - hits)
        return iou

    @classmethod
    def sample_losses(cls, table: PredictionTable) -> Array:
        if table.has("iou"):
            iou = table.iou
        else:
            iou = scores_of(class_sums(table.target, table.prediction))["iou"]
        found: Array = 1 - iou.astype(float)
        return found

    @classmethod
    def show(cls, table: Predictions, *, title: str | None = None) -> Figure:
        prediction = table.prediction
        if prediction.ndim == 4:
            prediction = prediction.argmax(1)
        known = [labels[known_pixels(labels)] for labels in (table.target, prediction)]
        count = 1 + int(max(labels.max(initial=0) for labels in known))
        names = [str(i) for i in range(max(count, len(table.class_names)))]
        ious = 1 - cls.sample_losses(table)
        return plots.overlays(
            table.images(),
            table.target,
            prediction,
            table.class_names if len(table.class_names) >= count else names,
            titles=[f"sample {i}, IoU {iou:.2f}" for i, iou in zip(table.index, ious, strict=True)],
            title=title and f"{title}: masks, predictions",
        )

    @classmethod
    def weighted_metrics(cls, target: Array, prediction: Array) -> dict[str, Weighted]:
        sums = class_sums(target, prediction).astype(float)

        def metric(name: str) -> Weighted:
            return lambda weights: scores_of(weights @ sums)[name]

        return {name: metric(name) for name in cls.standard}

    @classmethod
    def columns(
        cls, target: Array, prediction: Array, class_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        return {}  # maps are no columns of a table; `iou` is

    @classmethod
    def answers(
        cls, prediction: Array, class_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        return {}

    @classmethod
    def figures(
        cls, table: Predictions, *, title: str, scores: Mapping[str, float] | None = None
    ) -> dict[str, Callable[[], Figure]]:
        """Draw the scores of each class, their confusion in pixels, and the worst images."""
        sums = class_sums(table.target, table.prediction).sum(1)
        count = max(sums.shape[1], len(table.class_names))
        if count > MAX_CLASSES:
            return {}
        names = names_or_numbers(table.class_names, count)
        hits, true, guess = np.pad(sums, ((0, 0), (0, count - sums.shape[1])))
        with np.errstate(invalid="ignore"):
            each = {"iou": hits / (true + guess - hits), "dice": 2 * hits / (true + guess)}
        found: dict[str, Callable[[], Figure]] = {
            "classes": lambda: score_figure(each, names, true, title, "pixels"),
            "confusion_matrix": lambda: plots.pixel_confusion(
                confusion(table.target, table.prediction, count), names, title=title
            ),
        }
        if table.inputs is not None and len(table.input_shape) == 3:
            found["worst"] = lambda: worst_figure(cls, table, "worst samples")
        return found
