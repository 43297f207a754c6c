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
from dlblocks.data._cache import cached_images, decode_all, first_rows
from dlblocks.data._images import decode, images_below, size_of
from dlblocks.data.datamodule import DataModule
from dlblocks.data.encoders import Encoder, as_given
from dlblocks.data.image_folder import _named_by
from dlblocks.data.source import Source
from dlblocks.data.tiles import positions_in
from dlblocks.fields import Mask

LOSSY = (".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".heic", ".heif")
Size = tuple[int, int]  # height and width


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
        tile: Cut each image, which may have any size, into square tiles of so many pixels; a
            sample is then a tile. Tiles of one image are a group, so that they stay on one side.
            ``split="blocks"`` also splits single images, with a `margin` between the parts. Pixels
            that tiles share count once for each of them. `join_tiles` makes maps of whole images of
            out-of-fold predictions.
        stride: Pixels from one tile to the next; None for `tile`. The last tile of a row or column
            ends with the image.
        **kwargs: Batches, splits and normalisation; see `DataModule`.

    Raises:
        FileNotFoundError: There is no such folder, no image in it, or an image has no mask.
        ValueError: Sizes differ, a file cannot be decoded, a mask is in colour or JPEG, or a pixel
            has a value that is no class; an image is smaller than a tile.

    Attributes:
        files: The image files in order, of the development set; tiles name them by number in the
            first column of ``columns.positions``.
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
        tile: int | None = None,
        stride: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(groups="duplicates" if groups == "duplicates" else None, **kwargs)
        if (test_images is None) != (test_masks is None):
            raise ValueError("give test_images and test_masks together, or neither.")
        check_range("ignore_index", ignore_index, 0, 255)
        self.sides: Size | None = None
        if size is not None:
            height, width = size if isinstance(size, Sequence) else (size, size)
            self.sides = (whole(height), whole(width))
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
        self.tile, self.stride = whole(tile), whole(stride)
        if tile is not None:
            check_range("tile", tile, 1)
            check_range("stride", tile if stride is None else stride, 1, tile)
            if groups == "duplicates":
                raise ValueError(
                    f"groups='duplicates' would put other tiles of an image on both sides; with "
                    f"tile={tile} leave groups out, which keeps the tiles of an image together."
                )
        elif stride is not None:
            raise ValueError(f"stride={stride} has no effect without tile; set tile=.")
        elif self.split == "blocks":
            raise ValueError("split='blocks' splits tiles of large images; set tile=.")
        self.files: list[str] = []
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
            sizes = _sizes([pair[1:] for pair in pairs], self.sides, any_size=self.tile is not None)
            paths = paths or [name for name, _, _ in pairs]
            images, masks = [image for _, image, _ in pairs], [mask for _, _, mask in pairs]
            self.files = self.files or images
            tiles = self._tiles(images, sizes)
            if tiles is not None:
                found[f"{part}positions"] = np.concatenate(tiles).astype(np.float64)
            settings = f"background={self.background}"
            make = partial(decode, channels=self.channels, background=self.background)
            found[f"{part}inputs"] = self._decoded(
                folders[0], images, sizes, tiles, self.channels, make, settings
            )
            read = partial(decode_mask, classes=self._classes, ignore_index=self.ignore_index)
            settings = f"labels={self.labels} classes={self._classes} ignored={self.ignore_index}"
            found[f"{part}targets"] = self._decoded(
                folders[1], masks, sizes, tiles, 1, read, settings
            )[:, 0]
        return Source(
            **found,
            class_names=self.given_names,
            groups=self._groups_of(paths, found.get("positions")),
            target_kind=Mask(self.ignore_index),
        )

    def _groups_of(self, paths: list[str], positions: Any) -> npt.NDArray[Any] | None:
        """Return the group of each sample, for tiles their image."""
        groups: Any = None if self.groups is None else np.array([self.groups(p) for p in paths])
        if positions is None or (groups is None and self.split == "blocks"):
            return None if groups is None else np.asarray(groups)
        if groups is None:
            groups = np.array(paths)
            if len(paths) == 1 and self.split == "kfold":
                raise ValueError(
                    f"tile={self.tile} cuts a single image, whose tiles must not be on both sides; "
                    "use split='blocks'."
                )
        found: npt.NDArray[Any] = groups[positions[:, 0].astype(np.int64)]
        return found

    def _tiles(self, files: list[str], sizes: list[Size]) -> list[npt.NDArray[np.int64]] | None:
        """Return the positions (M, 5) of each file's tiles, if any."""
        if self.tile is None:
            return None
        for file, size in zip(files, sizes, strict=True):
            if min(size) < self.tile:
                raise ValueError(
                    f"{file} has {size[0]}×{size[1]} pixels, less than tile={self.tile}; use a "
                    "smaller tile, or size= to enlarge the images."
                )
        stride = self.stride or self.tile
        return [
            positions_in(size[0], size[1], self.tile, stride, image=i)
            for i, size in enumerate(sizes)
        ]

    def _make_encoder(self, **shared: Any) -> Encoder:
        return as_given(super()._make_encoder(**shared), self.background, self.sides)

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
        sizes: list[Size],
        tiles: list[npt.NDArray[np.int64]] | None,
        channels: int,
        make: Callable[..., npt.NDArray[Any]],
        settings: str,
    ) -> Tensor:
        """Decode all files, or their tiles, as uint8 (N, C, H, W)."""
        size_of = dict(zip(files, sizes, strict=True))
        shape = (channels, *sizes[0])
        counts: list[int] | None = None
        places: dict[str, npt.NDArray[np.int64]] = {}
        if tiles is not None:
            assert self.tile is not None  # for the type checker
            shape = (channels, self.tile, self.tile)
            counts, places = [*map(len, tiles)], dict(zip(files, tiles, strict=True))
            settings += f" size={self.sides} tile={self.tile} stride={self.stride or self.tile}"

        def read(file: str) -> npt.NDArray[Any]:
            image = make(file, size=size_of[file])
            if file not in places:
                return image
            found = [image[:, r : r + h, c : c + w] for _, r, c, h, w in places[file].tolist()]
            return np.stack(found)

        if self.cache:
            root = Path(folder)
            place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]
            name = f"dlblocks-{root.resolve().name}-{place}-{'x'.join(map(str, shape))}.npy"
            return cached_images(
                Path(self.cache) / name, root, files, shape, read, settings, counts
            )
        first = first_rows(len(files), counts)
        decoded = np.empty((len(files) if counts is None else sum(counts), *shape), dtype=np.uint8)

        def put(i: int, image: npt.NDArray[Any]) -> None:
            decoded[first[i] : first[i] + (1 if counts is None else counts[i])] = image

        decode_all(files, read, put, f"decoding {folder}")
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


def _sizes(pairs: Sequence[tuple[str, ...]], sides: Size | None, *, any_size: bool) -> list[Size]:
    """Return height and width of each decoded image, without decoding."""
    found: list[Size] = []
    for image, mask in pairs:
        size, other = size_of(image), size_of(mask)
        if size != other:
            raise ValueError(
                f"{mask} has {other[0]}×{other[1]} pixels, but its image {image} has "
                f"{size[0]}×{size[1]}; a mask needs the height and width of its image."
            )
        found.append(size)
        if sides is None and size != found[0] and not any_size:
            raise ValueError(
                f"{image} has {size[0]}×{size[1]} pixels and {pairs[0][0]} {found[0][0]}×"
                f"{found[0][1]}; set size=, to which all are resized, or tile=."
            )
    return found if sides is None else [sides] * len(found)


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
