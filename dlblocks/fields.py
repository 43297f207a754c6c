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
        """Move a batch of targets as its images move.

        Nothing is changed in place.
        """
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
    """Images (N, C, H, W), uint8 or floating point.

    Images that are targets move like the inputs.
    """

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
        """Return the smallest label (at most 0) and the largest (or -1).

        Ignored pixels are left out.
        """
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


class Boxes(Kind):
    """Boxes around objects, `Ragged` with (T, 4) for each sample."""

    is_structured: ClassVar[bool] = True
    refusal: ClassVar[str | None] = (
        "boxes do not move with their image yet; remove transforms that move or erase pixels"
    )

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        if not isinstance(values, Ragged) or values.values.shape[1:] != (4,):
            raise ValueError(
                f"{argument} must be boxes, a Ragged with values of shape (T, 4); use "
                "dlblocks.fields.Ragged.of([…]), with zeros (0, 4) for an image without boxes."
            )


EXPECTED = (
    "expected classes (N,), several labels of 0 and 1 (N, C), masks (N, H, W) as large as the "
    "images, or values (N,) or (N, D)"
)


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
    """One named entry of every sample.

    Attributes:
        values: Shape (N, ...), or `Ragged`.
        kind: Kind of the values.
        role: Use of the values: input of a model, its target, or neither.
    """

    values: Tensor | Ragged
    kind: Kind
    role: Role


def as_kind(argument: str, kind: Kind | str | None) -> Kind | None:
    """Return the kind named by a string, such as ``"mask"``.

    A `Kind` and None are returned unchanged.
    """
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
    """Return the kinds of a datamodule's fields by name.

    The result is empty for a datamodule of another package.
    """
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
        raise ValueError(f"{argument} has shape {tuple(values.shape)}; {EXPECTED}.")
