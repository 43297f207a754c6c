"""Kinds of fields: what a datamodule and a callback do with the values of each kind.

A data set has fields, such as images and their masks, and each field has a kind. Its class says
whether the values are normalised, how they are checked, how a batch of them is gathered, and how
they move with an image. To add a kind, subclass `Kind` and define what differs::

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

Role = Literal["input", "target", "other"]


class Ragged:
    """Rows of unequal length, such as the boxes of each image.

    Args:
        values: All rows one after the other, shape (T, ...).
        offsets: Where each row begins, and where the last one ends, int64 of shape (N + 1,).

    Example:
        >>> boxes = Ragged.of([torch.zeros(2, 4), torch.zeros(0, 4)])
        >>> len(boxes), boxes[0].shape, boxes[1].shape
        (2, torch.Size([2, 4]), torch.Size([0, 4]))
    """

    def __init__(self, values: Tensor, offsets: Tensor) -> None:
        steps = offsets.diff()
        if (
            offsets.ndim != 1
            or not len(offsets)
            or int(offsets[0])
            or int(offsets[-1]) != len(values)
        ):
            raise ValueError(
                f"offsets must run from 0 to the {len(values)} values, got {offsets.tolist()[:8]}."
            )
        if len(steps) and int(steps.min()) < 0:
            raise ValueError("offsets must not fall; row i is values[offsets[i] : offsets[i + 1]].")
        self.values, self.offsets = values, offsets

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> Ragged:
        """Join rows, each of shape (T_i, ...)."""
        lengths = torch.tensor([0, *(len(row) for row in rows)])
        return cls(torch.cat(list(rows)), lengths.cumsum(0))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Tensor:
        row = range(len(self))[row]
        return self.values[int(self.offsets[row]) : int(self.offsets[row + 1])]

    @property
    def nbytes(self) -> int:
        """Size of the values in memory."""
        return self.values.nbytes + self.offsets.nbytes

    @property
    def device(self) -> torch.device:
        """Device of the values."""
        return self.values.device

    def to(self, device: torch.device) -> Ragged:
        """Copy the values to a device; offsets stay, since they are read one by one."""
        return Ragged(self.values.to(device), self.offsets)


@dataclass(frozen=True)
class Kind:
    """A kind of field whose values are plain numbers that nothing moves; see the module.

    Attributes:
        normalised: Whether a datamodule standardises such inputs.
        is_integer: Whether values are whole numbers, which batches hold as int64.
        is_structured: Whether a sample has many values that are predicted together (pixels, boxes,
            tokens), so that folds are not stratified by them.
        refusal: Why values cannot move with an image, and the cure; None if they can.
    """

    normalised: ClassVar[bool] = False
    is_integer: ClassVar[bool] = False
    is_structured: ClassVar[bool] = False
    refusal: ClassVar[str | None] = None

    @property
    def name(self) -> str:
        """The class's name in lower case, such as ``"mask"``."""
        return type(self).__name__.lower()

    @property
    def moves(self) -> bool:
        """Whether values must change when the pixels of their image move."""
        return self.refusal is not None or type(self).move is not Kind.move

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        """Raise a `ValueError` that says what is wrong with the values (N, ...), and where."""

    def gather(self, values: Any, rows: Tensor) -> Any:
        """Gather the batch of some rows.

        Args:
            values: Shape (N, ...), or `Ragged`.
            rows: int64 of shape (B,), on the device of `values`.

        Returns:
            Shape (B, ...), or for `Ragged` a list of B tensors.
        """
        if isinstance(values, Ragged):
            return [values[row] for row in rows.tolist()]
        batch = values.index_select(0, rows)
        return batch.long() if self.is_integer else batch

    def move(self, values: Any, geometry: Geometry) -> Any:
        """Move the batch of an image's targets as the images move; writes into nothing."""
        return values

    def erase(self, values: Any, box: Tensor) -> Any:
        """Change the batch of targets where a box of each image is erased.

        Args:
            values: The batch.
            box: Top, left, bottom, right of each image, the last two excluded, int64, shape (N, 4).
        """
        return values


class Image(Kind):
    """Images (N, C, H, W), uint8 or floating point; as targets they move like the inputs."""

    normalised: ClassVar[bool] = True
    is_structured: ClassVar[bool] = True

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        if values.ndim != 4:
            raise ValueError(
                f"{argument} has shape {tuple(values.shape)}; images are (N, C, H, W): add the "
                "axis of one channel by [:, None]."
            )

    def move(self, values: Tensor, geometry: Geometry) -> Tensor:
        return geometry.moved(values)


class Features(Kind):
    """Numbers that are normalised: tables (N, F), sequences (N, T, F)."""

    normalised: ClassVar[bool] = True


