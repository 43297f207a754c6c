"""Cross-validation of any LightningModule in one call."""

from dlblocks.crossval.result import CrossValidationResult, OutOfFold
from dlblocks.crossval.run import cross_validate
from dlblocks.crossval.statistics import Comparison

__all__ = ["Comparison", "CrossValidationResult", "OutOfFold", "cross_validate"]
