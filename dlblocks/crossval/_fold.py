"""Configure the folds, and join their out-of-fold predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dlblocks._errors import check_choice
from dlblocks.data import SplitDataModule
from dlblocks.metrics import Range
from dlblocks.runs._fits import FitResult, FitSpec, RunConfig
from dlblocks.runs.fit import CHECKPOINTS, Select
from dlblocks.tasks import Task, find_task, task_names


@dataclass(frozen=True)
class FoldSpec(FitSpec):
    """The number, name and folder of a fold."""

    repeat: int
    fold: int

    @property
    def place(self) -> dict[str, int]:
        return {"repeat": self.repeat, "fold": self.fold}

    @property
    def name(self) -> str:
        """``"fold 2"``, or ``"repeat 1, fold 2"`` after the first repeat."""
        return f"repeat {self.repeat}, fold {self.fold}" if self.repeat else f"fold {self.fold}"

    @property
    def folder(self) -> str:
        return fold_folder(self.place)


def fold_folder(row: Mapping[str, Any]) -> str:
    """Return ``fold-0``, or ``repeat-1/fold-0`` after the first repeat."""
    name = f"fold-{row['fold']}"
    return f"repeat-{row['repeat']}/{name}" if row["repeat"] else name


@dataclass
class FoldConfig(RunConfig):
    """Configuration that all folds share, by `cross_validate`."""

    select: Select = "inner"
    selection_fraction: float = 0.15
    num_folds: int = 0
    loss_range: Range = (None, None)  # of the models
    task: str | None = None  # its name, by the user or by the models
    kind = "fold"
    part = "val"
    predictions_file = "oof.npz"

    @property
    def checkpoint_name(self) -> str:
        return f"{CHECKPOINTS[self.select != 'last']}.ckpt"

    def settings(self) -> dict[str, Any]:
        """Arguments that decide what the fits are, as plain values."""
        names = ["trainer", "monitor", "mode", "seed", "select"]
        if self.select == "inner":
            names.append("selection_fraction")
        return {name: getattr(self, name) for name in names}

    def know(self, model: Any) -> None:
        """Take from a model what figures and tables need."""
        self.loss_range = getattr(model, "loss_range", self.loss_range)
        own = getattr(model, "task", None)
        if isinstance(own, Task):
            if self.task not in (None, own.name):
                raise ValueError(
                    f"task={self.task!r}, but {type(model).__name__} has the task {own.name!r}; "
                    "leave task out, which is for modules that are not of dlblocks.models."
                )
            self.task = own.name

    def about(self, spec: FitSpec) -> dict[str, Any]:
        return {**super().about(spec), "num_folds": self.num_folds}

    def data_of(self, data: SplitDataModule, spec: FoldSpec) -> SplitDataModule:
        """Return new data for a fit, with its selection part."""
        new = data.for_fold(spec.fold, self.num_folds, repeat=spec.repeat)
        if self.select == "inner":
            return new.with_selection(self.selection_fraction)
        new.validate_on = "val" if self.select == "fold" else None
        return new

    def sizes(self, datamodule: SplitDataModule) -> dict[str, Any]:
        name, has_selection = datamodule.fold_name(), "selection" in datamodule.parts
        return {
            **({} if name is None else {"group": name}),
            "num_train": len(datamodule.indices("train")),
            "num_selection": len(datamodule.indices("selection")) if has_selection else 0,
            "num_val": _count_scored(datamodule, self.trainer),
        }


@dataclass
class OutOfFold:
    """Predictions of development samples that the model has not seen.

    The model of the fold that did not train on a sample predicts it. Rows are sorted by (repeat,
    index).

    Attributes:
        index: The sample's row in its data set, int64 of shape (M,).
        target: Its target, shape (M,) or (M, D).
        prediction: Probabilities (M, C) for classes; values of the target's shape otherwise. Those
            of somebody else's model are as it gives them.
        fold: The fold that predicted it, int64 of shape (M,).
        repeat: The repeat, int64 of shape (M,).
        task: Name of the task, if it is known.
    """

    index: npt.NDArray[np.int64]
    target: npt.NDArray[Any]
    prediction: npt.NDArray[np.floating]
    fold: npt.NDArray[np.int64]
    repeat: npt.NDArray[np.int64]
    task: str | None = None

    def __len__(self) -> int:
        return len(self.index)

    def difference(self, other: OutOfFold) -> str:
        """Describe the first difference from the folds of `other`, or return ``""``."""
        if len(self) != len(other):
            return f"there are {len(self)} out-of-fold predictions here and {len(other)} there"
        if self.target.shape != other.target.shape:
            return f"targets have shape {self.target.shape} here and {other.target.shape} there"
        for name in ("repeat", "index", "fold", "target"):
            mine, theirs = getattr(self, name), getattr(other, name)
            same = (mine == theirs).reshape(len(mine), -1).all(1)
            if not same.all():
                at = int(np.argmin(same))
                return (
                    f"{name} differs in {int((~same).sum())} of {len(mine)} rows, first for sample "
                    f"{self.index[at]} in repeat {self.repeat[at]}: {mine[at]} here and "
                    f"{theirs[at]} there"
                )
        return ""

    def correct(self) -> npt.NDArray[np.floating] | None:
        """Compute the share of right predictions of each sample's class.

        Returns:
            Share of the repeats, one value a sample, in the order of `index`, shape (N,). None if
            the predictions are not classes or scores of them.
        """
        task = self._task()
        right = None if task is None else task.right(self.target, self.prediction)
        if right is None:
            return None
        _, sample, counts = np.unique(self.index, return_inverse=True, return_counts=True)
        return np.bincount(sample, weights=right) / counts

    def columns(self, class_names: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
        """Make the columns of ``to_pandas("oof")``, one row a prediction.

        Args:
            class_names: Names of the classes 0 … C-1.
        """
        columns = {"repeat": self.repeat, "fold": self.fold, "index": self.index}
        task = self._task() or Task
        return columns | task.columns(self.target, self.prediction, class_names)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays, as ``oof.npz`` has them."""
        names = ("index", "target", "prediction", "fold", "repeat")
        return {name: getattr(self, name) for name in names}

    def _task(self) -> type[Task] | None:
        """Return the task of the predictions, or None where it is not clear."""
        try:
            return find_task(self.target, self.prediction, self.task)
        except ValueError:
            return None


