"""OneOf: for each batch, one of several transforms is chosen at random.

Two methods that each take a part of the image or of the label away take too much together: MixUp
and CutMix are used in turn, each for half of the batches (Touvron et al., "Training data-efficient
image transformers & distillation through attention", 2021: MixUp with α = 0.8, CutMix with 1.0).
The choice is made for the batch, as timm's ``switch_prob`` does by default.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch

from dlblocks.callbacks.base import BatchTransform, mix


class OneOf(BatchTransform):
    """Applies one of several transforms to each training batch, chosen at random.

    Each keeps its own arguments: its keys, its seed, and its own `p` and epochs, outside which its
    turn leaves the batch as it is. Members may be any `BatchTransform`, `Augment` and another
    `OneOf` included.

    From the generator of (seed, batch number, rank, place in the Trainer's list) are drawn, in this
    order: whether anything is done (if ``p < 1``), and which. The chosen one then draws from a
    generator of its own seed and of its place in this list, so that members never share draws.

    Args:
        transforms: The transforms to choose from.
        weights: How often each is chosen, relative to their sum; None for equally often.
        p: Probability that one is chosen at all.
        start_epoch: First epoch with a choice.
        stop_epoch: First epoch without it again; -5 leaves the last five epochs without.
        seed: Seed of the choice.

    Raises:
        TypeError: One of `transforms` is not a `BatchTransform`.
        ValueError: No transforms, one of them twice, or weights that are not one number >= 0 each
            with a positive sum.

    Example:
        >>> from dlblocks.callbacks import CutMix, MixUp
        >>> one = OneOf([MixUp(0.8, num_classes=10), CutMix(num_classes=10)], weights=[1, 1])
        >>> batch = [torch.rand(4, 3, 8, 8), torch.arange(4)]
        >>> one.apply(batch, epoch=0, step=1, rank=0)[1].shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        transforms: Sequence[BatchTransform],
        *,
        weights: Sequence[float] | None = None,
        p: float = 1.0,
        start_epoch: int = 0,
        stop_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(p=p, start_epoch=start_epoch, stop_epoch=stop_epoch, seed=seed)
        transforms = list(transforms)
        for member in transforms:
            if not isinstance(member, BatchTransform):
                raise TypeError(
                    f"transforms must be callbacks that change batches, such as MixUp and CutMix, "
                    f"got {type(member).__name__}; give other callbacks to the Trainer."
                )
        if not transforms or len({id(member) for member in transforms}) < len(transforms):
            raise ValueError(
                f"transforms has {len(transforms)} entries; expected at least one, each another "
                "object."
            )
        weights = [1.0] * len(transforms) if weights is None else [float(w) for w in weights]
        if (
            len(weights) != len(transforms)
            or not all(w >= 0 and math.isfinite(w) for w in weights)
            or not sum(weights)
        ):
            raise ValueError(
                f"weights={weights} must be {len(transforms)} numbers >= 0, one a transform, not "
                "all 0."
            )
        self.transforms = transforms
        self.weights = weights
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
        """The transform of this batch, or None."""
        if not self.active(epoch):
            return None
        generator = self.generator(step, rank)
        if self.p < 1 and torch.rand((), generator=generator) >= self.p:
            return None
        bounds = list(itertools.accumulate(self.weights))
        drawn = float(torch.rand((), generator=generator, dtype=torch.float64)) * bounds[-1]
        pairs = zip(self.transforms, bounds, strict=True)
        return next(member for member, bound in pairs if drawn < bound)

    def apply(self, batch: Any, *, epoch: int, step: int, rank: int) -> Any:
        for before in (True, False):
            batch = self.apply_at(batch, before=before, epoch=epoch, step=step, rank=rank)
        return batch

    def apply_at(self, batch: Any, *, before: bool, epoch: int, step: int, rank: int) -> Any:
        # The choice comes out the same before and after the datamodule's own hook.
        one = self.chosen(epoch=epoch, step=step, rank=rank)
        if one is not None:
            batch = one.apply_at(batch, before=before, epoch=epoch, step=step, rank=rank)
        if step == 0:
            for member in self.transforms:
                if member is not one:
                    batch = member.rehearse_at(batch, before=before)
        return batch

    def rehearse_at(self, batch: Any, *, before: bool) -> Any:
        for member in self.transforms:
            batch = member.rehearse_at(batch, before=before)
        return batch

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        super().on_exception(trainer, pl_module, exception)
        for member in self.transforms:
            member.on_exception(trainer, pl_module, exception)
