"""Callbacks for any LightningModule and any batch, each over a pure function."""

from dlblocks.callbacks.augment import Augment
from dlblocks.callbacks.base import BatchTransform
from dlblocks.callbacks.color import adjust_color
from dlblocks.callbacks.cutmix import CutMix, boxes, cutmix
from dlblocks.callbacks.cutout import Cutout, cutout
from dlblocks.callbacks.exact_resume import ExactResume
from dlblocks.callbacks.geometry import affine, affine_matrix, shift_flip
from dlblocks.callbacks.mixup import MixUp, mixup
from dlblocks.callbacks.one_of import OneOf

__all__ = [
    "Augment",
    "BatchTransform",
    "CutMix",
    "Cutout",
    "ExactResume",
    "MixUp",
    "OneOf",
    "adjust_color",
    "affine",
    "affine_matrix",
    "boxes",
    "cutmix",
    "cutout",
    "mixup",
    "shift_flip",
]
