"""Figures of predicted values and of functions of one variable."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dlblocks._scores import value_metrics
from dlblocks.plots._style import (
    BLUE,
    COLOURS,
    GREY,
    ORANGE,
    check_lengths,
    literal,
    new_figure,
    style_axis,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def predicted_vs_true(
    targets: npt.ArrayLike,
    predictions: npt.ArrayLike,
    *,
    title: str | None = None,
    scores: Mapping[str, float] | None = None,
) -> Figure:
    """Draw predicted over true values, with the line of equality.

    RMSE and R² are in the title.

    Args:
        targets: Floating point, shape (N,) or (N, D).
        predictions: Values of the same shape.
        title: Title, followed by the scores.
        scores: The ``rmse`` and ``r2`` to show, such as means over repeats; None for those of these
            samples by `dlblocks._scores.value_metrics`.

    Raises:
        ValueError: Lengths differ or are 0.
    """
    targets, predictions = np.asarray(targets, dtype=float), np.asarray(predictions, dtype=float)
    check_lengths(targets=targets, predictions=predictions)
    figure = new_figure(4.6, 4.4)
    axis = figure.subplots()
    low = float(min(targets.min(), predictions.min()))
    high = float(max(targets.max(), predictions.max()))
    axis.plot([low, high], [low, high], color=GREY, linewidth=1)
    axis.plot(targets.ravel(), predictions.ravel(), ".", color=BLUE, alpha=0.5, markersize=5)
    style_axis(axis, "true", "predicted")
    if scores is None:
        scores = value_metrics(targets, predictions)
    said = f"RMSE {scores['rmse']:.4g}, R² {scores['r2']:.4f}"
    axis.set_title(f"{literal(title)}:\n{said}" if title else said, fontsize=10)
    return figure


def curve(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    grid: npt.ArrayLike,
    predictions: npt.ArrayLike,
    *,
    truth: npt.ArrayLike | None = None,
) -> Figure:
    """Draw samples of a function of one variable and its fit.

    Args:
        x: Positions of the samples, shape (N,).
        y: Their values, shape (N,).
        grid: Positions of the fit, sorted, shape (M,).
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


def lines(
    curves: Mapping[str, npt.ArrayLike],
    x: npt.ArrayLike | None = None,
    *,
    xlabel: str = "epoch",
    ylabel: str = "",
    log: str = "",
) -> Figure:
    """Draw curves, those of several repeats as mean and band.

    The band reaches from the lowest to the highest repeat. NaN is left out.

    Args:
        curves: Name → values of shape (N,), or (S, N) for S repeats.
        x: Their places, shape (N,). None: 1 … N.
        xlabel: Name of the horizontal axis.
        ylabel: Name of the vertical axis.
        log: Which axes are logarithmic: ``""``, ``"x"``, ``"y"`` or ``"xy"``.

    Example:
        >>> figure = lines({"MLP": [[0.9, 0.4], [0.8, 0.5]], "CNN": [0.7, 0.2]}, ylabel="loss")
    """
    from matplotlib import colormaps

    figure = new_figure(7.6, 4.4)
    axis = figure.subplots()
    styles = list(product(("-", "--"), COLOURS))
    if len(curves) > len(styles):  # as of a grid of rates
        styles = [("-", colour) for colour in colormaps["viridis"](np.linspace(0, 1, len(curves)))]
    for (name, given), (style, colour) in zip(curves.items(), styles, strict=False):
        values = np.ma.masked_invalid(np.atleast_2d(np.asarray(given, dtype=float)))
        at = np.arange(1, values.shape[1] + 1) if x is None else np.asarray(x)
        marker = "o" if values.shape[1] <= 20 else ""
        mean = values.mean(0)
        axis.plot(at, mean, style, color=colour, marker=marker, markersize=4, label=literal(name))
        if len(values) > 1:
            low, high = values.min(0), values.max(0)
            axis.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
    style_axis(axis, xlabel, ylabel)
    if "x" in log:
        axis.set_xscale("log")
    if "y" in log:
        axis.set_yscale("log")
    axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
