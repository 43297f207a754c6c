"""Compare a step of generative models with a bare loop.

A step under the Trainer is compared with a bare loop that trains the same nets by the same losses,
with the same noise and average. The GAN's loop runs the generator once a step, as ours does, and is
compared with one that runs it twice, as most do. And how long the exact likelihood of 360 digits
takes by flow matching.

Run: python benchmarks/generative.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _timing import Bench, Run, Stopwatch, Time, start
from _trainer import time_steps
from torch import Tensor
from torch.nn import functional as F

from dlblocks.data import DigitsDataModule
from dlblocks.models import GAN, VAE, FlowMatching, GenerativeModel
from dlblocks.models._noise import BatchNoise

STEPS, BATCH = 40, 256


def under_trainer(make: Callable[[], GenerativeModel], batches: list[Any], device: str) -> Run:
    return lambda: time_steps(make(), batches, accelerator=device)


def in_loop(step: Callable[[Tensor, Tensor], Tensor], batches: list[Any]) -> Time:
    """Return the time of a step of a bare loop, after two steps."""
    for images, labels in batches[:2]:
        step(images, labels)
    with Stopwatch() as watch:
        for images, labels in batches[2:]:
            step(images, labels)
    return Time(*(seconds / (len(batches) - 2) for seconds in watch.time))


def bare(make: Callable[[], GenerativeModel], batches: list[Any]) -> Time:
    """Train by `losses` and one optimizer, without Lightning."""
    model = make().train().to(batches[0][0].device)
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


def bare_gan(make: Callable[[], GAN], batches: list[Any], forwards: int) -> Time:
    """Train a GAN of the first loss by zero_grad and backward."""
    model = make().train().to(batches[0][0].device)
    generator, discriminator = model.net, model.discriminator
    optimizers = [
        torch.optim.Adam(net.parameters(), 1e-3, (0.5, 0.99)) for net in (generator, discriminator)
    ]

    def step(images: Tensor, labels: Tensor) -> Tensor:
        levels = model.to_levels(model.preprocess(images))
        real = (levels + torch.rand_like(levels, dtype=torch.float32)) * (2 / model.levels) - 1
        real.requires_grad_()
        fake = generator(torch.randn(len(levels), model.latent_dim, device=levels.device), labels)
        of_real, of_fake = discriminator(real, labels), discriminator(fake.detach(), labels)
        (slope,) = torch.autograd.grad(of_real.sum(), real, create_graph=True)
        loss = F.softplus(-of_real).mean() + F.softplus(of_fake).mean()
        loss = loss + model.gradient_penalty / 2 * slope.flatten(1).square().sum(1).mean()
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        if forwards == 2:
            fake = generator(
                torch.randn(len(levels), model.latent_dim, device=levels.device), labels
            )
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


def tables(bench: Bench) -> None:
    images, labels, _ = DigitsDataModule().arrays("train")
    rows = torch.randint(len(images), (STEPS, BATCH), generator=torch.Generator().manual_seed(0))
    batches = [[images[row].to(bench.device), labels[row].to(bench.device)] for row in rows]
    common: dict[str, Any] = {"levels": 17, "num_classes": 10, "lr": 1e-3, "ema_decay": 0.998}
    for cls in (VAE, FlowMatching, GAN):
        make: Callable[[], Any] = partial(cls, [1, 8, 8], **common)
        runs: dict[str, Callable[[], Run]] = {
            "ours": partial(under_trainer, make, batches, bench.device)
        }
        if cls is GAN:
            runs["bare loop"] = lambda m=make: partial(bare_gan, m, batches, 1)
            runs["generator twice"] = lambda m=make: partial(bare_gan, m, batches, 2)
        else:
            runs["bare loop"] = lambda m=make: partial(bare, m, batches)
        goals = {"bare loop": 1 / (1.1 if cls is GAN else 1.05)}
        bench.compare(f"Step of {cls.__name__}, {BATCH} digits", runs, goals=goals)
    model = FlowMatching([1, 8, 8], **common).eval().to(bench.device)

    def likelihood() -> None:
        model(images[:360].to(bench.device), labels[:360].to(bench.device))

    title = "Exact likelihood of 360 digits by flow matching, wanted: 60 s"
    bench.compare(title, {"ours": lambda: likelihood}, unit="s", turns=1)


if __name__ == "__main__":
    start(tables, __doc__)
