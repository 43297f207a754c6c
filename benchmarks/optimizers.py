"""Compare a step of AdamP and SGDP with the authors' code and other packages.

There are three sets of parameters: ResNet-18 (11.7 million values in 62 tensors), ViT-tiny (5.7
million in 152) and a 100-layer MLP of 64 × 64 (200 tensors). Each has random gradients, with which
few weights are projected, and gradients at right angles to the weights, as batch norm makes them,
with which all matrices are projected.

The floor is the time to move the data of Adam: weight, gradient and two moments are read, and three
of them written, at the best rate of large tensors changed in place. Peak memory is the memory that
a step allocates at once beyond weights, gradients and state, as counted by torch on a GPU and by
torch's profiler on a CPU.

With a projection, the test, the directions by torch's fused AdamW, the projection and the update
each read the weights, because no kernel of torch does more than one of these. Pieces of rows that
stay in the cache were slower, because they need more calls. SGDP has less to gain, because its
authors' step without the projection is short.

Run: pip install 'dlblocks[bench]', then python benchmarks/optimizers.py
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _timing import Bench, Run, Time, run_of, start
from torch import Tensor, nn

from dlblocks.optim import SGDP, AdamP

Make = Callable[..., torch.optim.Optimizer]


def peers_of(name: str) -> dict[str, Callable[[], Make]]:
    """For each package a function that imports its optimizer."""

    def authors() -> Make:
        import adamp

        return getattr(adamp, name)

    def timm() -> Make:
        import timm.optim

        return getattr(timm.optim, name)

    def pytorch_optimizer() -> Make:
        import pytorch_optimizer

        return getattr(pytorch_optimizer, name)

    found: dict[str, Callable[[], Make]] = {
        "ours": lambda: AdamP if name == "AdamP" else SGDP,
        "authors": authors,
        "timm": timm,
        "pytorch_optimizer": pytorch_optimizer,
    }
    if name == "SGDP":
        found["torch SGD"] = lambda: torch.optim.SGD
        return {
            key: lambda make=make: functools.partial(make(), momentum=0.9)
            for key, make in found.items()
        }
    found["torch Adam, foreach"] = lambda: functools.partial(torch.optim.Adam, foreach=True)
    found["torch Adam, fused"] = lambda: functools.partial(torch.optim.Adam, fused=True)
    return found


def resnet() -> list[Tensor]:
    import torchvision

    return [p.detach() for p in torchvision.models.resnet18().parameters()]


def small() -> list[Tensor]:
    return [p.detach() for _ in range(100) for p in nn.Linear(64, 64).parameters()]


def vit() -> list[Tensor]:
    import timm

    return [p.detach() for p in timm.create_model("vit_tiny_patch16_224").parameters()]


def make(tensors: list[Tensor], device: str, projected: bool) -> list[nn.Parameter]:
    """Parameters with gradients, the same for every optimizer."""
    generator = torch.Generator().manual_seed(0)
    params = []
    for value in tensors:
        grad = torch.randn(value.shape, generator=generator) * 1e-2
        if projected and value.ndim > 1:
            p, g = value.flatten(1), grad.flatten(1)
            g = g - p * ((p * g).sum(1, keepdim=True) / p.square().sum(1, keepdim=True))
            grad = g.view_as(value)
        # A copy: optimizers write into their weights.
        params.append(nn.Parameter(value.clone().to(device)))
        params[-1].grad = grad.to(device)
    return params


def floor(values: int, bench: Bench) -> float:
    """Milliseconds to read or write `values` float32 seven times, at the best rate seen."""
    x, y = (torch.randn(max(values, 2**20), device=bench.device) for _ in range(2))
    # In place, as an optimizer writes: memory written but not read before is read all the same.
    passes: dict[int, Run] = {2: lambda: x.neg_(), 3: lambda: y.add_(x, alpha=1e-3)}
    rates = [
        n / min(_seconds(run_of(f, repeats=5, wait=bench.wait), bench) for _ in range(5))
        for n, f in passes.items()
    ]
    return 7e3 / max(rates) * values / x.numel()


def _seconds(time: Time, bench: Bench) -> float:
    return time.cpu if bench.device == "cpu" else time.wall


def peak(step: Run, device: str) -> float:
    """Megabytes that the step has allocated at once, beyond what was there."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20


def tables(bench: Bench) -> None:
    # Freed once, such a piece of memory lets the C library keep smaller ones, as in a training.
    torch.ones(2**23 - 2**12)
    torch.manual_seed(0)
    sets: dict[str, tuple[Callable[[], list[Tensor]], int]] = {
        "ResNet-18": (resnet, 3), "ViT-tiny": (vit, 3), "100-layer MLP": (small, 10),
    }  # fmt: skip
    for name in ("AdamP", "SGDP"):
        for of, (tensors, steps) in sets.items():
            for projected in (False, True):
                compare(bench, name, of, tensors, projected=projected, steps=steps)


def compare(
    bench: Bench, name: str, of: str, tensors: Callable[[], list[Tensor]], *, projected: bool,
    steps: int,
) -> None:  # fmt: skip
    title = f"Step of {name}, {of}, {'all' if projected else 'few'} projected"
    if not bench.wants(title):
        return
    values = tensors()

    def stepping(get: Callable[[], Make]) -> Run:
        return get()(make(values, bench.device, projected), lr=1e-6).step

    peers = peers_of(name)
    count = sum(x.numel() for x in values)
    bench.compare(
        title,
        {peer: partial(stepping, get) for peer, get in peers.items()},
        repeats=steps,
        goals={"authors": 3.0},
        floor=partial(floor, count, bench) if name == "AdamP" else None,
        floor_is="memory traffic of Adam",
    )
    if of != "ResNet-18" or not projected:
        return

    def measured(get: Callable[[], Make]) -> Run:
        step: Any = stepping(get)
        step()  # makes the state
        return lambda: peak(step, bench.device)

    some = {peer: partial(measured, peers[peer]) for peer in ("ours", "authors")}
    bench.compare(f"{title}: memory beyond the state", some, unit="MB", turns=1)


if __name__ == "__main__":
    start(tables, __doc__)
