"""Draw named values with their intervals, one below the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dlblocks.plots._style import BLUE, RED, literal, new_figure, style_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def ranking(
    values: Mapping[str, Sequence[float]],
    *,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    label: str = "importance",
) -> Figure:
    """Draw the values of each name with their mean and its interval.

    Args:
        values: Name → its values, such as the importance of a column in each fold. The first name
            is at the top.
        intervals: Name → lower and upper end.
        label: What the values are, under the axis.

    Raises:
        ValueError: `values` is empty, or a name has no values.

    Example:
        >>> figure = ranking({"age": [0.2, 0.3], "city": [0.0, 0.1]}, label="loss of accuracy")
    """
    if not values or not all(len(row) for row in values.values()):
        raise ValueError("values is empty, or a name has no values; there is nothing to draw.")
    figure = new_figure(6.6, 1.0 + 0.32 * len(values))
    axis = figure.subplots()
    axis.axvline(0, color="0.7", linewidth=1)
    for row, (name, given) in enumerate(values.items()):
        low, high = (intervals or {}).get(name, (np.nan, np.nan))
        axis.plot([low, high], [row, row], color=RED, linewidth=2.4, zorder=2)
        axis.plot(given, [row] * len(given), "o", color=BLUE, alpha=0.6, markersize=5, zorder=3)
        axis.plot([np.mean(given)], [row], "D", color=RED, markersize=6, zorder=4)
    axis.set_yticks(range(len(values)), [literal(name) for name in values])
    axis.set_ylim(len(values) - 0.5, -0.5)
    style_axis(axis, label, "")
    return figure
