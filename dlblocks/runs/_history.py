"""The metrics that a fit logs, epoch by epoch."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torchmetrics import Metric

from dlblocks._lightning import intercept_metrics, send_metrics

_WORD = r"(?:val|valid|validation|dev|eval)"
VALIDATION = re.compile(rf"{_WORD}(?=[/_.-])|(?:.*(?<=[/_.-])){_WORD}$", re.IGNORECASE)
MOST = 1000  # entries of a list or tensor that is compared
OF_EPOCH = ("epoch", "step")  # logged by Lightning beside the metrics


def name_of_selection(name: str) -> str:
    """Rename a validation metric that the selection part gave.

    Example:
        >>> [name_of_selection(name) for name in ("val/loss", "acc_valid", "auroc")]
        ['selection/loss', 'acc_selection', 'selection/auroc']
    """
    for pattern in (rf"^{_WORD}(?=[/_.-])", rf"(?<=[/_.-]){_WORD}$"):
        renamed, found = re.subn(pattern, "selection", name, flags=re.IGNORECASE)
        if found:
            return renamed
    return f"selection/{name}"


class History(Logger):
    """A logger that keeps one row an epoch in memory.

    A row is ``{"epoch": 0, "val/loss": …, …}``.

    A key logged several times in an epoch keeps its last value. A callback would see the validation
    metrics of this epoch beside the training metrics of the one before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    @property
    def name(self) -> str:
        return "history"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        epoch = metrics.get("epoch")
        if epoch is None:
            return
        if not self.rows or self.rows[-1]["epoch"] != int(epoch):
            self.rows.append({"epoch": int(epoch)})
        self.rows[-1].update({k: float(v) for k, v in metrics.items() if k != "epoch"})


def record(trainer: pl.Trainer, history: History, *, validated_on: str | None) -> None:
    """Record in `history` what `trainer` logs.

    `history` is not one of the Trainer's loggers, so that `self.logger` is the user's alone.
    Metrics that are computed on the selection part are logged under its name, here and in the
    user's logger.

    Args:
        trainer: A Trainer before its fit.
        history: Gets the rows.
        validated_on: The part on which the fit validates.
    """
    log = send_metrics(trainer)

    def log_metrics(metrics: Mapping[str, Any], step: int | None = None) -> None:
        if validated_on == "selection":
            # Whatever is called a validation metric is of that part, also at the epoch's end.
            metrics = {
                name_of_selection(name)
                if name not in OF_EPOCH and (trainer.validating or VALIDATION.match(name))
                else name: value
                for name, value in metrics.items()
            }
        if metrics and "step" not in metrics and step is None:
            history.log_metrics({"epoch": trainer.current_epoch, **metrics})
        log(metrics, step)

    intercept_metrics(trainer, log_metrics)


def stop_recording(trainer: pl.Trainer) -> None:
    """Stop what `record` began."""
    intercept_metrics(trainer, None)


class KeepHistory(Callback):
    """Keep the rows of a `History` in every checkpoint."""

    def __init__(self, history: History) -> None:
        self.history = history

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.history.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history.rows[:] = [dict(row) for row in state_dict["rows"]]


class ValidationMemory(Callback):
    """Remember the attributes that validations change, and restore them.

    A module may keep the best score so far, in an attribute or a `MaxMetric`, and log it. What it
    has seen on the part that selects the epoch must not be in the score of another part. What
    training has changed stays.
    """

    def __init__(self) -> None:
        self._first: dict[str, Any] = {}  # values before the first validation that changed them
        self._new: set[str] = set()  # attributes that only a validation has made
        self._before: dict[str, Any] | None = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before = _plain_attributes(pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self._compare(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._compare(pl_module)

    def _compare(self, module: pl.LightningModule) -> None:
        """Compare at the first hook after a validation."""
        before, self._before = self._before, None
        if before is None:
            return
        for name, value in _plain_attributes(module).items():
            if name not in before:
                self._new.add(name)
            elif name not in self._new and not _equal(before[name], value):
                self._first.setdefault(name, before[name])

    def forget(self, module: pl.LightningModule) -> None:
        """Restore the attributes, and reset the metrics."""
        self._compare(module)
        for part in module.modules():
            if isinstance(part, Metric):
                part.reset()
        vars(module).update(copy.deepcopy(self._first))
        for name in self._new:
            vars(module).pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "new": sorted(self._new)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first, self._new = dict(state_dict["first"]), set(state_dict["new"])


def _plain_attributes(module: pl.LightningModule) -> dict[str, Any]:
    """Copy the plain attributes of a module, not those of its parts."""
    return {
        name: copy.deepcopy(value)
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= MOST and all(map(_is_plain, value))
    if isinstance(value, dict):
        return len(value) <= MOST and all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, Tensor):
        return value.numel() <= MOST and not value.requires_grad and value.grad_fn is None
    return value is None or isinstance(value, (bool, int, float, str))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool((one == other).all())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)
