"""A folder of images and a folder of their masks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlblocks._errors import check_range, did_you_mean, whole
from dlblocks.data._cache import cached_images, decode_all
from dlblocks.data._images import decode, images_below
from dlblocks.data.datamodule import DataModule
from dlblocks.data.image_folder import _named_by
from dlblocks.data.source import Source
from dlblocks.fields import Mask

LOSSY = (".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".heic", ".heif")
TURNED = (5, 6, 7, 8)  # EXIF orientations that change height and width


class SegmentationDataModule(DataModule):
    """Images of a folder, and masks of another folder with the same names.

    The image ``images/a/1.jpg`` has the mask ``masks/a/1.png``. A mask has one number a pixel: grey
    (8 bits), of a palette, or black and white. Both are decoded once into arrays of uint8; an image
    as in `ImageFolderDataModule`, a mask without mixing of neighbours.

    Before anything is decoded, each image must have the size of its mask. A pixel of a mask that is
    no class is an error that names file, place and value.

    Args:
        images: The folder of the images.
        masks: The folder of their masks.
        size: Height and width, or one number for both: the shorter side is resized to it and the
            centre cut out. None: images stay as they are, and all must have one size.
        in_channels: 3 for colour, 1 for grey.
        class_names: Names of the classes 0 … C-1. None: their numbers, up to the largest in a mask.
        labels: The value of each class in the files, such as ``[0, 255]`` for black and white.
            None: the values are the classes.
        ignore_index: The value of pixels that do not count, in the files and in the batches.
        mask_suffix: What the names of masks have behind those of images, such as ``"_mask"``.
        test_images: The folder of an official test set.
        test_masks: Its masks.
        background: What transparent images are laid on, 0 … 255: one number, or (red, green, blue).
        cache: Keep the decoded arrays in files, for more than fit in memory: a folder for them.
        groups: Says which images belong together; see `ImageFolderDataModule`.
        **kwargs: Batches, splits and normalisation; see `DataModule`.

    Raises:
        FileNotFoundError: There is no such folder, no image in it, or an image has no mask.
        ValueError: Sizes differ, a file cannot be decoded, a mask is in colour or JPEG, or a pixel
            has a value that is no class.
    """

    def __init__(
        self,
        images: str,
        masks: str,
        *,
        size: int | tuple[int, int] | None = None,
        in_channels: Literal[1, 3] = 3,
        class_names: list[str] | None = None,
        labels: list[int] | None = None,
        ignore_index: int = 255,
        mask_suffix: str = "",
        test_images: str | None = None,
        test_masks: str | None = None,
        background: int | tuple[int, int, int] = 255,
        cache: str | None = None,
        groups: str | Callable[[str], str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(groups="duplicates" if groups == "duplicates" else None, **kwargs)
        if (test_images is None) != (test_masks is None):
            raise ValueError("give test_images and test_masks together, or neither.")
        check_range("ignore_index", ignore_index, 0, 255)
        self.sides: tuple[int, ...] | None = None
        if size is not None:
            self.sides = tuple(map(whole, size if isinstance(size, Sequence) else (size, size)))
            for side in self.sides:
                check_range("size", side, 1)
        if labels is not None and ignore_index in labels:
            raise ValueError(
                f"labels={labels} has ignore_index={ignore_index}, which is no class; set "
                "ignore_index to a value that the masks do not have, such as 254."
            )
        if labels is not None and class_names is not None and len(labels) != len(class_names):
            raise ValueError(
                f"labels has {len(labels)} values and class_names {len(class_names)} names; give "
                "one value a class."
            )
        self.folders = {"": (str(images), str(masks))}
        if test_images is not None:
            self.folders["test_"] = (str(test_images), str(test_masks))
        self.channels, self.given_names = in_channels, class_names
        self.labels, self.ignore_index, self.mask_suffix = labels, whole(ignore_index), mask_suffix
        self.background: Any = (
            (background,) * 3 if isinstance(background, int) else tuple(background)
        )
        self.cache = cache
        self.groups = _named_by("groups", None if groups == "duplicates" else groups)
        self.save_hyperparameters(ignore=["groups"] if callable(groups) else [])

    def prepare_data(self) -> None:
        if self.cache:
            self.load()

    def load(self) -> Source:
        found: dict[str, Any] = {}
        paths: list[str] = []
        for part, folders in self.folders.items():
            pairs = _pairs(*folders, self.mask_suffix, part)
            size = _check_sizes([pair[1:] for pair in pairs], self.sides)
            paths = paths or [name for name, _, _ in pairs]
            images, masks = [image for _, image, _ in pairs], [mask for _, _, mask in pairs]
            make = partial(decode, size=size, channels=self.channels, background=self.background)
            settings = f"background={self.background}"
            shape = (self.channels, *size)
            found[f"{part}inputs"] = self._decoded(folders[0], images, shape, make, settings)
            read = partial(
                decode_mask, size=size, classes=self._classes, ignore_index=self.ignore_index
            )
            settings = f"labels={self.labels} classes={self._classes} ignored={self.ignore_index}"
            shape = (1, *size)
            found[f"{part}targets"] = self._decoded(folders[1], masks, shape, read, settings)[:, 0]
        return Source(
            **found,
            class_names=self.given_names,
            groups=None if self.groups is None else np.array([self.groups(p) for p in paths]),
            target_kind=Mask(self.ignore_index),
        )

    @property
    def _classes(self) -> list[int] | None:
        """The value of each class in the files; None if any may be."""
        if self.labels is None and self.given_names is not None:
            return list(range(len(self.given_names)))
        return self.labels

    def _decoded(
        self,
        folder: str,
        files: list[str],
        shape: tuple[int, ...],
        make: Callable[[str], npt.NDArray[Any]],
        settings: str,
    ) -> Tensor:
        if self.cache:
            root = Path(folder)
            place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]
            name = f"dlblocks-{root.resolve().name}-{place}-{'x'.join(map(str, shape))}.npy"
            return cached_images(Path(self.cache) / name, root, files, shape, make, settings)
        decoded = np.empty((len(files), *shape), dtype=np.uint8)
        decode_all(files, make, decoded.__setitem__, f"decoding {folder}")
        return torch.from_numpy(decoded)


def _pairs(images: str, masks: str, suffix: str, part: str) -> list[tuple[str, str, str]]:
    """List the path below the folder, the image and the mask of each sample."""
    for argument, folder in (("images", images), ("masks", masks)):
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{part}{argument}={folder!r} is no folder.")
    files = images_below(Path(images))
    if not files:
        raise FileNotFoundError(f"{part}images={images!r} has no image.")
    known: dict[str, str] = {}
    for file in images_below(Path(masks)):
        name = _stem(file, masks)
        if name in known:
            raise ValueError(f"{known[name]} and {file} are masks of one name; remove one of them.")
        known[name] = file
    found = []
    for file in files:
        name = _stem(file, images) + suffix
        if name not in known:
            raise FileNotFoundError(
                f"{file} has no mask {Path(masks) / name}.png{did_you_mean(name, known) or '.'}"
            )
        if known[name].lower().endswith(LOSSY):
            raise ValueError(
                f"{known[name]} is a mask in a format that may change the values of pixels; save "
                "it as PNG."
            )
        found.append((Path(file).relative_to(images).as_posix(), file, known[name]))
    return found


def _stem(file: str, folder: str) -> str:
    return Path(file).relative_to(folder).with_suffix("").as_posix()


def _check_sizes(
    pairs: Sequence[tuple[str, ...]], sides: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Return height and width of decoded images; reads the heads of the files alone."""
    first: tuple[tuple[int, int], str] | None = None
    for image, mask in pairs:
        size, other = _size(image), _size(mask)
        if size != other:
            raise ValueError(
                f"{mask} has {other[0]}×{other[1]} pixels, but its image {image} has "
                f"{size[0]}×{size[1]}; a mask needs the height and width of its image."
            )
        first = first or (size, image)
        if sides is None and size != first[0]:
            raise ValueError(
                f"{image} has {size[0]}×{size[1]} pixels and {first[1]} {first[0][0]}×"
                f"{first[0][1]}; set size=, to which all are resized."
            )
    assert first is not None  # for the type checker
    return first[0] if sides is None else sides