def check_task(task: str | None) -> str | None:
    """Return the name of a task.

    Raises:
        ValueError: There is no such task.
    """
    if task is not None:
        check_choice("task", task, sorted(task_names()))
    return task


def join(results: Sequence[FitResult], task: str | None = None) -> OutOfFold | None:
    """Join the predictions of all folds; None if a fold has none."""
    parts = [
        {
            **result.predicted,
            **{
                key: np.full(len(result.predicted["index"]), result.row[key])
                for key in ("fold", "repeat")
            },
        }
        for result in results
        if result.predicted is not None
    ]
    shapes = {(part["target"].shape[1:], part["prediction"].shape[1:]) for part in parts}
    if not parts or len(parts) < len(results) or len(shapes) > 1:
        return None
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((columns["index"], columns["repeat"]))
    return OutOfFold(**{name: values[order] for name, values in columns.items()}, task=task)


def _count_scored(datamodule: SplitDataModule, trainer: Mapping[str, Any]) -> int:
    """Count the validation samples within the Trainer's limits.

    Args:
        datamodule: Set to the fold.
        trainer: Arguments of the Trainer.
    """
    size = len(datamodule.indices("val"))
    limit = int(trainer.get("fast_dev_run") or 0) or trainer.get("limit_val_batches")
    if limit is None:
        return size
    ranks = getattr(datamodule.trainer, "world_size", 1)
    batch = max(size, 1) if datamodule.batch_size == "full" else datamodule.batch_size
    scored = 0
    for rank in range(ranks):
        mine = len(range(rank, size, ranks))
        batches = -(-mine // batch)
        allowed = int(batches * limit) if isinstance(limit, float) and limit <= 1 else int(limit)
        scored += min(mine, allowed * batch)
    return scored
