"""What was logged, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger


class History(Logger):
    """A logger that keeps one row an epoch in memory: ``{"epoch": 0, "val/loss": …, …}``.

    A key logged several times in an epoch keeps its last value. Being a logger, it holds just what
    was logged, when it was logged, by any LightningModule; a callback would see the validation
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


class KeepHistory(Callback):
    """Keeps the rows of a `History` in every checkpoint, so that a resumed fit has them all."""

    def __init__(self, history: History) -> None:
        self.history = history

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.history.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history.rows[:] = [dict(row) for row in state_dict["rows"]]
