"""Metrics of classification and regression, and properties of any metric."""

from dlblocks.metrics._collections import classification_metrics, hard_labels, regression_metrics
from dlblocks.metrics._names import (
    Mode,
    Range,
    metric_mode,
    metric_range,
    metric_ranges,
    mode_of,
    mode_of_metric,
)
from dlblocks.metrics._weighted_metrics import r2_from_sums, wide

__all__ = [
    "Mode",
    "Range",
    "classification_metrics",
    "hard_labels",
    "metric_mode",
    "metric_range",
    "metric_ranges",
    "mode_of",
    "mode_of_metric",
    "r2_from_sums",
    "regression_metrics",
    "wide",
]
