"""Choose one of several transforms at random, for batches or samples.

Two methods that each remove a part of the image or of the label remove too much together. So MixUp
and CutMix are used in turn, each for half of the batches (Touvron et al., "Training data-efficient
image transformers & distillation through attention", 2021: MixUp with α = 0.8, CutMix with 1.0).
The choice holds for the batch, as in timm's ``switch_prob`` by default, or for each sample, as in
timm's ``mode="elem"``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from dlblocks._boxes import are_boxes
from dlblocks._errors import checked
from dlblocks.callbacks._batch_transform import BatchTransform, mix
from dlblocks.callbacks._entries import map_tensors, structure, tensors_in


class OneOf(BatchTransform):
    """Applies one of several transforms, chosen at random.

    Each member keeps its own arguments: keys, seed, `p` and epochs. If a chosen member does not act
    in this epoch, the batch stays as it is. Members may be any `BatchTransform`, including
    `Augment` and another `OneOf`.

    The generator of (seed, batch number, rank, place in the Trainer's list) draws in this order:
    whether to choose any (if ``p < 1``), and which. The chosen one draws from a generator of its
    own seed and its place in this list, so that members never share draws.

    ``per_sample=True`` applies all members to the whole batch, which takes the time of all, and
    takes each sample from the result of one. If some members make targets soft, all samples get
    soft targets.

    Args:
        transforms: The transforms to choose from.
        weights: How often each is chosen, relative to their sum; None for equally often.
        per_sample: Choose for each sample rather than for the batch.
        p: Probability that one is chosen at all.
        start_epoch: First epoch with a choice.
        stop_epoch: First epoch without it again; -5 leaves the last five epochs without.
        seed: Seed of the choice.

    Raises:
        ValueError: No transforms, one of them twice, or weights that are not one number >= 0 each
            with a positive sum. With `per_sample`, transforms that return different structures.

    Example:
        >>> from dlblocks.callbacks import CutMix, MixUp
        >>> one = OneOf([MixUp(0.8, num_classes=10), CutMix(num_classes=10)], weights=[1, 1])
        >>> batch = [torch.rand(4, 3, 8, 8), torch.arange(4)]
        >>> one.apply(batch, epoch=0, step=1, rank=0)[1].shape
        torch.Size([4, 10])
    """

    @checked
    def __init__(
        self,
        transforms: Sequence[BatchTransform],
        *,
        weights: Sequence[float] | None = None,
        per_sample: bool = False,
        p: float = 1.0,
        start_epoch: int = 0,
        stop_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(p=p, start_epoch=start_epoch, stop_epoch=stop_epoch, seed=seed)
        transforms = list(transforms)
        if not transforms or len({id(member) for member in transforms}) < len(transforms):
            raise ValueError(
                f"transforms has {len(transforms)} entries; expected at least one, all different "
                "objects."
            )
        weights = [1.0] * len(transforms) if weights is None else [float(w) for w in weights]
        if (
            len(weights) != len(transforms)
            or not all(w >= 0 and math.isfinite(w) for w in weights)
            or not sum(weights)
        ):
            raise ValueError(
                f"weights={weights} must be {len(transforms)} numbers >= 0, one for each "
                "transform, not all 0."
            )
        self.transforms = transforms
        self.weights = weights
        self.per_sample = per_sample
        self._place_members()

    def prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().prepare(trainer, pl_module)
        self._place_members()
        for member in self.transforms:
            if any(member is callback for callback in trainer.callbacks):  # type: ignore[attr-defined]
                raise ValueError(
                    f"{type(member).__name__} is in the Trainer's callbacks and in OneOf; leave it "
                    "in one of them."
                )
            member.prepare(trainer, pl_module)

    def _place_members(self) -> None:
        for i, member in enumerate(self.transforms):
            member.place = mix(self.place, i)
            if isinstance(member, OneOf):
                member._place_members()

    def chosen(self, *, epoch: int, step: int, rank: int) -> BatchTransform | None:
        """Return the transform of this batch, or None."""
        if not self.active(epoch):
            return None
        number = int(self._choices(1, step, rank))
        return self.transforms[number] if number < len(self.transforms) else None

    def _choices(self, size: int, step: int, rank: int) -> Tensor:
        """Draw numbers of transforms, int64 of shape (size,).

        One past the last means none of them.
        """
        generator = self.generator(step, rank)
        some = torch.ones(size, dtype=torch.bool)
        if self.p < 1:
            some = torch.rand(size, generator=generator) < self.p
        bounds = torch.tensor(list(itertools.accumulate(self.weights)), dtype=torch.float64)
        drawn = torch.rand(size, generator=generator, dtype=torch.float64) * bounds[-1]
        return torch.where(some, torch.bucketize(drawn, bounds, right=True), len(bounds))

    def apply(self, batch: Any, *, epoch: int, step: int, rank: int) -> Any:
        for before in (True, False):
            batch = self.apply_at(batch, before=before, epoch=epoch, step=step, rank=rank)
        return batch

    def apply_at(self, batch: Any, *, before: bool, epoch: int, step: int, rank: int) -> Any:
        # The choice is the same before and after the datamodule's own hook.
        if self.per_sample and self.active(epoch):
            return self._apply_each(batch, before=before, epoch=epoch, step=step, rank=rank)
        one = self.chosen(epoch=epoch, step=step, rank=rank)
        if one is not None:
            batch = one.apply_at(batch, before=before, epoch=epoch, step=step, rank=rank)
        if step == 0:
            for member in self.transforms:
                if member is not one:
                    batch = member.rehearse_at(batch, before=before)
        return batch

    def _apply_each(self, batch: Any, *, before: bool, epoch: int, step: int, rank: int) -> Any:
        entries = batch.values() if isinstance(batch, Mapping) else batch
        if isinstance(entries, Iterable) and any(are_boxes(entry) for entry in entries):
            raise ValueError(
                "OneOf(per_sample=True) cannot choose boxes sample by sample, because their number "
                "differs; choose for the batch, per_sample=False."
            )
        made = [
            member.apply_at(batch, before=before, epoch=epoch, step=step, rank=rank)
            for member in self.transforms
        ]
        if all(result is batch for result in made):
            return batch
        results = [*made, batch]
        if len({_form(result) for result in results}) > 1:
            # If one of them softens targets, soften the targets of all results.
            results = [self.rehearse_at(result, before=before) for result in results]
        if len({_form(result) for result in results}) > 1:
            raise ValueError(
                "OneOf(per_sample=True) takes each sample from the result of one of its "
                "transforms, but they make different structures of a batch: "
                + ", ".join(structure(result) for result in results[:-1])
                + "; choose for the batch, per_sample=False."
            )
        leaves = [tensors_in(result) for result in results]
        # Count the samples in changed tensors: a batch may hold other entries too.
        rows = [*zip(*leaves, strict=True)]
        size = next(len(row[-1]) for row in rows if any(leaf is not row[-1] for leaf in row))
        chosen = self._choices(size, step, rank)
        return map_tensors(results[-1], iter([_pick(row, chosen) for row in rows]))

    def rehearse_at(self, batch: Any, *, before: bool) -> Any:
        for member in self.transforms:
            batch = member.rehearse_at(batch, before=before)
        return batch

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        for member in self.transforms:
            member.on_train_end(trainer, pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        super().on_exception(trainer, pl_module, exception)
        for member in self.transforms:
            member.on_exception(trainer, pl_module, exception)


def _form(batch: Any) -> tuple[Any, ...]:
    """Return shapes and dtypes, which results must share to be mixed."""
    return tuple((tuple(leaf.shape), leaf.dtype) for leaf in tensors_in(batch))


def _pick(tensors: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """Take sample i from ``tensors[chosen[i]]``."""
    *others, picked = tensors
    if all(tensor is picked for tensor in others):
        return picked
    chosen = chosen.to(picked.device, non_blocking=True)
    for number, tensor in enumerate(others):
        rows = (chosen == number).reshape(-1, *(1,) * (picked.ndim - 1))
        picked = torch.where(rows, tensor, picked)
    return picked
