"""Fit K models of one architecture with one Trainer.

Most of the time of a small net's fit goes into Python and into kernel launches. Here K fits share
both. Every step computes the losses and gradients of all K models in one batched call
(layer by layer, or by `torch.func.vmap`) and updates the models in another. Each model keeps its
own data, initialisation, order of the data, normalisation, batch-norm statistics, dropout, changes
of batches, gradient clipping, learning rate and schedule, choice of the best epoch and early
stopping.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from dlblocks import tracking
from dlblocks._errors import checked
from dlblocks._files import atomic_write, is_whole
from dlblocks._lightning import quick_gpu_check
from dlblocks.callbacks._resume import random_state, set_random_state
from dlblocks.engine._batched_metrics import BatchedMetrics
from dlblocks.engine._evaluate import limited, predict, score
from dlblocks.engine._probe import quiet_vmap, seconds_a_step, try_a_step
from dlblocks.engine._stacked_batches import BatchSource
from dlblocks.engine._stacked_models import StackedModels
from dlblocks.engine._stacked_optimizer import StackedOptimizer
from dlblocks.engine._support import NotVectorizable, check_vectorizable, naming
from dlblocks.engine.member import Member
from dlblocks.models._step_buffer import FLUSH_EVERY
from dlblocks.runs._trainer import check_needs_no_validation
from dlblocks.tasks import PredictionTable

# Steps that the Trainer runs as one batch, so that its own work is done once for all of them.
STEPS_AT_ONCE = 64
# Seconds between checkpoints: the most work that a killed fit loses.
SAVE_SECONDS = 10.0

HEEDED_HERE = {
    "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches",
    "check_val_every_n_epoch", "limit_train_batches", "limit_val_batches", "num_sanity_val_steps",
    "enable_model_summary",
}  # fmt: skip


class StackedFit(pl.LightningModule):
    """A LightningModule that fits all members together.

    The losses, weights and metrics of a member equal those of a fit of its own, within rounding.
    Only dropout differs, because all members share one generator. Afterwards each model holds the
    weights of its best epoch, chosen on the part that its `datamodule.validate_on` names. Where
    that is None, it holds those of its last epoch.

    The constructor tries a step, so that members that cannot be fitted together fail before
    anything is trained.

    Args:
        members: Models of one architecture, each with its data, callbacks and loggers.
        trainer: Arguments of the Trainer.
        monitor: The logged metric that chooses the best epoch.
        mode: ``"min"`` or ``"max"``: which value of the metric is best.
        folder: Folder of the Trainer's files.
        on_error: ``"raise"``, or ``"continue"`` with the other members when the loss of one is not
            finite. The failed member's `error` is then set. It keeps the weights of its best epoch
            so far, if there is one.

    Attributes:
        save_to: File that a killed fit resumes from, or None. It is written at the end of an
            epoch, at most every ten seconds.
    """

    @checked
    def __init__(
        self,
        members: Sequence[Member],
        *,
        trainer: Mapping[str, Any],
        monitor: str,
        mode: str,
        folder: Path | None = None,
        on_error: Literal["raise", "continue"] = "raise",
    ) -> None:
        super().__init__()
        for member in members:
            check_vectorizable(member.model, member.datamodule, member.callbacks, trainer)
        self.automatic_optimization = False
        self.members = list(members)
        self.monitor, self.mode = monitor, mode
        self.validates_on = members[0].datamodule.validate_on
        self.on_error: str = on_error
        self.save_to: Path | None = None
        self.accumulate = trainer.get("accumulate_grad_batches") or 1
        self.clip: float = trainer.get("gradient_clip_val") or 0.0
        self.clip_by_value = str(trainer.get("gradient_clip_algorithm") or "norm") == "value"
        self.validate_every = trainer.get("check_val_every_n_epoch") or 1
        if self.validate_every > 1 and monitor.startswith("train/"):
            raise NotVectorizable(
                f"monitor={monitor!r} with check_val_every_n_epoch={self.validate_every}: weights "
                "are judged where they are validated; monitor a metric of validation"
            )
        self.limit_train = trainer.get("limit_train_batches")
        self.limit_val = trainer.get("limit_val_batches")
        self.epoch = 0
        self._unchecked: list[tuple[list[int], Tensor, int]] = []
        self._saved_at = time.monotonic()
        arguments = {k: v for k, v in trainer.items() if k not in HEEDED_HERE}
        if arguments.get("devices", "auto") == "auto":
            arguments["devices"] = 1
        if arguments.get("max_epochs") is None:
            arguments["max_epochs"] = 1000  # Lightning's own default
        self.fitter = pl.Trainer(
            **arguments,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            default_root_dir=folder,
        )
        self.max_epochs = int(arguments["max_epochs"])
        self.root_device = self.fitter.strategy.root_device
        for k, member in enumerate(self.members):
            with naming(member.name if k else None):  # an error in the first probably affects all
                member.attach(self.fitter, trainer)
        self.live = self.members
        self._make_sources()
        for k, member in enumerate(self.members):
            member.trainer.num_training_batches = self._batches(k)
        models = [member.model for member in self.members]
        self.stack = StackedModels(models, self.root_device)
        for member in self.members:
            member.make_optimizer()
            if self.validates_on is None:
                check_needs_no_validation(member.callbacks, member.plateau_monitors())
        optimizers = [member.optimizer for member in self.members]
        self.optimizers_of = StackedOptimizer(optimizers, self.stack)
        sources = [(self.train_source, True)]
        if self.val_source is not None:
            sources.append((self.val_source, False))
        try_a_step(self.stack, models, sources, self.fitter.precision_plugin)

    def seconds_a_step(self) -> tuple[float, float]:
        """Measure a step's seconds, all members together and one by one."""
        models = [member.model for member in self.live]
        precision = self.fitter.precision_plugin
        return seconds_a_step(self.stack, models, self.train_source, precision)

    @property
    def most_steps(self) -> float:
        """Steps of a fit that does not stop early."""
        if self.max_epochs < 0:
            return math.inf
        return max(1, self.max_epochs) * max(self._batches(k) for k in range(len(self.live)))

    def show(self, bar: Callback) -> None:
        """Add a progress bar to the Trainer."""
        vars(self.fitter)["callbacks"].append(bar)

    def fit(self) -> None:
        """Run the fit, or resume it."""
        with warnings.catch_warnings(), quiet_vmap(), quick_gpu_check():
            # Each member has its own optimizer.
            warnings.filterwarnings("ignore", "`LightningModule.configure_optimizers` returned")
            # A merged optimizer has stepped instead of the one that the scheduler looks at.
            warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)` before")
            try:
                self._resume()
                if self.live and self.fitter.max_epochs:
                    for member in self.live:
                        member.begin()
                    self.fitter.fit(self, train_dataloaders=self.loader())
                for member in self.members:
                    member.restore_best()
                if self.validates_on != "val":
                    self._score()
                for member in self.members:
                    if member.best is not None:
                        tracking.log_scores(member.loggers, member.best.metrics)
            finally:
                self.detach()

    def _make_sources(self) -> None:
        self.train_source = BatchSource(self.live, "train", self.root_device)
        self.val_source = None
        if self.validates_on is not None:
            self.val_source = BatchSource(self.live, "val", self.root_device)
            self.val_source.begin(0)

    def _batches(self, k: int) -> int:
        return limited("train", self.train_source.count(k), self.limit_train)

    # The fit

    def loader(self) -> DataLoader[Any]:
        """Return the Trainer's loader, whose batches are lists of step numbers."""
        steps = max(self._batches(k) for k in range(len(self.live)))
        chunks = [list(range(steps)[i : i + STEPS_AT_ONCE]) for i in range(0, steps, STEPS_AT_ONCE)]
        return DataLoader(cast(Any, chunks), batch_size=None)

    def configure_optimizers(self) -> None:
        """Create no optimizer, since each member has its own."""

    def on_train_epoch_start(self) -> None:
        self.stack.train()
        self.train_source.begin(self.epoch)
        self._sums = BatchedMetrics(self.live, "train", self.root_device)
        for member in self.live:
            member.trainer.current_epoch = self.epoch

    def training_step(self, steps: Sequence[int], batch_idx: int) -> None:
        for number in steps:
            taking_part = [
                k for k, m in enumerate(self.live) if m.active and number < self._batches(k)
            ]
            if taking_part:
                self._step(number, taking_part)

    def _step(self, number: int, taking_part: list[int]) -> None:
        for k in taking_part:
            member = self.live[k]
            member.trainer.fit_loop.total_batch_idx = self.epoch * self._batches(k) + number - 1
        for batches in self.train_source.step(number, taking_part):
            if not self.epoch and not number:
                for j, k in enumerate(batches.members):
                    self.live[k].show([batches.inputs[j], batches.targets[j]])
            losses, outputs = self.stack.run(
                batches.inputs, batches.targets, batches.members, batches.weights
            )
            total, losses = losses.sum(), losses.detach()
            torch.autograd.backward(total if self.accumulate == 1 else total / self.accumulate)
            self._check_finite(batches.members, losses, total.detach(), number)
            self._sums.add(batches, losses, outputs.detach())
        last = number + 1
        due = [
            k
            for k in taking_part
            if self.live[k].active and (last % self.accumulate == 0 or last == self._batches(k))
        ]
        if not due:
            return
        if self.clip:
            self.stack.clip_gradients(due, self.clip, by_value=self.clip_by_value)
        self.optimizers_of.step(due)
        self.stack.zero_gradients(due)
        for k in due:
            member = self.live[k]
            member.steps += 1
            member.trainer.global_step = member.steps
            if member.schedules:
                member.step_schedules("step", plateau=False, count=last)
                self.optimizers_of.settings_changed()

    def _check_finite(
        self, members: Sequence[int], losses: Tensor, total: Tensor, number: int
    ) -> None:
        if self.root_device.type != "cpu":
            # Reading a value now would wait for the device.
            self._unchecked.append((list(members), losses, number))
            if len(self._unchecked) >= FLUSH_EVERY:
                self._check_late()
            return
        if not math.isfinite(total.item()):
            self._fail(members, losses, number)

    def _check_late(self) -> None:
        pending, self._unchecked = self._unchecked, []
        if pending and not torch.cat([losses for _, losses, _ in pending]).isfinite().all():
            for members, losses, number in pending:
                self._fail(members, losses, number)

    def _fail(self, members: Sequence[int], losses: Tensor, number: int) -> None:
        """Stop the members whose loss is not finite."""
        for k, loss in zip(members, losses.tolist(), strict=True):
            if math.isfinite(loss) or not self.live[k].active:
                continue
            member = self.live[k]
            error = FloatingPointError(
                f"train/loss is {loss} at step {member.steps} (epoch {self.epoch}); lower lr (now "
                f"{member.model.lr}), clip gradients, or look for infinite or missing values in "
                "the data."
            )
            member.error, member.active = error, False
            if self.on_error == "raise":
                raise error

    def on_train_epoch_end(self) -> None:
        self._check_late()
        train = self._sums.compute()
        validated = self.val_source is not None and (self.epoch + 1) % self.validate_every == 0
        val = self._validate() if validated else [{} for _ in self.live]
        for k, member in enumerate(self.live):
            if not member.active:
                continue  # failed in this epoch
            member.step_schedules("epoch", plateau=False, count=self.epoch + 1)
            if validated:
                member.log(val[k], selected=self.validates_on == "selection")
                member.call("on_validation_end")
            member.log(train[k])
            member.call("on_train_epoch_end")
            member.epochs = self.epoch + 1
            if validated:
                found = {**train[k], **val[k]}
                member.keep_best(found, self.monitor, self.mode, partial(self.stack.state, k))
            elif self.val_source is None:
                member.keep_last()
            member.step_schedules("epoch", plateau=True, count=self.epoch + 1)
            member.active = not member.trainer.should_stop
        if any(member.schedules for member in self.live):
            self.optimizers_of.settings_changed()
        self.epoch += 1
        self._drop_stopped()
        if not self.live:
            self.fitter.should_stop = True
        self._save()

    def _drop_stopped(self) -> None:
        """Remove stopped members from the stack, to save their time."""
        keep = [k for k, member in enumerate(self.live) if member.active]
        if len(keep) == len(self.live):
            return
        self.live = [self.live[k] for k in keep]
        if self.live:
            self.optimizers_of.keep(keep)
            self.stack.keep(keep)
            self._make_sources()

    def _score(self) -> None:
        """Score the kept weights of all members in one pass."""
        self.live = [member for member in self.members if member.error is None]
        if not self.live:
            return
        for member in self.live:
            member.active, member.datamodule.validate_on = True, "val"
        self.validates_on = "val"
        self.stack = StackedModels([member.model for member in self.live], self.root_device)
        self._make_sources()
        for member, scores in zip(self.live, self._validate(), strict=True):
            member.keep_score(scores)
            member.detach_from_stack()

    def _validate(self) -> list[dict[str, Tensor]]:
        assert self.val_source is not None  # for the type checker
        return score(
            self.stack, self.live, self.val_source, self.fitter, self.limit_val,
            is_selection=self.validates_on == "selection",
        )  # fmt: skip

    # Predictions, resuming

    def predict(self, member: Member, part: str) -> PredictionTable:
        """Predict a part of a member's data after `fit`."""
        return predict(member, part, self.fitter)

    def _save(self) -> None:
        if self.save_to is None or time.monotonic() - self._saved_at < SAVE_SECONDS:
            return
        self._saved_at = time.monotonic()
        state = {
            "epoch": self.epoch,
            "random": random_state(self.root_device),
            "members": {member.name: member.state() for member in self.members},
            "optimizers": {m.name: self.optimizers_of.state(k) for k, m in enumerate(self.live)},
        }
        with atomic_write(self.save_to) as part:
            torch.save(state, part)

    def _resume(self) -> None:
        """Resume a killed fit from its file, if there is one."""
        state: dict[str, Any] = {}
        if self.save_to is not None and is_whole(self.save_to):
            state = torch.load(self.save_to, map_location=self.root_device, weights_only=True)
        if any(member.name not in state.get("members", ()) for member in self.members):
            # A fit that was killed before it could save may have logged rows.
            for member in self.members:
                member.forget_rows()
            return
        for k, member in enumerate(self.members):
            member.load(state["members"][member.name])
            if member.name in state["optimizers"]:
                self.optimizers_of.load(k, state["optimizers"][member.name])
        self.epoch = state["epoch"]
        set_random_state(self.root_device, state["random"])
        self.optimizers_of.settings_changed()
        self._drop_stopped()
        self.fitter.fit_loop.max_epochs = self.max_epochs - self.epoch

    def detach(self) -> None:
        """Detach all members from the Trainer."""
        for member in self.members:
            member.detach()
