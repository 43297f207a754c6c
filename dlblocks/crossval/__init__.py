"""Cross-validation of any LightningModule in one call."""

from dlblocks.crossval.compare import Ranking, compare
from dlblocks.crossval.cross_validate import cross_validate
from dlblocks.crossval.held_out import HeldOutScores
from dlblocks.crossval.importance import Importance
from dlblocks.crossval.nested import nested_cross_validate
from dlblocks.crossval.nested_results import NestedResult, load_result
from dlblocks.crossval.results import CrossValidationResult
from dlblocks.crossval.statistics import Comparison, block_interval

__all__ = [
    "Comparison",
    "CrossValidationResult",
    "HeldOutScores",
    "Importance",
    "NestedResult",
    "Ranking",
    "block_interval",
    "compare",
    "cross_validate",
    "load_result",
    "nested_cross_validate",
]
