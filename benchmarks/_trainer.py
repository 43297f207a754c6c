"""What the scripts share of Lightning: a Trainer with all off, and a clock of its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from _timing import Stopwatch, Time
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

OFF: dict[str, Any] = dict.fromkeys(
    ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
)


class HandWritten(pl.LightningModule):
    """A net and its loss, nothing logged."""

    def __init__(self, net: nn.Module, optimizer: Callable[..., Any] = torch.optim.Adam) -> None:
        super().__init__()
        self.net, self.optimizer = net, optimizer

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), lr=1e-3)


class Clock(pl.Callback):
    """Time from the start of step `first` to the end of the last."""

    def __init__(self, first: int) -> None:
        self.first, self.watch = first, Stopwatch()

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        if args[-1] == self.first:
            wait(trainer)
            self.watch.__enter__()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wait(trainer)
        self.watch.__exit__()


def wait(trainer: pl.Trainer) -> None:
    """Wait for the GPU, if the trainer uses one."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize()


def time_steps(
    module: pl.LightningModule,
    data: Any,
    *,
    first: int = 2,
    callbacks: list[pl.Callback] | None = None,
    **trainer: Any,
) -> Time:
    """Train for an epoch, and return the time of a step from step `first` on.

    Args:
        module: What is trained.
        data: Ready batches as a list, or a datamodule.
        first: Steps that warm up.
        callbacks: More callbacks.
        **trainer: More arguments of the Trainer.
    """
    clock = Clock(first)
    settings = {"accelerator": "cpu", "max_epochs": 1, **OFF, **trainer}
    fit = pl.Trainer(**settings, callbacks=[clock, *(callbacks or [])])
    loader: Any = DataLoader(data, batch_size=None) if isinstance(data, list) else data
    fit.fit(module, loader)
    steps = fit.fit_loop.total_batch_idx + 1 - first
    return Time(*(seconds / steps for seconds in clock.watch.time))


def class_batches(
    steps: int, *shape: int, classes: int = 10, device: str = "cpu", pixels: bool = False
) -> list[list[Tensor]]:
    """Return batches of normal inputs and random classes, of samples or of pixels."""
    generator = torch.Generator().manual_seed(0)
    of = (shape[0], *shape[2:]) if pixels else shape[:1]
    return [
        [
            torch.randn(shape, generator=generator).to(device),
            torch.randint(classes, of, generator=generator).to(device),
        ]
        for _ in range(steps)
    ]
