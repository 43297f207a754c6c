"""Many models of one architecture in one fit."""

from dlblocks.engine._support import NotVectorizable, check_vectorizable
from dlblocks.engine.fit_many import StackedFit
from dlblocks.engine.member import Member
from dlblocks.engine.variants import fit_variants

__all__ = ["Member", "NotVectorizable", "StackedFit", "check_vectorizable", "fit_variants"]
