"""Exact resume: a run that was killed goes on as if nothing had happened.

Lightning's checkpoints hold weights, optimizers, schedulers and counters. What they lack, and what
makes a resumed run another run: the states of the random number generators, of each process; the
place in the epoch's order of samples; the half-way sums of the epoch's metrics; validations and
scheduler steps that fall between saving and resuming. `ExactResume` keeps and restores these.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader, rank_zero_warn
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from dlblocks.errors import check_range

NOT_RESUMABLE = "You're resuming from a checkpoint that ended before the epoch ended"


class ExactResume(ModelCheckpoint):
    """Keeps ``last.ckpt``, from which ``trainer.fit(..., ckpt_path="last")`` goes on exactly.

    Weights, optimizer, random numbers, the order of the samples and logged values are then, bit for
    bit, those of the run that was not killed, wherever in the epoch it was: with any
    LightningModule, loaders, callbacks of this package, gradient accumulation, worker processes and
    DDP, on the same hardware with deterministic operations. It is all that is needed; the same
    script is run again::

        trainer = pl.Trainer(callbacks=[ExactResume("runs/a", every_n_train_steps=500)])
        trainer.fit(model, datamodule=data, ckpt_path="last")  # the first time, starts

    The file is written at the start, at the end of every epoch, after validation, and every
    `every_n_train_steps` optimizer steps; before a validation within the epoch the write waits for
    the next step. It is written whole or not at all.

    A resumed epoch begins with the order it had; batches that were trained on are skipped. A loader
    of this package skips them at once. From any other they are loaded and dropped, so that worker
    processes come to the same state; and its workers are new in every epoch, even if they are
    `persistent_workers`.

    What is not restored: a generator of your own that no loader or sampler holds; sums of a metric
    that is not logged again in the rest of the epoch; a run by a different number of processes
    (said).

    Args:
        dirpath: Folder of ``last.ckpt``; None for ``<default_root_dir>/checkpoints``.
        every_n_train_steps: Optimizer steps between two writes within an epoch; None for none.

    Raises:
        ValueError: `every_n_train_steps` is below 1.
    """

    def __init__(
        self,
        dirpath: str | PathLike[str] | None = None,
        *,
        every_n_train_steps: int | None = None,
    ) -> None:
        if every_n_train_steps is not None:
            check_range("every_n_train_steps", every_n_train_steps, 1)
        super().__init__(None if dirpath is None else Path(dirpath), filename="last", save_top_k=0)
        self.every_n = every_n_train_steps
        self.saved_step = -1
        self._between_epochs = False  # while such a checkpoint is written
        self._state: dict[str, Any] | None = None  # what a checkpoint held for this rank
        self._source: _Source | None = None
        self._half_logged: dict[str, dict[str, Tensor]] = {}

    # ModelCheckpoint chooses by score; here there is one file.

    @property
    def state_key(self) -> str:
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pass

    # When to write

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.dirpath is None:
            # Not below the logger's folder, which has a new version in every process.
            self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)
        # Last of all: what the others do at the same step belongs to the state.
        others = [c for c in vars(trainer)["callbacks"] if c is not self]
        vars(trainer)["callbacks"] = [*others, self]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._merge_half_logged(trainer)
        if self.every_n is None or trainer.global_step // self.every_n <= (
            self.saved_step // self.every_n
        ):
            return
        if _between_two_steps(trainer, batch_idx):
            self._save(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Here rather than at the end of the epoch before, whose logs and scheduler steps come after
        # every hook.
        self._save(trainer, between_epochs=True)
        self._watch(trainer)  # the loaders may be new

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer, between_epochs=True)

    def _save(self, trainer: pl.Trainer, *, between_epochs: bool = False) -> None:
        if trainer.global_step == self.saved_step or trainer.fast_dev_run:
            return
        self.saved_step = trainer.global_step
        assert self.dirpath is not None
        self.last_model_path = str(Path(self.dirpath) / "last.ckpt")
        self._between_epochs = between_epochs
        trainer.save_checkpoint(self.last_model_path, weights_only=False)
        self._between_epochs = False

    # What to keep

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress
        within = not _epoch_is_over(trainer)
        if hasattr(pl_module, "flush"):
            pl_module.flush()  # our models sum their metrics some batches at a time
        state = {
            "random": _random_state(trainer, self._source),
            "epoch_random": self._source.began if self._source and within else None,
            "batches": progress.current.ready if within else 0,
            "saved_step": self.saved_step,
            "metrics": _metric_states(pl_module),
            "logged": _half_logged(trainer) if within else {},
            "callback_metrics": {
                name: value.detach().cpu().clone()
                for name, value in trainer.callback_metrics.items()
            },
        }
        checkpoint["callbacks"][self.state_key] = {"ranks": _from_all_ranks(trainer, state)}
        if self._between_epochs:
            # Of an epoch that begins, Lightning would take the counters for one that has ended, and
            # skip it; these are those of the end of the epoch before.
            for count in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
                count["ready"] = count["started"] = count["processed"]
                count["completed"] = max(count["processed"] - 1, 0)

    # Going on

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        ranks = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("ranks")
        if not ranks:
            rank_zero_warn(
                "ExactResume: this checkpoint was written without ExactResume; what follows is not "
                "exactly the run that it would have been."
            )
            return
        if len(ranks) != trainer.world_size:
            rank_zero_warn(
                f"ExactResume: the checkpoint was written by {len(ranks)} process(es) and goes on "
                f"in {trainer.world_size}; what follows is not exactly the run that it would have "
                "been."
            )
        self._state = ranks[trainer.global_rank % len(ranks)]
        self.saved_step = self._state["saved_step"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._watch(trainer)
        state, self._state = self._state, None
        if state is None:
            return
        _restore_metrics(pl_module, state["metrics"])
        trainer.callback_metrics.update(
            {name: value.to(pl_module.device) for name, value in state["callback_metrics"].items()}
        )
        self._half_logged = state["logged"]
        assert self._source is not None
        if trainer.global_step == 0:
            trainer.fit_loop.restarting = False  # nothing has begun that could go on
        if state["batches"]:
            # It is not so here: the batches are skipped.
            warnings.filterwarnings("ignore", message=NOT_RESUMABLE)
            self._source.replay(state["epoch_random"], state["batches"], state["random"])
        _set_random_state(trainer, self._source, state["random"])

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._merge_half_logged(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._merge_half_logged(trainer)
        self._half_logged = {}
        # Otherwise Lightning leaves out the step of ReduceLROnPlateau in a resumed epoch.
        trainer.fit_loop.restarting = False

    def _watch(self, trainer: pl.Trainer) -> None:
        fetcher = trainer.fit_loop._data_fetcher
        if fetcher is None or isinstance(fetcher._combined_loader, _Source):
            return
        self._source = _Source(trainer, fetcher.combined_loader)
        fetcher.setup(self._source)  # type: ignore[arg-type]
        iter(fetcher)

    def _merge_half_logged(self, trainer: pl.Trainer) -> None:
        """Adds what was logged in the epoch before the kill to what is logged now."""
        if not self._half_logged:
            return
        for key, metric in trainer.fit_loop.epoch_loop._results.items():
            before = self._half_logged.pop(key, None)
            if before is None:
                continue
            # By now one batch has been logged under this key, so that the order of the sum is the
            # one it would have been.
            now = metric.value
            value = before["value"].to(now)
            if metric.meta.is_max_reduction or metric.meta.is_min_reduction:
                metric.value = metric.meta.reduce_fx(value, now)
                continue
            metric.value = value + now
            if metric.meta.is_mean_reduction:
                weight = before["cumulated_batch_size"]
                metric.cumulated_batch_size = weight.to(now.device) + metric.cumulated_batch_size


class _Source:
    """The loaders of the fit, begun anew as late as possible: when the first batch is wanted.

    Lightning begins them before it tells samplers the epoch, and at other moments in a resumed run
    than in one that was not killed; both change what they draw.
    """

    def __init__(self, trainer: pl.Trainer, combined: CombinedLoader) -> None:
        self.trainer, self.combined = trainer, combined
        self.iterator: Iterator | None = None
        self.began: dict[str, Any] | None = None
        self.pending: tuple[dict[str, Any], int, dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.combined)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.combined, name)

    def __iter__(self) -> _Source:
        self.iterator = None
        return self

    def __next__(self) -> Any:
        if self.iterator is None:
            if any(
                getattr(loader, "persistent_workers", False) and not _can_skip(loader)
                for loader in self.combined.flattened
            ):
                self.combined.reset()  # their random states come from the epochs before
            if self.pending is None:
                self.began = _random_state(self.trainer, self)
                self.iterator = iter(self.combined)
            else:
                self._begin_again(*self.pending)
        assert self.iterator is not None
        return next(self.iterator)

    def replay(self, began: dict[str, Any], batches: int, random_state: dict[str, Any]) -> None:
        """Arranges that the first batch wanted is number `batches` of an epoch that has begun."""
        self.pending = began, batches, random_state

    def _begin_again(self, began: dict[str, Any], batches: int, after: dict[str, Any]) -> None:
        self.pending = None
        self.began = began
        _set_random_state(self.trainer, self, began)
        loaders = self.combined.flattened
        if len(loaders) == 1 and _can_skip(loaders[0]):
            loaders[0].sampler.skip_next(batches * loaders[0].batch_size)
            self.iterator = iter(self.combined)
        else:
            self.iterator = iter(self.combined)
            for _ in range(batches):
                next(self.iterator)
        _set_random_state(self.trainer, self, after)

    def generators(self) -> list[torch.Generator]:
        """The generators that loaders and samplers hold, each once, in a fixed order."""
        found: dict[int, torch.Generator] = {}
        for loader in self.combined.flattened:
            batches = getattr(loader, "batch_sampler", None)
            for holder in (
                loader,
                getattr(loader, "sampler", None),
                batches,
                getattr(batches, "sampler", None),
            ):
                generator = getattr(holder, "generator", None)
                if isinstance(generator, torch.Generator):
                    found.setdefault(id(generator), generator)
        return list(found.values())


def _can_skip(loader: Any) -> bool:
    """Whether it is a loader of this package, whose batches depend on (seed, epoch) alone."""
    return hasattr(getattr(loader, "sampler", None), "skip_next")


def _between_two_steps(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether nothing lies between this batch and the next: gradients, validation, epoch's end."""
    if (batch_idx + 1) % trainer.accumulate_grad_batches or _epoch_is_over(trainer):
        return False
    every = trainer.val_check_batch
    if every is None or every == float("inf"):
        return True
    counted = (
        trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
    )
    return bool((counted + 1) % every)


