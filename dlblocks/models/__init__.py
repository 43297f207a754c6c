"""LightningModules: nets with their loss, metrics and optimizer."""

from dlblocks.models.base import Model
from dlblocks.models.checkpoints import load
from dlblocks.models.classification import Classifier, CNNClassifier, MLPClassifier
from dlblocks.models.regression import MLPRegressor, Regressor
from dlblocks.models.voting import VotingClassifier, VotingRegressor

__all__ = [
    "CNNClassifier",
    "Classifier",
    "MLPClassifier",
    "MLPRegressor",
    "Model",
    "Regressor",
    "VotingClassifier",
    "VotingRegressor",
    "load",
]
