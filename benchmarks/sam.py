"""Compare a training step with `SAM` with a plain one of the same module.

A hand-written LightningModule under the Trainer, batches ready in memory, SGD with momentum: a
small CNN with batch norm and dropout on 64×3×32×32, and an MLP 64 → 256 → 256 → 10 on 256 samples,
each also with gradients accumulated over four batches. A turn is one epoch. SAM computes each
gradient twice, so half the speed is the most that it can reach.

Run: python benchmarks/sam.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from _timing import Bench, Run, start
from _trainer import HandWritten, class_batches, time_steps
from torch import nn

from dlblocks.callbacks import SAM

SGD = partial(torch.optim.SGD, momentum=0.9)


def cnn() -> nn.Module:
    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]

    layers = [*block(3, 32), *block(32, 64), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4096, 10)]
    return nn.Sequential(*layers)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def step(make: Callable[[], nn.Module], data: list, *, sam: bool, **trainer: object) -> Run:
    return lambda: time_steps(
        HandWritten(make(), SGD), data, callbacks=[SAM()] if sam else [], **trainer
    )


def tables(bench: Bench) -> None:
    for name, make, shape in (("CNN", cnn, (64, 3, 32, 32)), ("MLP", mlp, (256, 64))):
        data = class_batches(24, *shape, device=bench.device)
        for window in (1, 4):
            make_step = partial(
                step, make, data, accelerator=bench.device, accumulate_grad_batches=window
            )
            bench.compare(
                f"Step with SAM, {name}, gradients of {window} batches",
                {"SAM": partial(make_step, sam=True), "plain": partial(make_step, sam=False)},
                goals={"plain": 0.45},
            )


if __name__ == "__main__":
    start(tables, __doc__)
