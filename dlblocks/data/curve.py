"""A noisy curve as a minimal regression problem."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dlblocks._errors import check_range
from dlblocks.data.datamodule import DataModule
from dlblocks.data.source import Source


class CurveDataModule(DataModule):
    """Samples of the curve y = exp(-x²) · cos(10x) with noise.

    x is uniform and the noise Gaussian. Inputs and targets have shape (N, 1).

    Args:
        num_samples: Number of samples N, including the test set.
        noise: Standard deviation of the noise.
        low: Smallest x.
        high: Largest x.
        data_seed: Seed of x and of the noise.
        test_fraction: Share held out first as test set, outside every fold.
        **kwargs: Batches, splits and normalisation; see `DataModule`.

    Example:
        >>> data = CurveDataModule(num_samples=100)
        >>> data.in_features, data.out_features, data.num_classes
        (1, 1, None)
    """

    def __init__(
        self,
        *,
        num_samples: int = 2000,
        noise: float = 0.1,
        low: float = -2.0,
        high: float = 2.0,
        data_seed: int = 0,
        test_fraction: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(test_fraction=test_fraction, **kwargs)
        check_range("num_samples", num_samples, 2)
        check_range("noise", noise, 0)
        if not low < high:
            raise ValueError(f"low={low} must be below high={high}.")
        self.num_samples = num_samples
        self.noise = noise
        self.low = low
        self.high = high
        self.data_seed = data_seed
        self.save_hyperparameters()

    @staticmethod
    def function(x: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the curve without noise, exp(-x²) · cos(10x)."""
        x = np.asarray(x, dtype=np.float64)
        y: npt.NDArray[np.float64] = np.exp(-(x**2)) * np.cos(10 * x)
        return y

    def load(self) -> Source:
        random = np.random.default_rng(self.data_seed)
        x = random.uniform(self.low, self.high, (self.num_samples, 1))
        y = self.function(x) + self.noise * random.standard_normal((self.num_samples, 1))
        return Source(torch.from_numpy(x).float(), torch.from_numpy(y).float())
