"""See the first training batch as a model sees it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from dlblocks._quiet import isolated


class _Eye(pl.LightningModule):
    """A model that learns nothing and keeps the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batch: Any = None

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.batch = batch

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight])


def first_batch(
    datamodule: pl.LightningDataModule, callbacks: Sequence[pl.Callback]
) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of a model's first training batch.

    They are on the CPU.

    Args:
        datamodule: The datamodule. It stays attached to the Trainer that is used here.
        callbacks: Callbacks that change batches. Copies are used.
    """
    eye = _Eye()
    with isolated():
        trainer = pl.Trainer(
            max_epochs=1,
            limit_train_batches=1,
            limit_val_batches=0,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=copy.deepcopy(list(callbacks)),
        )
        trainer.fit(eye, datamodule=datamodule)
    inputs, targets = eye.batch[:2]
    return inputs, targets
