"""Models whose loss is a mean over tokens, also over several batches."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from dlblocks.models.model import Model

UNIT = 1024  # tokens: the unit in which a batch is weighted, any constant


class TokenMeanModel(Model):
    """A model in which every token counts the same.

    A mean of means is not the mean over tokens. With accumulated gradients, and over ranks, each
    loss is therefore weighted by its tokens, and the gradients are divided by their sum before the
    step.
    """

    _share: Tensor | None = None  # tokens of the batches since the last optimizer step

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        trainer = self.trainer
        if trainer.accumulate_grad_batches == 1 and trainer.world_size == 1:
            return loss
        assert self.task is not None  # for the type checker
        counted = self.task.counted(batch[1])
        assert counted is not None  # for the type checker
        share = counted.sum() / UNIT
        if not self.metrics_paused:
            self._share = share if self._share is None else self._share + share
        return loss * share

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self._share is None:
            return
        share = self.trainer.strategy.reduce(self._share, reduce_op="mean")
        self._share = None
        factor = self.trainer.accumulate_grad_batches / share.clamp(min=1 / UNIT)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor.to(parameter.grad))
