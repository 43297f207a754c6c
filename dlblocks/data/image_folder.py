"""A folder of images, with one folder per class."""

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

from dlblocks._errors import check_range, did_you_mean, whole
from dlblocks.data._cache import cached_images, decode_all
from dlblocks.data._images import ENDINGS, decode, images_below, is_hidden
from dlblocks.data._strata import Indices
from dlblocks.data.datamodule import DataModule
from dlblocks.data.encoders import Encoder, ImageEncoder
from dlblocks.data.source import Source
from dlblocks.data.splitting import hold_out_test

# Spellings of each part's folder, in small letters, without words before and behind.
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


class ImageFolderDataModule(DataModule):
    """Images in ``root/<class>/…``, or in ``root/train/<class>/…`` and so on.

    **Parts.** There may be folders ``val`` and ``test`` besides ``train``. Other spellings are
    training, valid, validation, dev and testing, in small or capital letters, followed by a word
    such as ``_set``, ``_images`` or ``2017``, or preceded by ``images_``. The images of ``val``
    validate a single split, instead of `val_fraction`. For folds, as in cross-validation, ``train``
    and ``val`` together are the development set. ``test`` is the test set; `test_fraction` must
    then be 0. Classes are the sorted names of the folders in ``train``, as in torchvision's
    `ImageFolder`. ``val`` and ``test`` may lack some.

    **Images.** Every image is decoded once into one uint8 array, which is in memory, or in a file
    with `cache`. The shorter side is resized to `size` (antialiased bilinear), and the centre is
    cut out. Photographs are turned upright by their EXIF orientation. Transparent pixels are
    blended with `background`: ``alpha * pixel + (1 - alpha) * background``. 16-bit grey is divided
    by 257, so that 65535 becomes 255. Of several frames (GIF, TIFF) only the first is used. Colour
    profiles are not applied.

    Hidden files and folders are skipped: those whose name begins with a dot, such as
    ``.ipynb_checkpoints`` and ``._photo.jpg``, and ``__MACOSX`` and ``@eaDir``.

    With `cache` the array is a plain ``.npy`` file that is memory-mapped, so that it may be larger
    than memory. One process builds it once. Every run and rank with the same files and settings
    then uses it. If an image was added, removed or changed, it is rebuilt with a warning. Its
    memory is read-only: writing into the source's arrays crashes.

    Args:
        root: The folder.
        size: Height and width, or one number for both.
        in_channels: 3 for colour, 1 for grey.
        background: Colour behind transparent images, 0 … 255, one number or (red, green, blue).
        cache: Keep the decoded images in an array file, for more images than fit in memory. True
            for a file in `root`, or the name of its folder.
        groups: Which images belong together, such as those of one patient or writer. No group is
            in two parts. Give one of these:

            - a regular expression that is searched in the path below `root` (or its folder
              ``train`` or ``val``), such as ``cat/anna-3.png``. The first group in parentheses, or
              else the whole match, is the name of the image's group. Examples are ``"([a-z]+)-"``,
              and ``"/(.+)/"`` for ``root/<class>/<group>/…``.
            - a function of that path that returns a name.
            - ``"duplicates"`` to put images together that are exactly equal after decoding.
        folds: Fold of each image for ``split="predefined"``, an expression or function as for
            `groups`. Images with an empty name are always used for training.
        **kwargs: Batches, splits and normalisation; see `DataModule`.

    Raises:
        FileNotFoundError: The folder does not exist, has no class, or a class of ``train`` has no
            image.
        FileExistsError: The file of the cache is another program's, or truncated. It is left as it
            is.
        OSError: The folder of the cache cannot be written to or is full. Nothing is left there.
        ValueError: An image cannot be decoded, or its pixels are floating point or 32-bit, whose
            range is unknown; the message names the file. Parts are ambiguous, or lie beside or
            inside folders of classes. ``val`` or ``test`` has a class that ``train`` lacks.
            `groups` or `folds` is not a regular expression, or matches nothing in a path.
    """

    def __init__(
        self,
        root: str,
        *,
        size: int | tuple[int, int],
        in_channels: Literal[1, 3] = 3,
        background: int | tuple[int, int, int] = 255,
        cache: bool | str = False,
        groups: str | Callable[[str], str] | None = None,
        folds: str | Callable[[str], str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(groups="duplicates" if groups == "duplicates" else None, **kwargs)
        if self.split == "time_series":
            raise ValueError(
                "split='time_series' needs samples in the order of time, but images are sorted by "
                "class; use split='predefined' with folds=."
            )
        sides = tuple(map(whole, size if isinstance(size, Sequence) else (size, size)))
        for side in sides:
            check_range("size", side, 1)
        colour: Any = (background,) * 3 if isinstance(background, int) else tuple(background)
        for value in colour:
            check_range("background", value, 0, 255)
        root = str(root)  # plain, so that any checkpoint loads
        self.root = root
        self.size = sides
        self.channels = in_channels
        self.background = colour
        self._num_val = 0  # images of the folder "val", which come last
        self.cache = cache
        self.groups = _named_by("groups", None if groups == "duplicates" else groups)
        self.folds = _named_by("folds", folds)
        functions = {"groups": callable(groups), "folds": callable(folds)}
        self.save_hyperparameters(ignore=[name for name, given in functions.items() if given])

    def prepare_data(self) -> None:
        if self.cache:
            self.load()

    def load(self) -> Source:
        parts = self._parts()
        names = _class_folders(parts["train"])
        train, val, test = (
            _list_images(parts[part], names, part) if part in parts else [] for part in PARTS
        )
        known = train + val
        self._num_val = len(val)
        paths = [path for _, path, _ in known]
        source = Source(
            self._decoded([parts[part] for part in ("train", "val") if part in parts], known),
            torch.tensor([number for _, _, number in known]),
            class_names=names,
            groups=None if self.groups is None else np.array([self.groups(p) for p in paths]),
            folds=None if self.folds is None else np.array([self.folds(p) for p in paths]),
        )
        if test:
            source.test_inputs = self._decoded([parts["test"]], test)
            source.test_targets = torch.tensor([number for _, _, number in test])
        return source

    def _make_encoder(self, **shared: Any) -> Encoder:
        found = super()._make_encoder(**shared)
        if isinstance(found, ImageEncoder):
            found.background = list(self.background)
        return found

    def notes(self) -> list[str]:
        _ = self.source
        if not self._num_val:
            return super().notes()
        note = f"the {self._num_val} images of the validation folder are in the folds too."
        return [*super().notes(), note]

    def _splits(self, num_folds: int | None, repeat: int) -> list[dict[str, Indices]]:
        columns = self.columns
        if num_folds is not None or self.split != "kfold" or not self._num_val:
            return super()._splits(num_folds, repeat)
        rest, test = hold_out_test(**self._test_arguments())
        is_val = rest >= columns.num_samples - self._num_val
        if is_val.all() or not is_val.any():  # a `subset` without one of them
            return super()._splits(num_folds, repeat)
        train, val = rest[~is_val], rest[is_val]
        if columns.groups is not None:
            both = np.intersect1d(columns.groups[train], columns.groups[val])
            if len(both):
                name = "equal images" if columns.copies else repr(str(both[0]))
                raise ValueError(
                    f"groups has {name} in the folders of both training and validation "
                    f"({len(both)} such groups); keep each group in one folder, or set num_folds."
                )
        return [{"train": train, "val": val, "test": test}]

    def _parts(self) -> dict[str, Path]:
        """Return the folders of existing parts, by "train", "val" and "test"."""
        root = Path(self.root)
        if not root.is_dir():
            raise FileNotFoundError(f"root={self.root!r} is not a folder.")
        found: dict[str, Path] = {}
        others = []
        for folder in _folders(root):
            part = _part_of(folder)
            if part is None:
                others.append(folder)
            elif part in found:
                both = f"{found[part].name!r} and {folder.name!r}"
                raise ValueError(f"root={self.root!r} has {both}, which both mean {part!r}.")
            else:
                found[part] = folder
        if not found:
            for folder in others:
                inside = [sub.name for sub in _folders(folder) if _part_of(sub)]
                if len(inside) > 1:
                    raise ValueError(
                        f"root={self.root!r} has {' and '.join(map(repr, inside))} inside of "
                        f"{folder.name!r}, which would be a class; use root={str(folder)!r}."
                    )
            return {"train": root}
        names = " and ".join(repr(folder.name) for folder in found.values())
        if "train" not in found:
            raise ValueError(
                f"root={self.root!r} has {names}, but no folder 'train'; add it, or rename them if "
                "they are classes."
            )
        classes = [folder.name for folder in others if images_below(folder)]
        if classes:
            raise ValueError(
                f"root={self.root!r} has {names} beside other folders of images, such as "
                f"{classes[0]!r}; move the classes into the parts (train/<class>/…)."
            )
        return found

    def _decoded(self, folders: list[Path], images: list[tuple[str, str, int]]) -> Tensor:
        """Decode images, or map the array file that holds them."""
        files = [file for file, _, _ in images]
        shape = (self.channels, *self.size)
        decoder = partial(
            decode, size=self.size, channels=self.channels, background=self.background
        )
        if self.cache:
            settings = f"background={self.background}"
            path = self._cache_file(folders)
            return cached_images(path, Path(self.root), files, shape, decoder, settings)
        decoded = np.empty((len(files), *shape), dtype=np.uint8)
        decode_all(files, decoder, decoded.__setitem__, f"decoding {folders[0]}")
        return torch.from_numpy(decoded)

    def _cache_file(self, folders: list[Path]) -> Path:
        root = Path(self.root)
        part = "images" if folders == [root] else "-".join(folder.name for folder in folders)
        name = f"{part}-{self.channels}x{self.size[0]}x{self.size[1]}.npy"
        if self.cache is True:
            return root / f"dlblocks-{name}"
        cache = Path(str(self.cache))
        for folder in folders:
            if folder.resolve() in cache.resolve().parents:
                raise ValueError(
                    f"cache={self.cache!r} is inside {folder}, where each folder is a class; use "
                    "cache=True."
                )
        # Two roots may share a cache folder.
        place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]
        return cache / f"dlblocks-{root.resolve().name}-{place}-{name}"


def _folders(folder: Path) -> list[Path]:
    """Return the visible folders in a folder, sorted by name."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name)]
    return [folder / name for name in sorted(names)]


def _part_of(folder: Path) -> str | None:
    """Return the part that a folder's name means, in any spelling."""
    name = re.sub(r"^(images?|imgs?|data)[ _-]", "", folder.name.lower())
    name = re.sub(r"[ _-]?(set|data|images?|imgs?|photos?|pictures?|split|\d+)$", "", name)
    return next((part for part, spellings in PARTS.items() if name in spellings), None)


def _class_folders(folder: Path) -> list[str]:
    names = [sub.name for sub in _folders(folder)]
    if not names:
        raise FileNotFoundError(
            f"{folder} has no folder of a class; expected {folder}/<class>/<image>."
        )
    return names


def _list_images(folder: Path, names: list[str], part: str) -> list[tuple[str, str, int]]:
    """List file, path below the folder, and class of each image.

    Args:
        folder: Folder of the part.
        names: Names of the classes, from ``train``.
        part: Name of the part. In ``"train"`` every class must have an image.
    """
    found = []
    for name in _class_folders(folder):
        if name not in names:
            hint = did_you_mean(name, names) or "."
            raise ValueError(f"{folder} has the class {name!r}, which training lacks{hint}")
        files = images_below(folder / name)
        if not files and part == "train":
            endings = ", ".join(ENDINGS)
            raise FileNotFoundError(f"{folder / name} has no image ({endings}); remove this class.")
        paths = [Path(file).relative_to(folder).as_posix() for file in files]
        found += [(file, path, names.index(name)) for file, path in zip(files, paths, strict=True)]
    if not found:
        raise FileNotFoundError(f"{folder} has no image; remove this folder, or add its images.")
    return found


def _named_by(
    argument: str, given: str | Callable[[str], str] | None
) -> Callable[[str], str] | None:
    """Return a function from a path to a name."""
    if not isinstance(given, str):
        return given
    try:
        pattern = re.compile(given)
    except re.error as error:
        raise ValueError(f"{argument}={given!r} is not a regular expression ({error}).") from error

    def name(path: str) -> str:
        found = pattern.search(path)
        if found is None:
            raise ValueError(f"{argument}={given!r} matches nothing in {path!r}.")
        return found[1 if pattern.groups else 0] or ""

    return name
