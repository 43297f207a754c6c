"""Compare what it costs to make batches with other packages.

Synthetic images in memory, 32×32 and 224×224 in colour, as each library takes them.

- *augmented*: random crop with padding, random horizontal flip, floating point, normalised.
  Ours is `ArrayDataModule`'s loader with `Augment`; the peers are torchvision's v2 transforms on
  PIL images and albumentations on arrays, both in a `DataLoader` with 0 workers.
- *ready batch*: kornia's `AugmentationSequential` on a batch of floats, against `Augment` and
  normalisation on a batch of uint8.
- *plain*: floating point and normalised only, against torchvision on PIL images.
- The floor: one byte read and four written a value, at the speed at which this machine copies.
- An epoch of an MLP on 60,000 synthetic images of MNIST's shape, against its data alone.
- *resident*: a step of ResNet-18 with data and augmentation on the device, against the step alone.

Run: pip install 'dlblocks[bench]', then python benchmarks/data_path.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from _timing import Bench, Run, run_of, start
from _trainer import OFF
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from dlblocks.callbacks import Augment
from dlblocks.data import ArrayDataModule
from dlblocks.models import MLPClassifier

MEAN, STD = [0.5] * 3, [0.25] * 3


class Samples(Dataset):
    """One image at a time, by a function of it."""

    def __init__(self, images: np.ndarray, make: Callable[[np.ndarray], Tensor]) -> None:
        self.images, self.make = images, make

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.make(self.images[i]), 0


def exhaust(loader: Iterable) -> None:
    for _ in loader:
        pass


def copy_bandwidth(bench: Bench) -> float:
    """Bytes read and written a second by a copy of 256 MB between arrays that exist."""
    source = torch.ones(1 << 26, device=bench.device)
    target = torch.empty_like(source).copy_(source)
    times = [run_of(lambda: target.copy_(source), wait=bench.wait) for _ in range(5)]
    # Other programs take time by the clock, but not of this process.
    return 2 * source.nbytes / min(t.cpu if bench.device == "cpu" else t.wall for t in times)


def ours(images: np.ndarray, batch_size: int, augment: Augment | None) -> Run:
    """The way of a batch under the Trainer: loader, callback, the datamodule's hook."""
    data = ArrayDataModule(
        images.transpose(0, 3, 1, 2).copy(),
        np.arange(len(images)) % 10,
        batch_size=batch_size,
        val_fraction=0.0,
    )
    data.setup()

    def run() -> None:
        for step, batch in enumerate(data.train_dataloader()):
            if augment is not None:
                batch = augment.apply(batch, epoch=0, step=step, rank=0)
            data.on_after_batch_transfer(batch, 0)

    return run


