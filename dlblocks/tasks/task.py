"""Define what a learning problem is, without Lightning and without data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from dlblocks._scores import Weighted, kind_of
from dlblocks.tasks._metrics import choose_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]
Stage = Literal["train", "val", "test"]


class Task(nn.Module):
    """A learning problem with its loss, metrics and predictions.

    A model is a net with a task: ``Model(net, task)``. A task of your own is a subclass that
    defines `loss` and `make_metrics`, and the other methods where the outputs of the net are not
    themselves the predictions.

    It is a module, because it may hold tensors, such as the weights of classes. In training mode
    `loss` is what is minimised; in evaluation mode it is what is reported.

    Args:
        metrics: Further metrics of validation and test: names of torchmetrics' classes for this
            kind of problem, such as ``"auroc"`` or ``"cohen_kappa"``, or metrics.

    Example:
        >>> class Absolute(Task):
        ...     name = "absolute"
        ...     def loss(self, outputs, targets):
        ...         return (outputs - targets).abs().mean()
        >>> Absolute().loss(torch.tensor([1.0]), torch.tensor([3.0]))
        tensor(2.)
    """

    name: str = ""
    """What ``summary.json`` calls it."""
    shown: tuple[str, ...] = ()
    """Metrics in the progress bar, beside the loss."""
    loss_range: tuple[float | None, float | None] = (None, None)
    """Lowest and highest possible loss; None for an unknown bound."""
    votes: bool = False
    """Whether members of an ensemble can vote for one answer each."""
    kind: str = ""
    """How the names of torchmetrics' classes for it begin."""

    standard: tuple[str, ...] = ()
    """Names of the metrics that are logged in any case."""

    def __init__(self, *, metrics: Sequence[str | Metric] | None = None) -> None:
        super().__init__()
        self.chosen = metrics or ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):  # the parent's would stand for the parent's scores and figures
            cls.name = cls.__qualname__

    @property
    def sizes(self) -> dict[str, int]:
        """Arguments that torchmetrics' classes need."""
        return {}

    def chosen_metrics(self) -> dict[str, Metric]:
        """Make the metrics that the user has chosen."""
        return choose_metrics(
            self.chosen,
            kind=self.kind,
            sizes=self.sizes,
            standard=self.standard,
            columns=getattr(self, "out_features", 1),
        )

    def decode(self, outputs: Tensor) -> Tensor:
        """Bring outputs of the net into the units of the targets.

        The model's `forward` returns the result.
        """
        return outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean loss of a batch, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(outputs, targets).")

    def make_metrics(self, stage: Stage) -> MetricCollection:
        """Make the metrics of one stage.

        They are updated with the predictions and targets of `for_metrics`.
        """
        return MetricCollection({})

    def for_metrics(self, outputs: Tensor, targets: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        """Select what to keep of a batch until the metrics are updated."""
        return self.predict(outputs), targets

    def predict(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Turn outputs into predictions.

        Predictions have the shape of the targets, where these are known.
        """
        return outputs

    def shaped(self, predictions: Tensor, targets: Tensor | None) -> Tensor:
        """Give predictions the shape of the targets, if these are known."""
        return predictions

    def outputs_of(self, predictions: Tensor) -> Tensor:
        """Invert `predict`."""
        return predictions

    def average(self, outputs: Tensor, *, hard: bool = False) -> Tensor:
        """Average what the members of an ensemble predict.

        Returns the outputs of the ensemble, shape (N, ...).

        Args:
            outputs: Outputs of M members, shape (M, N, ...).
            hard: Count votes instead, where `votes` is True.
        """
        predictions = torch.stack([self.predict(member) for member in outputs])
        return self.outputs_of(predictions.mean(0))

    def for_ensemble(self) -> Task:
        """Copy the task for an ensemble of trained models.

        The copy has nothing that only training needs, or that belongs to one member.
        """
        return copy.deepcopy(self)

    def uncertainty(self, outputs: Tensor) -> dict[str, Tensor]:
        """Measure how unsure members are of each sample.

        See `dlblocks.models.VotingEnsemble.uncertainty`.
        """
        raise ValueError(
            "uncertainty is that of one class a sample; for other predictions use the std of "
            "Trainer.predict."
        )

    def fit_to(self, datamodule: Any) -> None:
        """Take from the training data what the loss needs, such as class weights."""

    def check_data(self, datamodule: Any, model: str) -> None:
        """Raise a `ValueError` if the data are not of this problem.

        Args:
            datamodule: Any datamodule; what it does not say is not checked.
            model: The name of the model's class, for the message.
        """

    def check_batch(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise a `ValueError` if targets of the first batch do not fit outputs."""

    def difference(self, other: Task) -> str:
        """Say what keeps models of two tasks from being averaged, or ``""``."""
        return "" if type(self) is type(other) else f"{self.name} and {other.name}"

    # The engine asks for these; without them it computes each model by itself.

    def stacked_loss(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Compute the losses (M,) of M models.

        Args:
            outputs: Shape (M, N, ...).
            targets: Shape (M, N, ...).
        """
        return None

    def stacked_metrics(self, num_models: int, device: torch.device) -> Any:
        """Make sums that give the metrics of M models at once, or None."""
        return None

    # Predictions as arrays: tables and figures ask for these.

    @classmethod
    def check_arrays(cls, target: Array, prediction: Array) -> None:
        """Raise a `ValueError` if targets and predictions are not of this task."""

    @classmethod
    def score(cls, target: Array, prediction: Array) -> dict[str, float]:
        """Compute metrics over all samples at once, for ``pooled()`` and the report."""
        return {}

    @classmethod
    def weighted_metrics(cls, target: Array, prediction: Array) -> dict[str, Weighted]:
        """Return metrics as functions of the samples' weights, for the bootstrap."""
        return {}

    @classmethod
    def right(cls, target: Array, prediction: Array) -> Array | None:
        """Tell which predictions are right, shape (N,), or None if none can be."""
        return None

    @classmethod
    def columns(
        cls, target: Array, prediction: Array, class_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Make the columns of a table with one row a sample."""
        columns: dict[str, Array] = {}
        for name, array in (("target", target), ("prediction", prediction)):
            values = array.reshape(len(array), -1).T
            numbered = [f"{name}_{i}" for i in range(len(values))] if len(values) > 1 else [name]
            columns |= dict(zip(numbered, values, strict=True))
        return columns

    @classmethod
    def figures(
        cls, table: Predictions, *, title: str, scores: Mapping[str, float] | None = None
    ) -> dict[str, Callable[[], Figure]]:
        """Return functions that draw the figures, by the names of their files.

        Args:
            table: The predictions.
            title: Put above the figures.
            scores: The metrics to put there; None for those of all predictions at once.
        """
        return {}


def find_task(target: Array, prediction: Array, name: str | None = None) -> type[Task]:
    """Find the task of predictions.

    Args:
        target: Targets, shape (N, ...).
        prediction: Predictions, shape (N, ...).
        name: Its name, such as ``"multilabel"``. None, or a name that no class has: what shapes and
            dtypes leave no doubt about; see `dlblocks._scores.kind_of`.

    Raises:
        ValueError: There is doubt, or the arrays are not of this task.

    Example:
        >>> find_task(np.array([0, 1]), np.array([[0.9, 0.1], [0.4, 0.6]])).name
        'multiclass'
    """
    tasks = task_names()
    if name is None or name not in tasks:
        values = kind_of(target, prediction) == "values"
        return tasks["regression" if values else "multiclass"]
    tasks[name].check_arrays(target, prediction)
    return tasks[name]


def task_names() -> dict[str, type[Task]]:
    """Return all tasks by their names, a user's too."""
    return {task.name: task for task in _subclasses(Task) if task.name}


def _subclasses(cls: type[Task]) -> Iterator[type[Task]]:
    for subclass in cls.__subclasses__():
        yield from _subclasses(subclass)
        yield subclass


@dataclass
class Predictions:
    """Predictions with what figures need of the data.

    Attributes:
        index: The sample's row in its data set, int64 of shape (N,).
        target: Its target, shape (N, ...).
        prediction: Its prediction, shape (N, ...).
        class_names: Names of the classes, as far as they are known.
        inputs: Gives the raw inputs of rows, or None where they are not arrays in memory.
        input_shape: The shape of one input.
        repeats: How often each sample is among them.
    """

    index: Array
    target: Array
    prediction: Array
    class_names: Sequence[str] = ()
    inputs: Callable[[Array], Array] | None = None
    input_shape: tuple[int, ...] = ()
    repeats: int = 1

    def means(self) -> tuple[Array, Array, Array]:
        """Average the predictions of each sample, sorted by index."""
        once, first, where, counts = np.unique(
            self.index, return_index=True, return_inverse=True, return_counts=True
        )
        sums = np.zeros((len(once), *self.prediction.shape[1:]))
        np.add.at(sums, where, self.prediction)
        return once, self.target[first], sums / counts.reshape(-1, *(1,) * (sums.ndim - 1))


def is_ours(method: Any) -> bool:
    """Tell methods and classes of this package from those of a user."""
    return method.__module__.startswith("dlblocks.")
