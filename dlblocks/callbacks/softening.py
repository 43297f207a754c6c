"""What all transforms that soften targets share: clear words where a loss cannot take them."""

from __future__ import annotations

import traceback
from typing import Any

import lightning.pytorch as pl
import torch

from dlblocks.callbacks.base import BatchTransform, batches_seen
from dlblocks.losses import MixedTargets


class Softening(BatchTransform):
    """A transform that makes soft targets of classes.

    Subclasses call `softened` with what they have made, in `rehearse` too, so that a loss that
    cannot take it fails on the first batch of a run, and say in `cure` what else may help.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # The first batch that was softened, and what its targets became.
        self._step = 0
        self._first_softened: tuple[int, str] | None = None

    def prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().prepare(trainer, pl_module)
        self._step, self._first_softened = 0, None

    def apply(self, batch: Any, *, epoch: int, step: int, rank: int) -> Any:
        self._step = step
        return super().apply(batch, epoch=epoch, step=step, rank=rank)

    @property
    def cure(self) -> str:
        """What may help beside a loss that takes soft targets."""
        raise NotImplementedError(f"{type(self).__name__} must define cure.")

    def softened(self, before: Any, after: Any) -> None:
        """Takes note of a batch's targets, as they were and as they are."""
        if self._first_softened is None:
            self._first_softened = (self._step, _kind(before, after))

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Adds the cure to an error of the first training step that got softened targets."""
        super().on_exception(trainer, pl_module, exception)
        # In training_step, Lightning has counted the batch already.
        self.explain(exception, batches_seen(trainer) - 1)

    def explain(self, exception: BaseException, step: int) -> None:
        """Adds the cure, if `exception` comes from the first training step with soft targets."""
        if self._first_softened is None:
            return
        first, kind = self._first_softened
        if first != step or not kind:
            return
        kinds = (TypeError, ValueError, RuntimeError, IndexError, AttributeError)
        if not isinstance(exception, kinds) or isinstance(exception, torch.OutOfMemoryError):
            return
        frames = traceback.extract_tb(exception.__traceback__)
        if not any(frame.name == "training_step" for frame in frames):
            return
        exception.args = (
            f"{exception}\n\n{type(self).__name__} gave training_step {kind}. If that is what the "
            "error is about: for the loss use dlblocks.losses.cross_entropy, which takes hard and "
            f"soft targets, and for metrics dlblocks.metrics.hard_labels(targets); {self.cure}.",
        )


def _kind(before: Any, after: Any) -> str:
    """What targets became, in words, if it is something that a loss may not take."""
    if isinstance(after, MixedTargets):
        return "targets that are a pair, MixedTargets(first, second, lam)"
    if before.is_floating_point() or not after.is_floating_point():
        return ""
    return (
        f"soft targets, {after.dtype} of shape {tuple(after.shape)}, for the integers of shape "
        f"{tuple(before.shape)} in the batch"
    )
