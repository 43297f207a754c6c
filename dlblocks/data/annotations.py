"""Read boxes of COCO and Pascal VOC, and cut large images into tiles."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from dlblocks._errors import did_you_mean
from dlblocks.data._images import images_below

Array = npt.NDArray[Any]
ROUNDING = 1.0  # pixels by which a box may reach out of its image; it is clipped


@dataclass
class Annotated:
    """An image with its objects.

    Attributes:
        name: Path of the image below its folder.
        file: Path of the image.
        size: Height and width that the annotations say, or None.
        boxes: x0, y0, x1, y1 in pixels, float64 (n, 4).
        labels: Name of each object's class.
    """

    name: str
    file: str
    size: tuple[int, int] | None
    boxes: Array
    labels: list[str]


def read_coco(path: Path, folder: Path) -> tuple[list[Annotated], list[str]]:
    """Read the images and boxes of a COCO file.

    Images without objects are among them. Crowds (``iscrowd``) are left out: their box is around
    many objects.

    Args:
        path: The JSON file, with ``images``, ``annotations`` and ``categories``.
        folder: Where the images are.

    Returns:
        The images in the order of the file, and the names of the categories, sorted by id.

    Raises:
        FileNotFoundError: An image is not there.
        ValueError: The file is not COCO's, or refers to images or categories that it lacks.
    """
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); export it again.") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(found, Mapping) or not isinstance(found.get(key), list):
            raise ValueError(
                f"{path} has no list {key!r}; a COCO file has images, annotations and categories."
            )
    for key, wanted in (("categories", "name"), ("images", "file_name")):
        _check_ids(path, key, found[key], wanted)
    categories = {each["id"]: str(each["name"]) for each in found["categories"]}
    order = [categories[key] for key in sorted(categories)]
    images: dict[Any, Annotated] = {}
    rows: dict[Any, list[list[float]]] = {}
    missing = []
    for image in found["images"]:
        name = str(image["file_name"])
        file = folder / name
        if not file.is_file():
            missing.append(name)
        size = (image["height"], image["width"]) if {"height", "width"} <= {*image} else None
        images[image["id"]] = Annotated(name, str(file), size, np.zeros((0, 4)), [])
        rows[image["id"]] = []
    if missing:
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise FileNotFoundError(
            f"{path} names {len(missing)} of {len(found['images'])} images that are not in "
            f"{folder}: {shown}. Give the folder that they are in, or remove them from the file."
        )
    for one in found["annotations"]:
        if one.get("iscrowd"):
            continue
        for key, known in (("image_id", images), ("category_id", categories)):
            if one.get(key) not in known:
                raise ValueError(
                    f"{path}: annotation {one.get('id')} has {key}={one.get(key)!r}, which the "
                    "file does not have; add it, or remove the annotation."
                )
        box = one.get("bbox")
        if not _are_numbers(box, 4):
            raise ValueError(
                f"{path}: annotation {one.get('id')} has bbox={box!r}; expected four numbers: x, "
                "y, width, height. Correct it, or remove the annotation."
            )
        x, y, width, height = box
        rows[one["image_id"]].append([x, y, x + width, y + height])
        images[one["image_id"]].labels.append(categories[one["category_id"]])
    for key, boxes in rows.items():
        images[key].boxes = np.array(boxes, float).reshape(-1, 4)
    return list(images.values()), order


def _check_ids(path: Path, key: str, entries: Sequence[Any], wanted: str) -> None:
    """Raise a `ValueError` if an entry lacks something, or two have the same id or name.

    Files that were joined have the same ids twice, and boxes would move to other images.
    """
    for entry in entries:
        if not isinstance(entry, Mapping) or not {"id", wanted} <= {*entry}:
            raise ValueError(f"{path}: {str(entry)[:80]} of {key} needs 'id' and {wanted!r}.")
    for name in ("id", wanted):
        seen: set[Any] = set()
        for entry in entries:
            if entry[name] in seen:
                raise ValueError(
                    f"{path} has {name}={entry[name]!r} twice in {key}; give each its own, also in "
                    "the annotations, or remove one."
                )
            seen.add(entry[name])


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, (int, float)) for value in values)
    )


def read_voc(folder: Path, images: Path, *, first_pixel: int) -> tuple[list[Annotated], list[str]]:
    """Read the images and boxes of Pascal VOC's XML files.

    An image without a file, or with a file without objects, has no objects.

    Args:
        folder: Where the XML files are. ``a/1.jpg`` has ``a/1.xml``.
        images: Where the images are.
        first_pixel: As for `read_voc_file`.

    Raises:
        FileNotFoundError: There is no XML file, or one has no image.
        ValueError: A file is not Pascal VOC's.
    """
    known = {file.relative_to(folder).with_suffix("").as_posix(): file
             for file in sorted(folder.rglob("*.xml"))}  # fmt: skip
    if not known:
        raise FileNotFoundError(f"boxes='{folder}' has no XML file.")
    found, classes = [], set()
    for file in images_below(images):
        name = Path(file).relative_to(images)
        xml = known.pop(name.with_suffix("").as_posix(), None)
        one = Annotated(name.as_posix(), file, None, np.zeros((0, 4)), [])
        if xml is not None:
            _fill(one, xml, first_pixel)
        classes |= {*one.labels}
        found.append(one)
    if known:
        stem, orphan = next(iter(known.items()))
        names = [Path(one.name).with_suffix("").as_posix() for one in found]
        raise FileNotFoundError(
            f"{orphan} is of no image in {images}{did_you_mean(stem, names) or '.'} Give the "
            "folder of the images, or remove the file."
        )
    return found, sorted(classes)


def _fill(one: Annotated, path: Path, first_pixel: int) -> None:
    """Read one XML file."""
    one.boxes, one.labels, one.size = read_voc_file(path, first_pixel=first_pixel)


def read_voc_file(
    path: Path, *, first_pixel: int = 1
) -> tuple[Array, list[str], tuple[int, int] | None]:
    """Read an XML file of Pascal VOC.

    Args:
        path: The file.
        first_pixel: 1 as in Pascal VOC, where xmax is the last pixel of a box; 0 if the numbers are
            edges, which stay as they are.

    Returns:
        Boxes x0, y0, x1, y1, float64 (n, 4), the names of their classes, and height and width.

    Raises:
        ValueError: The file is not Pascal VOC's.
    """
    boxes: list[list[float]] = []
    labels, size = list[str](), None
    try:
        root = ElementTree.parse(path).getroot()
        if (given := root.find("size")) is not None:
            size = int(_text(given, "height")), int(_text(given, "width"))
        for each in root.iter("object"):
            box = each.find("bndbox")
            if box is None:
                raise ValueError("an object has no bndbox")
            x0, y0, x1, y1 = (float(_text(box, key)) for key in ("xmin", "ymin", "xmax", "ymax"))
            # Counted from 1, the last pixel m covers m - 1 … m.
            boxes.append([x0 - first_pixel, y0 - first_pixel, x1, y1])
            labels.append(_text(each, "name"))
            if first_pixel and min(x0, y0) == 0:
                warnings.warn(
                    f"{path} has the box {[x0, y0, x1, y1]}, but Pascal VOC counts pixels from 1; "
                    "if your program counts from 0, set first_pixel=0, or all boxes are one pixel "
                    "off.",
                    stacklevel=2,
                )
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path} is not an annotation of Pascal VOC ({error}).") from error
    return np.array(boxes, float).reshape(-1, 4), labels, size


def _text(element: ElementTree.Element, key: str) -> str:
    text = element.findtext(key)
    if text is None or not text.strip():
        raise ValueError(f"{element.tag} has no {key}")
    return text.strip()


def clipped(boxes: Array, size: Sequence[int], where: str) -> Array:
    """Clip boxes that rounding put outside of their image.

    Args:
        boxes: x0, y0, x1, y1, shape (n, 4).
        size: Height and width of the image.
        where: Name of the image, for the message.

    Raises:
        ValueError: A box is inverted, has no area, or reaches out by more than a pixel.
    """
    limit = np.array([size[1], size[0]] * 2, float)
    new = np.clip(boxes, 0, limit)
    wrong = (np.abs(new - boxes) > ROUNDING).any(1) | (new[:, 2:] <= new[:, :2]).any(1)
    if not np.isfinite(boxes).all():
        wrong |= ~np.isfinite(boxes).all(1)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{where}: box {row} is {boxes[row].tolist()} (x0, y0, x1, y1) in an image of "
            f"{size[0]}×{size[1]} pixels; it is inverted, without area or outside. Correct it, or "
            "remove it."
        )
    return new


def fitted(boxes: Array, old: Sequence[int], new: Sequence[int]) -> tuple[Array, Array]:
    """Move boxes as `dlblocks.data._images.decode` resizes an image and cuts out its centre.

    Args:
        boxes: Shape (n, 4).
        old: Height and width of the image.
        new: Height and width after it.

    Returns:
        The boxes, clipped, and the share of each that remains, (n,).
    """
    (height, width), (tall, wide) = old, new
    factor = max(tall / height, wide / width)
    moved = boxes * factor
    moved[:, [0, 2]] -= (width * factor - wide) / 2
    moved[:, [1, 3]] -= (height * factor - tall) / 2
    inside = np.clip(moved, 0, [wide, tall, wide, tall])
    whole = np.prod(moved[:, 2:] - moved[:, :2], 1)
    return inside, np.prod(inside[:, 2:] - inside[:, :2], 1) / whole
