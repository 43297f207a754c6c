"""Several models as one: fitted together, and asked together."""

from dlblocks.ensembles.adaboost import AdaBoost
from dlblocks.ensembles.bagging import Bagging
from dlblocks.ensembles.bagging_result import BaggingResult
from dlblocks.ensembles.boosting import GradientBoosting
from dlblocks.ensembles.deep_ensemble import DeepEnsemble
from dlblocks.ensembles.errors import NotVectorizable
from dlblocks.ensembles.member import Member
from dlblocks.ensembles.out_of_bag import OutOfBag
from dlblocks.ensembles.stagewise import BoostingResult
from dlblocks.ensembles.support import check_vectorizable
from dlblocks.ensembles.vectorized import Together
from dlblocks.ensembles.voting import Voting

__all__ = [
    "AdaBoost",
    "Bagging",
    "BaggingResult",
    "BoostingResult",
    "DeepEnsemble",
    "GradientBoosting",
    "Member",
    "NotVectorizable",
    "OutOfBag",
    "Together",
    "Voting",
    "check_vectorizable",
]
