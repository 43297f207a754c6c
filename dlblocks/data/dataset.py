"""A data set over arrays that fetches whole batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, default_collate

from dlblocks._errors import checked
from dlblocks.data.transforms import SampleTransform
from dlblocks.fields import Kind, Padded, Ragged

Sample = tuple[Tensor, Any, int]
Position = int | tuple[int, int]
BUCKET = 50  # batches that are sorted by length together


class _Rows(Sequence[Sample]):
    """A gathered batch that looks like a sequence of samples.

    A `DataLoader` passes it from the data set to the collate function. Ours uses `inputs`,
    `targets` and `rows` directly. Any other sees an ordinary sequence of samples.
    """

    def __init__(
        self, inputs: Any, targets: Any, rows: Tensor, weights: Tensor | None = None
    ) -> None:
        self.inputs, self.targets, self.rows, self.weights = inputs, targets, rows, weights

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            weights = None if self.weights is None else self.weights[i]
            return _Rows(_taken(self.inputs, i), _taken(self.targets, i), self.rows[i], weights)
        return _taken(self.inputs, i), _taken(self.targets, i), int(self.rows[i])


def _taken(entry: Any, i: Any) -> Any:
    """Return one sample of a batch's entry, or a slice of it."""
    if not isinstance(entry, Padded):
        return entry[i]
    if isinstance(i, slice):
        return Padded(entry.values[i], entry.lengths[i])
    return entry.values[i, : int(entry.lengths[i])]


class ArrayDataset(Dataset[Sample]):
    """A data set of some rows of two arrays.

    It gathers a whole batch with one index operation. ``dataset[i]`` is (input, target, index),
    where `index` is the row in the whole arrays, so that a prediction can always be matched to its
    sample. The arrays are shared, never copied.

    Args:
        inputs: Shape (N, ...), any dtype, or `dlblocks.fields.Ragged`.
        targets: Shape (N, ...), or `dlblocks.fields.Ragged`.
        rows: Rows that belong to the data set, int64 of shape (M,); all by default.
        transform: Transforms each input, depending on (seed, epoch, row). The data set is then
            indexed with the pairs ``(epoch, i)`` of `EpochSampler(with_epoch=True)`, or with i in
            epoch 0.
        kinds: Kinds of ``"inputs"`` and ``"targets"``, which gather the batch.
        weights: Weight of each sample, shape (N,). Only batches contain them.

    Example:
        >>> data = ArrayDataset(torch.arange(6.).reshape(3, 2), torch.tensor([0, 1, 0]),
        ...                     rows=torch.tensor([2, 0]))
        >>> len(data), data[0]
        (2, (tensor([4., 5.]), tensor(0), 2))
    """

    def __init__(
        self,
        inputs: Tensor | Ragged,
        targets: Any,
        rows: Tensor | None = None,
        transform: SampleTransform | None = None,
        kinds: Mapping[str, Kind] | None = None,
        weights: Tensor | None = None,
    ) -> None:
        if len(inputs) != len(targets):
            raise ValueError(f"inputs has {len(inputs)} rows and targets has {len(targets)}.")
        self.inputs, self.targets = inputs, targets
        self.rows = torch.arange(len(inputs)) if rows is None else rows
        self.transform, self.weights = transform, weights
        kinds = kinds or {}
        self.kinds = [kinds.get(name, Kind()) for name in ("inputs", "targets")]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Position) -> Sample:
        epoch, i = i if isinstance(i, tuple) else (0, i)
        sample: Sample = self._batch(self.rows[i].reshape(1), epoch)[0]
        return sample

    def __getitems__(self, batch: Sequence[Position] | Tensor) -> _Rows:
        positions = torch.as_tensor(batch, dtype=torch.int64)
        epoch = 0
        if positions.ndim == 2:
            epoch, positions = int(positions[0, 0]), positions[:, 1]
        return self._batch(self.rows.index_select(0, positions), epoch)

    def _batch(self, rows: Tensor, epoch: int) -> _Rows:
        where = rows.to(self.inputs.device, non_blocking=True)
        of_inputs, of_targets = self.kinds
        inputs = of_inputs.gather(self.inputs, where)
        targets = of_targets.gather(self.targets, where)
        if self.transform is not None:
            inputs = self.transform.batch(inputs, rows, epoch)
        weights = None if self.weights is None else self.weights.index_select(0, where)
        return _Rows(inputs, targets, rows, weights)


def collate(rows: Sequence[Sample]) -> list[Any]:
    """Return the batch ``[inputs, targets]``, and its weights if there are any.

    Shapes are (N, ...), (N, ...) and (N,).
    """
    batch = collate_with_index(rows)[:2]
    if isinstance(rows, _Rows) and rows.weights is not None:
        batch.append(rows.weights)
    return batch


def collate_with_index(rows: Sequence[Sample]) -> list[Any]:
    """Return the batch ``[inputs (N, ...), targets (N, ...), index (N,)]``."""
    if isinstance(rows, _Rows):
        return [rows.inputs, rows.targets, rows.rows]
    return list(default_collate(list(rows)))


