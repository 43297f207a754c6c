"""One of several models that are fitted together: everything of it that is its own."""

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

    What is the member's own is here: its data, its counts, its metrics and whether it is to stop.
    Everything else is the Trainer's that fits all members.
    """

    def __init__(self, trainer: pl.Trainer, member: Member, settings: Mapping[str, Any]) -> None:
        self._trainer = trainer
        # What the one Trainer must not do itself, because it is each member's own.
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
        """The first of the member's loggers."""
        return self.loggers[0] if self.loggers else None

    @property
    def estimated_stepping_batches(self) -> int:
        """Optimizer steps of the whole fit, unless it stops early."""
        return -(-self.num_training_batches // self.accumulate_grad_batches) * self.max_epochs


@dataclass
class Best:
    """The weights of the best epoch.

    Attributes:
        epoch: The epoch, from 0.
        step: Optimizer steps until then.
        value: The monitored metric.
        state: Parameters and buffers; None for those that the model has at the end.
        metrics: The score of these weights, or what was logged of the epoch.
    """

    epoch: int
    step: int
    value: float
    state: dict[str, Tensor] | None
    metrics: dict[str, float]


@dataclass
class Member:
    """A model to be fitted together with others, and what is its own.

    Attributes:
        name: What messages call it, such as ``"fold 2"``.
        model: The model, new.
        datamodule: Its data, set to its own training and validation part.
        callbacks: Its callbacks: early stopping, and changes of batches.
        loggers: Its loggers.
        seed: Its seed.
        history: One row an epoch.
        best: The best epoch so far.
        epochs: Epochs run.
        error: What stopped it, if it failed.
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
        """Gives model, datamodule and callbacks their Trainer, and sets them up."""
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
        """Has the model make its optimizer and schedules, as a Trainer would."""
        optimizers, schedules = _unpacked(self.model.configure_optimizers())
        if len(optimizers) != 1 or isinstance(optimizers[0], torch.optim.LBFGS):
            found = (
                ", ".join(type(optimizer).__name__ for optimizer in optimizers) or "no optimizer"
            )
            raise NotVectorizable(
                f"the model trains by {found}, and models fitted together need one optimizer that "
                "takes a gradient at a time"
            )
        self.optimizer = optimizers[0]
        self.schedules = [{**SCHEDULE, **_as_dict(schedule)} for schedule in schedules]

    def plateau_monitors(self) -> list[str | None]:
        """Names of the metrics that plateau schedules monitor."""
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
        return [s["monitor"] for s in self.schedules if isinstance(s["scheduler"], plateau)]

    def step_schedules(self, interval: str, *, plateau: bool, count: int) -> None:
        """Steps the learning-rate schedules of one kind, as a Trainer would."""
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
                    f"logged; logged are {known}."
                )

    def log_to(self, loggers: Sequence[Logger]) -> None:
        """Sets the member's loggers, before the fit."""
        self.loggers = self.trainer.loggers = list(loggers)

    def begin(self) -> None:
        """Logs what the fit is, and begins it for the callbacks."""
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
        """Sends a picture of the first batch to loggers that can show it."""
        trainer: Any = self.trainer
        tracking.LogFirstBatch().on_train_batch_start(trainer, self.model, batch, 0)

    def log(self, metrics: Mapping[str, Tensor], *, selected: bool = False) -> None:
        """Logs what an epoch has found, as a Trainer would at its end.

        Args:
            metrics: What it has found.
            selected: Whether these are metrics of the selection part.
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
        """Calls a hook of the callbacks."""
        trainer: Any = self.trainer
        for callback in self.callbacks:
            getattr(callback, hook)(trainer, self.model)

    def state(self) -> dict[str, Any]:
        """All of the member that a later process needs to go on with it, as plain values."""
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
        """Restores what `state` returned."""
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
        """Empties the member's CSV logs."""
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
        """Keeps the weights if the epoch is the best so far.

        Args:
            metrics: All that was logged of it.
            monitor: Which of them is looked at.
            mode: Whether ``"min"`` or ``"max"`` of it is best.
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
        assert self.best is not None  # for the type checker: every member that is scored has one
        self.best.metrics = {name: float(value) for name, value in scores.items()}
        row = {**self.best.metrics, "epoch": self.epochs}
        for logger in self.loggers:
            logger.log_metrics(dict(row), step=self.steps)
            logger.save()

    def restore_best(self) -> None:
        """Gives the model the weights of its best epoch, in memory of its own."""
        self.detach_from_stack()
        if self.best is not None and self.best.state is not None:
            self.model.load_state_dict(self.best.state)

    def detach_from_stack(self) -> None:
        """Gives the model's parameters and buffers memory of their own."""
        for p in self.model.parameters():
            p.data, p.grad = p.data.clone(), None
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.clone()

    def detach(self) -> None:
        """Ends what `attach` began."""
        trainer: Any = self.trainer
        for callback in self.callbacks:
            callback.teardown(trainer, self.model, "fit")
        self.model.trainer = None
        self.datamodule.trainer = None


SCHEDULE = {"interval": "epoch", "frequency": 1, "monitor": None, "strict": True}


def _as_dict(schedule: Any) -> dict[str, Any]:
    return schedule if isinstance(schedule, dict) else {"scheduler": schedule}


def _unpacked(found: Any) -> tuple[list[Optimizer], list[Any]]:
    """Optimizers and schedules from what `configure_optimizers` may return."""
    if isinstance(found, Optimizer):
        return [found], []
    if isinstance(found, dict):
        schedules = [found["lr_scheduler"]] if "lr_scheduler" in found else []
        return [found["optimizer"]], schedules
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
