"""Figures of forecasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dlblocks.plots._style import (
    BLUE,
    GREY,
    ORANGE,
    check_lengths,
    literal,
    new_figure,
    style_axis,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3


def forecasts(
    past: npt.ArrayLike,
    predictions: npt.ArrayLike,
    targets: npt.ArrayLike | None = None,
    *,
    interval: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw forecasts after their past, one panel each.

    Args:
        past: Values before the origin, shape (N, C).
        predictions: Forecasts, shape (N, H).
        targets: What came, shape (N, H), if it is known.
        interval: Lower and upper ends, each of shape (N, H).
        names: Titles of the panels.
        title: Title of the figure.

    Raises:
        ValueError: Lengths differ or are 0.

    Example:
        >>> figure = forecasts(np.zeros((2, 8)), np.ones((2, 3)), names=["a", "b"])
        >>> len(figure.axes)
        2
    """
    before, after = np.asarray(past, dtype=float), np.asarray(predictions, dtype=float)
    check_lengths(past=before, predictions=after)
    rows = -(-len(before) // COLUMNS)
    columns = min(COLUMNS, len(before))
    figure = new_figure(3.4 * columns, 2.4 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(before) :]:
        axis.remove()
    ahead = np.arange(1, after.shape[1] + 1)
    for i, axis in enumerate(axes[: len(before)]):
        axis.plot(np.arange(1 - before.shape[1], 1), before[i], color=GREY, label="past")
        if interval is not None:
            low, high = (np.asarray(end, dtype=float)[i] for end in interval)
            axis.fill_between(ahead, low, high, color=BLUE, alpha=0.2, linewidth=0)
        if targets is not None:
            axis.plot(ahead, np.asarray(targets, dtype=float)[i], color=ORANGE, label="true")
        axis.plot(ahead, after[i], color=BLUE, label="forecast")
        style_axis(axis, "steps from the origin", "")
        if names is not None:
            axis.set_title(literal(names[i]), fontsize=9)
    axes[0].legend(frameon=False, fontsize=8)
    if title:
        figure.suptitle(literal(title), fontsize=10)
    return figure
