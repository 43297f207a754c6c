"""Ensembles, fitted together and used as one model."""

from dlblocks.ensembles._stagewise import BoostingResult
from dlblocks.ensembles.adaboost import AdaBoost
from dlblocks.ensembles.bagging import Bagging, DeepEnsemble
from dlblocks.ensembles.boosting import GradientBoosting
from dlblocks.ensembles.results import BaggingResult
from dlblocks.ensembles.voting import Voting

__all__ = [
    "AdaBoost",
    "Bagging",
    "BaggingResult",
    "BoostingResult",
    "DeepEnsemble",
    "GradientBoosting",
    "Voting",
]
