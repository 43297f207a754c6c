"""Boxes around objects, and the class of each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from dlblocks import plots
from dlblocks._boxes import are_boxes, box_rows
from dlblocks._errors import check_range
from dlblocks._scores import Weighted
from dlblocks.fields import Boxes, kinds_of
from dlblocks.tasks._average_precision import (
    IOUS,
    BoxScores,
    Matches,
    f1_score,
    match,
    precisions,
    scores_of,
)
from dlblocks.tasks._class_task import (
    check_num_classes,
    names_or_numbers,
    score_figure,
    worst_figure,
)
from dlblocks.tasks.table import Array, Predictions, PredictionTable
from dlblocks.tasks.task import Stage, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 0.3  # least score of detections in figures
MAX_CLASSES = 200  # in figures
BACKGROUND = ("background", "__background__", "bg")


class DetectionTask(Task):
    """Find the objects of an image.

    Each has a box, a score and a class.

    Targets are a list with a dictionary an image: ``boxes``, floating point (n, 4), x0, y0, x1, y1
    in pixels, and ``labels``, int64 (n,). Classes are 0 … C-1, without one for the background.
    Predictions are a list of tensors, rows (x0, y0, x1, y1, score, class) for each image.

    The net computes its loss itself: outputs are its losses by name, and the loss is their sum.

    Metrics are those of COCO: ``map``, the mean over the IoU thresholds 0.5, 0.55, … 0.95 and over
    the classes that have objects; ``map_50`` and ``map_75`` at one threshold; ``mar``, the mean
    recall with up to 100 detections an image and class. They are those of pycocotools, except that
    detections of equal score count at once, so that their order does not matter. Without any object
    they are 0, not -1.

    Out-of-fold and test predictions keep ``target``, rows (x0, y0, x1, y1, class), and
    ``prediction``, both ragged.

    Args:
        num_classes: Number of classes C.

    Example:
        >>> task = DetectionTask(2)
        >>> task.loss({"boxes": torch.tensor(1.0), "classes": torch.tensor(0.5)}, [])
        tensor(1.5000)
    """

    name = "detection"
    shown = ("map_50",)
    standard = ("map", "map_50", "map_75", "mar")
    ragged = True

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        check_range("num_classes", num_classes, 1)
        self.num_classes = num_classes

    def loss(self, outputs: Any, targets: Any, weights: Tensor | None = None) -> Tensor:
        if weights is not None:
            raise ValueError("weights of samples do not count in detection; leave them out.")
        return torch.stack([*outputs.values()]).sum()

    def make_metrics(self, stage: Stage) -> MetricCollection:
        return MetricCollection({} if stage == "train" else {"boxes": BoxScores()})

    def for_metrics(self, outputs: Any, targets: Any, stage: Stage) -> tuple[Tensor, Tensor]:
        """Put all boxes into one tensor, and count those of each image.

        Returns:
            Rows (x0, y0, x1, y1, score, class): for each image its detections, then its objects,
            without a score. And the numbers of the two, int64 (N, 2). In training there are none.
        """
        device = targets[0]["boxes"].device
        if stage == "train":
            empty = torch.zeros(0, 6, device=device)
            return empty, torch.zeros(len(targets), 2, dtype=torch.int64, device=device)
        found, objects = self.predict(outputs), box_rows(targets)
        rows, counts = [], []
        for each, real in zip(found, objects, strict=True):
            real = torch.cat([real[:, :4], torch.zeros_like(real[:, :1]), real[:, 4:]], 1)
            rows += [each.float(), real.float()]
            counts.append([len(each), len(real)])
        return torch.cat(rows), torch.tensor(counts, device=device)

    def predict(self, outputs: Any, targets: Any = None) -> Any:
        return [rows.float() for rows in box_rows(outputs)] if len(outputs) else []

    def keep(self, prediction: Any, target: Any) -> dict[str, Tensor | list[Tensor]]:
        return {"target": box_rows(target), "prediction": box_rows(prediction)}

    def for_ensemble(self) -> Task:
        raise ValueError(
            "boxes of several detectors have no average, because nobody knows which belong "
            "together; use the model of one fold, or result.refit(…) for one model of all samples."
        )

    def check_data(self, datamodule: Any, model: str) -> None:
        kinds, data = kinds_of(datamodule), type(datamodule).__name__
        kind, source = kinds.get("targets"), getattr(datamodule, "source", None)
        if kind is None:
            return
        if not isinstance(kind, Boxes):
            raise ValueError(
                f"{model} needs boxes as targets, but the targets of {data} are of kind "
                f"{kind.name!r}; use DetectionDataModule(images, boxes, labels), or another model."
            )
        if "weights" in kinds:
            raise ValueError(
                f"{data} has sample weights, which do not count in detection; leave weights= out."
            )
        names = getattr(source, "class_names", None) or []
        if names and names[0].lower() in BACKGROUND:
            raise ValueError(
                f"class 0 of {data} is {names[0]!r}; classes are 0 … C-1 without one for the "
                "background, also where torchvision has one. Leave it out of class_names, and "
                "subtract 1 from the labels."
            )
        if names:
            check_num_classes(self, len(names), data)
        seen: set[int] = set()
        for argument in ("targets", "test_targets"):
            boxes = getattr(source, argument, None)
            if boxes is None or boxes.values.shape[1] < 5:
                continue
            labels = boxes.values[:, 4]
            seen |= {*map(int, labels.unique())}
            wrong = (labels >= self.num_classes).nonzero()
            if len(wrong):
                row = int(wrong[0])
                sample = int(torch.searchsorted(boxes.offsets, row, right=True)) - 1
                raise ValueError(self._off(labels[row].item(), f"{argument} of sample {sample}"))
        if self.num_classes > 1 and seen == {*range(1, self.num_classes)}:
            warnings.warn(
                f"no object of {data} has class 0, and every other class occurs; if 0 is meant to "
                "be the background, subtract 1 from the labels and from num_classes.",
                stacklevel=2,
            )

    def check_batch(self, outputs: Any, targets: Any) -> None:
        if not are_boxes(targets):
            got = f"a tensor {tuple(targets.shape)}" if isinstance(targets, Tensor) else "others"
            raise ValueError(
                f"targets must be a list with a dictionary of boxes and labels for each image, got "
                f"{got}; let the collate_fn of your DataLoader return [images, targets], with "
                "targets=[{'boxes': (n, 4), 'labels': (n,)}, …]."
            )
        for i, target in enumerate(targets):
            self._check_target(target, f"image {i} of the batch")

    def _check_target(self, target: Mapping[str, Any], where: str) -> None:
        boxes, labels = target["boxes"], target.get("labels")
        if not isinstance(boxes, Tensor) or boxes.ndim != 2 or boxes.shape[1] != 4:
            shape = tuple(boxes.shape) if isinstance(boxes, Tensor) else type(boxes).__name__
            raise ValueError(
                f"boxes of {where} have shape {shape}, expected (n, 4); without objects use "
                "torch.zeros(0, 4)."
            )
        if not boxes.is_floating_point():
            raise ValueError(f"boxes of {where} are {boxes.dtype}; convert them with .float().")
        if not isinstance(labels, Tensor) or labels.shape != boxes.shape[:1]:
            shape = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise ValueError(
                f"labels of {where} have shape {shape}, expected ({len(boxes)},), one a box."
            )
        if labels.is_floating_point():
            raise ValueError(f"labels of {where} are {labels.dtype}; convert them with .long().")
        if not len(boxes):
            return
        wrong = ~(boxes[:, 2:] > boxes[:, :2]).all(1)
        if wrong.any():
            box = boxes[wrong][0].tolist()
            raise ValueError(
                f"{where} has the box {box}, which is inverted or has no area; boxes are (x0, y0, "
                "x1, y1) with x0 < x1 and y0 < y1."
            )
        for label in (labels.min().item(), labels.max().item()):
            if not 0 <= label < self.num_classes:
                raise ValueError(self._off(label, where))

    def _off(self, label: float, where: str) -> str:
        return (
            f"{where} has label {label:g}, but num_classes={self.num_classes} means the classes 0 "
            f"… {self.num_classes - 1}, without one for the background; subtract 1 from labels "
            "that start at 1, or set num_classes."
        )

    def difference(self, other: Task) -> str:
        return self._size_difference(other, DetectionTask, "num_classes", "{} classes")

    # Predictions as arrays

    @classmethod
    def score(cls, table: PredictionTable) -> dict[str, float]:
        found = scores_of(match(table["target"], table["prediction"]))
        return {name: float(value[0]) for name, value in found.items()}

    @classmethod
    def class_map(cls, table: PredictionTable, iou: float | None = None) -> dict[int, float]:
        """Return the average precision of each class that has objects.

        Args:
            table: The predictions.
            iou: A threshold, such as 0.5; None for the mean over 0.5, 0.55, … 0.95.
        """
        thresholds = IOUS if iou is None else np.array([float(iou)])
        found = match(table["target"], table["prediction"], thresholds)
        once = np.ones((1, found.num_images))
        return {int(c): float(precisions(found, int(c), once)[0].mean()) for c in found.classes}

    @classmethod
    def f1(
        cls,
        table: PredictionTable,
        *,
        iou: float = 0.5,
        score: float = 0.5,
        draws: int = 2000,
        groups: Array | None = None,
    ) -> dict[str, tuple[float, float, float]]:
        """Compute precision, recall and F1 with intervals.

        F1 = 2 TP / (detections + objects), over all images and classes at once.

        Args:
            table: The predictions.
            iou: From this IoU on an object is found.
            score: From this score on a detection is shown. Choose it on other images.
            draws: Draws of the bootstrap: as many images (or groups), with replacement.
            groups: The group of each image, shape (N,), if images belong together.

        Returns:
            ``f1``, ``precision`` and ``recall``: value, and the ends of a 95 % interval.
        """
        found = match(table["target"], table["prediction"], np.array([float(iou)]))
        size = found.num_images
        _, group = np.unique(np.arange(size) if groups is None else groups, return_inverse=True)
        units = int(group.max()) + 1
        drawn = np.random.default_rng(0).multinomial(units, np.full(units, 1 / units), draws)
        values = f1_score(found, score)
        spread = f1_score(found, score, drawn[:, group].astype(float))
        ends = {name: np.quantile(x, [0.025, 0.975]) for name, x in spread.items()}
        return {
            name: (float(value[0]), float(ends[name][0]), float(ends[name][1]))
            for name, value in values.items()
        }

    @classmethod
    def sample_losses(cls, table: PredictionTable) -> Array:
        """Count the errors of each image, (N,).

        They are missed objects, and wrong detections of score 0.3 and more, both at IoU 0.5.
        """
        missed, wrong = _errors(table)
        errors: Array = (missed + wrong).astype(float)
        return errors

    @classmethod
    def show(cls, table: Predictions, *, title: str | None = None) -> Figure:
        missed, wrong = _errors(table)
        images = range(len(table))
        guesses = [table["prediction"][i] for i in images]
        return plots.boxes(
            table.images(),
            [table["target"][i] for i in images],
            [guess[guess[:, 4] >= SHOWN] for guess in guesses],
            table.class_names,
            titles=[
                f"sample {index}: {m} missed, {w} wrong"
                for index, m, w in zip(table.index, missed, wrong, strict=True)
            ],
            title=title and f"{title}: objects, detections of score {SHOWN:g} and more",
        )

    @classmethod
    def weighted_metrics(cls, target: Any, prediction: Any) -> dict[str, Weighted]:
        whole = match(target, prediction)

        def metric(name: str, matches: Matches) -> Weighted:
            return lambda weights: scores_of(matches, np.asarray(weights, np.float64), (name,))[
                name
            ]

        return {name: metric(name, whole) for name in cls.standard}

    @classmethod
    def columns(
        cls, target: Array, prediction: Array, class_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        return {}  # boxes are no columns of one number a row

    @classmethod
    def ragged_columns(
        cls, rows: Array, class_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Make columns of corners, score and class, one row a box."""
        found = dict(zip(("x0", "y0", "x1", "y1", "score"), rows[:, :5].T, strict=True))
        labels = rows[:, 5].astype(np.int64)
        if class_names and (not len(labels) or labels.max() < len(class_names)):
            return found | {"class": np.asarray(class_names)[labels]}
        return found | {"class": labels}

    @classmethod
    def figures(
        cls, table: Predictions, *, title: str, scores: Mapping[str, float] | None = None
    ) -> dict[str, Callable[[], Figure]]:
        """Draw the precision of each class, and the images with most errors."""
        found = match(table["target"], table["prediction"])
        labels = found.classes
        count = max(int(labels.max(initial=-1)) + 1, len(table.class_names))
        if not len(labels) or count > MAX_CLASSES:
            return {}
        names = names_or_numbers(table.class_names, count)
        figures: dict[str, Callable[[], Figure]] = {
            "classes": lambda: _of_classes(found, names, title)
        }
        if table.inputs is not None and len(table.input_shape) == 3:
            figures["worst"] = lambda: worst_figure(cls, table, "most errors")
        return figures


def _of_classes(found: Matches, names: Sequence[str], title: str) -> Figure:
    once = np.ones((1, found.num_images))
    each = np.full((2, len(names)), np.nan)
    for label in found.classes:
        average = precisions(found, int(label), once)[0][0]
        each[:, label] = average[0], average.mean()
    counts = np.bincount(found.object_label, minlength=len(names))
    scores = {"mAP at IoU 0.5": each[0], "mAP": each[1]}
    return score_figure(scores, names, counts, title, "objects")


def _errors(table: PredictionTable) -> tuple[Array, Array]:
    """Count the missed objects and the wrong detections of each image, at IoU 0.5."""
    found = match(table["target"], table["prediction"], IOUS[:1])
    shown = found.score >= SHOWN
    hits, said, there = (
        np.bincount(images, minlength=len(table))
        for images in (found.image[shown & found.hit[0]], found.image[shown], found.object_image)
    )
    return there - hits, said - hits
