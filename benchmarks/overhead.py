"""Compare a training step of `MLPClassifier` under the Trainer with less.

The peers are the same net in a hand-written LightningModule that logs nothing, and a bare torch
loop. The net is 64 → 128 → 10, the batches are ready in memory, the optimizer is Adam. One turn is
one epoch. Lightning itself is the difference of the two peers, so the loop is no goal.

Run: python benchmarks/overhead.py
"""

from __future__ import annotations

from functools import partial

import torch
from _timing import Bench, Run, Stopwatch, Time, start
from _trainer import HandWritten, class_batches, time_steps
from torch import nn
from torch.nn import functional as F

from dlblocks.models import MLPClassifier


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def ours(data: list, device: str) -> Run:
    return lambda: time_steps(MLPClassifier(64, 10, hidden=[128]), data, accelerator=device)


def hand_written(data: list, device: str) -> Run:
    return lambda: time_steps(HandWritten(net()), data, accelerator=device)


def bare_loop(data: list, device: str) -> Run:
    def run() -> Time:
        model = net().to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        with Stopwatch() as watch:
            for inputs, targets in data:
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
        return Time(*(seconds / len(data) for seconds in watch.time))

    return run


def tables(bench: Bench) -> None:
    for size, steps in ((64, 300), (4096, 60)):
        data = class_batches(steps, size, 64, device=bench.device)
        bench.compare(
            f"Step of MLPClassifier, batches of {size:,}",
            {
                "ours": partial(ours, data, bench.device),
                "hand-written module": partial(hand_written, data, bench.device),
                "bare loop": partial(bare_loop, data, bench.device),
            },
            unit="µs",
            goals={"hand-written module": 1 / 1.1},
        )


if __name__ == "__main__":
    start(tables, __doc__)
