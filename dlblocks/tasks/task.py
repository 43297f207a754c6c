"""Define what a learning problem is, without Lightning and without data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from dlblocks._scores import Weighted
from dlblocks.tasks._choose_metrics import choose_metrics
from dlblocks.tasks._registry import register
from dlblocks.tasks.table import Array, Predictions, PredictionTable, numbered, plain_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    ragged: bool = False
    """Whether a prediction has any number of rows, such as boxes."""
    kind: str = ""
    """How the names of torchmetrics' classes for it begin."""

    standard: tuple[str, ...] = ()
    """Names of the metrics that are logged in any case."""

    weighted: bool = False
    """Whether the samples of the data have weights; the model sets it before a run."""

    def __init__(self, *, metrics: Sequence[str | Metric] | None = None) -> None:
        super().__init__()
        self.chosen = metrics or ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):  # the parent's would stand for the parent's scores and figures
            cls.name = cls.__qualname__
        register(cls)

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

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Compute the mean loss of a batch, a scalar.

        A task of your own needs `weights` only for data that have some.

        Args:
            outputs: Of the net, shape (N, ...).
            targets: Shape (N, ...).
            weights: How much each sample counts, shape (N,), or None. The result is then the mean
                of ``weight * loss``: a sum over the batch divided by what it is divided by without
                weights, so that a sample counts the same in every batch.
        """
        raise NotImplementedError(f"{type(self).__name__} must define loss(outputs, targets).")

    def counted(self, targets: Tensor) -> Tensor | None:
        """Say over how many values of each sample `loss` is a mean, such as pixels that count.

        An epoch's loss weighs the losses of its batches by them.

        Args:
            targets: Shape (N, ...).

        Returns:
            Shape (N,), or None if every sample counts for one.
        """
        return None

    def make_metrics(self, stage: Stage) -> MetricCollection:
        """Make the metrics of one stage.

        They are updated with the predictions and targets of `for_metrics`, and where `weighted` is
        True also with the samples' weights, shape (N,).
        """
        return MetricCollection({})

    def from_inputs(self, inputs: Any) -> dict[str, Tensor]:
        """Return what scores need of the inputs, one row a sample.

        Predictions keep them as further columns, and `loss` and `for_metrics` get targets of
        `join`.
        """
        return {}

    def join(self, targets: Tensor, found: dict[str, Tensor]) -> Tensor:
        """Join targets (N, ...) and what `from_inputs` has found."""
        return targets

    def for_metrics(self, outputs: Tensor, targets: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        """Select what to keep of a batch until the metrics are updated."""
        return self.predict(outputs), targets

    def predict(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Turn outputs into predictions.

        Predictions have the shape of the targets, where these are known.
        """
        return outputs

    def keep(self, prediction: Any, target: Any) -> dict[str, Tensor | list[Tensor]]:
        """Select what out-of-fold, out-of-bag and test predictions keep of a batch.

        A task with dense outputs may return one class map or score a sample instead of its
        probabilities, such as ``{"dice": dice(prediction, target)}``. `score` gets a table of what
        this returns. Out-of-bag predictions and intervals of test scores need ``"prediction"``.

        Args:
            prediction: Predictions of a batch of N samples, as of `predict`.
            target: Their targets.

        Returns:
            Columns: tensors (N, ...), or lists of N tensors of unequal length.
        """
        return {"target": target, "prediction": prediction}

    def parts(self, prediction: Any) -> dict[str, Any]:
        """Return the columns of predictions of new samples, such as one for each quantile."""
        return {"prediction": prediction}

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

    def _size_difference(self, other: Task, kind: type[Task], attribute: str, text: str) -> str:
        """Put the sizes of two tasks into `text` if they differ."""
        if not isinstance(other, kind):
            return Task.difference(self, other)
        sizes = sorted({getattr(self, attribute), getattr(other, attribute)})
        return text.format(sizes) if len(sizes) > 1 else ""

    # The engine asks for these; without them it computes each model by itself. They must be defined
    # in the class that defines `loss`, or `make_metrics` and `for_metrics`, or in a subclass.

    def stacked_loss(
        self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor | None:
        """Compute the losses (M,) of M models.

        Args:
            outputs: Shape (M, N, ...).
            targets: Shape (M, N, ...).
            weights: Shape (M, N), or None.
        """
        return None

    def stacked_metrics(self, num_models: int, device: torch.device) -> Any:
        """Make sums of the metrics of M models at once, or return None.

        They have ``update(model, predictions, targets)``, with the number of the model of each
        sample, and ``compute(whole=)``, which returns values (M,) by name, in training (`whole` is
        False) those of training alone.
        """
        return None

    # Predictions as arrays: tables and figures ask for these.

    @classmethod
    def check_arrays(cls, target: Array, prediction: Array) -> None:
        """Raise a `ValueError` if targets and predictions are not of this task."""

    @classmethod
    def score(cls, table: PredictionTable) -> dict[str, float]:
        """Compute metrics over all samples at once, for ``pooled()`` and the report.

        Args:
            table: ``table.target`` and ``table.prediction``, or what `keep` returns instead, and
                ``table.weight`` if samples have weights.
        """
        return {}

    @classmethod
    def weighted_metrics(cls, target: Array, prediction: Array) -> dict[str, Weighted]:
        """Return metrics as functions of the samples' weights, for the bootstrap."""
        return {}

    @classmethod
    def remark(cls, table: PredictionTable) -> str | None:
        """Say what is doubtful in predictions, for the notes of a run."""
        return None

    @classmethod
    def sample_losses(cls, table: PredictionTable) -> Array | None:
        """Compute the loss of each row, shape (N,), by which `PredictionTable.worst` sorts.

        NaN for rows without a prediction. None if rows have no loss.
        """
        return None

    @classmethod
    def show(cls, table: Predictions, *, title: str | None = None) -> Figure:
        """Draw the images of all rows with target and prediction.

        Args:
            table: A few predictions, with `inputs`.
            title: Put above.
        """
        raise ValueError(f"predictions of the task {table.task!r} cannot be drawn on images.")

    @classmethod
    def right(cls, target: Array, prediction: Array) -> Array | None:
        """Tell which predictions are right, shape (N,), or None if none can be."""
        return None

    @classmethod
    def columns(
        cls, target: Array, prediction: Array, class_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Make the columns of a table with one row a sample."""
        return plain_columns(target, prediction)

    @classmethod
    def conformal_scores(cls, target: Array, prediction: Array) -> Array | None:
        """Measure how far out-of-fold predictions are from their targets, shape (n,) or (n, D).

        None if the task has no prediction intervals or sets; see `regions`.
        """
        return None

    @classmethod
    def regions(cls, calibration: Any, each: Tensor, coverage: float) -> dict[str, Tensor]:
        """Compute prediction intervals or sets.

        Args:
            calibration: A `dlblocks.models._conformal.Calibration`.
            each: What each member predicts, shape (M, N, ...).
            coverage: Share of new samples whose target should be inside.

        Returns:
            Further columns of the predictions.
        """
        raise ValueError(
            f"coverage={coverage}: there are prediction intervals for values and prediction sets "
            f"for classes, and none for {cls.name!r}; leave coverage= out."
        )

    @classmethod
    def answers(
        cls, prediction: Array, class_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Make the columns of predictions whose targets are not known."""
        return numbered("prediction", prediction)

    @classmethod
    def ragged_columns(
        cls, rows: Array, class_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Make the columns of a ragged prediction, such as boxes.

        Each part has a row.

        Args:
            rows: The parts of all samples one after another, shape (T, ...).
            class_names: Names of the classes 0 … C-1.

        Returns:
            Columns of T rows; nothing if the parts have no columns.
        """
        return {}

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


def fits(task: Task, method: str, *others: str) -> bool:
    """Tell whether a fast method was written for the slow ones that the task has.

    It was if its class is that of the others, or a subclass. A task that overrides `loss` alone
    must not get the `stacked_loss` of its parent.
    """
    places = [
        next(i for i, cls in enumerate(type(task).__mro__) if name in vars(cls))
        for name in (method, *others)
    ]
    return places[0] <= min(places[1:])


def is_ours(method: Any) -> bool:
    """Tell methods and classes of this package from those of a user."""
    found: bool = method.__module__.startswith("dlblocks.")
    return found