def balanced_order(classes: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw positions equally often from each class.

    Of N positions in C classes, each class gets a quota q of N / C draws, rounded down or up so
    that the quotas add up to N. Each of the n positions of a class is drawn floor(q / n) times, and
    q mod n of them, chosen without replacement, once more. So small classes are over-sampled and
    large ones under-sampled at random (Japkowicz and Stephen 2002, "The class imbalance problem").

    Args:
        classes: Class of each position, shape (N,). Classes that do not occur get no draws.
        rng: Draws the rounding, the positions and their order.

    Returns:
        Positions in random order, shape (N,).

    Example:
        >>> classes = np.array([0, 0, 0, 0, 0, 0, 1, 1])
        >>> order = balanced_order(classes, np.random.default_rng(0))
        >>> np.bincount(classes[order]), np.bincount(order)[6:]
        (array([4, 4]), array([2, 2]))
    """
    _, counts = np.unique(classes, return_counts=True)
    members = np.split(np.argsort(classes, kind="stable"), np.cumsum(counts)[:-1])
    quota, left = divmod(len(classes), len(counts))
    quotas = quota + (rng.permutation(len(counts)) < left)
    # `resize` repeats a permutation from its start.
    drawn = [np.resize(rng.permutation(of), q) for of, q in zip(members, quotas, strict=True)]
    return rng.permutation(np.concatenate(drawn))


class EpochSampler(DistributedSampler[int]):
    """A sampler whose order depends only on seed and epoch.

    It yields this rank's positions of a data set. It is a `DistributedSampler`, so Lightning keeps
    it and sets its epoch. Unlike torch's, it needs no process group and repeats no sample in
    evaluation.

    - Shuffled (training): every rank gets the same number of samples, as gradient averaging needs.
      If the number of ranks does not divide that of the samples, the first of the order are drawn
      twice.
    - In order (evaluation): rank r of R takes r, r + R, r + 2R, … Each sample occurs once over all
      ranks, so that sums over ranks are sums over the data set.

    Args:
        dataset: The data set. Only its length is used.
        shuffle: New order in each epoch (training), or always 0 … N-1 (evaluation).
        seed: Seed of the shuffle.
        num_replicas: Number of ranks R.
        rank: This process's rank.
        avoid_single: A batch size B. If the last batch of B would hold a single sample, this sample
            is left out of the epoch, because batch norm cannot train on one sample.
        with_epoch: Yield pairs (epoch, position), for a data set whose samples depend on the epoch.
            This is how worker processes learn the epoch in time.
        classes: Class of each position, integers of shape (N,). A shuffled epoch then draws all
            classes equally often; see `balanced_order`.
    """

    @checked
    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        shuffle: bool,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        avoid_single: int | None = None,
        with_epoch: bool = False,
        classes: npt.ArrayLike | None = None,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)
        size = len(dataset)  # type: ignore[arg-type]
        if shuffle:
            self.num_samples = -(-size // num_replicas)
        else:
            self.num_samples = len(range(rank, size, num_replicas))
        if avoid_single and self.num_samples > 1 and self.num_samples % avoid_single == 1:
            self.num_samples -= avoid_single > 1
        self.total_size = size
        self.with_epoch = with_epoch
        self.classes = None if classes is None else np.asarray(classes)
        self._skip = 0

    def skip_next(self, samples: int) -> None:
        """Skip the first samples of the next pass, to resume an epoch."""
        self._skip = samples

    def positions(self) -> npt.NDArray[np.int64]:
        """Return the positions of this rank in the epoch."""
        if self.shuffle:
            rng = np.random.default_rng((self.seed, self.epoch))
            if self.classes is None:
                order = rng.permutation(self.total_size)
            else:
                order = balanced_order(self.classes, rng)
            if self.total_size % self.num_replicas:
                order = np.resize(order, len(order) + -len(order) % self.num_replicas)
        else:
            order = np.arange(self.total_size)
        return order[self.rank :: self.num_replicas][: self.num_samples]

    def __iter__(self) -> Iterator[Any]:
        skip, self._skip = self._skip, 0
        positions = self.positions()[skip:].tolist()
        return zip(repeat(self.epoch), positions) if self.with_epoch else iter(positions)

    def __len__(self) -> int:
        return self.num_samples


class BucketSampler(EpochSampler):
    """An `EpochSampler` whose batches have samples of similar length.

    The shuffled order is cut into pieces of 50 batches. Each piece is sorted by length, and the
    batches of all pieces are shuffled. The order depends on seed, epoch and rank alone.

    Args:
        dataset: As for `EpochSampler`.
        lengths: Length of each sample, shape (N,).
        batch_size: Samples of a batch.
        **kwargs: As for `EpochSampler`.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        lengths: npt.NDArray[np.int64],
        batch_size: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(dataset, **kwargs)
        self.lengths, self.batch_size = lengths, batch_size

    def positions(self) -> npt.NDArray[np.int64]:
        found = super().positions()
        piece = BUCKET * self.batch_size
        order = [
            part[np.argsort(self.lengths[part], kind="stable")]
            for part in np.split(found, range(piece, len(found), piece))
        ]
        whole_batches = len(found) // self.batch_size * self.batch_size
        joined = np.concatenate(order)
        # The samples that fill no batch come last, wherever their length would put them.
        batches = joined[:whole_batches].reshape(-1, self.batch_size)
        rng = np.random.default_rng((self.seed, self.epoch, self.rank))
        return np.concatenate([rng.permutation(batches).reshape(-1), joined[whole_batches:]])
