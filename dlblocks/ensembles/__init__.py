"""Several models as one: fitted together, and asked together."""

from dlblocks.ensembles.bagging import Bagging
from dlblocks.ensembles.bagging_result import BaggingResult
from dlblocks.ensembles.deep_ensemble import DeepEnsemble
from dlblocks.ensembles.errors import NotVectorizable
from dlblocks.ensembles.member import Member
from dlblocks.ensembles.out_of_bag import OutOfBag
from dlblocks.ensembles.support import check_vectorizable
from dlblocks.ensembles.vectorized import Together, fit_together
from dlblocks.ensembles.voting import Voting

__all__ = [
    "Bagging",
    "BaggingResult",
    "DeepEnsemble",
    "Member",
    "NotVectorizable",
    "OutOfBag",
    "Together",
    "Voting",
    "check_vectorizable",
    "fit_together",
]
