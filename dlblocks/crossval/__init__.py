"""Cross-validation of any LightningModule in one call."""

from dlblocks.crossval.result import CrossValidationResult, OutOfFold
from dlblocks.crossval.run import cross_validate

__all__ = ["CrossValidationResult", "OutOfFold", "cross_validate"]
