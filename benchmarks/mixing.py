"""Compare what it costs to mix a batch with other packages.

Batches of 256×3×32×32 and 64×3×224×224, floating point, class indices in and soft targets out.

- *MixUp*, *CutMix*: ours draws for each sample and goes through the whole way of a callback
  (`apply`). The peers are timm's `Mixup(mode="elem")` and kornia's, which draw for each sample too,
  and torchvision's v2, which draws once for the batch.
- *Cutout*: against timm's `RandomErasing`, which erases in place, and against it on a copy, as it
  must be used if the data set is in memory and is to stay whole.
- The floor reads and writes the batch once, at the speed at which this machine copies.

At 224×224 new memory costs more than the work: the system has to give pages. Ours takes the memory
of an earlier batch that nobody holds any more.

Run: pip install 'dlblocks[bench]', then python benchmarks/mixing.py
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from _timing import Bench, Run, start
from data_path import copy_bandwidth
from torch import Tensor

from dlblocks.callbacks import CutMix, Cutout, MixUp
from dlblocks.callbacks._batch_transform import BatchTransform

CLASSES = 10
Batch = list[Tensor]


def ours(callback: BatchTransform, batch: Batch) -> Run:
    step = iter(range(1, 1 << 30))
    return lambda: callback.apply(batch, epoch=0, step=next(step), rank=0)


def timm(batch: Batch, **alphas: float) -> Run:
    from timm.data.mixup import Mixup

    mix = Mixup(**alphas, mode="elem", num_classes=CLASSES)
    mine = batch[0].clone()  # timm writes into its input
    return lambda: mix(mine, batch[1])


def timm_erasing(batch: Batch, *, copy: bool) -> Run:
    from timm.data.random_erasing import RandomErasing

    erase = RandomErasing(probability=1.0, mode="const", device=batch[0].device.type)
    mine = batch[0].clone()
    return (lambda: erase(batch[0].clone())) if copy else (lambda: erase(mine))


def kornia(batch: Batch, name: str, **kwargs: Any) -> Run:
    import kornia.augmentation as K

    keys: Any = ["input", "class"]
    mix = getattr(K, name)(p=1.0, data_keys=keys, **kwargs)
    return lambda: mix(*batch)


def torchvision(batch: Batch, name: str) -> Run:
    from torchvision.transforms import v2

    mix = getattr(v2, name)(alpha=1.0, num_classes=CLASSES)
    return lambda: mix(*batch)


def tables(bench: Bench) -> None:
    for size, side, repeats in ((256, 32, 20), (64, 224, 2)):
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(size, 3, side, side, generator=generator).to(bench.device)
        batch = [images, torch.randint(CLASSES, (size,), generator=generator).to(bench.device)]
        floor: dict[str, Any] = {
            "repeats": repeats,
            "floor": lambda size=images.nbytes: 2e3 * size / copy_bandwidth(bench),
            "floor_is": "one copy",
        }
        wanted = {"timm, per sample": 8.0} if side == 224 else {}
        shape = f"{size}×3×{side}×{side}"
        bench.compare(
            f"MixUp, {shape}",
            {
                "ours, per sample": partial(ours, MixUp(1.0, num_classes=CLASSES), batch),
                "timm, per sample": partial(timm, batch, mixup_alpha=1.0, cutmix_alpha=0.0),
                "kornia, per sample": partial(kornia, batch, "RandomMixUpV2"),
                "torchvision, per batch": partial(torchvision, batch, "MixUp"),
            },
            goals=wanted,
            **floor,
        )
        bench.compare(
            f"CutMix, {shape}",
            {
                "ours, per sample": partial(ours, CutMix(1.0, num_classes=CLASSES), batch),
                "timm, per sample": partial(timm, batch, mixup_alpha=0.0, cutmix_alpha=1.0),
                "kornia, per sample": partial(
                    kornia, batch, "RandomCutMixV2", use_correct_lambda=True
                ),
                "torchvision, per batch": partial(torchvision, batch, "CutMix"),
            },
            goals={**wanted, "torchvision, per batch": 0.8},
            **floor,
        )
        bench.compare(
            f"Cutout, {shape}",
            {
                "ours": partial(ours, Cutout(0.5), batch),
                "timm RandomErasing, on a copy": partial(timm_erasing, batch, copy=True),
                "timm RandomErasing, in place": partial(timm_erasing, batch, copy=False),
            },
            **floor,
        )


if __name__ == "__main__":
    start(tables, __doc__)
