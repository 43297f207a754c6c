"""What was logged, epoch by epoch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

_WORD = r"(?:val|valid|validation|dev|eval)"
VALIDATION = re.compile(rf"{_WORD}(?=[/_.-])|(?:.*(?<=[/_.-])){_WORD}$", re.IGNORECASE)
OF_EPOCH = ("epoch", "step")  # what Lightning logs beside the metrics


def name_of_selection(name: str) -> str:
    """The name of a validation metric that was computed on the selection part.

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
    """A logger that keeps one row an epoch in memory: ``{"epoch": 0, "val/loss": …, …}``.

    A key logged several times in an epoch keeps its last value. It holds what was logged, when it
    was logged, by any LightningModule. A callback would see the validation metrics of this epoch
    beside the training metrics of the one before.
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
    """Keeps in `history` what `trainer` logs, without being one of its loggers.

    So the module's `self.logger` is the user's alone. Metrics that are computed on the selection
    part are logged under its name, here and in the user's logger.

    Args:
        trainer: A Trainer that has not begun.
        history: Gets the rows.
        validated_on: The part on which the fit validates.
    """
    connector: Any = trainer._logger_connector
    log = connector.log_metrics

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

    connector.log_metrics = log_metrics


def stop_recording(trainer: pl.Trainer) -> None:
    """Ends what `record` began."""
    vars(trainer._logger_connector).pop("log_metrics", None)


class KeepHistory(Callback):
    """Keeps the rows of a `History` in every checkpoint, so that a resumed fit has them all."""

    def __init__(self, history: History) -> None:
        self.history = history

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.history.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history.rows[:] = [dict(row) for row in state_dict["rows"]]
