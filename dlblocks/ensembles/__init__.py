"""Several models as one: fitted together, and asked together."""

from dlblocks.ensembles.adaboost import AdaBoost
from dlblocks.ensembles.boosting import GradientBoosting
from dlblocks.ensembles.errors import NotVectorizable
from dlblocks.ensembles.member import Member
from dlblocks.ensembles.stagewise import BoostingResult
from dlblocks.ensembles.support import check_vectorizable
from dlblocks.ensembles.vectorized import Together, fit_together

__all__ = [
    "AdaBoost",
    "BoostingResult",
    "GradientBoosting",
    "Member",
    "NotVectorizable",
    "Together",
    "check_vectorizable",
    "fit_together",
]
