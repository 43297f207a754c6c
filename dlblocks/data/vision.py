"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, by torchvision's loaders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dlblocks.data.datamodule import BatchSize, DataModule, Source
from dlblocks.data.splitting import Split


class _TorchvisionDataModule(DataModule):
    """A data set of torchvision with an official test set, as arrays."""

    dataset_name: str

    def __init__(
        self,
        root: str = "data",
        *,
        download: bool = True,
        batch_size: BatchSize = 64,
        num_workers: int = 0,
        split: Split = "kfold",
        num_folds: int | None = None,
        fold: int = 0,
        val_fraction: float = 0.2,
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
            split_seed=split_seed,
            shuffle_seed=shuffle_seed,
            stratify=stratify,
            normalize=normalize,
            train_transform=train_transform,
            device_resident=device_resident,
            groups=groups,
        )
        root = str(root)  # plain, so that any checkpoint loads
        self.root = root
        self.download = download
        self.save_hyperparameters(ignore=["train_transform"])

    def prepare_data(self) -> None:
        if self.download:
            self._open(train=True, download=True)
            self._open(train=False, download=True)

    def load(self) -> Source:
        train, test = self._open(train=True), self._open(train=False)
        return Source(
            *_arrays(train), *_arrays(test), class_names=[str(name) for name in train.classes]
        )

    def _open(self, *, train: bool, download: bool = False) -> Any:
        from torchvision import datasets

        cls = getattr(datasets, self.dataset_name)
        try:
            return cls(self.root, train=train, download=download)
        except Exception as error:
            if download:
                raise RuntimeError(
                    f"{self.dataset_name} could not be downloaded to root={self.root!r} ({error}). "
                    "Without a network, put its files there as torchvision expects them and set "
                    "download=False."
                ) from error
            if not isinstance(error, (RuntimeError, OSError)):
                raise
            raise FileNotFoundError(
                f"root={self.root!r} does not hold {self.dataset_name} ({error}); set "
                "download=True and call prepare_data(), as a Trainer does."
            ) from error


def _arrays(dataset: Any) -> tuple[Tensor, Tensor]:
    """uint8 images (N, C, H, W) and int64 classes."""
    data, targets = dataset.data, torch.as_tensor(dataset.targets, dtype=torch.int64)
    if isinstance(data, Tensor):  # the MNIST family: (N, H, W)
        return data[:, None], targets
    return torch.from_numpy(np.ascontiguousarray(data.transpose(0, 3, 1, 2))), targets


class MNISTDataModule(_TorchvisionDataModule):
    """70,000 handwritten digits, grey, 28×28, ten classes (LeCun et al. 1998).

    Args:
        root: Folder with the files, as torchvision lays them out.
        download: Download them, on one rank, if they are not there.
        batch_size: Samples a batch, or ``"full"``.
        num_workers: Worker processes a loader.
        split: ``"kfold"`` or ``"time_series"``, rows in the order of time; see `SplitDataModule`.
        num_folds: Number of folds, or None for a single split by `val_fraction`.
        fold: Which fold validates.
        val_fraction: Validation share of the development set when `num_folds` is None.
        split_seed: Seed of every split.
        shuffle_seed: Seed of the order of training samples.
        stratify: Keep the proportions of the classes in every part; None: for classes, yes.
        normalize: Standardise by the training part's mean and standard deviation.
        train_transform: A random transform of single training images, in the workers; see
            `DataModule`.
        device_resident: Keep the arrays on the accelerator: True, False or ``"auto"``.
        groups: ``"duplicates"`` keeps exactly equal images together: none has a copy in another
            fold.
    """

    dataset_name = "MNIST"


class FashionMNISTDataModule(_TorchvisionDataModule):
    """70,000 pictures of clothes, grey, 28×28, ten classes (Xiao et al. 2017).

    Args:
        root: Folder with the files, as torchvision lays them out.
        download: Download them, on one rank, if they are not there.
        batch_size: Samples a batch, or ``"full"``.
        num_workers: Worker processes a loader.
        split: ``"kfold"`` or ``"time_series"``, rows in the order of time; see `SplitDataModule`.
        num_folds: Number of folds, or None for a single split by `val_fraction`.
        fold: Which fold validates.
        val_fraction: Validation share of the development set when `num_folds` is None.
        split_seed: Seed of every split.
        shuffle_seed: Seed of the order of training samples.
        stratify: Keep the proportions of the classes in every part; None: for classes, yes.
        normalize: Standardise by the training part's mean and standard deviation.
        train_transform: A random transform of single training images, in the workers; see
            `DataModule`.
        device_resident: Keep the arrays on the accelerator: True, False or ``"auto"``.
        groups: ``"duplicates"`` keeps exactly equal images together: none has a copy in another
            fold.
    """

    dataset_name = "FashionMNIST"


class CIFAR10DataModule(_TorchvisionDataModule):
    """60,000 colour photographs, 32×32, ten classes (Krizhevsky 2009).

    Args:
        root: Folder with the files, as torchvision lays them out.
        download: Download them, on one rank, if they are not there.
        batch_size: Samples a batch, or ``"full"``.
        num_workers: Worker processes a loader.
        split: ``"kfold"`` or ``"time_series"``, rows in the order of time; see `SplitDataModule`.
        num_folds: Number of folds, or None for a single split by `val_fraction`.
        fold: Which fold validates.
        val_fraction: Validation share of the development set when `num_folds` is None.
        split_seed: Seed of every split.
        shuffle_seed: Seed of the order of training samples.
        stratify: Keep the proportions of the classes in every part; None: for classes, yes.
        normalize: Standardise by the training part's mean and standard deviation.
        train_transform: A random transform of single training images, in the workers; see
            `DataModule`.
        device_resident: Keep the arrays on the accelerator: True, False or ``"auto"``.
        groups: ``"duplicates"`` keeps exactly equal images together: none has a copy in another
            fold.
    """

    dataset_name = "CIFAR10"


class CIFAR100DataModule(_TorchvisionDataModule):
    """60,000 colour photographs, 32×32, a hundred classes (Krizhevsky 2009).

    Args:
        root: Folder with the files, as torchvision lays them out.
        download: Download them, on one rank, if they are not there.
        batch_size: Samples a batch, or ``"full"``.
        num_workers: Worker processes a loader.
        split: ``"kfold"`` or ``"time_series"``, rows in the order of time; see `SplitDataModule`.
        num_folds: Number of folds, or None for a single split by `val_fraction`.
        fold: Which fold validates.
        val_fraction: Validation share of the development set when `num_folds` is None.
        split_seed: Seed of every split.
        shuffle_seed: Seed of the order of training samples.
        stratify: Keep the proportions of the classes in every part; None: for classes, yes.
        normalize: Standardise by the training part's mean and standard deviation.
        train_transform: A random transform of single training images, in the workers; see
            `DataModule`.
        device_resident: Keep the arrays on the accelerator: True, False or ``"auto"``.
        groups: ``"duplicates"`` keeps exactly equal images together: none has a copy in another
            fold.
    """

    dataset_name = "CIFAR100"
