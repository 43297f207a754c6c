"""LightningModules: nets with their loss, metrics and optimizer."""

from dlblocks.models.base import Model
from dlblocks.models.boosted import (
    AdaBoostClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
)
from dlblocks.models.checkpoints import load
from dlblocks.models.classification import Classifier, CNNClassifier, MLPClassifier
from dlblocks.models.regression import MLPRegressor, Regressor
from dlblocks.models.voting import VotingClassifier, VotingModule, VotingRegressor

__all__ = [
    "AdaBoostClassifier",
    "CNNClassifier",
    "Classifier",
    "GradientBoostingClassifier",
    "GradientBoostingRegressor",
    "MLPClassifier",
    "MLPRegressor",
    "Model",
    "Regressor",
    "VotingClassifier",
    "VotingModule",
    "VotingRegressor",
    "load",
]
