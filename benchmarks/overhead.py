"""What a training step of `MLPClassifier` costs under the Trainer.

Against the same net in a hand-written LightningModule that logs nothing, and in a bare torch loop:
64 → 128 → 10, batches of 64 that are ready in memory, Adam, one thread. The three take turns in one
process; each turn is one epoch of `STEPS` steps, timed from the first step to the last.

Run: python benchmarks/overhead.py
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
from dlblocks.models import MLPClassifier

STEPS, TURNS = 300, 25


class HandWritten(pl.LightningModule):
    """The same net, nothing logged."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Clock(pl.Callback):
    """Times from the start of the first step to the end of the last."""

    seconds = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        if args[-1] == 0:
            self.seconds = -time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds += time.perf_counter()


def batches() -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        [torch.randn(64, 64, generator=generator), torch.randint(10, (64,), generator=generator)]
        for _ in range(STEPS)
    ]


def under_trainer(model: pl.LightningModule, data: list[list[torch.Tensor]]) -> float:
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    trainer.fit(model, DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    return clock.seconds / STEPS


def bare(data: list[list[torch.Tensor]]) -> float:
    net = HandWritten().net
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    start = time.perf_counter()
    for inputs, targets in data:
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    return (time.perf_counter() - start) / STEPS


def main() -> None:
    """Prints microseconds a step, and the ratios of each turn."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    data = batches()
    turns: dict[str, list[float]] = {"ours": [], "hand-written": [], "bare loop": []}
    with quiet():
        for turn in range(TURNS + 1):
            found = {
                "ours": under_trainer(MLPClassifier(64, 10, hidden=[128]), data),
                "hand-written": under_trainer(HandWritten(), data),
                "bare loop": bare(data),
            }
            if turn:  # the first warms up
                for name, seconds in found.items():
                    turns[name].append(seconds)
    print(f"torch {torch.__version__}, lightning {pl.__version__}, {TURNS} turns of {STEPS} steps")
    print(f"{'':<24}{'median':>9}{'min':>9}{'max':>9}")
    for name, values in turns.items():
        shown = [statistics.median(values), min(values), max(values)]
        print(f"{name + ' (µs/step)':<24}" + "".join(f"{1e6 * v:9.0f}" for v in shown))
    for name in ("hand-written", "bare loop"):
        ratios = [a / b for a, b in zip(turns["ours"], turns[name], strict=True)]
        shown = [statistics.median(ratios), min(ratios), max(ratios)]
        print(f"{'ours / ' + name:<24}" + "".join(f"{v:9.2f}" for v in shown))


if __name__ == "__main__":
    main()
