"""Check boxes, read dictionaries of them as torchvision's, and clip moved ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dlblocks._ragged import Ragged

# Entries of a target with one value a box.
PER_BOX = ("boxes", "labels", "area", "iscrowd")


def as_target(rows: Tensor) -> dict[str, Tensor]:
    """Make a dictionary of an image's rows, (n, 4) or (n, 5)."""
    labels = rows[:, 4] if rows.shape[1] > 4 else rows.new_zeros(len(rows))
    return {"boxes": rows[:, :4].float(), "labels": labels.long()}


def are_boxes(values: Any) -> bool:
    """Tell whether targets of a batch are dictionaries with boxes."""
    return (
        isinstance(values, (list, tuple))
        and len(values) > 0
        and all(isinstance(value, Mapping) and "boxes" in value for value in values)
    )


def box_rows(values: Any) -> Any:
    """Return the boxes of each image as one tensor.

    Args:
        values: Dictionaries with ``boxes`` and ``labels``, and ``scores`` for detections. Anything
            else is returned as it is.

    Returns:
        Rows (x0, y0, x1, y1, class), or (x0, y0, x1, y1, score, class), for each image.
    """
    if not are_boxes(values):
        return values
    found = []
    for value in values:
        boxes = value["boxes"].reshape(-1, 4)
        more = [value[name] for name in ("scores", "labels") if name in value]
        found.append(torch.cat([boxes, *(column.to(boxes)[:, None] for column in more)], 1))
    return found


def boxes_in(target: Mapping[str, Any]) -> Tensor:
    """Return the boxes of a dictionary, float64 (n, 4)."""
    boxes = target["boxes"]
    if not isinstance(boxes, Tensor) or boxes.ndim != 2 or boxes.shape[1] != 4:
        got = f"shape {tuple(boxes.shape)}" if isinstance(boxes, Tensor) else type(boxes).__name__
        raise ValueError(
            f"boxes of an image must be a tensor (n, 4), got {got}; use torch.zeros(0, 4) for an "
            "image without objects."
        )
    how = getattr(getattr(boxes, "format", None), "value", "XYXY")
    if how != "XYXY":
        raise ValueError(f"boxes are {how}; give corners (x0, y0, x1, y1), format XYXY.")
    return boxes.as_subclass(Tensor).double()


def area_of(boxes: Tensor) -> Tensor:
    """Return the areas of boxes (n, 4)."""
    return (boxes[:, 2] - boxes[:, 0]).clamp(min=0) * (boxes[:, 3] - boxes[:, 1]).clamp(min=0)


def without(boxes: Tensor, hole: Sequence[int]) -> Tensor:
    """Return the smallest boxes around what lies outside of a hole.

    Args:
        boxes: Shape (n, 4).
        hole: Top, left, bottom and right.
    """
    top, left, bottom, right = hole
    if bottom <= top or right <= left:
        return boxes
    x0, y0, x1, y1 = boxes.unbind(1)
    # A hole over the whole height cuts a box from its left or right, one over the whole width from
    # above or below. Any other leaves a pixel at each side.
    high, wide = (y0 >= top) & (y1 <= bottom), (x0 >= left) & (x1 <= right)
    new_x0 = torch.where(high & (x0 >= left) & (x0 < right), x1.clamp(max=right), x0)
    new_x1 = torch.where(high & (x1 <= right) & (x1 > left), x0.clamp(min=left), x1)
    new_y0 = torch.where(wide & (y0 >= top) & (y0 < bottom), y1.clamp(max=bottom), y0)
    new_y1 = torch.where(wide & (y1 <= bottom) & (y1 > top), y0.clamp(min=top), y1)
    return torch.stack([new_x0, new_y0, new_x1, new_y1], 1)


def kept(
    target: Mapping[str, Any], boxes: Tensor, area: Tensor, min_visible: float, min_size: float
) -> dict[str, Any]:
    """Replace the boxes, and drop those of which too little remains.

    Args:
        target: The dictionary of an image.
        boxes: What remains of its boxes, shape (n, 4).
        area: The areas of the whole boxes, shape (n,).
        min_visible: Least share of the area that remains.
        min_size: Least side in pixels.
    """
    # A thousandth of a pixel: rounding must not drop a box that keeps its size.
    sides = boxes[:, 2:] - boxes[:, :2] + 1e-3
    keep = (sides >= min_size).all(1) & (area_of(boxes) >= min_visible * area)
    boxes = boxes[keep].to(target["boxes"].dtype)
    found = {}
    for name, values in target.items():
        if name == "boxes":
            found[name] = boxes
        elif name == "area":
            found[name] = area_of(boxes).to(values.dtype)
        elif name in PER_BOX:
            found[name] = values[keep]
        elif name == "image_id":
            found[name] = values
        else:
            raise ValueError(
                f"targets have {name!r} beside their boxes, and how it moves is not known; "
                f"leave it out. Known are {', '.join(PER_BOX)} and image_id."
            )
    return found


def check_boxes(argument: str, values: Ragged, class_names: Sequence[str] | None = None) -> None:
    """Raise a `ValueError` for an empty box or a wrong label.

    Args:
        argument: Name of the argument, for the message.
        values: Rows (x0, y0, x1, y1), perhaps with a class.
        class_names: Names of the classes, if they are known.
    """
    rows = values.values
    bad = ~(rows[:, 2:4] > rows[:, :2]).all(1)
    if bad.any():
        where, box = _first(values, bad)
        raise ValueError(
            f"{argument} has the box {box} in {where}, which is inverted or has no area; boxes "
            "are (x0, y0, x1, y1) with x0 < x1 and y0 < y1. Convert (x, y, width, height) to "
            "corners, and remove boxes without area."
        )
    if rows.shape[1] == 4:
        return
    labels = rows[:, 4]
    bad = (labels < 0) | (labels != labels.round())
    if class_names is not None:
        bad |= labels >= len(class_names)
    if bad.any():
        where, _ = _first(values, bad)
        label = labels[int(bad.long().argmax())].item()
        known = "" if class_names is None else f" … {len(class_names) - 1}"
        raise ValueError(
            f"{argument} has label {label:g} in {where}; classes are whole numbers 0{known}, "
            "without one for the background. Subtract 1 from labels that start at 1."
        )


def check_boxes_inside(argument: str, values: Ragged, size: Sequence[int]) -> None:
    """Raise a `ValueError` unless all boxes lie in their images (height, width)."""
    rows = values.values[:, :4]
    bad = ((rows < 0) | (rows > rows.new_tensor([size[1], size[0]] * 2))).any(1)
    if bad.any():
        where, box = _first(values, bad)
        raise ValueError(
            f"{argument} has the box {box} in {where}, which reaches out of the image of "
            f"{size[0]}×{size[1]} pixels; boxes are (x0, y0, x1, y1) in pixels. Clip them, and "
            "multiply relative coordinates by width and height."
        )


def _first(values: Ragged, bad: Tensor) -> tuple[str, list[float]]:
    row = int(bad.long().argmax())
    sample = int(torch.searchsorted(values.offsets, row, right=True)) - 1
    box = [round(x, 2) for x in values.values[row, :4].tolist()]
    return f"sample {sample}, box {row - int(values.offsets[sample])}", box
