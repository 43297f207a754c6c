"""Cross-validation of any LightningModule in one call."""

from dlblocks.crossval.held_out import HeldOutScores
from dlblocks.crossval.nested import nested_cross_validate
from dlblocks.crossval.nested_result import NestedResult
from dlblocks.crossval.result import CrossValidationResult, OutOfFold
from dlblocks.crossval.run import cross_validate
from dlblocks.crossval.statistics import Comparison

__all__ = [
    "Comparison",
    "CrossValidationResult",
    "HeldOutScores",
    "NestedResult",
    "OutOfFold",
    "cross_validate",
    "nested_cross_validate",
]
