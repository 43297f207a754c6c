"""Figures of values: predicted over true, and a function of one variable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dlblocks.plots.style import BLUE, GREY, ORANGE, check_lengths, new_figure, style_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def predicted_vs_true(targets: npt.ArrayLike, predictions: npt.ArrayLike) -> Figure:
    """Draws predicted over true values, with the line of equality; RMSE and R² in the title.

    Args:
        targets: Shape (N,).
        predictions: Shape (N,).
    """
    targets, predictions = np.asarray(targets), np.asarray(predictions)
    check_lengths(targets=targets, predictions=predictions)
    figure = new_figure(4.6, 4.4)
    axis = figure.subplots()
    low = float(min(targets.min(), predictions.min()))
    high = float(max(targets.max(), predictions.max()))
    axis.plot([low, high], [low, high], color=GREY, linewidth=1)
    axis.plot(targets, predictions, ".", color=BLUE, alpha=0.5, markersize=5)
    residual = predictions - targets
    spread = float(((targets - targets.mean()) ** 2).sum())
    r2 = 1 - float((residual**2).sum()) / spread if spread > 0 else float("nan")
    style_axis(axis, "true", "predicted")
    axis.set_title(f"RMSE {np.sqrt((residual**2).mean()):.4g}, R² {r2:.3f}", fontsize=10)
    return figure


def curve(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    grid: npt.ArrayLike,
    predictions: npt.ArrayLike,
    *,
    truth: npt.ArrayLike | None = None,
) -> Figure:
    """Draws samples of a function of one variable and what was fitted to them.

    Args:
        x: Where the samples are, shape (N,).
        y: Their values, shape (N,).
        grid: Where the fit was evaluated, sorted, shape (M,).
        predictions: The fit, shape (M,).
        truth: The function itself at `grid`, shape (M,).
    """
    figure = new_figure(7.0, 3.6)
    axis = figure.subplots()
    axis.plot(np.asarray(x), np.asarray(y), ".", color=GREY, markersize=3, label="samples")
    if truth is not None:
        axis.plot(np.asarray(grid), np.asarray(truth), color=ORANGE, linewidth=1.5, label="truth")
    axis.plot(np.asarray(grid), np.asarray(predictions), color=BLUE, linewidth=2, label="fit")
    style_axis(axis, "x", "y")
    axis.legend(frameon=False)
    return figure
