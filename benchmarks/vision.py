"""Compare vision with other packages.

- *step*: a training step of `VisionClassifier("resnet18")` under the Trainer, against the same net
  of torchvision in a hand-written LightningModule that logs the same loss and accuracy.
- *formats*: the same step with channels-last memory, in bf16, and both, against neither; and that
  of a U-Net.
- *augmentation* of a batch of uint8 images and masks: flip and crop; flip, rotation, scale, shift.
  Ours goes through the whole way of a callback (`apply`). albumentations and
  torchvision's v2 take one sample after another, as in a DataLoader, and their results are stacked.
  kornia takes the batch, as floating point; it is left out where it is not installed.

With these kernels five times albumentations is out of reach where 224 pixels are resampled: for one
image and its mask, `cv2.warpAffine` alone takes 0.28 ms, `grid_sample` 0.21 ms, and albumentations
0.7 ms in all.

Run: pip install 'dlblocks[bench]', then python benchmarks/vision.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from _timing import Bench, Run, start
from _trainer import class_batches, time_steps
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from dlblocks.callbacks import Augment
from dlblocks.models import UNetSegmenter, VisionClassifier

CLASSES = 10


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


def stepping(make: Callable[[], pl.LightningModule], data: list, **trainer: Any) -> Run:
    return lambda: time_steps(make(), data, first=1, **trainer)


def wrapped() -> pl.LightningModule:
    return VisionClassifier("resnet18", CLASSES, stem="imagenet", optimizer="sgd", lr=0.01)


def unet() -> pl.LightningModule:
    return UNetSegmenter(3, CLASSES, width=16, depth=3, optimizer="sgd", lr=0.01)


def channels_last(make: Callable[[], pl.LightningModule]) -> Callable[[], pl.LightningModule]:
    return lambda: make().to(memory_format=torch.channels_last)


MOVES: dict[str, Any] = {"rotation": 15.0, "scale": (0.9, 1.1), "translation": 0.1}
AFFINE: dict[str, Any] = {"degrees": 15.0, "translate": (0.1, 0.1), "scale": (0.9, 1.1)}


def ours(images: Tensor, masks: Tensor, resample: bool) -> Run:
    changes = MOVES if resample else {"crop_padding": 4}
    augment = Augment(horizontal_flip=0.5, target_kind="mask", **changes)
    steps = iter(range(1, 1 << 30))
    return lambda: augment.apply([images, masks], epoch=0, step=next(steps), rank=0)


def albumentations(images: Tensor, masks: Tensor, resample: bool) -> Run:
    import albumentations as A

    side = images.shape[-1]
    rotate = A.Affine(rotate=(-15, 15), scale=(0.9, 1.1), translate_percent=(-0.1, 0.1), p=1.0)
    crop = [A.Pad(4), A.RandomCrop(side, side)]
    transform = A.Compose([A.HorizontalFlip(p=0.5), *([rotate] if resample else crop)])
    pairs = zip(images, masks, strict=True)
    arrays = [(x.permute(1, 2, 0).numpy().copy(), y.numpy()) for x, y in pairs]

    def run() -> None:
        found = [transform(image=x, mask=y) for x, y in arrays]
        torch.stack([torch.from_numpy(f["image"]).permute(2, 0, 1) for f in found])
        torch.stack([torch.from_numpy(f["mask"]) for f in found])

    return run


def torchvision(images: Tensor, masks: Tensor, resample: bool) -> Run:
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    bilinear = v2.InterpolationMode.BILINEAR
    transform = v2.Compose([
        v2.RandomHorizontalFlip(0.5),
        v2.RandomAffine(**AFFINE, interpolation=bilinear) if resample
        else v2.RandomCrop(images.shape[-1], padding=4),
    ])  # fmt: skip
    pairs = zip(images, masks, strict=True)
    samples = [(tv_tensors.Image(x), tv_tensors.Mask(y)) for x, y in pairs]

    def run() -> None:
        found = [transform(x, y) for x, y in samples]
        torch.stack([x for x, _ in found])
        torch.stack([y for _, y in found])

    return run


def kornia(images: Tensor, masks: Tensor, resample: bool) -> Run:
    import kornia.augmentation as K

    keys: Any = ["input", "mask"]
    side = images.shape[-1]
    move = K.RandomAffine(**AFFINE, p=1.0) if resample else K.RandomCrop((side, side), padding=4)
    transform = K.AugmentationSequential(K.RandomHorizontalFlip(p=0.5), move, data_keys=keys)
    x, y = images.float() / 255, masks[:, None].float()
    return lambda: transform(x, y)


def augmentation(bench: Bench, size: int, side: int, repeats: int) -> None:
    """Compare the augmentation of a batch of images and masks."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (size, 3, side, side), dtype=torch.uint8, generator=generator)
    masks = torch.randint(CLASSES, (size, side, side), dtype=torch.uint8, generator=generator)
    peers = {
        "ours": ours, "albumentations": albumentations, "torchvision v2": torchvision,
        "kornia": kornia,
    }  # fmt: skip
    for name, resample in (("Flip and crop", False), ("Flip, rotation, scale, shift", True)):
        bench.compare(
            f"{name} of images and masks, {size}×3×{side}×{side}",
            {peer: partial(make, images, masks, resample) for peer, make in peers.items()},
            repeats=repeats,
        )


def formats(bench: Bench, title: str, make: Callable[[], pl.LightningModule], data: list) -> None:
    """Compare memory formats and bf16."""
    on: dict[str, Any] = {"accelerator": bench.device}
    bench.compare(
        title,
        {
            "float32": partial(stepping, make, data, **on),
            "channels-last": partial(stepping, channels_last(make), data, **on),
            "bf16": partial(stepping, make, data, precision="bf16-mixed", **on),
            "both": partial(stepping, channels_last(make), data, precision="bf16-mixed", **on),
        },
        turns=min(3, bench.turns),
    )


def tables(bench: Bench) -> None:
    if bench.device == "cpu":
        augmentation(bench, 64, 64, 5)
        augmentation(bench, 16, 224, 2)
    on: dict[str, Any] = {"accelerator": bench.device}
    data = class_batches(5, 32, 3, 32, 32, device=bench.device)
    bench.compare(
        "Step of ResNet-18, 32×3×32×32",
        {
            "VisionClassifier": lambda: stepping(wrapped, data, **on),
            "hand-written module": lambda: stepping(HandWritten, data, **on),
        },
        goals={"hand-written module": 0.95},
    )
    for title, make, pixels in (("ResNet-18", wrapped, False), ("U-Net", unet, True)):
        data = class_batches(3, 8, 3, 64, 64, device=bench.device, pixels=pixels)
        formats(bench, f"Formats, {title}, 8×3×64×64", make, data)


if __name__ == "__main__":
    start(tables, __doc__)
