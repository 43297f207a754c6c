"""LightningModules, which are nets with loss, metrics and optimizer."""

from dlblocks.models.boosted import (
    AdaBoostClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
)
from dlblocks.models.classification import Classifier, CNNClassifier, MLPClassifier
from dlblocks.models.language import GPTLanguageModel, LanguageModel, RNNLanguageModel
from dlblocks.models.model import Model, load
from dlblocks.models.regression import MLPRegressor, Regressor
from dlblocks.models.segmentation import Segmenter, UNetSegmenter, VisionSegmenter
from dlblocks.models.tiles import predict_tiles
from dlblocks.models.vision import VisionClassifier
from dlblocks.models.voting import VotingEnsemble, VotingModule

__all__ = [
    "AdaBoostClassifier",
    "CNNClassifier",
    "Classifier",
    "GPTLanguageModel",
    "GradientBoostingClassifier",
    "GradientBoostingRegressor",
    "LanguageModel",
    "MLPClassifier",
    "MLPRegressor",
    "Model",
    "RNNLanguageModel",
    "Regressor",
    "Segmenter",
    "UNetSegmenter",
    "VisionClassifier",
    "VisionSegmenter",
    "VotingEnsemble",
    "VotingModule",
    "load",
    "predict_tiles",
]
