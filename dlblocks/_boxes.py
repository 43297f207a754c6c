"""Boxes of a batch: dictionaries as torchvision's, and what remains of a moved box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Entries of a target with one value a box.
PER_BOX = ("boxes", "labels", "area", "iscrowd")


def as_target(rows: Tensor) -> dict[str, Tensor]:
    """Turn the rows of an image, (n, 4) or (n, 5), into a dictionary."""
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
