"""One model of a stacked fit, with its data, schedules and counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.optim import Optimizer

from dlblocks import tracking
from dlblocks._errors import did_you_mean
from dlblocks.data import DataModule
from dlblocks.engine._support import NotVectorizable
from dlblocks.models.model import Model
from dlblocks.runs._history import History, name_of_selection
from dlblocks.tracking._csv import csv_writers


class MemberTrainer:
    """The Trainer as one member's model, datamodule and callbacks see it.

    Data, counts, metrics and `should_stop` are the member's own. Every other attribute is that of
    the Trainer that fits all members.
    """

    def __init__(self, trainer: pl.Trainer, member: Member, settings: Mapping[str, Any]) -> None:
        self._trainer = trainer
        # Settings that the shared Trainer must not apply, because each member applies its own.
        self.limit_train_batches = settings.get("limit_train_batches") or 1.0
        self.limit_val_batches = settings.get("limit_val_batches") or 1.0
        self.check_val_every_n_epoch = settings.get("check_val_every_n_epoch") or 1
        if member.datamodule.validate_on is None:
            self.check_val_every_n_epoch = 1  # early stopping looks at the end of every epoch
        self.gradient_clip_val = settings.get("gradient_clip_val")
        self.accumulate_grad_batches = settings.get("accumulate_grad_batches") or 1
        self.datamodule = member.datamodule
        self.lightning_module = member.model
        self.callbacks = member.callbacks
        self.loggers = member.loggers
        self.num_training_batches = 0
        self.max_epochs = int(trainer.max_epochs or 0)
        self.current_epoch = 0
        self.global_step = 0
        self.should_stop = False
        self.training = True
        self.callback_metrics: dict[str, Tensor] = {}
        self.fit_loop = SimpleNamespace(total_batch_idx=-1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    @property
    def logger(self) -> Logger | None:
        """The first of the member's loggers, or None."""
        return self.loggers[0] if self.loggers else None

    @property
    def estimated_stepping_batches(self) -> int:
        """Number of optimizer steps of the whole fit, unless it stops early."""
        return -(-self.num_training_batches // self.accumulate_grad_batches) * self.max_epochs


@dataclass
class Best:
    """The weights of the best epoch.

    Attributes:
        epoch: The epoch, from 0.
        step: Optimizer steps until then.
        value: The monitored metric.
        state: Parameters and buffers; None to keep the model's weights at the end of the fit.
        metrics: Metrics of these weights, or those that the epoch logged.
    """

    epoch: int
    step: int
    value: float
    state: dict[str, Tensor] | None
    metrics: dict[str, float]


@dataclass
class Member:
    """One of the models of a stacked fit.

    Attributes:
        name: Its name in messages, such as ``"fold 2"``.
        model: The untrained model.
        datamodule: Its data, set to its own training and validation part.
        callbacks: Its callbacks: early stopping, and changes of batches.
        loggers: Its loggers.
        seed: Its seed.
        history: One row per epoch.
        best: The best epoch so far.
        epochs: Epochs run.
        error: The error that stopped it, or None.
    """

    name: str
    model: Model
    datamodule: DataModule
    callbacks: Sequence[Callback] = ()
    loggers: Sequence[Logger] = ()
    seed: int = 0
    history: History = field(default_factory=History)
    best: Best | None = None
    epochs: int = 0
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.steps = 0
        self.active = True
        self.trainer: MemberTrainer
        self.optimizer: Optimizer
        self.schedules: list[dict[str, Any]] = []

    def curve(self, metric: str) -> list[float]:
        """The values of a logged metric, one an epoch."""
        return [row[metric] for row in self.history.rows if metric in row]

    def attach(self, trainer: pl.Trainer, settings: Mapping[str, Any]) -> None:
        """Set up model, datamodule and callbacks, with a `MemberTrainer`."""
        own: Any = MemberTrainer(trainer, self, settings)
        self.trainer = own
        self.model.trainer = own
        self.datamodule.trainer = own
        self.datamodule.setup("fit")
        for callback in self.callbacks:
            callback.setup(own, self.model, "fit")
        self.model.setup("fit")
        self.model.on_train_start()  # which puts what is frozen into evaluation mode

    def make_optimizer(self) -> None:
        """Create the model's optimizer and schedules, as a Trainer would."""
        optimizers, schedules = optimizers_of(self.model)
        if len(optimizers) != 1 or isinstance(optimizers[0], torch.optim.LBFGS):
            found = (
                ", ".join(type(optimizer).__name__ for optimizer in optimizers) or "no optimizer"
            )
            raise NotVectorizable(
                f"the model trains with {found}; models fitted together need a single optimizer, "
                "and one that computes a gradient once per step"
            )
        self.optimizer = optimizers[0]
        self.schedules = schedules

    def plateau_monitors(self) -> list[str | None]:
        """Return the names of the metrics that plateau schedules monitor."""
        return plateau_monitors(self.schedules)

    def step_schedules(self, interval: str, *, plateau: bool, count: int) -> None:
        """Step the learning-rate schedules of one kind, as a Trainer would."""
        for schedule in self.schedules:
            scheduler = schedule["scheduler"]
            monitored = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            if schedule["interval"] != interval or monitored != plateau:
                continue
            if count % schedule["frequency"]:
                continue
            if not monitored:
                scheduler.step()
                continue
            value = self.trainer.callback_metrics.get(schedule["monitor"])
            if value is not None:
                scheduler.step(value)
            elif schedule["strict"]:
                known = ", ".join(sorted(self.trainer.callback_metrics))
                raise ValueError(
                    f"the learning-rate schedule monitors {schedule['monitor']!r}, which was not "
                    f"logged; monitor one of {known}."
                )

    def log_to(self, loggers: Sequence[Logger]) -> None:
        """Set the member's loggers, before the fit."""
        self.loggers = self.trainer.loggers = list(loggers)

    def begin(self) -> None:
        """Log the settings of the fit, and call `on_train_start` of the callbacks."""
        trainer: Any = self.trainer
        if self.loggers:
            settings = {
                **self.model.hparams_initial,
                **self.datamodule.hparams_initial,
                "trainer": tracking.trainer_settings(trainer),
                "versions": tracking.versions(),
            }
            for logger in self.loggers:
                logger.log_hyperparams(settings)
        self.call("on_train_start")

    def show(self, batch: list[Tensor]) -> None:
        """Log a picture of the first batch, where a logger supports pictures."""
        trainer: Any = self.trainer
        tracking.LogFirstBatch().on_train_batch_start(trainer, self.model, batch, 0)

    def log(self, metrics: Mapping[str, Tensor], *, selected: bool = False) -> None:
        """Log an epoch's metrics, as a Trainer would at its end.

        Args:
            metrics: Metrics by name.
            selected: True for metrics of the selection part.
        """
        values = {
            name_of_selection(name) if selected else name: float(value)
            for name, value in metrics.items()
        }
        row = {**values, "epoch": self.trainer.current_epoch}
        for logger in (self.history, *self.loggers):
            logger.log_metrics(dict(row), step=self.steps - 1)
            logger.save()
        self.trainer.callback_metrics.update(metrics)

    def call(self, hook: str) -> None:
        """Call a hook of the callbacks."""
        trainer: Any = self.trainer
        for callback in self.callbacks:
            getattr(callback, hook)(trainer, self.model)

    def state(self) -> dict[str, Any]:
        """Return what a later process needs to resume, as plain values."""
        for logger in self.loggers:
            logger.save()
        trainer: Any = self.trainer
        best = None if self.best is None else vars(self.best)
        return {
            "name": self.name,
            "active": self.active,
            "steps": self.steps,
            "epochs": self.epochs,
            "error": None if self.error is None else str(self.error),
            "model": self.model.state_dict(),
            "best": best,
            "history": self.history.rows,
            "callbacks": [callback.state_dict() for callback in self.callbacks],
            "schedules": [schedule["scheduler"].state_dict() for schedule in self.schedules],
            "csv_rows": [writer.rows for writer in csv_writers(trainer)],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore a `state`."""
        trainer: Any = self.trainer
        self.active, self.steps, self.epochs = state["active"], state["steps"], state["epochs"]
        self.trainer.global_step = self.steps
        self.error = None if state["error"] is None else RuntimeError(state["error"])
        self.model.load_state_dict(state["model"])
        self.best = None if state["best"] is None else Best(**state["best"])
        self.history.rows[:] = state["history"]
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(saved)
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule["scheduler"].load_state_dict(saved)
        for writer, rows in zip(csv_writers(trainer), state["csv_rows"], strict=False):
            writer.keep(rows)

    def forget_rows(self) -> None:
        """Empty the member's CSV logs."""
        trainer: Any = self.trainer
        for writer in csv_writers(trainer):
            writer.keep(0)

    def keep_best(
        self,
        metrics: Mapping[str, Tensor],
        monitor: str,
        mode: str,
        copy_state: Callable[[], dict[str, Tensor]],
    ) -> None:
        """Keep the weights if the epoch is the best so far.

        Args:
            metrics: All metrics of the epoch.
            monitor: Name of the metric that decides.
            mode: ``"min"`` or ``"max"``: which value of it is best.
            copy_state: Returns a copy of parameters and buffers.

        Raises:
            ValueError: `monitor` was not logged.
        """
        values = {name: float(value) for name, value in metrics.items()}
        if monitor not in values:
            hint = did_you_mean(monitor, values) or "."
            raise ValueError(
                f"monitor={monitor!r} was not logged by {type(self.model).__name__}{hint} "
                f"Logged are {', '.join(sorted(values))}."
            )
        value, worst = values[monitor], math.inf if mode == "min" else -math.inf
        value = worst if math.isnan(value) else value
        before = None if self.best is None else self.best.value
        if before is None or (value < before if mode == "min" else value > before):
            kept = {name: v for name, v in values.items() if name.startswith("val/")}
            self.best = Best(self.trainer.current_epoch, self.steps, value, copy_state(), kept)

    def keep_last(self) -> None:
        """Keep the weights that the model has now."""
        self.best = Best(self.trainer.current_epoch, self.steps, math.nan, None, {})

    def keep_score(self, scores: Mapping[str, Tensor]) -> None:
        """Keep and log the metrics of the kept weights."""
        assert self.best is not None  # for the type checker: every scored member has one
        self.best.metrics = {name: float(value) for name, value in scores.items()}
        row = {**self.best.metrics, "epoch": self.epochs}
        for logger in self.loggers:
            logger.log_metrics(dict(row), step=self.steps)
            logger.save()

    def restore_best(self) -> None:
        """Load the best epoch's weights, in memory of the model's own."""
        self.detach_from_stack()
        if self.best is not None and self.best.state is not None:
            self.model.load_state_dict(self.best.state)

    def detach_from_stack(self) -> None:
        """Give the model's parameters and buffers memory of their own."""
        for p in self.model.parameters():
            p.data, p.grad = p.data.clone(), None
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.clone()

    def detach(self) -> None:
        """Undo `attach`."""
        trainer: Any = self.trainer
        for callback in self.callbacks:
            callback.teardown(trainer, self.model, "fit")
        self.model.trainer = None
        self.datamodule.trainer = None


SCHEDULE = {"interval": "epoch", "frequency": 1, "monitor": None, "strict": True}


def optimizers_of(model: pl.LightningModule) -> tuple[list[Optimizer], list[dict[str, Any]]]:
    """Return a model's optimizers, and its schedules with all their settings."""
    optimizers, schedules = _unpacked(model.configure_optimizers())
    return optimizers, [{**SCHEDULE, **_as_dict(schedule)} for schedule in schedules]


def plateau_monitors(schedules: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """Return the names of the metrics that plateau schedules monitor."""
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    return [s["monitor"] for s in schedules if isinstance(s["scheduler"], plateau)]


def _as_dict(schedule: Any) -> dict[str, Any]:
    return schedule if isinstance(schedule, dict) else {"scheduler": schedule}


def _unpacked(found: Any) -> tuple[list[Optimizer], list[Any]]:
    """Split what `configure_optimizers` returned into optimizers and schedules."""
    if isinstance(found, Optimizer):
        return [found], []
    if isinstance(found, dict):
        schedules = [_as_dict(found["lr_scheduler"])] if "lr_scheduler" in found else []
        monitor = {"monitor": found.get("monitor")}  # Lightning takes it in both places
        return [found["optimizer"]], [{**monitor, **schedule} for schedule in schedules]
    if isinstance(found, (list, tuple)):
        if len(found) == 2 and isinstance(found[0], (list, tuple)):
            schedules = found[1]
            return list(found[0]), list(schedules if isinstance(schedules, list) else [schedules])
        if all(isinstance(part, Optimizer) for part in found):
            return list(found), []
        if all(isinstance(part, dict) for part in found):
            parts = [_unpacked(part) for part in found]
            return [o for p, _ in parts for o in p], [s for _, p in parts for s in p]
    return [], []
