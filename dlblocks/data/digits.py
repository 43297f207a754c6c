"""Handwritten digits that come with scikit-learn: real images with no download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch

from dlblocks.data.datamodule import BatchSize, DataModule, Source
from dlblocks.data.splitting import Split


class DigitsDataModule(DataModule):
    """1,797 scanned handwritten digits, grey, 8×8, ten classes.

    Each pixel counts the ink in a 4×4 block of a 32×32 scan, 0 … 16; here 0 … 255 as uint8 of
    shape (N, 1, 8, 8). The files of scikit-learn's `load_digits`: the test part of "Optical
    Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI repository (1998).

    Args:
        batch_size: Samples a batch, or ``"full"``.
        num_workers: Worker processes a loader.
        split: ``"kfold"`` or ``"time_series"``, rows in the order of time; see `SplitDataModule`.
        num_folds: Number of folds, or None for a single split by `val_fraction`.
        fold: Which fold validates.
        val_fraction: Validation share of the development set when `num_folds` is None.
        test_fraction: Share held out first, outside every fold.
        split_seed: Seed of every split.
        shuffle_seed: Seed of the order of training samples.
        stratify: Keep the proportions of the classes in every part; None means yes.
        normalize: Standardise by the training part's mean and standard deviation.
        train_transform: A random transform of single training images, in the workers; see
            `DataModule`.
        device_resident: Keep the arrays on the accelerator: True, False or ``"auto"``.
        groups: ``"duplicates"`` keeps exactly equal images together.

    Example:
        >>> data = DigitsDataModule(num_folds=5, fold=0)
        >>> data.input_shape, data.num_classes
        ((1, 8, 8), 10)
    """

    def __init__(
        self,
        *,
        batch_size: BatchSize = 64,
        num_workers: int = 0,
        split: Split = "kfold",
        num_folds: int | None = None,
        fold: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        shuffle_seed: int = 0,
        stratify: bool | None = None,
        normalize: bool = True,
        train_transform: Callable[[Any], Any] | None = None,
        device_resident: bool | Literal["auto"] = False,
        groups: Literal["duplicates"] | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            split=split,
            num_folds=num_folds,
            fold=fold,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            split_seed=split_seed,
            shuffle_seed=shuffle_seed,
            stratify=stratify,
            normalize=normalize,
            train_transform=train_transform,
            device_resident=device_resident,
            groups=groups,
        )
        self.save_hyperparameters(ignore=["train_transform"])

    def load(self) -> Source:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
        return Source(
            inputs=torch.from_numpy(images),
            targets=torch.from_numpy(bunch.target.astype(np.int64)),
            class_names=[str(digit) for digit in range(10)],
        )
