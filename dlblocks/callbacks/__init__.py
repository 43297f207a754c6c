"""Callbacks for any LightningModule and any batch, each over a pure function."""

from dlblocks.callbacks.augment import Augment, affine, affine_matrix
from dlblocks.callbacks.base import BatchTransform
from dlblocks.callbacks.cutmix import CutMix, boxes, cutmix
from dlblocks.callbacks.cutout import Cutout, cutout
from dlblocks.callbacks.exact_resume import ExactResume
from dlblocks.callbacks.mixup import MixUp, mixup

__all__ = [
    "Augment",
    "BatchTransform",
    "CutMix",
    "Cutout",
    "ExactResume",
    "MixUp",
    "affine",
    "affine_matrix",
    "boxes",
    "cutmix",
    "cutout",
    "mixup",
]
