"""Save and restore the parts of a run that Lightning's checkpoints lack.

These are random numbers, frozen parameters and evaluation modes, and the order of the batches. All
are plain values. `ExactResume` decides when to call this.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader

Plain = dict[str, Any]
CPU = torch.device("cpu")


class ResumableBatches:
    """Starts the loaders of a `CombinedLoader` when the first batch is needed.

    Lightning itself starts the loaders before it tells samplers the epoch, and at another moment in
    a resumed run than in one that was not killed. Both change the random numbers they draw.

    Args:
        combined: The loaders, started at least once.
        device: The device whose generator is saved.
        before_batch: Called before every batch but the first of an epoch.
    """

    def __init__(
        self, combined: CombinedLoader, device: torch.device, before_batch: Callable[[], None]
    ) -> None:
        self.combined, self.device, self.before_batch = combined, device, before_batch
        self.length = sized_len(combined)
        self.iterator: Iterator[Any] | None = None
        self.began: dict[str, Any] = {}  # the random state at the epoch's first batch
        self.given = 0
        self._next: list[Any] = []  # batches loaded while the epoch was restarted
        self._own: dict[str, Any] | None = None  # a random state for the loaders alone
        self._resume: dict[str, Any] | None = None
        self._then: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return self.length  # type: ignore[return-value]  # None: a TypeError, as loaders raise

    def reset(self) -> None:
        """End the workers. Lightning calls it at the end of the fit."""
        self.combined.reset()

    def __iter__(self) -> ResumableBatches:
        self.iterator = None
        return self

    def __next__(self) -> Any:
        if self.iterator is None:
            self.iterator = self._begin()
        else:
            self.before_batch()
        self.given += 1
        return self._next.pop(0) if self._next else self._load(self.iterator)

    def state(self, batches: int) -> dict[str, Any]:
        """Return the state after the first `batches` batches, for `resume`."""
        return {"began": self.began, "batches": batches, "given": self.given, "now": self.random()}

    def resume(self, state: dict[str, Any], then: Callable[[], None]) -> None:
        """Let the next epoch start from `state`.

        `then` is called after all hooks of the start, before the first batch is given.
        """
        self._resume, self._then = state, then

    def random(self) -> dict[str, Any]:
        """Return the state of all random numbers."""
        return random_state(self.device, *self._generators())

    def set_random(self, state: dict[str, Any]) -> None:
        """Restore the result of `random`."""
        set_random_state(self.device, state, *self._generators())

    def _begin(self) -> Iterator[Any]:
        loaders = self.combined.flattened
        if any(getattr(x, "persistent_workers", False) and not _can_skip(x) for x in loaders):
            self.combined.reset()  # these workers carry random states from past epochs
        self.given, self._next = 0, []
        resume, self._resume = self._resume, None
        if resume is not None:
            self.set_random(resume["began"])
        self.began = self.random()
        apart = len(loaders) > 1 or self.length is None
        self._own = _new_random_state() if apart else None
        if resume is None:
            return iter(self.combined)
        self.given = resume["batches"]
        skips = len(loaders) == 1 and _can_skip(loaders[0])
        if skips:
            loaders[0].sampler.skip_next(self.given * loaders[0].batch_size)
        iterator = iter(self.combined)
        for _ in range(0 if skips else self.given):
            self._load(iterator)
        # Without a known length Lightning loads a batch ahead.
        self._next = [self._load(iterator) for _ in range(resume["given"] - self.given)]
        self.set_random(resume["now"])
        self._then()
        return iterator

    def _load(self, iterator: Iterator[Any]) -> Any:
        if self._own is None:
            return next(iterator)
        # A shorter one of several loaders restarts within the epoch and then draws. A batch that
        # was loaded ahead must be loaded again after a kill. To get the same batches, the loaders
        # draw random numbers of their own, apart from those of the training.
        training = random_state(CPU)
        set_random_state(CPU, self._own)
        try:
            return next(iterator)
        finally:
            self._own = random_state(CPU)
            set_random_state(CPU, training)

    def _generators(self) -> list[torch.Generator]:
        """Return the generators of loaders and samplers, in a fixed order."""
        found: dict[int, torch.Generator] = {}
        for loader in self.combined.flattened:
            batches = getattr(loader, "batch_sampler", None)
            samplers = getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)
            for holder in (loader, *samplers):
                generator = getattr(holder, "generator", None)
                if isinstance(generator, torch.Generator):
                    found.setdefault(id(generator), generator)
        return list(found.values())


def _new_random_state() -> dict[str, Any]:
    """Derive a new random state by one draw of torch's generator."""
    seed = int(torch.randint(2**32, ()))
    present = random_state(CPU)
    # torch.manual_seed would seed accelerators too.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    new = random_state(CPU)
    set_random_state(CPU, present)
    return new