class Tokens(Kind):
    """Token numbers (N, ...), which stay whole."""

    is_integer: ClassVar[bool] = True
    is_structured: ClassVar[bool] = True

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        _check_whole(argument, values, "tokens")


@dataclass(frozen=True)
class Mask(Kind):
    """A class for each pixel, integers (N, H, W), which move with the image.

    A moved mask takes the nearest pixel. Pixels that nothing covers, and those that are erased,
    become `ignore_index`. Soft masks (N, C, H, W), floating point, get zeros there.

    Args:
        ignore_index: The label of pixels that do not count.
    """

    ignore_index: int = 255
    is_integer: ClassVar[bool] = True
    is_structured: ClassVar[bool] = True

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        _check_whole(argument, values, "mask")
        if values.ndim != 3:
            raise ValueError(
                f"{argument} has shape {tuple(values.shape)}; masks are (N, H, W): remove an axis "
                "of one channel by [:, 0]."
            )
        low, high = self._range(values)
        if low < 0:
            raise ValueError(
                f"{argument} has label {low}; classes start at 0. For pixels that do not count set "
                f"target_kind=Mask(ignore_index={low})."
            )
        if class_names is not None and high >= len(class_names):
            raise ValueError(
                f"{argument} has label {high}, but there are {len(class_names)} classes; pixels "
                f"that do not count have label {self.ignore_index}."
            )

    def num_classes(self, values: Tensor) -> int:
        """Count the classes 0 … C-1."""
        return self._range(values)[1] + 1

    def _range(self, values: Tensor) -> tuple[int, int]:
        """The smallest and the largest label of pixels that count; (0, -1) if none does."""
        low, high = [0], [-1]
        for part in values.split(max(1, 2**22 // max(values[0].numel(), 1))):
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
    """Boxes around objects, ragged: (T, 4) for each sample."""

    is_structured: ClassVar[bool] = True
    refusal: ClassVar[str | None] = (
        "boxes do not move with their image yet; leave out what moves or erases pixels"
    )

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        if not isinstance(values, Ragged) or values.values.shape[1:] != (4,):
            raise ValueError(
                f"{argument} must be boxes, Ragged with values of shape (T, 4); use "
                "dlblocks.fields.Ragged.of([…]), and zeros (0, 4) for an image without boxes."
            )


EXPECTED = (
    "expected classes of shape (N,), 0 and 1 of several labels (N, C), masks (N, H, W) of images "
    "of this height and width, or values of shape (N,) or (N, D)"
)


class Class(Kind):
    """One class a sample, integers 0 … C-1 of shape (N,)."""

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
            raise ValueError(f"{argument} has one class only ({name}); a classifier needs two.")


class Labels(Kind):
    """Several labels a sample, integers 0 and 1 of shape (N, C)."""

    is_integer: ClassVar[bool] = True

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        if values.ndim != 2 or int(values.min()) < 0 or int(values.max()) > 1:
            _check_axes(argument, values, 0)


class Values(Kind):
    """Values to regress, floating point of shape (N,) or (N, D)."""

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        _check_axes(argument, values, 1, 2)


class Weight(Kind):
    """How much each sample counts, in loss and metrics: numbers >= 0 of shape (N,)."""

    def check(self, argument: str, values: Any, class_names: Sequence[str] | None = None) -> None:
        if values.ndim != 1:
            raise ValueError(
                f"{argument} has shape {tuple(values.shape)}; give one weight a sample, (N,)."
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
        kind: What is done with the values.
        role: Whether a model gets the values as its input, as its target, or as neither.
    """

    values: Tensor | Ragged
    kind: Kind
    role: Role


def as_kind(argument: str, kind: Kind | str | None) -> Kind | None:
    """Return the kind of a name, such as ``"mask"``; leave a `Kind` and None as they are."""
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
    """Return the kinds of a batch by field, as a datamodule of ours tells them, else none."""
    kinds = getattr(datamodule, "kinds", None)
    if isinstance(kinds, Mapping) and all(isinstance(kind, Kind) for kind in kinds.values()):
        return kinds
    return {}


def _check_whole(argument: str, values: Any, name: str) -> None:
    if values.is_floating_point() or values.dtype == torch.bool:
        raise ValueError(
            f"{argument} is {values.dtype}, but kind {name!r} needs whole numbers; convert it by "
            ".long() (torch) or .astype(int) (NumPy)."
        )


def _check_axes(argument: str, values: Any, *axes: int) -> None:
    if values.ndim not in axes:
        raise ValueError(f"{argument} has shape {tuple(values.shape)}; {EXPECTED}.")
