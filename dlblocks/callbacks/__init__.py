"""Callbacks for any LightningModule and any batch, each over a pure function."""

from dlblocks.callbacks.augment import Augment
from dlblocks.callbacks.base import BatchTransform
from dlblocks.callbacks.color import adjust_color
from dlblocks.callbacks.cutmix import CutMix, boxes, cutmix
from dlblocks.callbacks.cutout import Cutout, cutout
from dlblocks.callbacks.exact_resume import ExactResume
from dlblocks.callbacks.generalization_gap import GeneralizationGap
from dlblocks.callbacks.geometry import affine, affine_matrix, shift_flip
from dlblocks.callbacks.input_noise import InputNoise, gaussian_noise, salt_and_pepper
from dlblocks.callbacks.label_smoothing import LabelSmoothing, smooth_labels
from dlblocks.callbacks.mixup import MixUp, mixup
from dlblocks.callbacks.one_of import OneOf
from dlblocks.callbacks.sam import SAM, sam_perturbation
from dlblocks.callbacks.weight_noise import WeightNoise, add_weight_noise
from dlblocks.callbacks.weight_penalty import WeightPenalty, clip_rows, weight_penalty

__all__ = [
    "SAM",
    "Augment",
    "BatchTransform",
    "CutMix",
    "Cutout",
    "ExactResume",
    "GeneralizationGap",
    "InputNoise",
    "LabelSmoothing",
    "MixUp",
    "OneOf",
    "WeightNoise",
    "WeightPenalty",
    "add_weight_noise",
    "adjust_color",
    "affine",
    "affine_matrix",
    "boxes",
    "clip_rows",
    "cutmix",
    "cutout",
    "gaussian_noise",
    "mixup",
    "salt_and_pepper",
    "sam_perturbation",
    "shift_flip",
    "smooth_labels",
    "weight_penalty",
]
