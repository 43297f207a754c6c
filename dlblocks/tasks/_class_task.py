"""Share class weights, checks and figures among tasks with classes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from dlblocks import plots
from dlblocks._errors import check_range
from dlblocks.tasks.table import Array, Predictions
from dlblocks.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_WORST = 12  # images in a figure


class ClassTask(Task):
    """A task with C classes or labels, whose loss may weigh them.

    Subclasses define `balanced`.
    """

    name = ""  # not a task by itself
    loss_range = (0.0, None)
    votes = True
    least = 2  # classes

    def __init__(
        self,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | Literal["balanced"] | None = None,
        metrics: Sequence[str | Metric] | None = None,
    ) -> None:
        super().__init__(metrics=metrics)
        check_range("num_classes", num_classes, self.least)
        check_range("label_smoothing", label_smoothing, 0, 1, high_open=True)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.is_balanced = isinstance(class_weights, str)
        self.class_weight: Tensor | None
        self.register_buffer("class_weight", _initial_weight(class_weights, num_classes))

    def balanced(self, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Compute the weights (C,) of ``class_weights="balanced"``.

        With sample weights (N,) each sample counts as often as its weight says.
        """
        raise NotImplementedError

    def for_ensemble(self) -> Task:
        task = copy.deepcopy(self)
        task.class_weight, task.is_balanced, task.label_smoothing = None, False, 0.0
        return task

    def fit_to(self, datamodule: Any) -> None:
        if not self.is_balanced:
            return
        train_targets = getattr(datamodule, "train_targets", None)
        if not callable(train_targets):
            raise ValueError(
                "class_weights='balanced' needs a datamodule with train_targets(); "
                "pass the weights as a list."
            )
        if getattr(datamodule, "balanced_sampling", False):
            warnings.warn(
                "class_weights='balanced' and balanced_sampling=True both correct for unequal "
                "classes, so rare classes count too much; leave out one of them.",
                stacklevel=2,
            )
        assert self.class_weight is not None  # for the type checker
        weights = datamodule.weights_of("train") if self.weighted else None
        self.class_weight = self.balanced(train_targets(), weights).to(self.class_weight)


def check_num_classes(task: Any, found: int, data: str, unit: str = "classes") -> None:
    """Raise a `ValueError` unless data have as many classes as the task."""
    if found != task.num_classes:
        raise ValueError(
            f"num_classes={task.num_classes}, but {data} has {found} {unit}; set "
            f"num_classes={found}."
        )


def names_or_numbers(class_names: Sequence[str] | None, count: int) -> list[str]:
    """Return the names of all classes, or numbers if some are missing."""
    names = list(class_names or ())
    return names if len(names) == count else [str(i) for i in range(count)]


def score_figure(
    scores: Mapping[str, Array], names: Sequence[str], counts: Array, title: str, unit: str
) -> Figure:
    """Draw the scores of each class."""
    figure = plots.labels(scores, names, counts=counts, title=title)
    figure.axes[0].set_ylabel(f"class ({unit})")
    return figure


def worst_figure(task: type[Task], table: Predictions, title: str) -> Figure:
    """Draw the images of the largest losses, each once."""
    worst = table.worst(NUM_WORST)
    shown = Predictions(worst, class_names=table.class_names, inputs=table.inputs)
    return task.show(shown, title=title)


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
