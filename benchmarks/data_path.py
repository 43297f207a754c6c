"""What it costs to make batches: ours and its peers in turn, on one thread.

Synthetic images in memory, 32×32 and 224×224 in colour, as each library takes them. Every turn runs
all of them once; ratios are peer / ours within a turn.

- *augmented*: random crop with padding, random horizontal flip, floating point, normalised.
  Ours is `ArrayDataModule`'s loader with `Augment`; the peers are torchvision's v2 transforms on
  PIL images and albumentations on arrays, both in a `DataLoader` with 0 workers; kornia's
  `AugmentationSequential` on a ready batch of floats, against `Augment` and normalisation on a
  ready batch of uint8.
- *plain*: floating point and normalised only, against torchvision on PIL images.
- The floor: one byte read and four written a value, at the speed at which this machine copies.
- An epoch of an MLP on 60,000 synthetic images of MNIST's shape: how much of it is data.
- With a GPU: the share of a ResNet-18 step that resident data and augmentation take.

Measured (one thread of a two-core AMD EPYC virtual machine, torch 2.14, medians): at 32×32
torchvision takes 43×, albumentations 11× and kornia 6× as long as ours, without augmentation
torchvision 50×; at 224×224 5×, 2×, 4× and 6×, where new memory costs more than the work (reading
and writing alone leave no more than 26×). Data are 3 % of the MLP's epoch. Nothing was measured on
a GPU yet.

Run: pip install 'dlblocks[bench]', then python benchmarks/data_path.py
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from dlblocks._quiet import quiet
from dlblocks.callbacks import Augment
from dlblocks.data import ArrayDataModule
from dlblocks.models import MLPClassifier

TURNS = 7
MEAN, STD = [0.5] * 3, [0.25] * 3
Run = Callable[[], object]


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


def torchvision_on_pil(images: np.ndarray, batch_size: int, padding: int | None) -> Run:
    from PIL import Image
    from torchvision.transforms import v2

    random = [] if padding is None else [
        v2.RandomCrop(images.shape[1], padding=padding), v2.RandomHorizontalFlip()
    ]  # fmt: skip
    steps = [*random, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transform = v2.Compose(steps)
    data = Samples(images, lambda image: transform(Image.fromarray(image)))
    return lambda: exhaust(DataLoader(data, batch_size, shuffle=True))


def albumentations_in_loader(images: np.ndarray, batch_size: int, padding: int) -> Run:
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


def ready_batches(images: np.ndarray, batch_size: int, padding: int) -> dict[str, Run]:
    """Ours and kornia's on one batch that is in memory already."""
    from kornia.augmentation import (
        AugmentationSequential,
        Normalize,
        RandomCrop,
        RandomHorizontalFlip,
    )

    side = images.shape[1]
    batch = torch.from_numpy(images[:batch_size].transpose(0, 3, 1, 2).copy())
    data = ArrayDataModule(batch, np.arange(len(batch)) % 2, val_fraction=0.0)
    data.setup()
    augment = Augment(horizontal_flip=0.5, crop_padding=padding)
    targets = torch.zeros(len(batch))
    theirs = AugmentationSequential(
        RandomCrop((side, side), padding=padding),
        RandomHorizontalFlip(p=0.5),
        Normalize(MEAN, STD),
        data_keys=["input"],
    )
    floats = batch.float() / 255

    def own() -> None:
        changed = augment.apply([batch, targets], epoch=0, step=0, rank=0)
        data.on_after_batch_transfer(changed, 0)

    return {"ours, ready batch": own, "kornia, ready batch": lambda: theirs(floats)}


