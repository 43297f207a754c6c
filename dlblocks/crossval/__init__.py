"""Cross-validation of any LightningModule in one call."""

from dlblocks.crossval.baseline import baseline_scores
from dlblocks.crossval.compare import Ranking, compare
from dlblocks.crossval.cross_validate import cross_validate
from dlblocks.crossval.importance import Importance
from dlblocks.crossval.nested import nested_cross_validate
from dlblocks.crossval.nested_results import NestedResult, load_result
from dlblocks.crossval.results import CrossValidationResult
from dlblocks.crossval.statistics import Comparison, block_interval
from dlblocks.runs.intervals import HeldOutScores

__all__ = [
    "Comparison",
    "CrossValidationResult",
    "HeldOutScores",
    "Importance",
    "NestedResult",
    "Ranking",
    "baseline_scores",
    "block_interval",
    "compare",
    "cross_validate",
    "load_result",
    "nested_cross_validate",
]
