"""A folder of images, one folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dlblocks.data.base import DataModule, Source
from dlblocks.errors import check_range
from dlblocks.files import is_rank_zero


class ImageFolderDataModule(DataModule):
    """Images in ``root/<class>/…``, or in ``root/train/<class>/…`` and ``root/test/<class>/…``.

    Every image is decoded once into one uint8 array in memory: its shorter side is resized to
    `image_size` (antialiased bilinear) and the centre cut out. Classes are the sorted names of the
    folders, as in torchvision's `ImageFolder`. A ``test`` folder is the test set; then
    `test_fraction` must be 0.

    Args:
        root: The folder.
        image_size: Height and width, or one number for both.
        channels: 3 for colour, 1 for grey.
        batch_size: Samples a batch.
        num_workers: Worker processes a loader.
        num_folds: Number of folds, or None for a single split by `val_fraction`.
        fold: Which fold validates.
        val_fraction: Validation share of the development set when `num_folds` is None.
        test_fraction: Share held out first as test set, outside every fold.
        split_seed: Seed of every split.
        shuffle_seed: Seed of the order of training samples.
        stratify: Keep the proportions of the classes in every part; None: for classes, yes.
        normalize: Standardise by the training part's mean and standard deviation.

    Raises:
        FileNotFoundError: There is no such folder, or no class or image in it.
        ValueError: An image cannot be decoded; the message names the file.
    """

    def __init__(
        self,
        root: str,
        *,
        image_size: int | tuple[int, int],
        channels: Literal[1, 3] = 3,
        batch_size: int = 64,
        num_workers: int = 0,
        num_folds: int | None = None,
        fold: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        shuffle_seed: int = 0,
        stratify: bool | None = None,
        normalize: bool = True,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            num_folds=num_folds,
            fold=fold,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            split_seed=split_seed,
            shuffle_seed=shuffle_seed,
            stratify=stratify,
            normalize=normalize,
        )
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(sides) != 2:
            raise ValueError(f"image_size={image_size} must be (height, width) or one number.")
        for side in sides:
            check_range("image_size", side, 1)
        if channels not in (1, 3):
            raise ValueError(f"channels={channels} must be 1 (grey) or 3 (colour).")
        self.root = root
        self.size = sides
        self.channels = channels
        self.save_hyperparameters()

    def load(self) -> Source:
        root = Path(self.root)
        if not root.is_dir():
            raise FileNotFoundError(f"root={self.root!r} is no folder.")
        if not (root / "train").is_dir():
            inputs, targets, names = self._decode(root)
            return Source(inputs, targets, class_names=names)
        inputs, targets, names = self._decode(root / "train")
        source = Source(inputs, targets, class_names=names)
        if (root / "test").is_dir():
            source.test_inputs, source.test_targets, found = self._decode(root / "test")
            if found != names:
                raise ValueError(
                    f"{root / 'test'} has the classes {found} and {root / 'train'} {names}; "
                    "they must be the same."
                )
        return source

    def _decode(self, folder: Path) -> tuple[Tensor, Tensor, list[str]]:
        from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset
        from tqdm import tqdm

        names, number_of = find_classes(folder)
        files = make_dataset(str(folder), number_of, extensions=IMG_EXTENSIONS)
        images = np.empty((len(files), self.channels, *self.size), dtype=np.uint8)
        bar = tqdm(files, desc=f"decoding {folder}", disable=not is_rank_zero(), delay=1.0)
        for i, (file, _) in enumerate(bar):
            images[i] = _decode(file, self.size, self.channels)
        return torch.from_numpy(images), torch.tensor([label for _, label in files]), names


def _decode(file: str, size: Sequence[int], channels: int) -> np.ndarray:
    """One image as uint8 (C, H, W): shorter side resized to fit, centre cut out."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    except Exception as error:
        raise ValueError(
            f"{file} cannot be decoded as an image ({error}); mend it, or remove it."
        ) from error
    height, width = size
    fitted = ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
    pixels = np.asarray(fitted)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