def torchvision(images: np.ndarray, batch_size: int, padding: int | None) -> Run:
    from PIL import Image
    from torchvision.transforms import v2

    random = [] if padding is None else [
        v2.RandomCrop(images.shape[1], padding=padding), v2.RandomHorizontalFlip()
    ]  # fmt: skip
    steps = [*random, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transform = v2.Compose(steps)
    data = Samples(images, lambda image: transform(Image.fromarray(image)))
    return lambda: exhaust(DataLoader(data, batch_size, shuffle=True))


def albumentations(images: np.ndarray, batch_size: int, padding: int) -> Run:
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    side = images.shape[1]
    transform = A.Compose(
        [
            A.Pad(padding),
            A.RandomCrop(side, side),
            A.HorizontalFlip(),
            A.Normalize(MEAN, STD),
            A.ToTensorV2(),
        ]
    )
    data = Samples(images, lambda image: transform(image=image)["image"])
    return lambda: exhaust(DataLoader(data, batch_size, shuffle=True))


def ours_ready(batch: Tensor, augment: Augment) -> Run:
    data = ArrayDataModule(batch.cpu(), np.arange(len(batch)) % 2, val_fraction=0.0)
    data.setup()
    targets = torch.zeros(len(batch), device=batch.device)

    def run() -> None:
        changed = augment.apply([batch, targets], epoch=0, step=0, rank=0)
        data.on_after_batch_transfer(changed, 0)

    return run


def kornia_ready(batch: Tensor, padding: int) -> Run:
    import kornia.augmentation as K

    transform = K.AugmentationSequential(
        K.RandomCrop(batch.shape[2:], padding=padding),
        K.RandomHorizontalFlip(p=0.5),
        K.Normalize(MEAN, STD),
        data_keys=["input"],
    )
    floats = batch.float() / 255
    return lambda: transform(floats)


def images_of(bench: Bench, side: int, count: int, batch_size: int, padding: int) -> None:
    """The tables for one size of image."""
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    augment = Augment(horizontal_flip=0.5, crop_padding=padding)
    values = 3 * side * side
    on_cpu = Bench()
    floor: dict[str, Any] = {
        "unit": "µs",
        "floor": lambda: 5e6 * values / copy_bandwidth(on_cpu),
        "floor_is": "1 byte read, 4 written a value",
    }
    wanted = 8.0 if side == 224 else 5.0
    bench.compare(
        f"Batches of {side}×{side}, augmented, a sample",
        {
            "ours": partial(ours, images, batch_size, augment),
            "torchvision v2 on PIL": partial(torchvision, images, batch_size, padding),
            "albumentations": partial(albumentations, images, batch_size, padding),
        },
        per=count,
        goals={"torchvision v2 on PIL": 30, "albumentations": wanted},
        **floor,
    )
    bench.compare(
        f"Batches of {side}×{side}, plain, a sample",
        {
            "ours": partial(ours, images, batch_size, None),
            "torchvision v2 on PIL": partial(torchvision, images, batch_size, None),
        },
        per=count,
        **floor,
    )
    batch = torch.from_numpy(images[:batch_size].transpose(0, 3, 1, 2).copy()).to(bench.device)
    floor["floor"] = lambda: 5e6 * values / copy_bandwidth(bench)
    bench.compare(
        f"Ready batch of {side}×{side}, augmented, a sample",
        {
            "ours": partial(ours_ready, batch, augment),
            "kornia": partial(kornia_ready, batch, padding),
        },
        per=batch_size,
        repeats=4,
        **floor,
    )


def mnist_epoch(bench: Bench, batch_size: int) -> None:
    """How much of an epoch under the Trainer is spent on data."""
    import lightning.pytorch as pl

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60_000, 1, 28, 28), dtype=np.uint8)
    labels = random.integers(0, 10, 60_000)
    data = ArrayDataModule(images, labels, batch_size=batch_size, val_fraction=0.0)
    data.setup()

    def only_data() -> None:
        for batch in data.train_dataloader():
            data.on_after_batch_transfer(batch, 0)

    def epoch() -> None:
        trainer = pl.Trainer(accelerator="cpu", max_epochs=1, **OFF)
        trainer.fit(MLPClassifier(784, 10, hidden=[256]), datamodule=data)

    bench.compare(
        f"Data alone, 60,000 MNIST-shaped images, batches of {batch_size}",
        {"data": lambda: only_data, "epoch of 784-256-10": lambda: epoch},
        unit="s",
        goals={"epoch of 784-256-10": 20},
        turns=3,
    )


def resident(bench: Bench) -> None:
    """A step of a ResNet-18 on 32×32 images with data on the device, and without data."""
    from torchvision.models import resnet18

    device = torch.device(bench.device)
    size, count, steps = (512, 50_000, 50) if device.type == "cuda" else (16, 1000, 2)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, (count,), device=device)
    net = resnet18(num_classes=10).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    data = ArrayDataModule(images[:64].cpu(), labels[:64].cpu(), val_fraction=0.0)
    data.setup()
    augment = Augment(horizontal_flip=0.5, crop_padding=4, rotation=10)

    def batch(step: int) -> list[Tensor]:
        rows = torch.randint(0, count, (size,)).to(device, non_blocking=True)
        made: Any = [images.index_select(0, rows), labels.index_select(0, rows)]
        made = augment.apply(made, epoch=0, step=step, rank=0)
        return data.on_after_batch_transfer(made, 0)

    def train(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = F.cross_entropy(net(inputs), targets)
        loss.backward()
        optimizer.step()

    fixed = batch(0)

    def whole() -> None:
        for step in range(steps):
            train(*batch(step))

    def alone() -> None:
        for _ in range(steps):
            train(*fixed)

    bench.compare(
        f"Step of ResNet-18 with resident data, batches of {size}",
        {"step with data and augmentation": lambda: whole, "step alone": lambda: alone},
        per=steps,
        goals={"step alone": 0.95},
    )


def tables(bench: Bench) -> None:
    images_of(bench, 32, 2048, 256, 4)
    images_of(bench, 224, 128, 32, 28)
    for batch_size in (64, 256):
        mnist_epoch(bench, batch_size)
    resident(bench)


if __name__ == "__main__":
    start(tables, __doc__)
