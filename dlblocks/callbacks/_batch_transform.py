"""Change training batches in one hook, for all callbacks of this package.

Lightning lets a callback replace entries of list batches only, and silently ignores changes to
tuples. So the callbacks here wrap `on_after_batch_transfer` of the object that Lightning calls: the
datamodule if it overrides the hook, else the module. This works with any LightningModule, any
datamodule and any number of these callbacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from dlblocks._errors import check_choice, check_range, checked
from dlblocks._lightning import HOOK, datamodule_of, hook_owner
from dlblocks._memory import BatchMemory
from dlblocks.callbacks._entries import Entries, Key, structure
from dlblocks.callbacks._wrapper import UndoneCallback, Wrapped, unwrap, wrap
from dlblocks.fields import kinds_of

WEIGHTS = 2  # where batches have the samples' weights, if they have some


class BatchTransform(UndoneCallback):
    """Base of callbacks that change the inputs and targets of training batches.

    Subclasses define `transform`. They set `before_hook` to see the batch before the datamodule's
    own `on_after_batch_transfer` (raw images) rather than after it. In `prepare` they read what
    they need from the module and the data. Callbacks act in the order of the Trainer's list, first
    those with `before_hook`. Batches of validation, test and prediction stay as they are.

    Random draws are a function of (seed, batch number, rank, place in the Trainer's list): two
    ranks and two callbacks differ, and a resumed run repeats what it would have drawn.

    Args:
        p: Probability that a batch is transformed.
        start_epoch: First epoch with the transform, from 0.
        stop_epoch: First epoch without it again, or None. -5 leaves out the last five epochs.
        seed: Seed of the random draws.
        input_key: Place of the inputs in the batch: a position, the key of a dictionary, or a list
            of them from the outside in, such as ``["images", 0]`` for entry 0 of entry "images".
            None if the batch holds inputs only. If there is a nest of tensors, all are inputs.
        target_key: Place of the targets, which are one tensor. None if there are none.
        data_keys: Treatment of further entries that have the batch's length and are not plain
            sample numbers: ``"refuse"`` them, ``"keep"`` them as they are, or a dictionary such as
            ``{"mask": "input", "weight": "target", "id": "keep"}`` for entries that change as
            inputs do, as targets do, or not at all. Some transforms take fewer of these words.
    """

    before_hook = False
    takes_padded = False  # True for transforms of targets alone
    # Words that `data_keys` may use for an entry.
    extra_actions: tuple[str, ...] = ("keep",)
    # What is done with the weights of samples in a batch of our datamodules.
    weights_action = "keep"
    weights_key: int | None = None
    takes_boxes = False  # True if targets may be torchvision's dictionaries of boxes

    @checked
    def __init__(
        self,
        *,
        p: float = 1.0,
        start_epoch: int = 0,
        stop_epoch: int | None = None,
        seed: int = 0,
        input_key: Key | None = 0,
        target_key: Key | None = 1,
        data_keys: Literal["refuse", "keep"] | Mapping[Any, str] = "refuse",
    ) -> None:
        check_range("p", p, 0, 1)
        check_range("start_epoch", start_epoch, 0)
        if isinstance(data_keys, Mapping):
            for key, action in data_keys.items():
                check_choice(f"data_keys[{key!r}]", action, self.extra_actions)
        else:
            check_choice("data_keys", data_keys, ["refuse", "keep"])
        if stop_epoch is not None and 0 <= stop_epoch <= start_epoch:
            raise ValueError(
                f"stop_epoch={stop_epoch} is not after start_epoch={start_epoch}; "
                "the transform would never act."
            )
        self.p = p
        self.start_epoch = start_epoch
        self.stop_epoch = stop_epoch
        self.seed = seed
        self.input_key = input_key
        self.target_key = target_key
        self.data_keys = data_keys
        self.memory = BatchMemory()  # for those whose new batch may be in it
        self.place = 0
        self.max_epochs: int | None = None

    def transform(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return new inputs and targets.

        Neither is modified in place. `generator` is on the CPU.
        """
        raise NotImplementedError(f"{type(self).__name__} must define transform().")

    def transform_entries(
        self, inputs: list[Tensor], targets: list[Any], generator: torch.Generator
    ) -> tuple[list[Any], list[Any]]:
        """Return new entries of a batch with several inputs or targets.

        The lists include the entries that `data_keys` lets change as inputs or as targets.
        """
        if len(inputs) > 1 or len(targets) > 1:
            raise ValueError(
                f"{type(self).__name__} changes one input tensor, got {structure(inputs)}; set "
                "input_key= to one of them."
            )
        target = targets[0] if targets else inputs[0].new_empty(len(inputs[0]), 0)
        new_inputs, new_target = self.transform(inputs[0], target, generator)
        return [new_inputs], [new_target] if targets else []

    # The hook

    def prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what it needs from trainer and module, before the first batch."""
        self.weights_key = WEIGHTS if "weights" in kinds_of(datamodule_of(trainer)) else None
        last = self.max_epochs = None if trainer.max_epochs == -1 else trainer.max_epochs
        if None in (getattr(datamodule_of(trainer), "input_shape", None) or ()):
            self.check_padded(True)
        if getattr(datamodule_of(trainer), "embeddings", None):
            raise ValueError(
                f"{type(self).__name__} would spoil the inputs that are numbers of categories "
                "(embed=); use counts= instead of embed=."
            )
        kind = kinds_of(datamodule_of(trainer)).get("inputs")
        if kind is not None and kind.fixed:
            raise ValueError(
                f"{type(self).__name__} would spoil inputs of kind {kind.name!r}: {kind.fixed}; "
                "leave it out."
            )
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # one epoch of any plan
        stop, name = self._stop(), type(self).__name__
        if self.stop_epoch is not None and stop is None:
            raise ValueError(
                f"{name}(stop_epoch={self.stop_epoch}) counts from the end, but max_epochs="
                f"{trainer.max_epochs} sets no end; set max_epochs or a stop_epoch >= 0."
            )
        if stop is not None and stop <= self.start_epoch:
            raise ValueError(
                f"{name}(start_epoch={self.start_epoch}, stop_epoch={self.stop_epoch}) would never "
                f"act in max_epochs={last}."
            )
        if last is not None and last <= self.start_epoch:
            rank_zero_warn(f"{name}(start_epoch={self.start_epoch}) comes after max_epochs={last}.")

    def check_padded(self, is_padded: bool) -> None:
        """Raise a `ValueError` if inputs are padded sequences that it cannot change."""
        if is_padded and not self.takes_padded:
            raise ValueError(
                f"{type(self).__name__} cannot act on sequences of unequal length, whose padding "
                "it would change; remove it, or give sequences of equal length, (N, T, F)."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        callbacks = vars(trainer)["callbacks"]
        self.place = [c for c in callbacks if isinstance(c, BatchTransform)].index(self)
        self.prepare(trainer, pl_module)
        owner = hook_owner(datamodule_of(trainer), pl_module)
        wrap(owner, HOOK, self, trainer, _transform_batch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.memory.clear()
        unwrap(hook_owner(datamodule_of(trainer), pl_module), HOOK, self)

    # A batch

    def _stop(self) -> int | None:
        if self.stop_epoch is None or self.stop_epoch >= 0:
            return self.stop_epoch
        return None if self.max_epochs is None else self.max_epochs + self.stop_epoch

    def active(self, epoch: int) -> bool:
        """Return True if the transform acts in `epoch`."""
        stop = self._stop()
        return self.start_epoch <= epoch and (stop is None or epoch < stop)

    def generator(self, step: int, rank: int) -> torch.Generator:
        """Return the source of all random draws for one batch."""
        return torch.Generator().manual_seed(mix(self.seed, step, rank, self.place))

    def apply(self, batch: Any, *, epoch: int, step: int, rank: int) -> Any:
        """Return the batch, transformed if it is its turn. It is not modified in place."""
        if self.active(epoch):
            generator = self.generator(step, rank)
            if self.p == 1 or torch.rand((), generator=generator) < self.p:
                entries = self.entries(batch)
                return entries.replaced(
                    *self.transform_entries(entries.inputs, entries.targets, generator)
                )
        return self.dry_run(batch) if step == 0 else batch

    def apply_at(self, batch: Any, *, before: bool, epoch: int, step: int, rank: int) -> Any:
        """Call `apply` if it belongs before, or after, the datamodule's own hook."""
        if before != self.before_hook:
            return batch
        return self.apply(batch, epoch=epoch, step=step, rank=rank)

    def dry_run(self, batch: Any) -> Any:
        """Check the first batch of a run where it is not transformed.

        So errors show at once, also if the transform begins in a later epoch.
        """
        return batch

    def rehearse_at(self, batch: Any, *, before: bool) -> Any:
        """Call `dry_run` before, or after, the datamodule's own hook."""
        return self.dry_run(batch) if before == self.before_hook else batch

    def entries(self, batch: Any) -> Entries:
        """Return the entries of the batch that this transform changes."""
        return Entries(batch, self)


class EntriesTransform(BatchTransform):
    """A transform of several inputs and targets.

    Subclasses define `transform_entries` alone.
    """

    def transform(
        self, inputs: Tensor, targets: Any, generator: torch.Generator
    ) -> tuple[Tensor, Any]:
        new_inputs, new_targets = self.transform_entries([inputs], [targets], generator)
        return new_inputs[0], new_targets[0]


def _transform_batch(hook: Wrapped, batch: Any, dataloader_idx: int = 0) -> Any:
    """Call the hook between the transforms before and after it."""
    trainer = hook.trainer
    if not trainer.training:
        return hook.inner(batch, dataloader_idx)
    epoch, step, rank = trainer.current_epoch, batches_seen(trainer), trainer.global_rank
    for transform in hook.callbacks:
        batch = transform.apply_at(batch, before=True, epoch=epoch, step=step, rank=rank)
    batch = hook.inner(batch, dataloader_idx)
    for transform in hook.callbacks:
        batch = transform.apply_at(batch, before=False, epoch=epoch, step=step, rank=rank)
    return batch


def batches_seen(trainer: pl.Trainer) -> int:
    """Return the number of training batches before this one, over all epochs.

    A resumed run continues the count. Lightning has no public counter of batches: `global_step`
    counts optimizer steps, and under accumulation several batches share one.
    """
    return trainer.fit_loop.total_batch_idx + 1


def mix(*numbers: int) -> int:
    """Mix integers into one 63-bit seed.

    It uses the finaliser of SplitMix64 (Steele et al. 2014).

    >>> mix(0, 1) != mix(1, 0)
    True
    """
    state, mask = 0, (1 << 64) - 1
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1


def check_images(images: Tensor, who: str, instead: str) -> None:
    """Raise a `ValueError` unless `images` has the shape (N, C, H, W)."""
    if images.ndim != 4:
        raise ValueError(
            f"{who} expects image batches (N, C, H, W), got shape {tuple(images.shape)}; {instead}."
        )


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Move values (N,) to `like`, in a shape that broadcasts with it."""
    # The dtype first: some devices have no float64.
    values = values.to(like.dtype).to(like.device, non_blocking=True)
    return values.reshape(-1, *(1,) * (like.ndim - 1))