def _can_skip(loader: Any) -> bool:
    """Return True for a loader of this package.

    Its batches depend on (seed, epoch) alone.
    """
    return hasattr(getattr(loader, "sampler", None), "skip_next")


def random_state(device: torch.device, *generators: torch.Generator) -> Plain:
    """Return the states of Python's, NumPy's, torch's and the given generators."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.as_tensor(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "generators": [generator.get_state() for generator in generators],
    }
    if device.type != "cpu":
        # Lightning has set the current device to that of this rank.
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(device: torch.device, state: Plain, *generators: torch.Generator) -> None:
    """Restore the result of `random_state`."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    for generator, saved in zip(generators, state["generators"], strict=True):
        generator.set_state(saved.cpu())
    if "device" in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"].cpu())


def module_modes(module: pl.LightningModule) -> Plain:
    """Return `requires_grad` of parameters and training modes of modules, by name."""
    return {
        "requires_grad": {name: p.requires_grad for name, p in module.named_parameters()},
        "training": {name: part.training for name, part in module.named_modules()},
        # Lightning's finetuning switches this off while a batch norm is frozen.
        "track_running_stats": {
            name: part.track_running_stats
            for name, part in module.named_modules()
            if hasattr(part, "track_running_stats")
        },
    }


def set_module_modes(module: pl.LightningModule, modes: Plain) -> None:
    """Restore the result of `module_modes`."""
    parts: dict[str, Any] = {**dict(module.named_modules()), **dict(module.named_parameters())}
    for attribute, values in modes.items():
        for name, value in values.items():
            if name in parts and getattr(parts[name], attribute) != value:
                setattr(parts[name], attribute, value)


def write_again(checkpoint: ModelCheckpoint, known: list[str] | None, trainer: pl.Trainer) -> None:
    """Let a callback overwrite the files that are not among `known`.

    None ends this.
    """
    vars(checkpoint).pop("file_exists", None)
    if known is None:
        return
    folder = Path(checkpoint.dirpath or ".")
    new = {str(folder / name) for name in set(known_files(checkpoint)) - set(known)}
    new = trainer.strategy.broadcast(new)  # what rank 0 sees
    if new:
        vars(checkpoint)["file_exists"] = FileExists(checkpoint, new)


def known_files(checkpoint: ModelCheckpoint) -> list[str]:
    """Return the files of a callback's folder, except stale ones."""
    stand_in = vars(checkpoint).get("file_exists")
    stale = stand_in.stale if isinstance(stand_in, FileExists) else set()
    folder = Path(checkpoint.dirpath or ".")
    # A metric such as val/loss in the name makes folders.
    found = [path for pattern in ("*.ckpt", "*/*.ckpt") for path in folder.glob(pattern)]
    return sorted(str(path.relative_to(folder)) for path in found if str(path) not in stale)


class FileExists:
    """Replaces `ModelCheckpoint.file_exists` to let stale files be overwritten.

    Otherwise Lightning would write ``best-v1.ckpt`` beside the ``best.ckpt`` of repeated steps.
    Nothing is deleted.

    Args:
        checkpoint: The callback.
        stale: Files that were written after the checkpoint from which the run resumes.
    """

    def __init__(self, checkpoint: ModelCheckpoint, stale: set[str]) -> None:
        self.checkpoint, self.stale = checkpoint, stale

    def __call__(self, filepath: Any, trainer: pl.Trainer) -> bool:
        if str(filepath) in self.stale:
            self.stale.remove(str(filepath))  # it is written now
            return False
        return type(self.checkpoint).file_exists(self.checkpoint, filepath, trainer)


def nothing_pending(trainer: pl.Trainer) -> bool:
    """Return True if a run can resume here.

    No step may be half done, and no validation may be repeated.
    """
    loop = trainer.fit_loop.epoch_loop
    done = loop.batch_progress.current
    if done.ready != done.completed or done.completed % trainer.accumulate_grad_batches:
        return False
    every = trainer.val_check_batch
    if every is None or every == float("inf"):
        return True
    count = done if trainer.check_val_every_n_epoch is not None else loop.batch_progress.total
    return bool(count.completed % every)


def set_between_epochs(trainer: pl.Trainer) -> None:
    """Set Lightning's loops to their state between two epochs."""
    fit_loop = trainer.fit_loop
    for count in vars(fit_loop.epoch_progress).values():
        count.ready = count.started = count.completed = count.processed
    for loop in (fit_loop, fit_loop.epoch_loop, fit_loop.epoch_loop.val_loop):
        loop.on_iteration_done()
