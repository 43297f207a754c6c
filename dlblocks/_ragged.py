"""Rows of unequal length, of a data set and of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Padded(NamedTuple):
    """A batch of sequences of unequal length.

    Row i holds the sequence ``values[i, : lengths[i]]``. The rest of the row is padding, which is 0
    in batches of this package. Nets must not depend on it.

    It is a tuple, so Lightning moves it between devices, and ``len(padded)`` is 2; the number of
    sequences is ``len(padded.lengths)``.

    Attributes:
        values: Shape (B, T, ...), where T is at least the longest length.
        lengths: Length of each sequence, int64 of shape (B,).

    Example:
        >>> Padded.of([torch.ones(2, 4), torch.ones(3, 4)]).values.shape
        torch.Size([2, 3, 4])
    """

    values: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, sequences: Sequence[Any]) -> Padded:
        """Pad sequences, each of shape (T_i, ...), to the longest."""
        return Ragged.of(sequences).padded(torch.arange(len(sequences)))

    @property
    def device(self) -> torch.device:
        """Device of the values."""
        return self.values.device

    @property
    def mask(self) -> Tensor:
        """True at positions of a sequence, False at padding, shape (B, T)."""
        steps = torch.arange(self.values.shape[1], device=self.values.device)
        return steps < self.lengths[:, None]

    def masked(self, values: Tensor) -> Padded:
        """Return other values of the same lengths.

        Args:
            values: Shape (B, T, ...). Their padding becomes 0, in a copy.
        """
        mask = self.mask.reshape(*self.mask.shape, *[1] * (values.ndim - 2))
        return Padded(values.masked_fill(~mask, 0), self.lengths)

    def sequences(self) -> list[Tensor]:
        """Return the sequences without padding, each of shape (T_i, ...)."""
        pairs = zip(self.values, self.lengths.tolist(), strict=True)
        return [row[:length] for row, length in pairs]

    def check(self, argument: str = "inputs") -> None:
        """Check lengths and padding. On an accelerator this waits for the device.

        Raises:
            ValueError: The lengths have another shape or dtype, a length is negative or larger than
                T, or there are values other than 0 after the end of a sequence.
        """
        check_lengths(argument, self)
        outside = ~self.mask & (self.values != 0).reshape(*self.values.shape[:2], -1).any(2)
        if outside.any():
            row, step = (int(i) for i in outside.nonzero()[0])
            raise ValueError(
                f"{argument} has length {int(self.lengths[row])} in row {row}, but step {step} is "
                "not 0; correct the length, or fill the padding with 0."
            )


class Ragged:
    """Rows of unequal length, such as boxes of images, or sequences.

    Args:
        values: All rows one after the other, shape (T, ...).
        offsets: Start of each row, then the end of the last, int64 of shape (N + 1,).

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
                f"offsets must run from 0 to {len(values)}, the number of values, got "
                f"{offsets.tolist()[:8]}."
            )
        if len(steps) and int(steps.min()) < 0:
            raise ValueError(
                "offsets must not decrease; row i is values[offsets[i] : offsets[i + 1]]."
            )
        self.values, self.offsets = values, offsets

    @classmethod
    def of(cls, rows: Sequence[Any]) -> Ragged:
        """Join rows, tensors or arrays, each of shape (T_i, ...)."""
        rows = [torch.as_tensor(row) for row in rows]
        lengths = torch.tensor([0, *(len(row) for row in rows)])
        return cls(torch.cat(rows), lengths.cumsum(0))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Tensor:
        row = range(len(self))[row]
        return self.values[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> Tensor:
        """Length of each row, int64 of shape (N,)."""
        return self.offsets.diff()

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Shape (N, None, ...), where None stands for the lengths."""
        return len(self), None, *self.values.shape[1:]

    @property
    def ndim(self) -> int:
        """Number of axes, with that of the lengths."""
        return 1 + self.values.ndim

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the values."""
        return self.values.dtype

    def is_floating_point(self) -> bool:
        """Return True if the values are floating point."""
        return self.values.is_floating_point()

    def positions(self, rows: Tensor) -> Tensor:
        """Return the positions of some rows in `values`, one after the other."""
        lengths = self.lengths[rows]
        starts = self.offsets[:-1][rows] - (lengths.cumsum(0) - lengths)
        return starts.repeat_interleave(lengths) + torch.arange(int(lengths.sum()))

    def padded(self, rows: Tensor) -> Padded:
        """Return some rows, padded with 0 to the longest.

        Args:
            rows: int64 of shape (B,), on any device.
        """
        rows = rows.to(self.offsets.device)
        lengths = self.lengths[rows]
        longest = int(lengths.max()) if len(lengths) else 0
        found = self.values.new_zeros(len(rows), longest, *self.values.shape[1:])
        here = torch.arange(longest) < lengths[:, None]
        device = self.values.device
        found[here.to(device)] = self.values.index_select(0, self.positions(rows).to(device))
        return Padded(found, lengths.to(device))

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.values.nbytes + self.offsets.nbytes

    @property
    def device(self) -> torch.device:
        """Device of the values."""
        return self.values.device

    def to(self, device: torch.device) -> Ragged:
        """Copy the values to a device.

        The offsets stay where they are, because they are read one by one.
        """
        return Ragged(self.values.to(device), self.offsets)


def check_lengths(argument: str, padded: Padded) -> None:
    """Raise a `ValueError` if lengths do not fit their values.

    The values themselves are not read; see `Padded.check`.
    """
    values, lengths = padded
    if values.ndim < 2 or lengths.shape != values.shape[:1] or lengths.is_floating_point():
        raise ValueError(
            f"{argument} has values of shape {tuple(values.shape)} and lengths of shape "
            f"{tuple(lengths.shape)} and {lengths.dtype}; expected (B, T, …) and int64 (B,)."
        )
    wrong = (lengths < 0) | (lengths > values.shape[1])
    if wrong.any():
        row = int(wrong.long().argmax())
        raise ValueError(
            f"{argument} has length {int(lengths[row])} in row {row}, but its values have "
            f"{values.shape[1]} steps; lengths are 0 … {values.shape[1]}."
        )


def entries_of(batch: Any) -> list[Any]:
    """Return the entries of a batch, the inputs first.

    Lists and tuples have entries. Any other batch is inputs alone, and so is a single `Padded`.
    """
    has_entries = isinstance(batch, (list, tuple)) and not isinstance(batch, Padded)
    return list(batch) if has_entries else [batch]