def _size(file: str) -> tuple[int, int]:
    """Return height and width, upright, without decoding."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            width, height = image.size
            turned = image.getexif().get(274) in TURNED
    except Exception as error:
        raise ValueError(f"{file} cannot be read ({error}); mend it, or remove it.") from error
    return (width, height) if turned else (height, width)


def decode_mask(
    file: str, size: Sequence[int], classes: Sequence[int] | None, ignore_index: int
) -> npt.NDArray[np.uint8]:
    """Return a mask as uint8 (1, H, W): shorter side resized to fit, centre cut out.

    Args:
        file: The file.
        size: Height and width.
        classes: The value of each class in the file; None for values that are the classes.
        ignore_index: The value of pixels that do not count, which stays.

    Raises:
        ValueError: The file has no single number a pixel, or one that is no class.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except Exception as error:
        raise ValueError(f"{file} cannot be decoded ({error}); mend it, or remove it.") from error
    if image.mode == "1":
        white = 255 if classes is not None and 255 in classes else 1
        image = Image.fromarray(white * np.asarray(image).astype(np.uint8))
    if image.mode[:4] == "I;16":
        values = np.asarray(image)
        if values.max(initial=0) > 255:
            raise ValueError(f"{file} has the value {values.max()}; masks have 0 … 255.")
        image = Image.fromarray(values.astype(np.uint8))
    if image.mode not in ("L", "P"):
        raise ValueError(
            f"{file} is a mask of mode {image.mode}; it must have one number a pixel: save it in "
            "grey (L) or with a palette (P)."
        )
    values = np.asarray(image)
    if classes is not None:
        table = np.full(256, -1)
        table[ignore_index] = ignore_index
        table[list(classes)] = np.arange(len(classes))
        mapped = table[values]
        if mapped.min(initial=0) < 0:
            row, column = np.argwhere(mapped < 0)[0]
            raise ValueError(
                f"{file} has the value {values[row, column]} in row {row}, column {column}, which "
                f"is no class; classes have the values {', '.join(map(str, classes[:20]))}"
                f"{', …' if len(classes) > 20 else ''}, and pixels that do not count "
                f"{ignore_index} (ignore_index)."
            )
        values = mapped.astype(np.uint8)
    fitted = ImageOps.fit(
        Image.fromarray(values), (size[1], size[0]), method=Image.Resampling.NEAREST
    )
    return np.asarray(fitted)[None]
