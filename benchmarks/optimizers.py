"""Compare a step of AdamP or SGDP with the authors' code and other packages.

There are three sets of parameters: ResNet-18 (11.7 million values in 62 tensors), ViT-tiny (5.7
million in 152) and a 100-layer MLP of 64 × 64 (200 tensors). Each has random gradients, with which
few weights are projected, and gradients at right angles to the weights, as batch norm makes them,
with which all matrices are projected. It runs on one thread. The optimizers take turns of a few
steps each, and the ratio is that of each turn.

The floor is the time to move the data of Adam: weight, gradient and two moments are read, and three
of them written, at the best rate of large tensors changed in place. Peak memory is the memory that
a step allocates at once beyond weights, gradients and state, as counted by torch on a GPU and by
torch's profiler on a CPU.

Measured on one thread of a two-core Intel Xeon virtual machine at 2.5 GHz that other programs used
too (torch 2.14, adamp 0.3). The numbers are the authors' time over ours, medians of 9 turns:

=======================  =========  ========  =============
optimizer, projected     ResNet-18  ViT-tiny  100-layer MLP
=======================  =========  ========  =============
AdamP, few                     3.7       3.1            3.7
AdamP, all                     2.1       1.8            2.6
SGDP, few                      2.4       1.9            2.2
SGDP, all                      1.6       1.2            1.8
=======================  =========  ========  =============

With a projection, ResNet-18 does not reach 3. Of its 87 ms of CPU time, the test takes 26 ms, the
directions by torch's fused AdamW 23 ms, the projection 22 ms and the update 13 ms. The authors take
160 to 175 ms. No kernel of torch does more than one of these, so weights are read in each. Pieces
of rows that stay in the cache were slower, because they need more calls. SGDP has less to gain,
because its authors' step without the projection is short.

Run: pip install 'dlblocks[bench]', then
python benchmarks/optimizers.py [--optimizer SGDP] [--device cuda] [--compile] [--turns 15]
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import adamp
import pytorch_optimizer
import timm.optim
import torch
import torchvision
from torch import Tensor, nn

from dlblocks.optim import SGDP, AdamP

PEERS: dict[str, dict[str, Callable[..., torch.optim.Optimizer]]] = {
    "AdamP": {
        "ours": AdamP,
        "authors": adamp.AdamP,
        "timm": timm.optim.AdamP,
        "pytorch_optimizer": pytorch_optimizer.AdamP,
        "Adam(foreach=True)": lambda params, **k: torch.optim.Adam(params, foreach=True, **k),
        "Adam(fused=True)": lambda params, **k: torch.optim.Adam(params, fused=True, **k),
    },
    "SGDP": {
        name: functools.partial(cls, momentum=0.9)
        for name, cls in {
            "ours": SGDP,
            "authors": adamp.SGDP,
            "timm": timm.optim.SGDP,
            "pytorch_optimizer": pytorch_optimizer.SGDP,
            "SGD": torch.optim.SGD,
        }.items()
    },
}


def resnet() -> list[Tensor]:
    return [p.detach() for p in torchvision.models.resnet18().parameters()]


def small() -> list[Tensor]:
    return [p.detach() for _ in range(100) for p in nn.Linear(64, 64).parameters()]


def vit() -> list[Tensor]:
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


def seconds(step: Callable[[], Any], steps: int, device: str) -> float:
    sync(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    sync(device)
    return (time.perf_counter() - start) / steps


def sync(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def floor(values: int, device: str) -> float:
    """Seconds to read or write `values` float32 seven times, at the best rate that was seen."""
    x, y = (torch.randn(max(values, 2**20), device=device) for _ in range(2))
    # In place, as an optimizer writes: memory written but not read before is read all the same.
    passes: dict[int, Callable[[], Any]] = {2: lambda: x.neg_(), 3: lambda: y.add_(x, alpha=1e-3)}
    rates = [n / min(seconds(f, 5, device) for _ in range(5)) for n, f in passes.items()]
    return 7 / max(rates) * values / x.numel()


def peak(step: Callable[[], Any], device: str) -> float:
    """Bytes that the step has allocated at once, beyond what was there."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def compare(
    name: str, tensors: list[Tensor], *, projected: bool, args: argparse.Namespace, steps: int
) -> None:
    """Prints milliseconds a step, ratios to ours, and the peak of memory."""
    optimizers = {}
    for peer, factory in PEERS[args.optimizer].items():
        optimizers[peer] = factory(make(tensors, args.device, projected), lr=1e-6)
    calls: dict[str, Callable[[], Any]] = {peer: o.step for peer, o in optimizers.items()}
    if args.compile:
        compiled = PEERS[args.optimizer]["ours"](make(tensors, args.device, projected), lr=1e-6)
        calls["ours, compiled"] = torch.compile(compiled.step)
    for call in calls.values():
        for _ in range(3):
            call()
    turns: dict[str, list[float]] = {peer: [] for peer in calls}
    for _ in range(args.turns):
        for peer, call in calls.items():
            turns[peer].append(seconds(call, steps, args.device))
    kind = "all matrices projected" if projected else "none projected"
    count = sum(x.numel() for x in tensors)
    print(f"\n{name}: {len(tensors)} tensors, {count:,} values, {kind}")
    print(
        f"{'':<28}{'ms/step':>9}{'min':>8}{'max':>8}   {'/ ours':>7}{'min':>7}{'max':>7}{'MiB':>8}"
    )
    for peer, values in turns.items():
        ratios = [value / ours for value, ours in zip(values, turns["ours"], strict=True)]
        shown = "".join(f"{1e3 * f(values):{w}.2f}" for f, w in ((statistics.median, 9), (min, 8)))
        shown += f"{1e3 * max(values):8.2f}   "
        shown += f"{statistics.median(ratios):7.2f}{min(ratios):7.2f}{max(ratios):7.2f}"
        print(f"{peer:<28}{shown}{peak(calls[peer], args.device) / 2**20:8.1f}", flush=True)
    print(f"{'floor: memory traffic':<28}{1e3 * floor(count, args.device):9.2f}")


def main() -> None:
    """Prints one table for each set of parameters and kind of gradient."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="ours under torch.compile too")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--optimizer", default="AdamP", choices=list(PEERS))
    args = parser.parse_args()
    # Freed once, such a piece of memory lets the C library keep smaller ones, as in a training.
    torch.ones(2**23 - 2**12)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    where = torch.cuda.get_device_name() if args.device == "cuda" else "CPU, one thread"
    print(f"{args.optimizer}, torch {torch.__version__}, {where}, {args.turns} turns")
    for projected in (False, True):
        compare("ResNet-18", resnet(), projected=projected, args=args, steps=3)
        compare("ViT-tiny", vit(), projected=projected, args=args, steps=3)
        compare("100-layer MLP", small(), projected=projected, args=args, steps=10)


if __name__ == "__main__":
    main()
