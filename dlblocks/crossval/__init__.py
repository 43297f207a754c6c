"""Cross-validation of any LightningModule in one call."""

from dlblocks.crossval.cross_validate import cross_validate
from dlblocks.crossval.held_out import HeldOutScores
from dlblocks.crossval.importance import Importance
from dlblocks.crossval.nested import nested_cross_validate
from dlblocks.crossval.results import CrossValidationResult, NestedResult
from dlblocks.crossval.statistics import Comparison, block_interval

__all__ = [
    "Comparison",
    "CrossValidationResult",
    "HeldOutScores",
    "Importance",
    "NestedResult",
    "block_interval",
    "cross_validate",
    "nested_cross_validate",
]
