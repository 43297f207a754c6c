"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 from torchvision."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlblocks.data.datamodule import DataModule
from dlblocks.data.source import Source


class _TorchvisionDataModule(DataModule):
    """A torchvision data set with an official test set, as arrays."""

    dataset_name: str

    def __init__(
        self,
        root: str = "data",
        *,
        download: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        root = str(root)  # plain, so that any checkpoint loads
        self.root = root
        self.download = download
        self.save_hyperparameters()

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
        except (RuntimeError, OSError) as error:  # a network error is an OSError
            raise FileNotFoundError(
                f"root={self.root!r} does not hold {self.dataset_name} ({error}); set "
                "download=True and call prepare_data(), or put torchvision's files there."
            ) from error


def _arrays(dataset: Any) -> tuple[Tensor, Tensor]:
    """Return uint8 images (N, C, H, W) and int64 classes."""
    data, targets = dataset.data, torch.as_tensor(dataset.targets, dtype=torch.int64)
    if isinstance(data, Tensor):  # the MNIST family: (N, H, W)
        return data[:, None], targets
    return torch.from_numpy(np.ascontiguousarray(data.transpose(0, 3, 1, 2))), targets


class MNISTDataModule(_TorchvisionDataModule):
    """70,000 handwritten digits, grey, 28×28, ten classes (LeCun et al. 1998).

    Args:
        root: Folder with the files, as torchvision lays them out.
        download: Download them, on one rank, if they are not there.
        **kwargs: Batches, splits and normalisation; see `DataModule`.
    """

    dataset_name = "MNIST"


class FashionMNISTDataModule(_TorchvisionDataModule):
    """70,000 pictures of clothes, grey, 28×28, ten classes (Xiao et al. 2017).

    Args:
        root: Folder with the files, as torchvision lays them out.
        download: Download them, on one rank, if they are not there.
        **kwargs: Batches, splits and normalisation; see `DataModule`.
    """

    dataset_name = "FashionMNIST"


class CIFAR10DataModule(_TorchvisionDataModule):
    """60,000 colour photographs, 32×32, ten classes (Krizhevsky 2009).

    Args:
        root: Folder with the files, as torchvision lays them out.
        download: Download them, on one rank, if they are not there.
        **kwargs: Batches, splits and normalisation; see `DataModule`.
    """

    dataset_name = "CIFAR10"


class CIFAR100DataModule(_TorchvisionDataModule):
    """60,000 colour photographs, 32×32, a hundred classes (Krizhevsky 2009).

    Args:
        root: Folder with the files, as torchvision lays them out.
        download: Download them, on one rank, if they are not there.
        **kwargs: Batches, splits and normalisation; see `DataModule`.
    """

    dataset_name = "CIFAR100"
