"""Handwritten digits of scikit-learn, which need no download."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dlblocks.data.datamodule import DataModule
from dlblocks.data.source import Source


class DigitsDataModule(DataModule):
    """1,797 scanned handwritten digits, grey, 8×8, ten classes.

    Each pixel counts the ink in a 4×4 block of a 32×32 scan, 0 … 16, rescaled to 0 … 255 as uint8
    of shape (N, 1, 8, 8). The source is scikit-learn's `load_digits`, the test part of "Optical
    Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI repository (1998).

    Args:
        test_fraction: Share held out first, outside every fold.
        **kwargs: Batches, splits and normalisation; see `DataModule`.

    Example:
        >>> data = DigitsDataModule(num_folds=5, fold=0)
        >>> data.input_shape, data.num_classes
        ((1, 8, 8), 10)
    """

    def __init__(
        self,
        *,
        test_fraction: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(test_fraction=test_fraction, **kwargs)
        self.save_hyperparameters()

    def load(self) -> Source:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
        return Source(
            inputs=torch.from_numpy(images),
            targets=torch.from_numpy(bunch.target.astype(np.int64)),
            class_names=[str(digit) for digit in range(10)],
        )
