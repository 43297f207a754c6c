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

from dlblocks._errors import check_range, did_you_mean, whole
from dlblocks.data._cache import cached_images, decode_all
from dlblocks.data._images import ENDINGS, decode, images_below, is_hidden
from dlblocks.data.datamodule import DataModule, Source
from dlblocks.data.encoders import Encoder, ImageEncoder
from dlblocks.data.splitting import Indices, hold_out_test

# Spellings of the folder of each part, in small letters and without what stands around them.
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


class ImageFolderDataModule(DataModule):
    """Images in ``root/<class>/…``, or in ``root/train/<class>/…`` and so on.

    **Parts.** Beside ``train`` there may be ``val`` and ``test``. They may be written training,
    valid, validation, dev and testing, with such as ``_set``, ``_images`` or ``2017`` behind or
    ``images_`` before, in small or capital letters. The images of ``val`` validate a single split,
    in place of `val_fraction`. For folds, as in cross-validation, ``train`` and ``val`` together
    are the development set. ``test`` is the test set; then `test_fraction` must be 0. Classes are
    the sorted names of the folders of ``train``, as in torchvision's `ImageFolder`; ``val`` and
    ``test`` may lack some.

    **Images.** Every image is decoded once into one uint8 array, in memory or with `cache` in a
    file: its shorter side is resized to `size` (antialiased bilinear) and the centre cut out.
    Photographs are turned upright, as their EXIF orientation says. Transparent pixels are laid on
    `background`: ``alpha * pixel + (1 - alpha) * background``. 16-bit grey is divided by 257, so
    that 65535 becomes 255. Of several frames (GIF, TIFF) the first is taken. Colour profiles are
    not applied.

    Hidden files and folders are left out: those whose name begins with a dot, such as
    ``.ipynb_checkpoints`` and ``._photo.jpg``, ``__MACOSX`` and ``@eaDir``.

    With `cache` the array is a plain ``.npy`` file that is memory-mapped, so that it may be larger
    than memory. It is built once, by one process, and then used by every run and rank with the same
    files and settings; where an image was added, removed or changed it is built anew, which a
    warning says. Its memory is read-only: writing into the source's arrays would be a crash.

    Args:
        root: The folder.
        size: Height and width, or one number for both.
        in_channels: 3 for colour, 1 for grey.
        background: What transparent images are laid on, 0 … 255: one number, or (red, green, blue).
        cache: Keep the decoded images in an array file, decoded once and read from the disk, for
            more images than fit in memory: True for a file in `root`, or the folder for it.
        groups: Says which images belong together, as those of one patient or writer: no group is
            in two parts. A regular expression, searched in the path below `root` (or its folder
            ``train`` or ``val``), such as ``cat/anna-3.png``: its first group in parentheses, or
            all that it matches, names the group: ``"([a-z]+)-"``, or ``"/(.+)/"`` for
            ``root/<class>/<group>/…``. Or a function of that path, which returns a name. Or
            ``"duplicates"``: images that are exactly equal as decoded belong together.
        folds: Likewise the fold of each image, for ``split="predefined"``; an empty name always
            trains.
        **kwargs: Batches, splits and normalisation; see `DataModule`.

    Raises:
        FileNotFoundError: There is no such folder, no class in it, or no image in a class of
            ``train``.
        FileExistsError: The file of the cache is not ours, or was cut off; it is left as it is.
        OSError: The folder of the cache cannot be written to or has no room; nothing is left there.
        ValueError: An image cannot be decoded, or its pixels are floating point or 32-bit, whose
            range is not known; the message names the file. Parts are ambiguous, or lie beside or
            inside folders of classes; ``val`` or ``test`` has a class that ``train`` lacks.
            `groups` or `folds` is no regular expression, or matches nothing in a path.
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
                "split='time_series' needs an order of time, but folders come class by class; use "
                "split='predefined' with folds=."
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
        self._num_val = 0  # images of the folder "val", the last of the source
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
        note = f"the {self._num_val} images of the validation folder are a part of the folds."
        return [*super().notes(), note]

    def _splits(self, num_folds: int | None, repeat: int) -> list[dict[str, Indices]]:
        columns = self.columns
        if num_folds is not None or self.split != "kfold" or not self._num_val:
            return super()._splits(num_folds, repeat)
        rest, test = hold_out_test(**self._test_arguments())
        is_val = rest >= columns.num_samples - self._num_val
        if is_val.all() or not is_val.any():  # of `subset`
            return super()._splits(num_folds, repeat)
        train, val = rest[~is_val], rest[is_val]
        if columns.groups is not None:
            both = np.intersect1d(columns.groups[train], columns.groups[val])
            if len(both):
                name = "equal images" if columns.copies else repr(str(both[0]))
                raise ValueError(
                    f"groups has {name} in the folders of both training and validation "
                    f"({len(both)} such groups); keep each in one of them, or set num_folds."
                )
        return [{"train": train, "val": val, "test": test}]

    def _parts(self) -> dict[str, Path]:
        """Return the folder of each part that there is, by "train", "val" and "test"."""
        root = Path(self.root)
        if not root.is_dir():
            raise FileNotFoundError(f"root={self.root!r} is no folder.")
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
                    f"cache={self.cache!r} is inside {folder}, where every folder is a class; use "
                    "cache=True."
                )
        # Two roots may share a folder.
        place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]
        return cache / f"dlblocks-{root.resolve().name}-{place}-{name}"


def _folders(folder: Path) -> list[Path]:
    """Return the visible folders in a folder, sorted by name."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name)]
    return [folder / name for name in sorted(names)]


def _part_of(folder: Path) -> str | None:
    """Return which part a folder's name stands for, in any spelling."""
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
    """List the file, path below the folder, and class of each image.

    Args:
        folder: That of the part.
        names: Names of the classes, which are those of ``train``.
        part: ``"train"``, every class of which must have an image, or another.
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
            raise ValueError(f"{argument}={given!r} matches nothing in {path!r}.")
        return found[1 if pattern.groups else 0] or ""

    return name
