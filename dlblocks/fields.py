"""Kinds of fields, such as images, masks and classes.

A data set has fields, such as images and their masks, and each field has a kind. The kind's class
defines whether the values are normalised, how they are checked, how a batch of them is gathered,
and how they move with an image. To add a kind, subclass `Kind` and override what differs::

    class Angle(Kind):
        def move(self, values, geometry):
            return values + geometry.rotation.to(values)

    data = ArrayDataModule(images, angles, target_kind=Angle())
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dlblocks._boxes import area_of, as_target, boxes_in, check_boxes, kept, without
from dlblocks._errors import check_choice
from dlblocks._geometry import Geometry
from dlblocks._ragged import Padded, Ragged

__all__ = [
    "KINDS",
    "Boxes",
    "Class",
    "Features",
    "Field",
    "Image",
    "Kind",
    "Labels",
    "Mask",
    "Padded",
    "Ragged",
    "Role",
    "Tokens",
    "Values",
    "Weight",
    "as_kind",
    "kinds_of",
]

Role = Literal["input", "target", "other"]


@dataclass(frozen=True)
class Kind:
    """A kind of field whose values do not move with an image.

    It is the base class of all kinds; the module's text shows how to add one.

    Attributes:
        normalised: Whether a datamodule standardises inputs of this kind.
        is_integer: Whether values are whole numbers. Batches hold them as int64.
        is_structured: Whether a sample has many values that are predicted together, such as
            pixels, boxes or tokens. Folds are not stratified by them.
        is_padded: Whether rows may be sequences of unequal length, whose batches are `Padded`.
        refusal: Why values cannot move with an image, and the cure; None if they can.
        fixed: Why callbacks may not change a batch of inputs; None if they may.
    """

    normalised: ClassVar[bool] = False
    is_integer: ClassVar[bool] = False
    is_structured: ClassVar[bool] = False
    is_padded: ClassVar[bool] = False
    refusal: ClassVar[str | None] = None
    fixed: ClassVar[str | None] = None

    @property
    def name(self) -> str:
        """The class's name in lower case, such as ``"mask"``."""
        return type(self).__name__.lower()

    @property
    def moves(self) -> bool:
        """True if values must change when the pixels of their image move."""
        return self.refusal is not None or type(self).move is not Kind.move

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        """Check the values (N, ...) of an argument.

        Raises:
            ValueError: A value is wrong; the message says which and how to correct it.
        """

    def gather(self, values: Any, rows: Tensor) -> Any:
        """Gather the batch of some rows.

        Args:
            values: Shape (N, ...), or `Ragged`.
            rows: int64 of shape (B,), on the device of `values`.

        Returns:
            Shape (B, ...). For `Ragged` a list of B tensors, or `Padded` features or tokens.
        """
        if isinstance(values, Ragged) and self.is_padded:
            padded = values.padded(rows)
            return Padded(padded.values.long(), padded.lengths) if self.is_integer else padded
        if isinstance(values, Ragged):
            return [values[row] for row in rows.tolist()]
        batch = values.index_select(0, rows)
        return batch.long() if self.is_integer else batch

    def move(self, values: Any, geometry: Geometry) -> Any:
        """Return a batch of targets moved as its images are."""
        return values

    def erase(self, values: Any, box: Tensor) -> Any:
        """Change a batch of targets inside the erased boxes of their images.

        Args:
            values: The batch.
            box: Top, left, bottom and right of each image's box, int64, shape (N, 4). Row `bottom`
                and column `right` are not erased.
        """
        return values


class Image(Kind):
    """Images (N, C, H, W), uint8 or floating point, as inputs or targets."""

    normalised: ClassVar[bool] = True
    is_structured: ClassVar[bool] = True

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        if values.ndim != 4:
            raise ValueError(
                f"{argument} has shape {tuple(values.shape)}; images are (N, C, H, W). Add an axis "
                "for a single channel with [:, None]."
            )

    def move(self, values: Tensor, geometry: Geometry) -> Tensor:
        return geometry.moved(values)


class Features(Kind):
    """Features to normalise, tables (N, F) or sequences (N, T, F).

    Sequences of unequal length are `Ragged`, with values (T, F). Each of their F features is
    normalised over all steps of the training part.
    """

    normalised: ClassVar[bool] = True
    is_padded: ClassVar[bool] = True