def _epoch_is_over(trainer: pl.Trainer) -> bool:
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.is_last_batch or progress.current.ready >= trainer.num_training_batches


def _random_state(trainer: pl.Trainer, source: _Source | None) -> dict[str, Any]:
    """The states of all generators of this process, as plain values."""
    name, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "generators": [g.get_state() for g in source.generators()] if source else [],
    }
    device = trainer.strategy.root_device
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(trainer: pl.Trainer, source: _Source, state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    for generator, saved in zip(source.generators(), state["generators"], strict=True):
        generator.set_state(saved.cpu())
    if "cuda" in state and trainer.strategy.root_device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), trainer.strategy.root_device)


def _metric_states(module: pl.LightningModule) -> dict[str, dict[str, Any]]:
    """The sums of every metric of the module; those of a checkpoint's weights leave them out."""
    for part in module.modules():
        if isinstance(part, MetricCollection):
            part.keys()
            list(part.values(copy_state=False))  # members that share one sum get their part of it
    found = {}
    for name, part in module.named_modules():
        if isinstance(part, Metric) and part.update_called:
            found[name] = {
                "count": part.update_count,
                "values": {
                    key: [v.detach().clone() for v in value]
                    if isinstance(value, list)
                    else value.detach().clone()
                    for key, value in part.metric_state.items()
                },
            }
    return found


def _restore_metrics(module: pl.LightningModule, states: dict[str, dict[str, Any]]) -> None:
    for name, part in module.named_modules():
        if not (isinstance(part, Metric) and name in states):
            continue
        for key, value in states[name]["values"].items():
            moved = (
                [v.to(part.device) for v in value]
                if isinstance(value, list)
                else value.to(part.device)
            )
            setattr(part, key, moved)
        part._update_count = states[name]["count"]
        part._computed = None


def _half_logged(trainer: pl.Trainer) -> dict[str, dict[str, Tensor]]:
    """What `self.log(..., on_epoch=True)` has summed up in this epoch, by key."""
    return {
        key: {name: value.detach().cpu().clone() for name, value in metric.metric_state.items()}
        for key, metric in trainer.fit_loop.epoch_loop._results.items()
        if metric.is_tensor and metric.meta.on_epoch and not metric.has_reset
    }


def _from_all_ranks(trainer: pl.Trainer, state: dict[str, Any]) -> list[dict[str, Any]]:
    if trainer.world_size == 1:
        return [state]
    states: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(states, state)
    return states
