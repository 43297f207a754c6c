"""Resume a killed run exactly as if it had not been killed.

Lightning's checkpoints hold weights, optimizers, schedulers and counters. `ExactResume` also keeps
and restores everything else that would change the run:

- the states of the random number generators of each process;
- the place in the epoch's order of samples;
- the sums of the epoch's metrics so far;
- which parameters are frozen, and which modules are in evaluation mode;
- events between the writing of a checkpoint and the next step.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from dlblocks._errors import check_range, checked
from dlblocks._files import is_whole, put_in_place
from dlblocks._lightning import (
    data_fetcher,
    fetched_loader,
    logged_state,
    metric_states,
    set_logged_state,
    set_metric_states,
)
from dlblocks._plain import plain_checkpoints
from dlblocks.callbacks._resume import (
    ResumableBatches,
    known_files,
    module_modes,
    nothing_pending,
    set_between_epochs,
    set_module_modes,
    write_again,
)
from dlblocks.tracking._csv import csv_writers

NOT_RESUMABLE = "You're resuming from a checkpoint that ended before the epoch ended"
NOT_EXACT = "the resumed run will not be exactly the same."


class ExactResume(ModelCheckpoint):
    """Keeps ``last.ckpt``, from which a killed run resumes exactly.

    Weights, optimizer, random numbers, the order of the samples and logged values are then, bit for
    bit, those of a run that was not killed, wherever in the epoch the kill was. This holds for any
    LightningModule and loaders, callbacks that keep their state as Lightning asks (early stopping,
    averaged weights, the best checkpoint), gradient accumulation, worker processes and DDP, on the
    same hardware with deterministic operations. Nothing else is needed: run the same script with
    the same seed again::

        trainer = pl.Trainer(
            callbacks=[ExactResume("runs/a", every_n_train_steps=500)],
            logger=CSVLogger("runs/a", name="", version=""),
        )
        trainer.fit(model, datamodule=data, ckpt_path="last")  # starts the first time

    The file holds plain values only. It leaves out other hyperparameters, such as functions, which
    the script gives to the module again. It is written at the start of epochs, at the end of the
    fit, and within the epoch every `every_n_train_steps` optimizer steps. If gradients are half
    accumulated or a validation has just run, it is written after a later step. The file is written
    under another name and renamed, so that a kill leaves a whole file. For the best weights add a
    ``ModelCheckpoint(monitor=…)``; its files of repeated steps are overwritten.

    A resumed epoch has the same order and skips batches that were trained on. A loader of this
    package skips them at once. Batches of other loaders are loaded and dropped, so that worker
    processes reach the same state. Their workers are new in every epoch, even with
    `persistent_workers`. With ``ckpt_path="last"``, a `CSVLogger` of the same folder continues its
    ``metrics.csv``. Rows after the checkpoint are dropped, because they are logged again.
    Lightning's default logger starts a new ``version_1`` instead, as does a `CSVLogger` without
    ``version=``. W&B and TensorBoard get those steps a second time. A run that had stopped early
    stops again.

    Runs with equal settings are identical. With another `every_n_train_steps` the weights are
    identical too, but sums that a module flushes before writing (below) may be grouped differently,
    and their logged means differ in the last digits.

    These are not kept:

    - generators outside the training loaders and their samplers, and state that loaders or data
      sets carry from one epoch to the next;
    - attributes of a module or callback outside of its `state_dict`, `on_save_checkpoint` and
      torchmetrics. Within an epoch `on_train_epoch_start` is not called again. A module that
      buffers values for its metrics, or creates metrics late, may define `flush_metrics()`, which
      is called before writing and before restoring;
    - gradients that manual optimization accumulates over batches, and the time of the last file of
      a ``ModelCheckpoint(train_time_interval=…)``;
    - within an epoch: sums logged with a `sync_dist_group`, steps that take a `dataloader_iter`
      (written at epochs only), validation by wall-clock time, loaders reloaded every few epochs;
    - weights that `on_train_end` puts into the module, if the run had already ended;
    - checkpoints that a strategy writes as a folder or a plugin writes later, and folders that are
      not local.

    A run in another number of processes, or from another file, resumes as Lightning does, with a
    warning.

    Args:
        dirpath: Folder of ``last.ckpt``; None for ``<default_root_dir>/checkpoints``.
        every_n_train_steps: Optimizer steps between two writes within an epoch; None for none.
        min_seconds: At the start of an epoch, write only if this many seconds have passed since the
            last write. With short epochs, writing would take much of the time.

    Raises:
        ValueError: `every_n_train_steps` is not a whole number from 1, `min_seconds` is below 0, or
            (at `fit`) another ModelCheckpoint has `save_last`, which would use
            ``ckpt_path="last"`` for itself.
    """

    @checked
    def __init__(
        self,
        dirpath: str | PathLike[str] | None = None,
        *,
        every_n_train_steps: int | None = None,
        min_seconds: float = 0.0,
    ) -> None:
        if every_n_train_steps is not None:
            check_range("every_n_train_steps", every_n_train_steps, 1)
        check_range("min_seconds", min_seconds, 0)
        # Only the part of ModelCheckpoint that finds the file is used: its own rules save nothing.
        super().__init__(None if dirpath is None else Path(dirpath), filename="last", save_top_k=0)
        self.every_n_train_steps = every_n_train_steps
        self.min_seconds = min_seconds
        self._fit_name: str | None = None  # a file of a fit with another name is not resumed
        self._default_folder = dirpath is None  # each Trainer has its own
        self.saved_step = -1
        self._saved_at = -math.inf  # seconds of a monotonic clock
        self._writing: int | None = None  # batches done in the epoch while a file is written
        self._state: dict[str, Any] | None = None  # this rank's part of a checkpoint
        self._batches: ResumableBatches | None = None

    @property
    def state_key(self) -> str:
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass

    # The file

    def _path(self, trainer: pl.Trainer) -> Path:
        if self._default_folder:
            # The logger's folder may have a new version in every process.
            self.dirpath = os.path.realpath(Path(trainer.default_root_dir) / "checkpoints")
        return Path(str(self.dirpath)) / "last.ckpt"

    def _find_last_checkpoints(self, trainer: pl.Trainer) -> set[str]:
        """Find the file of ``ckpt_path="last"``.

        Lightning calls it before any hook and before loggers open their files.
        """
        path = self._path(trainer)
        found = path.is_dir() or is_whole(path)  # some strategies write a folder
        what = "is damaged"
        if found and path.is_file() and not self._is_own(path):
            found, what = False, "is of another fit"
        if not found and path.exists():
            rank_zero_warn(f"{path} {what}, so the fit starts from its beginning.")
            if trainer.is_global_zero:
                path.unlink(missing_ok=True)  # other callbacks may look for it
        if trainer.state.fn == TrainerFn.FITTING:
            for writer in csv_writers(trainer):
                if not found:
                    writer.keep(0)  # everything is logged again
        return {str(path)} if found else set()

    def _is_own(self, path: Path) -> bool:
        if self._fit_name is None:
            return True
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["callbacks"]
        return bool(saved.get(self.state_key, {}).get("fit_name") == self._fit_name)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._path(trainer)
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        callbacks: list[Callback] = vars(trainer)["callbacks"]  # it has no annotation
        for other in self._others(trainer):
            if other.save_last:
                raise ValueError(
                    "ExactResume keeps last.ckpt, and so does another ModelCheckpoint with "
                    f"save_last={other.save_last!r}; leave save_last out."
                )
            write_again(other, None, trainer)
        self.saved_step, self._state, self._batches = -1, None, None
        csv_writers(trainer)
        # Put it last, so that trainer.checkpoint_callback is that of the best weights.
        others = [c for c in callbacks if c is not self and not isinstance(c, _First)]
        vars(trainer)["callbacks"] = [_First(self), *others, self]

    def _others(self, trainer: pl.Trainer) -> list[ModelCheckpoint]:
        found = trainer.checkpoint_callbacks
        return [c for c in found if isinstance(c, ModelCheckpoint) and c is not self]

    def _save(self, trainer: pl.Trainer, batches: int) -> None:
        if trainer.global_step == self.saved_step or (
            trainer.fast_dev_run  # type: ignore[attr-defined]
        ):
            return
        self.saved_step, self._writing = trainer.global_step, batches
        self._saved_at = time.monotonic()
        path = self._path(trainer)
        part = path.with_name("last.ckpt.part")
        try:
            with plain_checkpoints(trainer):
                trainer.save_checkpoint(part, weights_only=False)
        finally:
            self._writing = None
        if trainer.is_global_zero:
            # Lightning itself would copy a file whose folder is on another disk than /tmp.
            put_in_place(part, path)
        self.last_model_path = str(path)

    # Times of writing

    def before_epoch(self, trainer: pl.Trainer) -> None:
        """Act between the hooks of one epoch and those of the next."""
        state, self._state = self._state, None
        fetcher, batches = self._watch(trainer)
        if state is not None:
            batches.set_random(state["random"]["now"])
            set_module_modes(trainer.lightning_module, state["modules"])
        # All ranks write together, by the clock of the first rank.
        if not self.min_seconds or trainer.strategy.broadcast(
            time.monotonic() - self._saved_at >= self.min_seconds
        ):
            self._save(trainer, batches=0)
        if trainer.current_epoch == 0:
            iter(fetcher)  # Lightning does it in later epochs

    def before_batch(self, trainer: pl.Trainer) -> None:
        """Act within an epoch, when the batch before is finished."""
        n, step = self.every_n_train_steps, trainer.global_step
        if n is not None and step // n > self.saved_step // n and nothing_pending(trainer):
            self._save(trainer, trainer.fit_loop.epoch_loop.batch_progress.current.completed)

    def after_fit(self, trainer: pl.Trainer) -> None:
        """Act after the last epoch, before the hooks of the end."""
        self._save(trainer, batches=0)

    def _watch(self, trainer: pl.Trainer) -> tuple[Any, ResumableBatches]:
        """Put `ResumableBatches` around the loaders, which may change every epoch."""
        fetcher = data_fetcher(trainer)
        assert fetcher is not None  # for the type checker
        if self._batches is None or fetched_loader(fetcher) is not self._batches:
            self._batches = ResumableBatches(
                fetcher.combined_loader,
                trainer.strategy.root_device,
                before_batch=lambda: self.before_batch(trainer),
            )
            fetcher.setup(self._batches)
        return fetcher, self._batches

    # Contents of the file

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._writing is None or self._batches is None:
            return  # the file of another callback
        if callable(flush := getattr(pl_module, "flush_metrics", None)):
            flush()
        loops = checkpoint["loops"]["fit_loop"]
        # Loaders restart from the beginning. Lightning would continue those that have a state.
        loops["state_dict"].pop("combined_loader", None)
        if not self._writing:
            # Lightning would read the counters of a new epoch as those of a finished one, and skip
            # it. So write the counters at the end of the epoch before.
            for count in loops["epoch_progress"].values():
                count["ready"] = count["started"] = count["processed"]
                count["completed"] = max(count["processed"] - 1, 0)
        state = {
            "random": self._batches.state(self._writing),
            "saved_step": self.saved_step,
            "should_stop": trainer.should_stop,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "modules": module_modes(pl_module),
            "metrics": metric_states(pl_module),
            "logged": logged_state(trainer),
            "callback_metrics": {k: v.detach().cpu() for k, v in trainer.callback_metrics.items()},
        }
        states = [state]
        if trainer.world_size > 1:
            states = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(states, state)
        for logger in trainer.loggers:
            logger.save()
        rows = [writer.rows for writer in csv_writers(trainer)]
        files = {other.state_key: known_files(other) for other in self._others(trainer)}
        checkpoint["callbacks"][self.state_key] = {
            "ranks": states,
            "csv_rows": rows,
            "files": files,
            "fit_name": self._fit_name,
        }

    # Resuming

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        saved = checkpoint["callbacks"].get(self.state_key)
        if saved is None:
            if checkpoint["global_step"] == 0:
                return  # of `BatchSizeFinder`, before the first step: nothing can be lost
            rank_zero_warn(f"ExactResume did not write this checkpoint; {NOT_EXACT}")
            return
        ranks = saved["ranks"]
        if len(ranks) != trainer.world_size:
            rank_zero_warn(
                f"ExactResume: the checkpoint was written by {len(ranks)} process(es) and resumes "
                f"in {trainer.world_size}; {NOT_EXACT}"
            )
            return
        self._state = ranks[trainer.global_rank]
        self.saved_step = self._state["saved_step"]
        for writer, rows in zip(csv_writers(trainer), saved["csv_rows"], strict=False):
            writer.keep(rows)
        for other in self._others(trainer):
            write_again(other, saved["files"].get(other.state_key), trainer)
        if isinstance(trainer.precision_plugin, DoublePrecision):
            # Lightning has rounded the weights to the float32 that the module still has here.
            pl_module.double()
            # Callbacks that average weights store the module's own under another name.
            weights = checkpoint.get("current_model_state", checkpoint["state_dict"])
            pl_module.load_state_dict(weights, strict=pl_module.strict_loading)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state = self._state
        if state is None:
            return
        device = pl_module.device
        if callable(flush := getattr(pl_module, "flush_metrics", None)):
            flush()
        set_metric_states(pl_module, state["metrics"])
        trainer.callback_metrics.update(
            {name: value.to(device) for name, value in state["callback_metrics"].items()}
        )
        trainer.should_stop = state["should_stop"]
        if not state["random"]["batches"]:
            set_between_epochs(trainer)
            return  # before_epoch does the rest
        self._state = None
        trainer.accumulate_grad_batches = state["accumulate_grad_batches"]
        set_logged_state(trainer, pl_module, state["logged"])
        fetcher, batches = self._watch(trainer)
        batches.resume(state["random"], lambda: set_module_modes(pl_module, state["modules"]))
        iter(fetcher)
        # That warning is wrong here, because the batches are skipped.
        warnings.filterwarnings("ignore", message=NOT_RESUMABLE)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Otherwise Lightning skips the schedulers' step at the end of a resumed epoch.
        trainer.fit_loop.on_iteration_done()


class _First(Callback):
    """Calls `ExactResume` before other callbacks can change the state."""

    def __init__(self, resume: ExactResume) -> None:
        self.resume = resume

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.resume.before_epoch(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.resume.after_fit(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for other in self.resume._others(trainer):
            write_again(other, None, trainer)
        vars(trainer)["callbacks"] = [c for c in vars(trainer)["callbacks"] if c is not self]
