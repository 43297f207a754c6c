"""The one hook on which every callback of this package changes a training batch.

Lightning lets a callback replace entries of list batches only, and in silence fails on tuples; so
the callbacks here wrap `on_after_batch_transfer` of the object that Lightning will call, the
datamodule if it overrides the hook and else the module, while the fit lasts. It works with any
LightningModule, any datamodule and any number of these callbacks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from dlblocks.arguments import checked
from dlblocks.callbacks.batches import Entries, Key, structure
from dlblocks.callbacks.memory import BatchMemory
from dlblocks.callbacks.targets import soft_targets
from dlblocks.errors import check_choice, check_range

__all__ = [
    "BatchTransform",
    "batches_seen",
    "check_images",
    "mix",
    "per_sample",
    "soft_targets",
    "structure",
]

HOOK = "on_after_batch_transfer"
MASK = (1 << 64) - 1


class BatchTransform(Callback):
    """A callback that changes the inputs and targets of training batches, and of no others.

    Subclasses define `transform`, and set `before_hook` if they are to see the batch before the
    datamodule's own `on_after_batch_transfer` (raw images) rather than after it. Callbacks of the
    same kind act in the order of the Trainer's list. What must be known of the module or the data
    is taken in `prepare`.

    Random draws are a function of (seed, batch number, rank, place in the Trainer's list): two
    ranks and two callbacks differ, and a resumed run repeats what it would have drawn.

    Args:
        p: Probability that a batch is transformed.
        start_epoch: First epoch with the transform, from 0.
        stop_epoch: First epoch without it again, or None; -5 leaves the last five epochs without.
        seed: Seed of the random draws.
        input_key: Where the inputs are in the batch: a position, the key of a dictionary, or a list
            of them from the outside in, such as ``["images", 0]`` for entry 0 of entry "images";
            None if the batch is nothing but inputs. Of a nest of tensors, all are inputs.
        target_key: Likewise for the targets, which are one tensor; None if there are none.
        extras: What to do with further entries that have the batch's length and are not plain
            sample numbers: ``"refuse"``; ``"keep"`` them as they are; or, for those that take it,
            a dictionary of entries, such as ``{"mask": "input", "weight": "target", "id": "keep"}``
            for what changes as inputs do, as targets do, or not.
    """

    before_hook = False
    # What `extras` may say of an entry.
    extra_actions: tuple[str, ...] = ("keep",)

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
        extras: Literal["refuse", "keep"] | Mapping[Any, str] = "refuse",
    ) -> None:
        check_range("p", p, 0, 1)
        check_range("start_epoch", start_epoch, 0)
        if isinstance(extras, Mapping):
            for key, action in extras.items():
                check_choice(f"extras[{key!r}]", action, self.extra_actions)
        else:
            check_choice("extras", extras, ["refuse", "keep"])
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
        self.extras = extras
        self.memory = BatchMemory()  # for those whose new batch may be in it
        self.place = 0
        self.max_epochs: int | None = None

    def transform(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns new inputs and targets; writes into neither. `generator` is on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} must define transform().")

    def transform_entries(
        self, inputs: list[Tensor], targets: list[Any], generator: torch.Generator
    ) -> tuple[list[Any], list[Any]]:
        """Likewise for several inputs, and entries that change as inputs or targets do."""
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
        """Takes what it needs from trainer and module, before the first batch."""
        self.max_epochs = trainer.max_epochs
        if getattr(trainer.datamodule, "embeddings", None):  # type: ignore[attr-defined]
            raise ValueError(
                f"{type(self).__name__} changes inputs, of which columns are numbers of categories "
                "(embed=), which it would spoil; use counts= in the place of embed=."
            )
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # one epoch of any plan
        last, stop, name = self._max_epochs(), self._stop(), type(self).__name__
        if self.stop_epoch is not None and stop is None:
            raise ValueError(
                f"{name}(stop_epoch={self.stop_epoch}) counts from the end, which max_epochs="
                f"{trainer.max_epochs} does not say; set max_epochs or a stop_epoch >= 0."
            )
        if stop is not None and stop <= self.start_epoch:
            raise ValueError(
                f"{name}(start_epoch={self.start_epoch}, stop_epoch={self.stop_epoch}) would never "
                f"act in max_epochs={last}."
            )
        if last is not None and last <= self.start_epoch:
            rank_zero_warn(f"{name}(start_epoch={self.start_epoch}) comes after max_epochs={last}.")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.place = [c for c in _callbacks(trainer) if isinstance(c, BatchTransform)].index(self)
        self.prepare(trainer, pl_module)
        owner = _owner(trainer, pl_module)
        hook = vars(owner).get(HOOK)
        if not isinstance(hook, _Hook):
            hook = _Hook(trainer, getattr(owner, HOOK), replaced=hook)
            vars(owner)[HOOK] = hook
        hook.transforms.append(self)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.memory.clear()
        owner = _owner(trainer, pl_module)
        hook = vars(owner).get(HOOK)
        if isinstance(hook, _Hook) and self in hook.transforms:
            hook.transforms.remove(self)
            if not hook.transforms:
                del vars(owner)[HOOK]
                if hook.replaced is not None:
                    vars(owner)[HOOK] = hook.replaced

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.on_train_end(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.on_train_end(trainer, pl_module)

    # A batch

    def _max_epochs(self) -> int | None:
        return None if self.max_epochs in (None, -1) else self.max_epochs

    def _stop(self) -> int | None:
        last = self._max_epochs()
        if self.stop_epoch is None or self.stop_epoch >= 0:
            return self.stop_epoch
        return None if last is None else last + self.stop_epoch

    def active(self, epoch: int) -> bool:
        """Whether the transform acts in `epoch`."""
        stop = self._stop()
        return self.start_epoch <= epoch and (stop is None or epoch < stop)

    def generator(self, step: int, rank: int) -> torch.Generator:
        """The source of all random draws for one batch."""
        return torch.Generator().manual_seed(mix(self.seed, step, rank, self.place))

    def apply(self, batch: Any, *, epoch: int, step: int, rank: int) -> Any:
        """The batch as the model gets it: transformed, or as it is. Nothing is written in place."""
        if self.active(epoch):
            generator = self.generator(step, rank)
            if self.p == 1 or torch.rand((), generator=generator) < self.p:
                entries = self.entries(batch)
                return entries.replaced(
                    *self.transform_entries(entries.inputs, entries.targets, generator)
                )
        return self.rehearse(batch) if step == 0 else batch

    def apply_at(self, batch: Any, *, before: bool, epoch: int, step: int, rank: int) -> Any:
        """`apply`, if this is its turn: before the datamodule's own hook, or after it."""
        if before != self.before_hook:
            return batch
        return self.apply(batch, epoch=epoch, step=step, rank=rank)

    def rehearse(self, batch: Any) -> Any:
        """The first batch of a run, if it is not transformed: the chance to find errors early."""
        return batch

    def rehearse_at(self, batch: Any, *, before: bool) -> Any:
        """`rehearse`, if this is its turn."""
        return self.rehearse(batch) if before == self.before_hook else batch

    def entries(self, batch: Any) -> Entries:
        """What of the batch is to be changed."""
        who = type(self).__name__
        keys = self.input_key, self.target_key, self.extras
        return Entries(batch, *keys, who, self.extra_actions)


class _Hook:
    """Stands in for `on_after_batch_transfer`: transforms, the hook itself, transforms."""

    def __init__(self, trainer: pl.Trainer, inner: Callable, replaced: Any) -> None:
        functools.update_wrapper(self, inner)  # Lightning looks through it for what is overridden
        self.trainer, self.inner, self.replaced = trainer, inner, replaced
        self.transforms: list[BatchTransform] = []

    def __call__(self, batch: Any, dataloader_idx: int = 0) -> Any:
        if not self.trainer.training:
            return self.inner(batch, dataloader_idx)
        where = {
            "epoch": self.trainer.current_epoch,
            "step": batches_seen(self.trainer),
            "rank": self.trainer.global_rank,
        }
        for transform in self.transforms:
            batch = transform.apply_at(batch, before=True, **where)
        batch = self.inner(batch, dataloader_idx)
        for transform in self.transforms:
            batch = transform.apply_at(batch, before=False, **where)
        return batch


def batches_seen(trainer: pl.Trainer) -> int:
    """Training batches before this one since the first epoch; a resumed run counts on.

    Lightning has no public counter of batches: `global_step` counts optimizer steps, of which
    several batches share one under accumulation.
    """
    return trainer.fit_loop.total_batch_idx + 1


def mix(*numbers: int) -> int:
    """A well-mixed 63-bit seed from integers, by the finaliser of SplitMix64 (Steele et al. 2014).

    >>> mix(0, 1) != mix(1, 0)
    True
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state >> 1


def _callbacks(trainer: pl.Trainer) -> list[Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]


def _owner(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
    """Whose hook Lightning calls."""
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    if datamodule is not None and is_overridden(HOOK, datamodule):
        return datamodule
    return pl_module


def check_images(images: Tensor, who: str, instead: str) -> None:
    """Raises a `ValueError` unless `images` is a batch of images (N, C, H, W)."""
    if images.ndim != 4:
        raise ValueError(
            f"{who} expects image batches (N, C, H, W), got shape {tuple(images.shape)}; {instead}."
        )


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (N,) on the device of `like`, shaped to broadcast over its other axes."""
    # The dtype first: some devices have no float64.
    values = values.to(like.dtype).to(like.device, non_blocking=True)
    return values.reshape(-1, *(1,) * (like.ndim - 1))
