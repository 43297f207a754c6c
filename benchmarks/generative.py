"""What a step of generative models costs, and the likelihood of digits by flow matching.

A step under the Trainer is compared with a bare loop that trains the same nets by the same losses,
with the same noise and average. The GAN's loop runs the generator once a step, as ours does, and is
compared with one that runs it twice, as most do. All take turns in one process, on one thread.
Times are those of the processor, so that other work on the machine counts little. Ratios are within
a turn.

Measured (one thread of a very busy two-core virtual machine, torch 2.15, lightning 2.6.6, medians
of three turns): a step of the VAE takes 1.14 (1.09 … 1.15) times as long as the bare loop, of flow
matching 1.01 (0.99 … 1.04). The GAN was not measured.

Run: python benchmarks/generative.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from dlblocks._quiet import quiet
from dlblocks.data import DigitsDataModule
from dlblocks.models import GAN, VAE, FlowMatching, GenerativeModel
from dlblocks.models._noise import BatchNoise, Noise

STEPS, BATCH = 40, 256


class Clock(pl.Callback):
    """Processor time from the third step to the end of the last."""

    seconds = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        if args[-1] == 2:
            self.seconds = -time.process_time()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds += time.process_time()


def under_trainer(make: Callable[[], GenerativeModel], batches: list[Any]) -> float:
    """Return milliseconds of a step."""
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
    trainer.fit(make(), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return 1e3 * clock.seconds / (len(batches) - 2)


def in_loop(step: Callable[[Tensor, Tensor], Tensor], batches: list[Any]) -> float:
    """Return milliseconds of a step of a bare loop."""
    started = 0.0
    for i, (images, labels) in enumerate(batches):
        if i == 2:
            started = time.process_time()
        step(images, labels)
    return 1e3 * (time.process_time() - started) / (len(batches) - 2)


def bare(make: Callable[[], GenerativeModel], batches: list[Any]) -> float:
    """Train by `losses` and one optimizer, without Lightning."""
    model = make().train()
    optimizer = torch.optim.Adam(model.net.parameters(), model.lr or 1e-3)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        levels = model.to_levels(model.preprocess(images))
        loss = model.losses(levels, labels, BatchNoise(len(levels)))["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if model.ema is not None:
            model.ema.update(model.net)
        return loss

    return in_loop(step, batches)


def bare_gan(make: Callable[[], GAN], batches: list[Any], forwards: int) -> float:
    """Train a GAN of the first loss by zero_grad and backward."""
    model = make().train()
    generator, discriminator = model.net, model.discriminator
    optimizers = [
        torch.optim.Adam(net.parameters(), 1e-3, (0.5, 0.99)) for net in (generator, discriminator)
    ]

    def step(images: Tensor, labels: Tensor) -> Tensor:
        levels = model.to_levels(model.preprocess(images))
        real = (levels + torch.rand_like(levels, dtype=torch.float32)) * (2 / model.levels) - 1
        real.requires_grad_()
        fake = generator(torch.randn(len(levels), model.latent_dim), labels)
        of_real, of_fake = discriminator(real, labels), discriminator(fake.detach(), labels)
        (slope,) = torch.autograd.grad(of_real.sum(), real, create_graph=True)
        loss = F.softplus(-of_real).mean() + F.softplus(of_fake).mean()
        loss = loss + model.gradient_penalty / 2 * slope.flatten(1).square().sum(1).mean()
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        if forwards == 2:
            fake = generator(torch.randn(len(levels), model.latent_dim), labels)
        discriminator.requires_grad_(False)
        loss = F.softplus(-discriminator(fake, labels)).mean()
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        discriminator.requires_grad_(True)
        if model.ema is not None:
            model.ema.update(generator)
        return loss

    return in_loop(step, batches)


def compare(title: str, runs: dict[str, Callable[[], float]], turns: int) -> None:
    """Print milliseconds of all, and the ratios of the first to the others within a turn."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    with quiet():
        for turn in range(turns + 1):
            for name, run in runs.items():
                taken = run()
                if turn:  # the first warms up
                    found[name].append(taken)
    print(f"\n{title:<36}median       min       max")
    for name, values in found.items():
        row(f"{name} (ms)", values)
    first, *others = found
    for name in others:
        row(f"{first} / {name}", [a / b for a, b in zip(found[first], found[name], strict=True)])


def row(name: str, values: list[float]) -> None:
    shown = [statistics.median(values), min(values), max(values)]
    print(f"  {name:<30}" + "".join(f"{v:10.3f}" for v in shown), flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--only", choices=["VAE", "FlowMatching", "GAN", "likelihood"])
    given = parser.parse_args()
    turns = given.turns

    def wanted(name: str) -> bool:
        return given.only in (None, name)

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, lightning {pl.__version__}, one thread, {turns} turns")
    images, labels, _ = DigitsDataModule().arrays("train")
    rows = torch.randint(len(images), (STEPS, BATCH), generator=torch.Generator().manual_seed(0))
    batches = [[images[row], labels[row]] for row in rows]
    common: dict[str, Any] = {"levels": 17, "num_classes": 10, "lr": 1e-3, "ema_decay": 0.998}
    for cls in (VAE, FlowMatching):
        if not wanted(cls.__name__):
            continue
        make: Callable[[], Any] = partial(cls, [1, 8, 8], **common)
        compare(
            f"step of {cls.__name__}, {BATCH} digits",
            {
                "ours": partial(under_trainer, make, batches),
                "bare loop": partial(bare, make, batches),
            },
            turns,
        )
    make = partial(GAN, [1, 8, 8], **common)
    if wanted("GAN"):
        compare(
            f"step of GAN, {BATCH} digits",
            {
                "ours": partial(under_trainer, make, batches),
                "bare loop": partial(bare_gan, make, batches, 1),
                "generator twice": partial(bare_gan, make, batches, 2),
            },
            turns,
        )
    if not wanted("likelihood"):
        return
    model = FlowMatching([1, 8, 8], **common).eval()
    levels, started = model.to_levels(model.preprocess(images[:360])), time.process_time()
    model.scores(levels, labels[:360], Noise(0, range(360)))
    print(f"\nexact likelihood of 360 digits: {time.process_time() - started:.1f} s")


if __name__ == "__main__":
    main()
