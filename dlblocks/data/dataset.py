"""Data that fits in memory: arrays, fetched a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from dlblocks.data.transforms import SampleTransform

Sample = tuple[Tensor, Tensor, int]
Position = int | tuple[int, int]


class Rows(Sequence[Sample]):
    """The rows of one batch: a sequence of samples, whose batch is already gathered.

    A `DataLoader` hands what the data set fetched to its collate function. Ours takes `inputs`,
    `targets` and `rows` as they are; anybody else's sees an ordinary sequence of samples.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, rows: Tensor) -> None:
        self.inputs, self.targets, self.rows = inputs, targets, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, i: int) -> Sample: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Sample]: ...
    def __getitem__(self, i: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(i, slice):
            return Rows(self.inputs[i], self.targets[i], self.rows[i])
        return self.inputs[i], self.targets[i], int(self.rows[i])


class ArrayDataset(Dataset[Sample]):
    """Some rows of two arrays as a data set that gathers a whole batch by one index operation.

    ``dataset[i]`` is (input, target, index), where `index` is the row of the whole arrays, so that
    a prediction can always be matched to its sample. The arrays are shared, never copied.

    Args:
        inputs: Shape (N, ...), any dtype.
        targets: Shape (N, ...): int64 classes or floating-point values.
        rows: The rows that belong to the data set, int64 of shape (M,); all of them by default.
        transform: Changes each input by (seed, epoch, row). The data set is then indexed by
            ``(epoch, i)``, as `EpochSampler(with_epoch=True)` yields it, or by i in epoch 0.

    Example:
        >>> data = ArrayDataset(torch.arange(6.).reshape(3, 2), torch.tensor([0, 1, 0]),
        ...                     rows=torch.tensor([2, 0]))
        >>> len(data), data[0]
        (2, (tensor([4., 5.]), tensor(0), 2))
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        rows: Tensor | None = None,
        transform: SampleTransform | None = None,
    ) -> None:
        if len(inputs) != len(targets):
            raise ValueError(
                f"inputs has {len(inputs)} rows and targets has {len(targets)}; "
                "they must be equally long."
            )
        self.inputs, self.targets = inputs, targets
        self.rows = torch.arange(len(inputs)) if rows is None else rows
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Position) -> Sample:
        epoch, i = i if isinstance(i, tuple) else (0, i)
        row = int(self.rows[i])
        image = self.inputs[row]
        if self.transform is not None:
            image = self.transform(image, epoch=epoch, index=row)
        return image, self.targets[row], row

    def __getitems__(self, batch: Sequence[Position] | Tensor) -> Rows:
        positions = torch.as_tensor(batch, dtype=torch.int64)
        epoch = 0
        if positions.ndim == 2:
            epoch, positions = int(positions[0, 0]), positions[:, 1]
        rows = self.rows.index_select(0, positions)
        where = rows.to(self.inputs.device, non_blocking=True)
        inputs = self.inputs.index_select(0, where)
        if self.transform is not None:
            inputs = self.transform.batch(inputs, rows, epoch)
        return Rows(inputs, self.targets.index_select(0, where), rows)


def collate(rows: Sequence[Sample]) -> list[Any]:
    """Makes the batch ``[inputs (N, ...), targets (N, ...)]``."""
    return collate_with_index(rows)[:2]


def collate_with_index(rows: Sequence[Sample]) -> list[Any]:
    """Makes the batch ``[inputs (N, ...), targets (N, ...), index (N,)]``."""
    if isinstance(rows, Rows):
        return [rows.inputs, rows.targets, rows.rows]
    return list(default_collate(list(rows)))
