"""What it costs to mix a batch: ours and its peers in turn in one process, on one thread.

256×3×32×32 and 64×3×224×224, floating point, class indices in and soft targets out. Every turn runs
each of them a number of times; ratios are peer / ours within a turn.

- *MixUp*, *CutMix*: ours draws for each sample and goes through the whole way of a callback
  (`apply`). The peers are timm's `Mixup(mode="elem")` and kornia's, which draw for each sample too,
  and torchvision's v2, which draws once for the batch.
- *Cutout*: against timm's `RandomErasing`, which erases in place, and against it on a copy, as it
  must be used if the data set is in memory and is to stay whole.
- *faults*: pages of new memory that the system had to give in a call, in thousands; where batches
  are large they cost more than the work. Ours takes the memory of an earlier batch that nobody
  holds any more.

Measured (one thread of a two-core AMD EPYC virtual machine, the other core in use, torch 2.14, timm
1.0.31, kornia 0.9, medians), peer / ours at 32×32: MixUp timm 11×, kornia 15×, torchvision 1.3×;
CutMix timm 14×, kornia 16×, torchvision 0.55× (its one box a batch is cheaper than a box an image);
Cutout 7×. At 224×224: MixUp timm 4.4×, kornia 20×, torchvision 7×; CutMix timm 3.7×, kornia 47×,
torchvision 6.5×; Cutout 4.7× on a copy, and 0.4× in place: copying the batch is nearly all of our
time there, and timm writes into what it is given.

Run: pip install 'dlblocks[bench]', then python benchmarks/mixing.py
"""

from __future__ import annotations

import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from dlblocks.callbacks import CutMix, Cutout, MixUp
from dlblocks.callbacks._batch_transform import BatchTransform

TURNS = 9
CLASSES = 10
Run = Callable[[], object]


def own(callback: BatchTransform, batch: list[torch.Tensor]) -> Run:
    step = iter(range(1, 1 << 30))
    return lambda: callback.apply(batch, epoch=0, step=next(step), rank=0)


def runs_of(batch: list[torch.Tensor]) -> dict[str, dict[str, Run]]:
    """For each method what is run; ours comes first."""
    from kornia.augmentation import RandomCutMixV2, RandomMixUpV2
    from timm.data.mixup import Mixup
    from timm.data.random_erasing import RandomErasing
    from torchvision.transforms import v2

    images, labels = batch
    # timm writes into its input: what it gets is its own, the same in every call.
    theirs = images.clone()
    timm_mixup = Mixup(mixup_alpha=1.0, cutmix_alpha=0.0, mode="elem", num_classes=CLASSES)
    timm_cutmix = Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, mode="elem", num_classes=CLASSES)
    erasing = RandomErasing(probability=1.0, mode="const", device="cpu")
    vision_mixup = v2.MixUp(alpha=1.0, num_classes=CLASSES)
    vision_cutmix = v2.CutMix(alpha=1.0, num_classes=CLASSES)
    keys: Any = ["input", "class"]
    kornia_mixup = RandomMixUpV2(p=1.0, data_keys=keys)
    kornia_cutmix = RandomCutMixV2(p=1.0, data_keys=keys, use_correct_lambda=True)
    return {
        "MixUp": {
            "ours": own(MixUp(1.0, num_classes=CLASSES), batch),
            "timm, elem": lambda: timm_mixup(theirs, labels),
            "kornia": lambda: kornia_mixup(images, labels),
            "torchvision": lambda: vision_mixup(images, labels),
        },
        "CutMix": {
            "ours": own(CutMix(1.0, num_classes=CLASSES), batch),
            "timm, elem": lambda: timm_cutmix(theirs, labels),
            "kornia": lambda: kornia_cutmix(images, labels),
            "torchvision": lambda: vision_cutmix(images, labels),
        },
        "Cutout": {
            "ours": own(Cutout(0.5), batch),
            "timm RandomErasing, in place": lambda: erasing(theirs),
            "timm RandomErasing, on a copy": lambda: erasing(images.clone()),
        },
    }


def in_turn(runs: dict[str, Run], repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds a call of each in each turn, the first left out, and thousands of faults."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    faults: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(TURNS + 1):
        for name, run in runs.items():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            start = time.process_time()
            for _ in range(repeats):
                run()
            taken = time.process_time() - start
            given = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
            if turn:
                found[name].append(1e3 * taken / repeats)
                faults[name].append(given / repeats / 1e3)
    return found, {name: statistics.median(values) for name, values in faults.items()}


def row(name: str, values: list[float], unit: str) -> None:
    shown = [statistics.median(values), min(values), max(values)]
    print(f"  {name:<40}" + "".join(f"{v:10.2f}" for v in shown) + f"  {unit}")


def table(size: int, side: int, repeats: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, 3, side, side, generator=generator)
    batch = [images, torch.randint(CLASSES, (size,), generator=generator)]
    for method, runs in runs_of(batch).items():
        found, faults = in_turn(runs, repeats)
        print(f"\n{method}, {size}×3×{side}×{side:<23}median       min       max")
        for name, values in found.items():
            row(name, values, f"ms, {faults[name]:.2f} faults")
        ours = found.pop("ours")
        for name, values in found.items():
            row(f"{name} / ours", [b / a for a, b in zip(ours, values, strict=True)], "×")


def main() -> None:
    """Prints the tables."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, one thread, {TURNS} turns")
    table(256, 32, 20)
    table(64, 224, 2)


if __name__ == "__main__":
    main()
