"""The one hook on which every callback of this package changes a training batch.

Lightning lets a callback replace entries of list batches only, and in silence fails on tuples; so
the callbacks here wrap `on_after_batch_transfer` of the object that Lightning will call, the
datamodule if it overrides the hook and else the module, while the fit lasts. It works with any
LightningModule, any datamodule and any number of these callbacks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from dlblocks.errors import check_choice, check_range

HOOK = "on_after_batch_transfer"
MASK = (1 << 64) - 1


class BatchTransform(Callback):
    """A callback that changes the inputs and targets of training batches, and of no others.

    Subclasses define `transform`, and set `before_hook` if they are to see the batch before the
    datamodule's own `on_after_batch_transfer` (raw images) rather than after it. Callbacks of the
    same kind act in the order of the Trainer's list.

    Random draws are a function of (seed, batch number, rank, place in the Trainer's list): two
    ranks and two callbacks differ, and a resumed run repeats what it would have drawn.

    Args:
        p: Probability that a batch is transformed.
        start_epoch: First epoch with the transform, from 0.
        stop_epoch: First epoch without it again, or None.
        seed: Seed of the random draws.
        input_key: Where the inputs are in the batch: a position, or the key of a dictionary.
        target_key: Likewise for the targets.
        extras: What to do with further entries that have the batch's length and are not plain
            sample numbers: ``"refuse"``, or ``"keep"`` them as they are.
    """

    before_hook = False

    def __init__(
        self,
        *,
        p: float = 1.0,
        start_epoch: int = 0,
        stop_epoch: int | None = None,
        seed: int = 0,
        input_key: int | str = 0,
        target_key: int | str = 1,
        extras: Literal["refuse", "keep"] = "refuse",
    ) -> None:
        check_range("p", p, 0, 1)
        check_range("start_epoch", start_epoch, 0)
        check_choice("extras", extras, ["refuse", "keep"])
        if stop_epoch is not None and stop_epoch <= start_epoch:
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
        self.place = 0

    def transform(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns new inputs and targets; writes into neither. `generator` is on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} must define transform().")

    # The hook

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.place = [c for c in _callbacks(trainer) if isinstance(c, BatchTransform)].index(self)
        owner = _owner(trainer, pl_module)
        hook = vars(owner).get(HOOK)
        if not isinstance(hook, _Hook):
            hook = _Hook(trainer, getattr(owner, HOOK), replaced=hook)
            vars(owner)[HOOK] = hook
        hook.transforms.append(self)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
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

    def active(self, epoch: int) -> bool:
        """Whether the transform acts in `epoch`."""
        return self.start_epoch <= epoch and (self.stop_epoch is None or epoch < self.stop_epoch)

    def apply(self, batch: Any, *, epoch: int, step: int, rank: int) -> Any:
        """The batch as the model gets it: transformed, or as it is. Nothing is written in place."""
        if not self.active(epoch):
            return batch
        generator = torch.Generator().manual_seed(mix(self.seed, step, rank, self.place))
        if self.p < 1 and torch.rand((), generator=generator) >= self.p:
            return batch
        inputs, targets = self._entry(batch, self.input_key), self._entry(batch, self.target_key)
        self._check_extras(batch, len(inputs))
        new_inputs, new_targets = self.transform(inputs, targets, generator)
        return _replace(batch, {self.input_key: new_inputs, self.target_key: new_targets})

    def _entry(self, batch: Any, key: int | str) -> Tensor:
        try:
            entry = batch[key]
            if not isinstance(batch, (Mapping, Sequence)):
                raise TypeError
        except (KeyError, IndexError, TypeError):
            entry = None
        if not isinstance(entry, Tensor):
            argument = "input_key" if key == self.input_key else "target_key"
            raise ValueError(
                f"{type(self).__name__} found no tensor at {argument}={key!r} of the batch "
                f"{structure(batch)}; set input_key= and target_key= to where the inputs and "
                "targets are."
            )
        return entry

    def _check_extras(self, batch: Any, size: int) -> None:
        if self.extras == "keep":
            return
        items = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
        for key, entry in items:
            if key in (self.input_key, self.target_key) or not isinstance(entry, Tensor):
                continue
            is_sample_number = entry.ndim == 1 and not entry.is_floating_point()
            if entry.ndim and len(entry) == size and not is_sample_number:
                raise ValueError(
                    f"{type(self).__name__} does not know how to change entry {key!r} of the batch "
                    f"{structure(batch)} along with the inputs; leave it out of the batch, or set "
                    "extras='keep' if it may stay as it is."
                )


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
            if transform.before_hook:
                batch = transform.apply(batch, **where)
        batch = self.inner(batch, dataloader_idx)
        for transform in self.transforms:
            if not transform.before_hook:
                batch = transform.apply(batch, **where)
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


def structure(batch: Any) -> str:
    """A batch's structure in words, for error messages.

    >>> structure({"x": torch.zeros(2, 3), "n": 1})
    "{'x': Tensor (2, 3), 'n': int}"
    """
    if isinstance(batch, Tensor):
        return f"Tensor {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{k!r}: {structure(v)}" for k, v in batch.items()) + "}"
    if isinstance(batch, (list, tuple)):
        return "[" + ", ".join(structure(entry) for entry in batch) + "]"
    return type(batch).__name__


def _replace(batch: Any, new: Mapping[int | str, Tensor]) -> Any:
    """A container like `batch` with some entries new."""
    if isinstance(batch, Mapping):
        entries = {**batch, **new}
        return entries if type(batch) is dict else type(batch)(entries)  # type: ignore[call-arg]
    entries_list = list(batch)
    for key, entry in new.items():
        entries_list[key] = entry  # type: ignore[index]
    if hasattr(batch, "_make"):
        return batch._make(entries_list)
    return type(batch)(entries_list)


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
    values = values.to(like.device, like.dtype, non_blocking=True)
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def soft_targets(
    targets: Tensor, num_classes: int | None, owner: Any, who: str, like: Tensor
) -> Tensor:
    """Targets that can be mixed: classes (N,) become one-hot rows; floating point stays.

    Args:
        targets: Classes, integers of shape (N,), or floating point of any shape, or 0/1 integers of
            shape (N, C) for several labels at once.
        num_classes: Number of classes, or None to take that of `owner`.
        owner: Something that may have `num_classes`.
        who: The caller's name, for the message.
        like: Gives the floating-point dtype.
    """
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    if targets.is_floating_point():
        return targets
    if targets.ndim > 1:
        return targets.to(dtype)
    count = num_classes if num_classes is not None else owner
    if not isinstance(count, int):
        raise ValueError(
            f"{who} must know the number of classes to mix class indices; set num_classes=."
        )
    if targets.device.type == "cpu" and len(targets):
        # On an accelerator this look would wait for the device.
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= count:
            raise ValueError(
                f"{who} found label {low if low < 0 else high}, outside 0 … {count - 1} "
                f"(num_classes={count})."
            )
    # Comparison, because F.one_hot waits for an accelerator to learn the largest label.
    return (targets[:, None] == torch.arange(count, device=targets.device)).to(dtype)
