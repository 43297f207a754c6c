"""The optimizer and the learning-rate schedule of a model."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer

from dlblocks.optim import make_optimizer, make_schedule
from dlblocks.optim.schedules import schedule_needs_total_steps


class OptimizedModel(pl.LightningModule):
    """Base class that creates the optimizer from plain values."""

    optimizer_name: str
    lr: float | None
    weight_decay: float
    optimizer_args: dict[str, Any]
    lr_schedule: str
    lr_schedule_args: dict[str, Any]
    warmup_steps: int

    def make_optimizer(self) -> Optimizer:
        """Create the optimizer."""
        return make_optimizer(
            self.optimizer_name,
            self,
            lr=self.lr,
            weight_decay=self.weight_decay,
            args=self.optimizer_args,
        )

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        if isinstance(optimizer, torch.optim.LBFGS):
            accumulated, ranks = self.trainer.accumulate_grad_batches, self.trainer.world_size
            if accumulated > 1 or ranks > 1:
                raise ValueError(
                    f"accumulate_grad_batches={accumulated} on {ranks} devices, but lbfgs computes "
                    "the loss of one batch on one device several times a step; use a larger "
                    "batch_size, such as 'full', and devices=1."
                )
        total_steps = steps_per_epoch = None
        if schedule_needs_total_steps(self.lr_schedule) or self.warmup_steps:
            total = self.trainer.estimated_stepping_batches
            total_steps = int(total) if 0 < total < float("inf") else None
            batches = self.trainer.num_training_batches
            if batches != float("inf"):
                steps_per_epoch = -(-int(batches) // self.trainer.accumulate_grad_batches)
        schedules = make_schedule(
            self.lr_schedule,
            optimizer,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            warmup_steps=self.warmup_steps,
            args=self.lr_schedule_args,
        )
        return [optimizer], schedules
