"""The order of the samples, as a pure function of (seed, epoch), shared out over the ranks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, DistributedSampler

from dlblocks.arguments import checked


class EpochSampler(DistributedSampler[int]):
    """Yields this rank's positions of a data set, in an order that depends on (seed, epoch) alone.

    It is a `DistributedSampler`, so Lightning leaves it in place and tells it the epoch; unlike
    torch's, it needs no process group and repeats no sample in evaluation.

    - Shuffled (training): every rank gets equally many samples, as gradient averaging needs. Where
      the number of ranks does not divide the data, the first of the order are seen twice.
    - In order (evaluation): rank r of R takes r, r + R, r + 2R, …; every sample once over all
      ranks, so that sums over ranks are sums over the data set.

    Args:
        dataset: What is sampled; only its length is used.
        shuffle: New order each epoch (training), or always 0 … N-1 (evaluation).
        seed: Seed of the shuffle.
        num_replicas: Number of ranks R.
        rank: This process's rank.
        avoid_single: A batch size B. If the last batch of B would hold a single sample, that sample
            is left out of this epoch: batch norm cannot train on a batch of one.
        with_epoch: Yield pairs (epoch, position), for a data set whose samples change with the
            epoch: told with every sample, it reaches worker processes in time.
    """

    @checked
    def __init__(
        self,
        dataset: Dataset,
        *,
        shuffle: bool,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        avoid_single: int | None = None,
        with_epoch: bool = False,
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
        self._skip = 0

    def skip_next(self, samples: int) -> None:
        """Leaves out the first `samples` of this rank's next pass, as a resumed epoch needs."""
        self._skip = samples

    def positions(self) -> npt.NDArray[np.int64]:
        """The positions of this rank in the epoch."""
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.total_size)
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
