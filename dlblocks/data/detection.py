"""Images with boxes, from arrays, COCO or Pascal VOC."""

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

from dlblocks._errors import check_choice, check_range, did_you_mean, whole
from dlblocks.data._blocks import as_positions, check_positions
from dlblocks.data._cache import cached_images, decode_all
from dlblocks.data._images import decode, size_of
from dlblocks.data.annotations import Annotated, clipped, fitted, read_coco, read_voc
from dlblocks.data.arrays import ArrayDataModule
from dlblocks.data.datamodule import DataModule
from dlblocks.data.encoders import Encoder, as_given
from dlblocks.data.image_folder import _named_by
from dlblocks.data.source import Source
from dlblocks.fields import Boxes, Ragged

Format = Literal["xyxy", "xywh"]


class DetectionDataModule(DataModule):
    """Images with boxes around their objects and a class for each box.

    Images are an array (N, C, H, W) with boxes as arrays, or a folder with a file of COCO or files
    of Pascal VOC. Batches are ``[images, targets]``; targets are a list of dictionaries with
    ``boxes``, float32 (n, 4), x0, y0, x1, y1 in pixels, and ``labels``, int64 (n,), as torchvision
    takes them. Images without objects are valid, and have boxes (0, 4).

    Classes are 0 … C-1, without one for the background. COCO's categories become 0 … C-1 in the
    order of their ids, and VOC's classes in the order of their names; `class_names` has them.
    COCO's crowds are left out. VOC's difficult objects count like the others.

    Args:
        images: An array or tensor (N, C, H, W), a ``.npy`` file of one, or a folder of images.
        boxes: For an array: a list of N arrays (n, 4), or `Ragged`. For a folder: COCO's JSON file,
            or the folder of Pascal VOC's XML files.
        labels: For an array: the class of each box, a list of N arrays (n,), or `Ragged`: whole
            numbers, or texts of `class_names`. None: all are of class 0.
        class_names: Names of the classes 0 … C-1. For files, the classes that are read; others are
            an error. None: those that the data have.
        test_images: An official test set, as `images`.
        test_boxes: Its boxes.
        test_labels: Its labels.
        box_format: ``"xyxy"``, corners, or ``"xywh"``, corner, width and height, of arrays.
        size: Height and width to which images of a folder are resized, or one number for both: the
            shorter side is resized, and the centre cut out. Boxes move along, and are dropped if
            less than a tenth of them remains. None: all images must have one size.
        in_channels: 3 for colour, 1 for grey, of images of a folder.
        first_pixel: Pascal VOC counts pixels from 1, and its xmax is the last pixel of a box. Some
            programs write edges instead, from 0: set 0, and they stay as they are.
        background: What transparent images are laid on, 0 … 255: one number, or (red, green, blue).
        cache: Keep decoded images in files, for more than fit in memory: a folder for them.
        groups: Of arrays, the group of each image, shape (N,). Of a folder, which images belong
            together; see `ImageFolderDataModule`. Or ``"duplicates"``.
        positions: Of arrays that are tiles of large images, where they lie, for
            ``split="blocks"``; see `cut_tiles` and `boxes_of_tiles`.
        **kwargs: Batches, splits and normalisation; see `DataModule`.

    Raises:
        FileNotFoundError: A file or folder does not exist, or COCO's file names missing images.
        ValueError: A box is inverted, has no area or reaches out of its image, a label is
            not a class, or sizes differ. It is raised at the first use of the data.

    Example:
        >>> images = np.zeros((4, 1, 16, 16), np.uint8)
        >>> boxes = [np.array([[2, 3, 8, 9]]), np.zeros((0, 4)), [], [[1, 1, 5, 6], [8, 8, 15, 16]]]
        >>> data = DetectionDataModule(images, boxes, batch_size=4, val_fraction=0.25)
        >>> data.num_classes
        1
    """

    def __init__(
        self,
        images: str | Path | Tensor | npt.ArrayLike,
        boxes: str | Path | Ragged | Sequence[Any],
        labels: Ragged | Sequence[Any] | None = None,
        *,
        class_names: list[str] | None = None,
        test_images: str | Path | Tensor | npt.ArrayLike | None = None,
        test_boxes: str | Path | Ragged | Sequence[Any] | None = None,
        test_labels: Ragged | Sequence[Any] | None = None,
        box_format: Format = "xyxy",
        size: int | tuple[int, int] | None = None,
        in_channels: Literal[1, 3] = 3,
        first_pixel: Literal[0, 1] = 1,
        background: int | tuple[int, int, int] = 255,
        cache: str | None = None,
        groups: str | Callable[[str], str] | npt.ArrayLike | None = None,
        positions: npt.ArrayLike | None = None,
        **kwargs: Any,
    ) -> None:
        duplicates = isinstance(groups, str) and groups == "duplicates"
        super().__init__(groups="duplicates" if duplicates else None, **kwargs)
        check_choice("box_format", box_format, ["xyxy", "xywh"])
        check_range("first_pixel", first_pixel, 0, 1)
        if (test_images is None) != (test_boxes is None):
            raise ValueError("give test_images and test_boxes together, or neither.")
        self.given: dict[str, tuple[Any, Any, Any]] = {"": (images, boxes, labels)}
        if test_images is not None:
            self.given["test_"] = (test_images, test_boxes, test_labels)
        self.sides: tuple[int, ...] | None = None
        if size is not None:
            self.sides = tuple(map(whole, size if isinstance(size, Sequence) else (size, size)))
            for side in self.sides:
                check_range("size", side, 1)
        self.given_names, self.box_format = class_names, box_format
        self.channels, self.first_pixel = in_channels, first_pixel
        self.background: Any = (
            (background,) * 3 if isinstance(background, int) else tuple(background)
        )
        self.cache = cache
        self.groups: Any = None if duplicates else groups
        check_positions(positions, self.split, groups)
        if positions is not None and _is_folder(images):
            raise ValueError("positions= is for arrays, but images is a folder; leave it out.")
        self.positions = positions
        arrays = [name for name, value in (("images", images), ("test_images", test_images))
                  if value is not None and not isinstance(value, str)]  # fmt: skip
        arrays += ["labels", "test_labels", "positions"]
        arrays += [n for n, v in (("boxes", boxes), ("test_boxes", test_boxes))
                   if not isinstance(v, str)]  # fmt: skip
        self.save_hyperparameters(
            ignore=[*arrays, *([] if isinstance(groups, str) else ["groups"])]
        )

    def prepare_data(self) -> None:
        if self.cache and any(_is_folder(given[0]) for given in self.given.values()):
            self.load()

    def load(self) -> Source:
        found: dict[str, Any] = {}
        names, groups = self.given_names, None
        for part, (images, boxes, labels) in self.given.items():
            if _is_folder(images):
                read = self._of_files(part, Path(images), boxes, labels, names)
                arrays, rows, names, paths = read
                if not part and self.groups is not None:
                    named: Any = _named_by("groups", self.groups)
                    groups = np.array([named(path) for path in paths])
            else:
                arrays = images
                rows = _ragged(part, boxes, labels, names, self.box_format)
                if not part and self.groups is not None:
                    groups = np.asarray(self.groups)
            found |= {f"{part}inputs": arrays, f"{part}targets": rows}
        source = ArrayDataModule(**found, target_kind=Boxes()).load()
        source.class_names, source.groups = names, groups
        if self.positions is not None:
            size: Any = source.inputs.shape[2:]
            source.positions = as_positions(self.positions, len(source.inputs), size)
        return source

    def _make_encoder(self, **shared: Any) -> Encoder:
        return as_given(super()._make_encoder(**shared), self.background, self.sides)

    def _of_files(
        self, part: str, folder: Path, boxes: Any, labels: Any, names: list[str] | None
    ) -> tuple[Tensor, Ragged, list[str], list[str]]:
        """Return images, boxes, names of the classes, and paths below the folder."""
        if labels is not None:
            raise ValueError(f"{part}labels are those of arrays; the files of boxes have labels.")
        if not folder.is_dir():
            raise FileNotFoundError(f"{part}images={str(folder)!r} is no folder.")
        if not isinstance(boxes, (str, os.PathLike)):
            raise TypeError(
                f"{part}boxes is a {type(boxes).__name__}, but {part}images is a folder; give "
                "COCO's JSON file, or the folder of Pascal VOC's XML files."
            )
        path = Path(boxes)
        if path.is_dir():
            read, classes = read_voc(path, folder, first_pixel=self.first_pixel)
        elif path.is_file():
            read, classes = read_coco(path, folder)
        else:
            raise FileNotFoundError(f"{part}boxes={str(path)!r} is neither a file nor a folder.")
        if not read:
            raise FileNotFoundError(f"{path} and {folder} have no image.")
        names = names or classes
        size = self._size_of(read)
        rows = []
        for one in read:
            rows.append(_moved(one, size, _numbers(one.labels, names, one.file)))
        make = partial(decode, size=size, channels=self.channels, background=self.background)
        files, shape = [one.file for one in read], (self.channels, *size)
        if self.cache:
            place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:8]
            name = f"dlblocks-{folder.resolve().name}-{place}-{'x'.join(map(str, shape))}.npy"
            settings = f"background={self.background}"
            decoded = cached_images(Path(self.cache) / name, folder, files, shape, make, settings)
        else:
            pixels = np.empty((len(files), *shape), dtype=np.uint8)
            decode_all(files, make, pixels.__setitem__, f"decoding {folder}")
            decoded = torch.from_numpy(pixels)
        return decoded, Ragged.of(rows), names, [one.name for one in read]

    def _size_of(self, read: Sequence[Annotated]) -> tuple[int, ...]:
        """Return height and width of decoded images, from the heads of the files."""
        first: tuple[tuple[int, int], str] | None = None
        for one in read:
            size = size_of(one.file)
            if one.size is not None and tuple(one.size) != size:
                raise ValueError(
                    f"{one.file} has {size[0]}×{size[1]} pixels, but its annotation says "
                    f"{one.size[0]}×{one.size[1]}; boxes are in pixels of the file. Correct "
                    "the annotation, or save the image upright and in its first size."
                )
            one.size = size
            first = first or (size, one.file)
            if self.sides is None and size != first[0]:
                raise ValueError(
                    f"{one.file} has {size[0]}×{size[1]} pixels and {first[1]} {first[0][0]}×"
                    f"{first[0][1]}; set size=, to which all are resized."
                )
        assert first is not None  # for the type checker
        return first[0] if self.sides is None else self.sides


