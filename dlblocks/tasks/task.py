"""Define what a learning problem is, without Lightning and without data."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from dlblocks._errors import check_range
from dlblocks._files import atomic_write
from dlblocks._npz import (
    Column,
    Ragged,
    is_mapped,
    join,
    names_of,
    read_columns,
    take,
    write_columns,
)
from dlblocks._scores import Weighted, kind_of
from dlblocks.tasks._metrics import choose_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]
Stage = Literal["train", "val", "test"]
PLACE = ("repeat", "fold", "index")
WIDE = 1000  # numbers a row; a data frame has no columns for more
CSV_ROWS = 2**16  # written at a time


class PredictionTable:
    """Predictions of samples, one row each, with named columns.

    A column is an array with one row a sample, or a `Ragged` of rows of unequal length. Columns
    that mean nothing for a table are not there:

    - ``index``: the sample's row in its data set, int64.
    - ``fold``, ``repeat``: of a cross-validation, which fold of which repeat predicted it.
    - ``target`` and ``prediction``: what the task keeps of them; see `Task.keep`. For classes these
      are classes (N,) and probabilities (N, C). For values both have one shape. A module of
      somebody else has its predictions as it gives them.
    - Further entries of what `predict_step` returns, such as ``std``.

    ``table["prediction"]`` or ``table.prediction`` is a column. ``table[rows]`` is the table of
    some rows, by a mask, a slice or numbers. A column of more than 64 MiB stays on disk, as a
    memory map.

    Args:
        columns: The columns by name, all of one length.
        task: Name of the task, if it is known.

    Example:
        >>> table = PredictionTable({"index": np.arange(3), "prediction": np.array([0.5, 1.5, 2])})
        >>> table[table.prediction > 1]
        PredictionTable of 2 rows: index (), prediction ()
    """

    index: npt.NDArray[np.int64]
    fold: npt.NDArray[np.int64]
    repeat: npt.NDArray[np.int64]
    target: Array
    prediction: Array

    def __init__(self, columns: Mapping[str, Column], *, task: str | None = None) -> None:
        self.columns, self.task = dict(columns), task
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len({*lengths.values()}) > 1:
            raise ValueError(f"columns of a table must have as many rows each, got {lengths}.")
        self._path: Path | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __getitem__(self, key: Any) -> Any:
        """Return a column by its name, or the table of some rows."""
        if isinstance(key, str):
            return self.columns[key]
        rows = key
        if not isinstance(key, slice):
            rows = np.asarray(key)
            rows = np.flatnonzero(rows) if rows.dtype == bool else rows
            if len(rows) and (np.diff(rows) == 1).all() and rows[0] >= 0:
                rows = slice(int(rows[0]), int(rows[-1]) + 1)  # which needs no copy
        found = {name: take(column, rows) for name, column in self.columns.items()}
        return PredictionTable(found, task=self.task)

    def __getattr__(self, name: str) -> Any:
        columns = vars(self).get("columns", {})
        if name in columns:
            return columns[name]
        raise AttributeError(f"the table has no column {name!r}; it has {', '.join(columns)}.")

    def __repr__(self) -> str:
        """Return the number of rows, and the names of the columns with the shape of a row."""
        shapes = (
            f"{name} {'ragged' if isinstance(column, Ragged) else column.shape[1:]}"
            for name, column in self.columns.items()
        )
        return f"PredictionTable of {len(self)} rows: {', '.join(shapes)}"

    def __reduce__(self) -> Any:
        if self._path is not None:  # not what is mapped
            return PredictionTable.read, (self._path, "write it again", self.task)
        return _table, (self.columns, self.task)

    @property
    def sample_weight(self) -> Array | None:
        """How much each sample counts, the column ``weight``; None if all count the same."""
        return self["weight"] if self.has("weight") else None

    def has(self, *names: str) -> bool:
        """Return True if there are dense columns of these names."""
        return all(isinstance(self.columns.get(name), np.ndarray) for name in names)

    def with_columns(self, **columns: Column | int) -> PredictionTable:
        """Return the table with further columns; a number is the value of all rows."""
        new = {
            name: np.full(len(self), value) if isinstance(value, int) else value
            for name, value in columns.items()
        }
        return PredictionTable(self.columns | new, task=self.task)

    @classmethod
    def concatenate(
        cls,
        tables: Sequence[PredictionTable],
        *,
        sort_by: Sequence[str] = ("repeat", "index"),
        folder: Path | None = None,
    ) -> PredictionTable:
        """Join tables by the columns that all of them have, with rows of one shape.

        Args:
            tables: At least one table.
            sort_by: Columns by which rows are sorted, the first one first.
            folder: Where columns lie that are too large for memory; None for that of temporary
                files.
        """
        names = names_of([table.columns for table in tables])
        keys = [np.concatenate([table[name] for table in tables]) for name in sort_by[::-1]]
        order = np.lexsort(keys)
        found = {name: join([table[name] for table in tables], order, folder) for name in names}
        return cls(found, task=tables[0].task)

    def mean(self) -> PredictionTable:
        """Average the rows of each sample, sorted by index.

        Probabilities and values are averaged, as `Task.average` does; of ``target`` there is the
        first. Other columns that are not floating point have no mean and are left out.
        """
        _, first, where, counts = np.unique(
            self.index, return_index=True, return_inverse=True, return_counts=True
        )
        found = {name: self[name][first] for name in ("index", "target") if self.has(name)}
        for name, column in self.columns.items():
            if name in found or isinstance(column, Ragged) or column.dtype.kind != "f":
                continue
            sums = np.zeros((len(first), *column.shape[1:]))
            np.add.at(sums, where, column)
            found[name] = sums / counts.reshape(-1, *(1,) * (sums.ndim - 1))
        return PredictionTable(found, task=self.task)

    def of_task(self) -> type[Task]:
        """Return the task of the predictions.

        Raises:
            ValueError: It is not clear; see `find_task`.
        """
        if self.has("target", "prediction"):
            return find_task(self.target, self.prediction, self.task)
        known = task_names()
        if self.task not in known:
            raise ValueError(
                "the predictions are of no known task, and there is not one array of targets and "
                f"one of predictions; there are the columns {', '.join(self.columns)}."
            )
        return known[self.task]

    def worst(self, count: int = 20) -> PredictionTable:
        """Return the rows with the largest loss, the worst first.

        The column ``loss`` is that of each row: the cross-entropy of classes, 1 for a wrong class
        without probabilities, the squared error of values, 1 - IoU of masks, and of boxes the
        number of errors. Each sample is returned once: if several repeats have predicted it, by its
        worst row.

        Args:
            count: Number of rows.

        Raises:
            ValueError: The task has no loss of each row, or is not known.
        """
        check_range("count", count, 1)
        losses = self.of_task().sample_losses(self)
        if losses is None:
            raise ValueError(
                f"predictions of the task {self.task!r} have no loss of each sample; define "
                "sample_losses(table) in the task."
            )
        order = np.argsort(-np.where(np.isnan(losses), -np.inf, losses), kind="stable")
        order = order[~np.isnan(losses[order])]
        _, first = np.unique(self.index[order], return_index=True)
        rows = order[np.sort(first)[:count]]
        found: PredictionTable = self[rows].with_columns(loss=losses[rows])
        return found

    def score(self) -> dict[str, float]:
        """Compute the task's metrics over all rows at once.

        Raises:
            ValueError: As for `of_task`.
        """
        return self.of_task().score(self)

    def flat(self, class_names: Sequence[str] | None = None) -> dict[str, Array]:
        """Return columns of one number a row: repeat, fold, index, and those of the task.

        Ragged columns and those of more than 1,000 numbers a row are left out. The others follow,
        as ``std_0``, ``std_1``, ….

        Args:
            class_names: Names of the classes 0 … C-1.
        """
        narrow = {
            name: column
            for name, column in self.columns.items()
            if isinstance(column, np.ndarray) and column[:1].size <= WIDE
        }
        found = {name: narrow.pop(name) for name in PLACE if name in narrow}
        if {"target", "prediction"} <= {*narrow}:
            try:
                task = self.of_task()
            except ValueError:
                task = Task
            found |= task.columns(narrow.pop("target"), narrow.pop("prediction"), class_names)
        for name, column in narrow.items():
            found |= _numbered(name, column)
        return found

    def to_pandas(self, class_names: Sequence[str] | None = None) -> Any:
        """Return the columns of `flat` as a `pandas.DataFrame`.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return data_frame(self.flat(class_names))

    def to_csv(self, path: str | PathLike[str], class_names: Sequence[str] | None = None) -> None:
        """Write the columns of `flat` as CSV, whole or not at all, some rows at a time.

        Args:
            path: The file; ``.gz`` compresses it.
            class_names: Names of the classes 0 … C-1.
        """
        with atomic_write(path) as part:
            for start in range(0, max(1, len(self)), CSV_ROWS):
                frame = self[start : start + CSV_ROWS].to_pandas(class_names)
                frame.to_csv(part, mode="a", header=not start, index=False)

    def write(self, path: Path) -> PredictionTable:
        """Write an ``.npz`` file, whole or not at all, which `np.load` reads without pickle.

        Returns:
            The table; columns that were on disk are now those of the file.
        """
        write_columns(path, self.columns)
        if any(map(is_mapped, self.columns.values())):
            return self.read(path, "write it again", self.task)
        return self

    @classmethod
    def read(cls, path: Path, cure: str, task: str | None = None) -> PredictionTable:
        """Read what `write` has written; errors name file and `cure`."""
        table = cls(read_columns(path, cure), task=task)
        if any(map(is_mapped, table.columns.values())):
            table._path = path
        return table


