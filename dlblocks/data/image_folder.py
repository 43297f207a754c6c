"""A folder of images, one folder a class."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dlblocks.data.base import BatchSize, DataModule, Source
from dlblocks.data.cache import cached_images, decode_all
from dlblocks.data.splits import Split
from dlblocks.errors import check_range


class ImageFolderDataModule(DataModule):
    """Images in ``root/<class>/…``, or in ``root/train/<class>/…`` and ``root/test/<class>/…``.

    Every image is decoded once into one uint8 array, in memory or with `cache` in a file: its
    shorter side is resized to `size` (antialiased bilinear) and the centre cut out. 16-bit grey is
    divided by 257, so that 65535 becomes 255. Classes
    are the sorted names of the folders, as in torchvision's `ImageFolder`. A ``test`` folder is the
    test set; then `test_fraction` must be 0.

    With `cache` the array is a plain ``.npy`` file that is memory-mapped, so that it may be larger
    than memory. It is built once, by one process, and then used by every run and rank with the same
    files and settings; where an image was added, removed or changed it is built anew, which a
    warning says. Its memory is read-only: writing into the source's arrays would be a crash.

    Args:
        root: The folder.
        size: Height and width, or one number for both.
        in_channels: 3 for colour, 1 for grey.
        cache: Keep the decoded images in an array file, decoded once and read from the disk, for
            more images than fit in memory: True for a file in `root`, or the folder for it.
        groups: Says which images belong together, as those of one patient or writer: no group is
            in two parts. A regular expression, searched in the path below `root` (or its folder
            ``train``), such as ``cat/anna-3.png``: its first group in parentheses, or all that it
            matches, names the group: ``"([a-z]+)-"``, or ``"/(.+)/"`` for
            ``root/<class>/<group>/…``. Or a function of that path, which returns a name. Or
            ``"duplicates"``: images that are exactly equal as decoded belong together.
        folds: Likewise the fold of each image, for ``split="predefined"``; an empty name always
            trains.
        batch_size: Samples a batch, or ``"full"``.
        num_workers: Worker processes a loader.
        split: ``"kfold"``, ``"leave_one_group_out"`` or ``"predefined"``; see `SplitDataModule`.
        num_folds: Number of folds, or None for a single split by `val_fraction`, or where `split`
            takes it from the data.
        fold: Which fold validates.
        val_fraction: Validation share of the development set when `num_folds` is None.
        test_fraction: Share held out first as test set, outside every fold.
        split_seed: Seed of every split.
        shuffle_seed: Seed of the order of training samples.
        stratify: Keep the proportions of the classes in every part; None: for classes, yes.
        normalize: Standardise by the training part's mean and standard deviation.
        train_transform: A random transform of single training images, in the workers; see
            `DataModule`.
        device_resident: Keep the arrays on the accelerator: True, False or ``"auto"``.

    Raises:
        FileNotFoundError: There is no such folder, or no class or image in it.
        FileExistsError: The file of the cache is not ours, or was cut off; it is left as it is.
        OSError: The folder of the cache cannot be written to or has no room; nothing is left there.
        ValueError: An image cannot be decoded, or its pixels are floating point or 32-bit, whose
            range is not known; the message names the file. Or `groups` or `folds` is no regular
            expression, or matches nothing in a path.
    """

    def __init__(
        self,
        root: str,
        *,
        size: int | tuple[int, int],
        in_channels: Literal[1, 3] = 3,
        cache: bool | str = False,
        groups: str | Callable[[str], str] | None = None,
        folds: str | Callable[[str], str] | None = None,
        batch_size: BatchSize = 64,
        num_workers: int = 0,
        split: Split = "kfold",
        num_folds: int | None = None,
        fold: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        shuffle_seed: int = 0,
        stratify: bool | None = None,
        normalize: bool = True,
        train_transform: Callable[[Any], Any] | None = None,
        device_resident: bool | Literal["auto"] = False,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            split=split,
            num_folds=num_folds,
            fold=fold,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            split_seed=split_seed,
            shuffle_seed=shuffle_seed,
            stratify=stratify,
            normalize=normalize,
            train_transform=train_transform,
            device_resident=device_resident,
            groups="duplicates" if groups == "duplicates" else None,
        )
        if split == "time_series":
            raise ValueError(
                "split='time_series' needs samples in the order of time, but folders come class by "
                "class; use split='predefined' with folds=."
            )
        sides = tuple(size) if isinstance(size, Sequence) else (size, size)
        if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
            raise ValueError(
                f"size={size!r} must be (height, width) or one number, in whole pixels."
            )
        for side in sides:
            check_range("size", side, 1)
        if in_channels not in (1, 3):
            raise ValueError(f"in_channels={in_channels} must be 1 (grey) or 3 (colour).")
        root = str(root)  # plain, so that any checkpoint loads
        self.root = root
        self.size = sides
        self.channels = in_channels
        self.cache = cache
        self.groups = _named_by("groups", None if groups == "duplicates" else groups)
        self.folds = _named_by("folds", folds)
        given = {"groups": groups, "folds": folds}
        functions = [name for name, value in given.items() if callable(value)]
        self.save_hyperparameters(ignore=["train_transform", *functions])

    def prepare_data(self) -> None:
        if self.cache:
            for folder in self._folders():
                self._read(folder)

    def load(self) -> Source:
        train, *test = self._folders()
        inputs, targets, names, paths = self._read(train)
        source = Source(
            inputs,
            targets,
            class_names=names,
            groups=None if self.groups is None else np.array([self.groups(p) for p in paths]),
            folds=None if self.folds is None else np.array([self.folds(p) for p in paths]),
        )
        for folder in test:
            source.test_inputs, source.test_targets, found, _ = self._read(folder)
            if found != names:
                raise ValueError(
                    f"{folder} has the classes {found} and {train} {names}; they must be the same."
                )
        return source

    def _folders(self) -> list[Path]:
        """The folders that hold a folder a class: that of training and, if there, that of test."""
        root = Path(self.root)
        if not root.is_dir():
            raise FileNotFoundError(f"root={self.root!r} is no folder.")
        if not (root / "train").is_dir():
            return [root]
        return [root / part for part in ("train", "test") if (root / part).is_dir()]

    def _read(self, folder: Path) -> tuple[Tensor, Tensor, list[str], list[str]]:
        """Images, classes, names of the classes, and the paths below `folder`."""
        from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

        names, number_of = find_classes(folder)
        samples = make_dataset(str(folder), number_of, extensions=IMG_EXTENSIONS)
        files, targets = [file for file, _ in samples], torch.tensor([n for _, n in samples])
        paths = [Path(file).relative_to(folder).as_posix() for file in files]
        shape = (self.channels, *self.size)
        decode = partial(_decode, size=self.size, channels=self.channels)
        if self.cache:
            path = self._cache_file(folder)
            return cached_images(path, folder, files, shape, decode), targets, names, paths
        images = np.empty((len(files), *shape), dtype=np.uint8)
        decode_all(files, decode, images.__setitem__, f"decoding {folder}")
        return torch.from_numpy(images), targets, names, paths

    def _cache_file(self, folder: Path) -> Path:
        root = Path(self.root)
        part = "images" if folder == root else folder.name
        name = f"{part}-{self.channels}x{self.size[0]}x{self.size[1]}.npy"
        if self.cache is True:
            return root / f"dlblocks-{name}"
        cache = Path(str(self.cache))
        if folder.resolve() in cache.resolve().parents:
            raise ValueError(
                f"cache={self.cache!r} is inside {folder}, where every folder is a class; use "
                "cache=True, or a folder outside."
            )
        # Two roots may share a folder.
        place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]
        return cache / f"dlblocks-{root.resolve().name}-{place}-{name}"


def _named_by(
    argument: str, given: str | Callable[[str], str] | None
) -> Callable[[str], str] | None:
    """A function from a path to a name, from such a function or a regular expression."""
    if not isinstance(given, str):
        return given
    try:
        pattern = re.compile(given)
    except re.error as error:
        raise ValueError(f"{argument}={given!r} is no regular expression ({error}).") from error

    def name(path: str) -> str:
        found = pattern.search(path)
        if found is None:
            raise ValueError(
                f"{argument}={given!r} matches nothing in {path!r}; every path needs a match."
            )
        return found[1 if pattern.groups else 0] or ""

    return name


def _decode(file: str, size: Sequence[int], channels: int) -> np.ndarray:
    """One image as uint8 (C, H, W): shorter side resized to fit, centre cut out."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            # Pillow's own conversion of these cuts off at 255.
            if image.mode[:4] == "I;16" or (image.mode == "I" and opened.format in ("PNG", "PPM")):
                pixels = (np.asarray(image).astype(np.uint32) + 128) // 257
                image = Image.fromarray(pixels.astype(np.uint8))
            if image.mode in ("I", "F"):
                raise ValueError(
                    f"its pixels are of mode {image.mode}, whose range is not known: save it with "
                    "8 or 16 bits"
                )
            image = image.convert("L" if channels == 1 else "RGB")
    except Exception as error:
        raise ValueError(
            f"{file} cannot be decoded as an image ({error}); mend it, or remove it."
        ) from error
    height, width = size
    fitted = ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
    pixels = np.asarray(fitted)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
