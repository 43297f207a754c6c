"""What vision costs: ours and its peers in turn in one process, on one thread.

- *step*: a training step of `VisionClassifier("resnet18")` under the Trainer, against the same net
  of torchvision in a hand-written LightningModule that logs the same loss and accuracy.
- *formats*: the same step with channels-last memory, in bf16, and both, against neither; and that
  of a U-Net.
- *augmentation* of a batch of uint8 images and masks: flip and crop; flip, rotation, scale, shift.
  Ours goes through the whole way of a callback (`apply`). albumentations and
  torchvision's v2 take one sample after another, as in a DataLoader, and their results are stacked.
  kornia takes the batch, as floating point; it is left out where it is not installed.

Times are those of the processor, so that other work on the machine counts little. Ratios are within
a turn.

Measured (one thread of a busy two-core virtual machine with other work on both cores, torch 2.15,
lightning 2.6.6, albumentations 2.0.8, torchvision 0.29, kornia 0.9, medians of five turns, min …
max). Augmentation, peer / ours:

                                   64×3×64×64                       16×3×224×224
    flip and crop                  albumentations 2.1× (2.0 … 2.3)  1.3× (1.2 … 1.4)
                                   torchvision    6.9× (6.4 … 8.9)  2.2× (1.7 … 2.5)
                                   kornia         5.5× (5.0 … 6.1)  6.3× (5.0 … 7.7)
    flip, rotation, scale, shift   albumentations 3.0× (2.8 … 3.6)  0.97× (0.89 … 1.2)
                                   torchvision    8.4× (6.2 … 12)   3.6× (3.0 … 4.2)
                                   kornia         3.0× (2.4 … 3.2)  2.8× (2.5 … 4.1)

So ours is at least 2.4 times as fast as kornia, but not five times as fast as albumentations. With
these kernels five times is out of reach where 224 pixels are resampled: for one image and its mask,
`cv2.warpAffine` alone takes 0.28 ms, `grid_sample` 0.21 ms, and albumentations 0.7 ms in all.

The step of `VisionClassifier` takes 0.998 (0.97 … 1.08) times as long as the hand-written one, 215
ms (torch 2.14, another processor). Channels-last memory takes 0.76 times as long for the U-Net, but
1.21 times for ResNet-18 on 8×3×64×64. bf16 takes 1.7 to 2.1 times as long: that processor has no
instructions for it. (These from one turn.)

Run: pip install 'dlblocks[bench]', then python benchmarks/vision.py
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from dlblocks._quiet import quiet
from dlblocks.callbacks import Augment
from dlblocks.models import UNetSegmenter, VisionClassifier

CLASSES = 10
Run = Callable[[], float]


class HandWritten(pl.LightningModule):
    """torchvision's net, with the same things logged."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.net = resnet18(num_classes=CLASSES)
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        outputs = self.net(batch[0])
        loss = F.cross_entropy(outputs, batch[1])
        self.accuracy(outputs, batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Clock(pl.Callback):
    """Processor time from the second step to the end of the last."""

    seconds = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        if args[-1] == 1:
            self.seconds = -time.process_time()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds += time.process_time()


def stepping(
    make: Callable[[], pl.LightningModule], data: list[Any], precision: Any = "32-true"
) -> Run:
    """Return a function that trains for an epoch, and returns milliseconds a step."""

    def run() -> float:
        clock = Clock()
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
        )
        trainer.fit(make(), DataLoader(data, batch_size=None))  # type: ignore[arg-type]
        return 1e3 * clock.seconds / (len(data) - 1)

    return run


def wrapped() -> pl.LightningModule:
    return VisionClassifier("resnet18", CLASSES, stem="imagenet", optimizer="sgd", lr=0.01)


def unet() -> pl.LightningModule:
    return UNetSegmenter(3, CLASSES, width=16, depth=3, optimizer="sgd", lr=0.01)


def channels_last(make: Callable[[], pl.LightningModule]) -> Callable[[], pl.LightningModule]:
    return lambda: make().to(memory_format=torch.channels_last)


def batches(steps: int, size: int, side: int, *, masks: bool = False) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shape = (size, side, side) if masks else (size,)
    return [
        [
            torch.randn(size, 3, side, side, generator=generator),
            torch.randint(CLASSES, shape, generator=generator),
        ]
        for _ in range(steps)
    ]


