"""LightningDataModules that split data into folds, and their parts."""

from dlblocks.data._folds import kfold
from dlblocks.data._holdout import holdout
from dlblocks.data.arrays import ArrayDataModule
from dlblocks.data.curve import CurveDataModule
from dlblocks.data.datamodule import DataModule
from dlblocks.data.dataset import ArrayDataset, EpochSampler
from dlblocks.data.detection import DetectionDataModule
from dlblocks.data.digits import DigitsDataModule
from dlblocks.data.folded import FoldedDataModule
from dlblocks.data.forecast import ForecastDataModule
from dlblocks.data.forecast_baselines import (
    ExponentialSmoothing,
    baseline_tables,
    seasonal_naive,
)
from dlblocks.data.image_folder import ImageFolderDataModule
from dlblocks.data.packaged import packaged_file
from dlblocks.data.scenes import DigitScenesDataModule
from dlblocks.data.segmentation import SegmentationDataModule
from dlblocks.data.sequence_pairs import SequencePairsDataModule
from dlblocks.data.source import Source
from dlblocks.data.split_datamodule import SplitDataModule
from dlblocks.data.tabular import TabularDataModule
from dlblocks.data.text import TextDataModule
from dlblocks.data.tiles import boxes_of_tiles, cut_tiles, join_tiles
from dlblocks.data.vision import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    FashionMNISTDataModule,
    MNISTDataModule,
)

__all__ = [
    "ArrayDataModule",
    "ArrayDataset",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "CurveDataModule",
    "DataModule",
    "DetectionDataModule",
    "DigitScenesDataModule",
    "DigitsDataModule",
    "EpochSampler",
    "ExponentialSmoothing",
    "FashionMNISTDataModule",
    "FoldedDataModule",
    "ForecastDataModule",
    "ImageFolderDataModule",
    "MNISTDataModule",
    "SegmentationDataModule",
    "SequencePairsDataModule",
    "Source",
    "SplitDataModule",
    "TabularDataModule",
    "TextDataModule",
    "baseline_tables",
    "boxes_of_tiles",
    "cut_tiles",
    "holdout",
    "join_tiles",
    "kfold",
    "packaged_file",
    "seasonal_naive",
]