def seconds(run: Run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def in_turn(runs: dict[str, tuple[Run, int]], turns: int = TURNS) -> dict[str, list[float]]:
    """Seconds a sample of each run, in each turn; the first turn warms up and is left out."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, (run, samples) in runs.items():
            # Short runs are repeated, so that the clock and the machine's hiccups matter less.
            repeats = max(1, 1024 // samples)
            start = time.process_time()
            for _ in range(repeats):
                run()
            taken = time.process_time() - start
            if turn:
                found[name].append(taken / samples / repeats)
    return found


def row(name: str, values: list[float], unit: str = "") -> None:
    shown = [statistics.median(values), min(values), max(values)]
    print(f"  {name:<44}" + "".join(f"{v:10.2f}" for v in shown) + f"  {unit}")


def copy_bandwidth() -> float:
    """Bytes read and written a second by a copy of 256 MB between arrays that exist."""
    source = torch.ones(1 << 26)
    target = torch.empty_like(source).copy_(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(5))


def images_of(side: int, count: int, batch_size: int, padding: int, bandwidth: float) -> None:
    """The tables for one size of image."""
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    augment = Augment(horizontal_flip=0.5, crop_padding=padding)
    runs = {
        "ours, augmented": (ours(images, batch_size, augment), count),
        "torchvision v2 on PIL, augmented": (
            torchvision_on_pil(images, batch_size, padding),
            count,
        ),
        "albumentations, augmented": (albumentations_in_loader(images, batch_size, padding), count),
        "ours, plain": (ours(images, batch_size, None), count),
        "torchvision v2 on PIL, plain": (torchvision_on_pil(images, batch_size, None), count),
        **{
            name: (run, batch_size)
            for name, run in ready_batches(images, batch_size, padding).items()
        },
    }
    found = in_turn(runs)
    print(f"\n{side}×{side}×3, batches of {batch_size}{'':<22}median       min       max")
    for name, values in found.items():
        row(name, [1e6 * v for v in values], "µs a sample")
    pairs = [
        ("ours, augmented", "torchvision v2 on PIL, augmented"),
        ("ours, augmented", "albumentations, augmented"),
        ("ours, ready batch", "kornia, ready batch"),
        ("ours, plain", "torchvision v2 on PIL, plain"),
    ]
    for own, peer in pairs:
        ratios = [b / a for a, b in zip(found[own], found[peer], strict=True)]
        row(f"{peer} / ours", ratios, "×")
    floor = 5 * 3 * side * side / bandwidth
    for name in ("ours, augmented", "ours, plain"):
        ratios = [v / floor for v in found[name]]
        row(f"{name} / floor ({1e6 * floor:.2f} µs)", ratios, "×")


def mnist_epoch(batch_size: int, turns: int = 3) -> None:
    """How much of an epoch under the Trainer is spent on data."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60_000, 1, 28, 28), dtype=np.uint8)
    labels = random.integers(0, 10, 60_000)
    data = ArrayDataModule(images, labels, batch_size=batch_size, val_fraction=0.0)
    data.setup()

    def only_data() -> None:
        for batch in data.train_dataloader():
            data.on_after_batch_transfer(batch, 0)

    def epoch() -> None:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(MLPClassifier(784, 10, hidden=[256]), datamodule=data)

    shares, epochs = [], []
    with quiet():
        for turn in range(turns + 1):
            whole, part = seconds(epoch), seconds(only_data)
            if turn:
                shares.append(100 * part / whole)
                epochs.append(whole)
    print(
        f"\nMNIST-shaped MLP 784-256-10, batches of {batch_size}{'':<8}median       min       max"
    )
    row("epoch", epochs, "s")
    row("data's share of it", shares, "%")


def gpu_step(size: int = 512, steps: int = 50) -> None:
    """The share of a ResNet-18 step on 32×32 images that data and augmentation take."""
    from torchvision.models import resnet18

    device = torch.device("cuda")
    images = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, (50_000,), device=device)
    net = resnet18(num_classes=10).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    data = ArrayDataModule(images[:64].cpu(), labels[:64].cpu(), val_fraction=0.0)
    data.setup()
    augment = Augment(horizontal_flip=0.5, crop_padding=4, rotation=10)

    def batch(step: int) -> list[Tensor]:
        rows = torch.randint(0, 50_000, (size,)).to(device, non_blocking=True)
        made: Any = [images.index_select(0, rows), labels.index_select(0, rows)]
        made = augment.apply(made, epoch=0, step=step, rank=0)
        return data.on_after_batch_transfer(made, 0)

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(net(inputs), targets)
        loss.backward()
        optimizer.step()

    def timed(run: Callable[[int], object]) -> float:
        torch.cuda.synchronize()
        start = time.process_time()
        for i in range(steps):
            run(i)
        torch.cuda.synchronize()
        return (time.process_time() - start) / steps

    fixed = batch(0)
    shares, wholes = [], []
    for turn in range(TURNS + 1):
        whole = timed(lambda i: step(*batch(i)))
        alone = timed(lambda i: step(*fixed))
        if turn:
            shares.append(100 * (whole - alone) / whole)
            wholes.append(1e3 * whole)
    print(f"\n{torch.cuda.get_device_name()}, ResNet-18, {size}×3×32×32, bf16")
    row("step with data and augmentation", wholes, "ms")
    row("their share of it", shares, "%")


def main() -> None:
    """Prints the tables."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    bandwidth = copy_bandwidth()
    print(
        f"torch {torch.__version__}, one thread, {TURNS} turns; copies {bandwidth / 1e9:.1f} GB/s"
    )
    images_of(32, 2048, 256, 4, bandwidth)
    images_of(224, 128, 32, 28, bandwidth)
    for batch_size in (64, 256):
        mnist_epoch(batch_size)
    if torch.cuda.is_available():
        gpu_step()


if __name__ == "__main__":
    main()