def augmenting(size: int, side: int, repeats: int, *, resample: bool) -> dict[str, Run]:
    """For each library a function that augments a batch, and returns milliseconds a call.

    Args:
        size: Images of the batch.
        side: Their height and width.
        repeats: Calls a turn.
        resample: Rotate, scale and shift, or only crop with a padding of 4 pixels; both flip.
    """
    import albumentations as A
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (size, 3, side, side), dtype=torch.uint8, generator=generator)
    masks = torch.randint(CLASSES, (size, side, side), dtype=torch.uint8, generator=generator)
    moves: dict[str, Any] = {"rotation": 15.0, "scale": (0.9, 1.1), "translation": 0.1}
    ours = Augment(
        horizontal_flip=0.5, target_kind="mask", **(moves if resample else {"crop_padding": 4})
    )
    steps = iter(range(1, 1 << 30))
    rotate = A.Affine(rotate=(-15, 15), scale=(0.9, 1.1), translate_percent=(-0.1, 0.1), p=1.0)
    crop = [A.Pad(4), A.RandomCrop(side, side)]
    one_by_one = A.Compose([A.HorizontalFlip(p=0.5), *([rotate] if resample else crop)])
    arrays = [(x.permute(1, 2, 0).numpy().copy(), y.numpy()) for x, y in zip(images, masks)]  # noqa: B905
    affine: dict[str, Any] = {"degrees": 15.0, "translate": (0.1, 0.1), "scale": (0.9, 1.1)}
    bilinear = v2.InterpolationMode.BILINEAR
    of_vision = v2.Compose([
        v2.RandomHorizontalFlip(0.5),
        v2.RandomAffine(**affine, interpolation=bilinear) if resample
        else v2.RandomCrop(side, padding=4),
    ])  # fmt: skip
    tensors = [(tv_tensors.Image(x), tv_tensors.Mask(y)) for x, y in zip(images, masks)]  # noqa: B905

    def by_albumentations() -> object:
        found = [one_by_one(image=x, mask=y) for x, y in arrays]
        return (
            torch.stack([torch.from_numpy(f["image"]).permute(2, 0, 1) for f in found]),
            torch.stack([torch.from_numpy(f["mask"]) for f in found]),
        )

    def by_torchvision() -> object:
        found = [of_vision(x, y) for x, y in tensors]
        return torch.stack([x for x, _ in found]), torch.stack([y for _, y in found])

    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: ours.apply([images, masks], epoch=0, step=next(steps), rank=0),
        "albumentations": by_albumentations,
        "torchvision v2": by_torchvision,
    }
    if importlib.util.find_spec("kornia"):
        import kornia.augmentation as K

        keys: Any = ["input", "mask"]
        move = K.RandomAffine(**affine, p=1.0) if resample else K.RandomCrop((side,) * 2, padding=4)
        batched = K.AugmentationSequential(K.RandomHorizontalFlip(p=0.5), move, data_keys=keys)
        x, y = images.float() / 255, masks[:, None].float()
        calls["kornia"] = lambda: batched(x, y)

    def timed(call: Callable[[], object]) -> Run:
        def run() -> float:
            start = time.process_time()
            for _ in range(repeats):
                call()
            return 1e3 * (time.process_time() - start) / repeats

        return run

    return {name: timed(call) for name, call in calls.items()}


def compare(title: str, runs: dict[str, Run], turns: int) -> None:
    """Print milliseconds of all, and the ratios of the others to the first within a turn."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    with quiet():
        for turn in range(turns + 1):
            for name, run in runs.items():
                taken = run()
                if turn:  # the first warms up
                    found[name].append(taken)
    print(f"\n{title:<46}median       min       max")
    for name, values in found.items():
        row(f"{name} (ms)", values)
    first, *others = found
    for name in others:
        row(f"{name} / {first}", [b / a for a, b in zip(found[first], found[name], strict=True)])


def row(name: str, values: list[float]) -> None:
    shown = [statistics.median(values), min(values), max(values)]
    print(f"  {name:<40}" + "".join(f"{v:10.3f}" for v in shown), flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--augmentation", action="store_true", help="Nothing else.")
    given = parser.parse_args()
    turns, only_augmentation = given.turns, given.augmentation
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, lightning {pl.__version__}, one thread, {turns} turns")
    for name, resample in (("flip and crop", False), ("flip, rotation, scale, shift", True)):
        for size, side, repeats in ((64, 64, 5), (16, 224, 2)):
            title = f"{name}, {size}×3×{side}×{side}"
            compare(title, augmenting(size, side, repeats, resample=resample), turns)
    if only_augmentation:
        return
    data = batches(5, 32, 32)
    steps = {"hand-written": stepping(HandWritten, data), "ours": stepping(wrapped, data)}
    compare("step of ResNet-18, 32×3×32×32", steps, turns)
    for title, make, data in (
        ("formats, ResNet-18, 8×3×64×64", wrapped, batches(3, 8, 64)),
        ("formats, U-Net, 8×3×64×64", unet, batches(3, 8, 64, masks=True)),
    ):
        formats = {
            "neither": stepping(make, data),
            "channels-last": stepping(channels_last(make), data),
            "bf16": stepping(make, data, "bf16-mixed"),
            "both": stepping(channels_last(make), data, "bf16-mixed"),
        }
        compare(title, formats, max(1, turns // 3))


if __name__ == "__main__":
    main()
