"""Compare `ImageFolderDataModule` with torchvision's ImageFolder and a DataLoader.

5,000 JPEG files of 256×256 pixels in ten folders, made by the script, as batches of 64×3×128×128
floating point and normalised. An epoch takes all training images once.

- *ours, cache*: ``cache=True``: decoded once, into a file that later epochs read. The time to make
  it is a row of its own.
- *torchvision, 2 workers*: `ImageFolder` with v2 transforms, by the clock, because the workers are
  processes.
- *torchvision, 0 workers*: the same in one process.

Run: python benchmarks/photographs.py [--images 5000]
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _timing import Bench, Run, arguments, start

from dlblocks.data import ImageFolderDataModule

SIDE, BATCH = 128, 64


def make_images(folder: Path, count: int) -> None:
    """Write JPEG files of smooth random colours, which compress like photographs."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"class{i % 10}" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        noise = rng.integers(0, 24, (256, 256, 3), dtype=np.uint8)
        smooth = np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC))
        Image.fromarray(smooth // 2 + noise).save(path, quality=88)


def exhaust(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


def of_ours(folder: Path, cache: Path) -> ImageFolderDataModule:
    return ImageFolderDataModule(
        str(folder), size=SIDE, cache=str(cache), batch_size=BATCH, val_fraction=0.0,
        test_fraction=0.0,
    )  # fmt: skip


def ours(folder: Path, cache: Path) -> Run:
    data = of_ours(folder, cache)
    data.setup()

    def run() -> None:
        for batch in data.train_dataloader():
            data.on_after_batch_transfer(batch, 0)

    return run


def caching(folder: Path, cache: Path) -> Run:
    def run() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        data = of_ours(folder, cache)
        data.setup()
        exhaust([next(iter(data.train_dataloader()))])

    return run


def torchvision(folder: Path, workers: int) -> Run:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose([
        v2.Resize((SIDE, SIDE)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.25] * 3),
    ])  # fmt: skip
    data = ImageFolder(str(folder), transform)
    return lambda: exhaust(
        torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers)
    )


def tables(bench: Bench, images: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name) / "images", Path(name) / "cache"
        folder.mkdir()
        if bench.wants("Photographs"):
            make_images(folder, images)
        workers = partial(torchvision, folder, 2)
        title = f"Photographs, {images:,} JPEG files"
        bench.compare(
            f"{title}, an epoch",
            {
                "ours, cache": partial(ours, folder, cache),
                "torchvision, 2 workers": workers,
                "torchvision, 0 workers": partial(torchvision, folder, 0),
            },
            unit="s",
            wall=True,
        )
        bench.compare(
            f"{title}, making the cache",
            {"ours": partial(caching, folder, cache), "an epoch of torchvision": workers},
            unit="s",
            wall=True,
            turns=min(2, bench.turns),
        )


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=5000)
    given = parser.parse_args()
    start(partial(tables, images=given.images), parser)