def _is_folder(images: Any) -> bool:
    return isinstance(images, (str, os.PathLike)) and Path(images).suffix != ".npy"


def _moved(one: Annotated, size: Sequence[int], numbers: list[int]) -> Tensor:
    """Return rows (x0, y0, x1, y1, class) in the decoded image."""
    assert one.size is not None  # for the type checker
    boxes, share = fitted(clipped(one.boxes, one.size, one.file), one.size, size)
    keep = share >= Boxes().min_visible
    return torch.from_numpy(np.column_stack([boxes, numbers])[keep].astype(np.float32))


def _numbers(labels: Sequence[str], names: Sequence[str], where: str) -> list[int]:
    """Look up the classes of names."""
    known = {name: i for i, name in enumerate(names)}
    for label in labels:
        if label not in known:
            hint = did_you_mean(label, names) or ""
            raise ValueError(
                f"{where} has an object of class {label!r}, which is not among {len(names)} "
                f"class_names{hint or ';'} add it, or remove the object."
            )
    return [known[label] for label in labels]


def _ragged(
    part: str, boxes: Any, labels: Any, names: Sequence[str] | None, box_format: Format
) -> Ragged:
    """Join the boxes and labels of arrays."""
    argument = f"{part}boxes"
    if isinstance(boxes, (Tensor, np.ndarray)) and boxes.dtype != object:
        raise TypeError(
            f"{argument} is one array of shape {tuple(boxes.shape)}; give a list with an array "
            "(n, 4) for each image, which has any number of boxes."
        )
    given = _list(argument, boxes)
    marks = None if labels is None else _list(f"{part}labels", labels)
    if marks is not None and len(marks) != len(given):
        raise ValueError(
            f"{argument} has {len(given)} images and {part}labels {len(marks)}; give one entry an "
            "image."
        )
    rows = []
    for i, each in enumerate(given):
        found = torch.as_tensor(np.asarray(each, dtype=np.float32))
        if not found.numel():  # (0,) and [] mean the same
            found = found.reshape(0, 4)
        if found.ndim != 2 or found.shape[1] != 4:
            raise ValueError(
                f"{argument} has shape {tuple(found.shape)} in image {i}; expected (n, 4), also "
                "for one box: (1, 4)."
            )
        if box_format == "xywh":
            found = torch.cat([found[:, :2], found[:, :2] + found[:, 2:]], 1)
        known = torch.zeros(len(found))
        if marks is not None:
            own = np.asarray(marks[i]).reshape(-1)
            if len(own) != len(found):
                raise ValueError(
                    f"image {i} has {len(found)} boxes and {len(own)} labels; give one a box."
                )
            if own.dtype.kind in "UO":
                own = np.array(_numbers([str(x) for x in own], names or [], f"image {i}"))
            known = torch.as_tensor(own.astype(np.float32))
        rows.append(torch.cat([found, known[:, None]], 1))
    return Ragged.of(rows)


def _list(argument: str, values: Any) -> list[Any]:
    if not isinstance(values, (Ragged, Sequence, np.ndarray)) or isinstance(values, str):
        raise TypeError(
            f"{argument} is a {type(values).__name__}; give a list, one entry an image."
        )
    return [values[i] for i in range(len(values))]