class Tokens(Kind):
    """Token numbers (N, ...), which are not normalised.

    Sequences of unequal length are `Ragged`, with values (T,).
    """

    is_integer: ClassVar[bool] = True
    is_padded: ClassVar[bool] = True
    is_structured: ClassVar[bool] = True

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        _check_whole(argument, values, "tokens")


@dataclass(frozen=True)
class Mask(Kind):
    """The class of each pixel, integers (N, H, W).

    A mask moves with its image and takes the nearest pixel. Pixels from outside of the image, and
    erased ones, become `ignore_index`. Soft masks (N, C, H, W), floating point, get zeros there.

    Args:
        ignore_index: Label of pixels that losses and metrics ignore.
    """

    ignore_index: int = 255
    is_integer: ClassVar[bool] = True
    is_structured: ClassVar[bool] = True

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        _check_whole(argument, values, "mask")
        if values.ndim != 3:
            raise ValueError(
                f"{argument} has shape {tuple(values.shape)}; masks are (N, H, W). Remove the axis "
                "of a single channel with [:, 0]."
            )
        low, high = self._range(values)
        if low < 0:
            raise ValueError(
                f"{argument} has label {low}; classes start at 0. If it marks pixels to ignore, "
                f"set target_kind=Mask(ignore_index={low})."
            )
        if class_names is not None and high >= len(class_names):
            raise ValueError(
                f"{argument} has label {high}, but there are {len(class_names)} classes; pixels "
                f"to ignore have label {self.ignore_index}."
            )

    def num_classes(self, values: Tensor) -> int:
        """Count the classes 0 … C-1."""
        return self._range(values)[1] + 1

    def _range(self, values: Tensor) -> tuple[int, int]:
        """Return the smallest label or 0, and the largest or -1."""
        low, high = [0], [-1]
        for part in torch.split(values, max(1, 2**22 // max(values[0].numel(), 1))):
            counted = part[part != self.ignore_index]
            if counted.numel():
                low.append(int(counted.min()))
                high.append(int(counted.max()))
        return min(low), max(high)

    def move(self, values: Tensor, geometry: Geometry) -> Tensor:
        planes = values[:, None] if values.ndim == 3 else values
        moved = geometry.moved(planes, nearest=True, fill=self._fill(values))
        return moved.view(values.shape)

    def erase(self, values: Tensor, box: Tensor) -> Tensor:
        erased = values.clone()
        for plane, (top, left, bottom, right) in zip(erased, box.tolist(), strict=True):
            plane[..., top:bottom, left:right] = self._fill(values)
        return erased

    def _fill(self, values: Tensor) -> int:
        return 0 if values.is_floating_point() else self.ignore_index


@dataclass(frozen=True)
class Boxes(Kind):
    """Boxes around objects, and the class of each.

    A data set holds them as `Ragged`, with one row (x0, y0, x1, y1, class) a box, floating point
    (T, 5). Without a class, (T, 4), all are of class 0. Pixel i of a row covers i … i + 1. Classes
    are 0 … C-1; no class is the background.

    A batch has a list of dictionaries, one an image, as torchvision's: ``boxes``, float32 (n, 4),
    and ``labels``, int64 (n,).

    A moved box is the smallest upright box around its four moved corners, clipped to the image. An
    erased side makes it smaller. Boxes of which little remains are dropped with their labels.

    Args:
        min_visible: Least share of a box's area that must remain in the image.
        min_size: Least side in pixels of a box that has been moved.
    """

    min_visible: float = 0.1
    min_size: float = 1.0
    is_structured: ClassVar[bool] = True

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        if not isinstance(values, Ragged) or values.values.shape[1:] not in ((4,), (5,)):
            raise ValueError(
                f"{argument} must be boxes, a Ragged with rows (x0, y0, x1, y1, class), shape (T, "
                "5) or (T, 4); use dlblocks.fields.Ragged.of([…]), with zeros (0, 5) for an image "
                "without boxes, or DetectionDataModule(images, boxes, labels)."
            )
        check_boxes(argument, values, class_names)

    def num_classes(self, values: Ragged) -> int:
        """Count the classes 0 … C-1."""
        rows = values.values
        return 1 if rows.shape[1] == 4 or not len(rows) else int(rows[:, 4].max()) + 1

    def gather(self, values: Any, rows: Tensor) -> Any:
        return [as_target(values[row]) for row in rows.tolist()]

    def move(self, values: Any, geometry: Geometry) -> Any:
        height, width = geometry.size
        moved = []
        for i, target in enumerate(values):
            old = boxes_in(target)
            limit = old.new_tensor([width, height] * 2)
            corners = old[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 2)  # (4 n, 2): x, y
            found = geometry.points(i, corners).reshape(-1, 4, 2)
            box = torch.cat([found.amin(1), found.amax(1)], 1)
            clipped = torch.minimum(box.clamp(min=0), limit)
            moved.append(self._kept(target, clipped, box))
        return moved

    def erase(self, values: Any, box: Tensor) -> Any:
        erased = []
        for target, hole in zip(values, box.tolist(), strict=True):
            old = boxes_in(target)
            erased.append(self._kept(target, without(old, hole), old))
        return erased

    def _kept(self, target: Mapping[str, Any], rest: Tensor, whole: Tensor) -> dict[str, Any]:
        return kept(target, rest, area_of(whole), self.min_visible, self.min_size)


class Class(Kind):
    """One class for each sample, integers 0 … C-1 of shape (N,)."""

    is_integer: ClassVar[bool] = True

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        _check_axes(argument, values, 1)
        low, high = int(values.min()), int(values.max())
        if low < 0:
            row = int(values.argmin())
            raise ValueError(f"{argument} has label {low} in row {row}; classes start at 0.")
        if class_names is not None and high >= len(class_names):
            raise ValueError(
                f"{argument} has label {high} in row {int(values.argmax())}, but there are "
                f"{len(class_names)} classes."
            )
        if low == high and not argument.startswith("test_"):
            name = low if class_names is None else repr(class_names[low])
            raise ValueError(f"{argument} has only one class ({name}); a classifier needs two.")


class Labels(Kind):
    """Several labels per sample, integers 0 and 1 of shape (N, C)."""

    is_integer: ClassVar[bool] = True

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        if values.ndim != 2 or int(values.min()) < 0 or int(values.max()) > 1:
            _check_axes(argument, values, 0)


class Values(Kind):
    """Values to regress, floating point of shape (N,) or (N, D)."""

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        _check_axes(argument, values, 1, 2)


class Weight(Kind):
    """Sample weights for loss and metrics, numbers >= 0 of shape (N,)."""

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        if values.ndim != 1:
            raise ValueError(
                f"{argument} has shape {tuple(values.shape)}; give one weight per sample, (N,)."
            )
        bad = ~(values.isfinite() & (values >= 0))
        if bad.any():
            row = int(bad.long().argmax())
            raise ValueError(
                f"{argument} is {values[row].item()} in row {row}; weights are numbers >= 0."
            )
        if not values.any():
            raise ValueError(f"{argument} are all 0; at least one sample must count.")


KINDS: dict[str, type[Kind]] = {
    kind.__name__.lower(): kind
    for kind in (Image, Mask, Boxes, Tokens, Features, Class, Labels, Values, Weight)
}


@dataclass(frozen=True)
class Field:
    """Values (N, ...) or `Ragged`, with their kind and role."""

    values: Tensor | Ragged
    kind: Kind
    role: Role


def as_kind(argument: str, kind: Kind | str | None) -> Kind | None:
    """Return the kind that a string names, else the argument."""
    if isinstance(kind, str):
        check_choice(argument, kind, list(KINDS))
        return KINDS[kind]()
    if kind is not None and not isinstance(kind, Kind):
        raise TypeError(
            f"{argument}={kind!r} is not a Kind; give one of {', '.join(KINDS)}, or an object such "
            "as Mask(ignore_index=0)."
        )
    return kind


def kinds_of(datamodule: Any) -> Mapping[str, Kind]:
    """Return the kinds of fields by name, as far as known."""
    kinds = getattr(datamodule, "kinds", None)
    if isinstance(kinds, Mapping) and all(isinstance(kind, Kind) for kind in kinds.values()):
        return kinds
    return {}


def _check_whole(argument: str, values: Any, name: str) -> None:
    if values.is_floating_point() or values.dtype == torch.bool:
        raise ValueError(
            f"{argument} is {values.dtype}, but kind {name!r} needs whole numbers; convert it with "
            ".long() (torch) or .astype(int) (NumPy)."
        )


def _check_axes(argument: str, values: Any, *axes: int) -> None:
    if values.ndim not in axes:
        raise ValueError(
            f"{argument} has shape {tuple(values.shape)}; expected classes (N,), several labels "
            "of 0 and 1 (N, C), masks (N, H, W) as large as the images, or values (N,) or (N, D)."
        )