def _table(columns: Mapping[str, Column], task: str | None) -> PredictionTable:
    return PredictionTable(columns, task=task)


def data_frame(data: Any) -> Any:
    """Make a `pandas.DataFrame` of columns or rows."""
    try:
        pandas = importlib.import_module("pandas")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "to_pandas needs pandas, which dlblocks does not install: pip install pandas."
        ) from error
    return pandas.DataFrame(data)


def _numbered(name: str, column: Array) -> dict[str, Array]:
    """Return the numbers of each row as columns, such as ``target_0``, ``target_1``."""
    values = column.reshape(len(column), -1).T
    names = [f"{name}_{i}" for i in range(len(values))] if len(values) > 1 else [name]
    return dict(zip(names, values, strict=True))


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
    no_export: str = ""
    """Why its models cannot be exported, and the cure; "" if they can."""
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
        return _numbered("target", target) | _numbered("prediction", prediction)

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
        return _numbered("prediction", prediction)

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


class Predictions(PredictionTable):
    """Predictions with what figures need of the data.

    Args:
        table: The predictions.
        class_names: Names of the classes, as far as they are known.
        inputs: Gives the raw inputs of rows, or None where they are not arrays in memory.
        input_shape: The shape of one input.
        repeats: How often each sample is among them.
    """

    def __init__(
        self,
        table: PredictionTable,
        *,
        class_names: Sequence[str] = (),
        inputs: Callable[[Array], Array] | None = None,
        input_shape: tuple[int, ...] = (),
        repeats: int = 1,
    ) -> None:
        super().__init__(table.columns, task=table.task)
        self.class_names, self.repeats = class_names, repeats
        self.inputs, self.input_shape = inputs, input_shape

    def images(self) -> Array:
        """Return the raw images of all rows, shape (N, C, H, W)."""
        assert self.inputs is not None  # for the type checker
        return self.inputs(self.index)

    def captions(self) -> list[str]:
        """Describe each row by its sample and its loss."""
        losses = [f"loss {value:.3g}\n" for value in self["loss"]] if self.has("loss") else ()
        said = [f"sample {i}" for i in self.index.tolist()]
        return [f"{loss}{one}" for loss, one in zip(losses, said, strict=True)] if losses else said


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
