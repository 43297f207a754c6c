"""Ensembles, fitted together and used as one model."""

from dlblocks.ensembles.adaboost import AdaBoost
from dlblocks.ensembles.bagging import Bagging
from dlblocks.ensembles.boosting import GradientBoosting
from dlblocks.ensembles.deep_ensemble import DeepEnsemble
from dlblocks.ensembles.results import BaggingResult, BoostingResult
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
