"""What a training step costs with `SAM`, and with a plain one of the same module.

A hand-written LightningModule under the Trainer, batches ready in memory, SGD with momentum, one
thread: a small CNN with batch norm and dropout on 64×3×32×32, and an MLP 64 → 256 → 256 → 10 on
256 samples, each also with gradients accumulated over four batches. The two take turns in one
process; a turn is one epoch, timed from the first step to the last.

Run: python benchmarks/sam.py
"""

from __future__ import annotations

import statistics
import time
import warnings

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from dlblocks._quiet import quiet
from dlblocks.callbacks import SAM

STEPS, TURNS = 24, 9


class HandWritten(pl.LightningModule):
    """A net and its loss, nothing logged."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Clock(pl.Callback):
    """Times from the start of the first step to the end of the last."""

    seconds = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        if args[-1] == 0:
            self.seconds = -time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds += time.perf_counter()


def cnn() -> nn.Module:
    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]

    layers = [*block(3, 32), *block(32, 64), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4096, 10)]
    return nn.Sequential(*layers)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def batches(*shape: int) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        [
            torch.randn(shape, generator=generator),
            torch.randint(10, shape[:1], generator=generator),
        ]
        for _ in range(STEPS)
    ]


def seconds(net: nn.Module, data: list, window: int, *callbacks: pl.Callback) -> float:
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=window,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock, *callbacks],
    )
    trainer.fit(HandWritten(net), DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    return clock.seconds / STEPS


def main() -> None:
    """Prints milliseconds a batch, and the ratios of each turn."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, lightning {pl.__version__}, {TURNS} turns of {STEPS} steps")
    print(f"{'':<22}{'plain ms':>9}{'SAM ms':>9}{'ratio':>8}{'min':>7}{'max':>7}")
    with quiet():
        for name, make, shape in (("CNN", cnn, (64, 3, 32, 32)), ("MLP", mlp, (256, 64))):
            data = batches(*shape)
            for window in (1, 4):
                pairs = [
                    (seconds(make(), data, window), seconds(make(), data, window, SAM()))
                    for _ in range(TURNS + 1)
                ][1:]  # the first warms up
                ratios = [b / a for a, b in pairs]
                plain, ours = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
                label = f"{name}, window {window}"
                print(
                    f"{label:<22}{plain:9.2f}{ours:9.2f}{statistics.median(ratios):8.2f}"
                    f"{min(ratios):7.2f}{max(ratios):7.2f}"
                )


if __name__ == "__main__":
    main()
