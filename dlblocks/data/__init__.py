"""LightningDataModules that split into folds, and the pieces they are made of."""

from dlblocks.data.base import DataModule, Source
from dlblocks.data.dataset import ArrayDataset
from dlblocks.data.digits import DigitsDataModule
from dlblocks.data.folds import holdout, kfold
from dlblocks.data.sampler import EpochSampler

__all__ = [
    "ArrayDataset",
    "DataModule",
    "DigitsDataModule",
    "EpochSampler",
    "Source",
    "holdout",
    "kfold",
]
