"""Draw the scores of several cross-validations, and how far each is from the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dlblocks.plots._style import BLUE, GREY, RED, literal, new_figure, style_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Interval = tuple[float, float]


def comparison(
    values: Mapping[str, Sequence[float] | npt.NDArray[np.floating]],
    differences: Mapping[str, tuple[float, Interval]],
    *,
    intervals: Mapping[str, Interval] | None = None,
    metric: str = "score",
) -> Figure:
    """Draw a row for each cross-validation, in the order given.

    On the left, a dot a fold, with the mean and its interval. On the right, the difference from the
    best, with its interval: one that does not reach the line at zero is a difference.

    Args:
        values: Name → the metric of each fold.
        differences: Name → mean difference from the best and its interval. The best has none.
        intervals: Name → interval of the mean.
        metric: Name of the metric.

    Raises:
        ValueError: `values` is empty, or a name of `differences` or `intervals` is not in it.

    Example:
        >>> figure = comparison(
        ...     {"CNN": [0.98, 0.99], "MLP": [0.96, 0.97]}, {"MLP": (-0.02, (-0.03, -0.01))},
        ...     metric="val/accuracy",
        ... )
    """
    intervals = intervals or {}
    unknown = [name for name in (*differences, *intervals) if name not in values]
    if not values or unknown:
        raise ValueError(f"values has {list(values)}, which lacks {unknown or 'any row'}.")
    # A letter takes 0.09 inches.
    figure = new_figure(8.6 + 0.09 * max(map(len, values)), 1.2 + 0.5 * len(values))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    for row, (name, given) in enumerate(values.items()):
        folds = np.sort(np.asarray(given, dtype=float))
        heights = row - 0.14 + 0.07 * (np.arange(len(folds)) % 3 - 1)  # equal scores are seen
        left.plot(folds, heights, "o", color=BLUE, alpha=0.6, markersize=5.5, markeredgewidth=0)
        _mark(left, folds.mean(), intervals.get(name, (np.nan, np.nan)), row + 0.16)
        if name in differences:
            _mark(right, *differences[name], row)
        else:
            right.text(
                0.5, row, "the best" if differences else "", ha="center", va="center",
                color="#555555", transform=right.get_yaxis_transform(), fontsize=9,
            )  # fmt: skip
    right.axvline(0, color=GREY, linewidth=1, zorder=0)
    style_axis(left, f"{metric} (dots: folds)", "")
    style_axis(right, "difference from the best", "")
    left.set_ylim(len(values) - 0.45, -0.55)
    left.set_yticks(range(len(values)), [literal(name) for name in values])
    for axis in (left, right):
        axis.tick_params(axis="y", length=0)
        axis.grid(False, axis="y")
        axis.spines["left"].set_visible(False)
    return figure


def _mark(axis: Axes, mean: float, interval: Interval, height: float) -> None:
    axis.plot(interval, [height, height], color=RED, linewidth=2.2)
    axis.plot([mean], [height], "D", color=RED, markersize=6)
