"""Random numbers for generative models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_MASK = 2**64 - 1


class Noise:
    """Random numbers of which each sample has a stream of its own.

    They depend only on the seed and on the sample's number. Batch size, order, number of ranks and
    torch's global generator do not matter.

    Args:
        seed: Seed of all streams.
        numbers: Number of each sample of the batch.
        device: Device of the results. The numbers are drawn on the CPU, so every device gets the
            same.

    Example:
        >>> one, two = Noise(0, [3, 4]), Noise(0, [4])
        >>> bool((one.normal(5)[1:] == two.normal(5)).all())
        True
    """

    def __init__(
        self, seed: int, numbers: Iterable[int], device: torch.device | str = "cpu"
    ) -> None:
        self.seed, self.numbers, self.device = seed, list(numbers), device
        self.generators = [torch.Generator().manual_seed(_mixed(seed, i)) for i in self.numbers]

    def again(self) -> Noise:
        """Return the same streams from their start."""
        return Noise(self.seed, self.numbers, self.device)

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, shape (N, *shape)."""
        return self._draw(torch.randn, shape)

    def uniform(self, *shape: int) -> Tensor:
        """Draw numbers from [0, 1), shape (N, *shape)."""
        return self._draw(torch.rand, shape)

    def _draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        rows = [draw(shape, generator=g, dtype=torch.float32) for g in self.generators]
        return torch.stack(rows).to(self.device)


class BatchNoise:
    """Random numbers from torch's global generator, for training.

    Args:
        count: Samples N of the batch.
        device: Device of the results.
        rank: Number of this process among several, whose global generators may be alike; None for
            a single one.
    """

    def __init__(
        self, count: int, device: torch.device | str = "cpu", rank: int | None = None
    ) -> None:
        self.count, self.device = count, device
        self.generator: torch.Generator | None = None
        if rank is not None:
            seed = int(torch.randint(2**62, ()))
            self.generator = torch.Generator(device).manual_seed(_mixed(seed, rank))

    def again(self) -> BatchNoise:
        """Return new numbers."""
        return self

    def __len__(self) -> int:
        return self.count

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, shape (N, *shape)."""
        return torch.randn(self.count, *shape, generator=self.generator, **self._kind)

    def uniform(self, *shape: int) -> Tensor:
        """Draw numbers from [0, 1), shape (N, *shape)."""
        return torch.rand(self.count, *shape, generator=self.generator, **self._kind)

    @property
    def _kind(self) -> dict[str, Any]:
        return {"device": self.device, "dtype": torch.float32}


AnyNoise = Noise | BatchNoise


def _mixed(seed: int, number: int) -> int:
    """Mix two numbers into a seed (SplitMix64, Steele et al. 2014)."""
    x = (seed * 0x9E3779B97F4A7C15 + number + 1) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return (x ^ (x >> 31)) >> 1
