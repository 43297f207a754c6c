"""Configure the fits of a cross-validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dlblocks._errors import check_choice, check_range
from dlblocks.data import SplitDataModule
from dlblocks.metrics import Range
from dlblocks.runs._run_config import FitSpec, RunConfig
from dlblocks.runs.fit import CHECKPOINTS, Select
from dlblocks.tasks import Task, task_names


@dataclass(frozen=True)
class FoldSpec(FitSpec):
    """The number, name and folder of a fold."""

    repeat: int
    fold: int

    @classmethod
    def of(cls, row: Mapping[str, Any], num_folds: int) -> FoldSpec:
        """Return the spec of a row of a run."""
        return cls(row["repeat"] * num_folds + row["fold"], row["repeat"], row["fold"])

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

    def __post_init__(self) -> None:
        if self.task is not None:
            check_choice("task", self.task, sorted(task_names()))
        if self.select == "inner":
            check_range(
                "selection_fraction", self.selection_fraction, 0, 1, low_open=True, high_open=True
            )
        else:
            self.selection_fraction = 0.0

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
