"""Figures of fits: their course over the epochs, and the scores of the folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dlblocks.plots.style import BLUE, ORANGE, RED, new_figure, style_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = {"train": "training", "val": "validation"}


def learning_curves(
    histories: Sequence[Sequence[Mapping[str, float]]],
    *,
    metrics: Sequence[str] = ("loss", "accuracy"),
    best_epochs: Sequence[int] | None = None,
) -> Figure:
    """Draws the metrics of one or more fits over the epochs: training dashed, validation solid.

    Each fit is a thin line. Their mean, as far as all of them ran, is thick, in a band of one
    standard deviation (n - 1 in the denominator) to either side. A dot marks each fit's best epoch.

    Args:
        histories: For each fit one row an epoch, ``{"epoch": 0, "train/loss": …, "val/loss": …}``;
            keys may be missing.
        metrics: One panel each: ``"loss"`` draws ``train/loss`` and ``val/loss``.
        best_epochs: The best epoch of each fit, from 0.

    Raises:
        ValueError: There are no rows, or another number of best epochs than of fits.
    """
    if not histories or not any(histories):
        raise ValueError("histories is empty; there is no epoch to draw.")
    if best_epochs is not None and len(best_epochs) != len(histories):
        raise ValueError(
            f"best_epochs has {len(best_epochs)} entries and histories {len(histories)}; "
            "give one a fit."
        )
    figure = new_figure(4.2 * len(metrics), 3.4)
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        lowest, highest, bands = np.inf, 0.0, []
        for part, colour, style in (("train", ORANGE, "--"), ("val", BLUE, "-")):
            lines = [_series(history, f"{part}/{metric}") for history in histories]
            for i, (epochs, values) in enumerate(lines):
                thin = len(lines) > 1
                axis.plot(
                    epochs + 1,
                    values,
                    style,
                    color=colour,
                    linewidth=0.8 if thin else 1.8,
                    alpha=0.45 if thin else 1.0,
                    label=None if thin else PARTS[part],
                )
                if best_epochs is not None and part == "val":
                    at = epochs == best_epochs[i]
                    axis.plot(epochs[at] + 1, values[at], "o", color=colour, markersize=4)
            values = np.concatenate([values for _, values in lines])
            values = values[np.isfinite(values)]
            lowest = min(lowest, values.min(initial=np.inf))
            highest = max(highest, values.max(initial=0.0))
            if len(lines) > 1 and len(values):
                epochs, mean, std = _mean_curve(lines)
                label = f"{PARTS[part]}: mean ± std, {len(lines)} fits"
                axis.plot(epochs + 1, mean, style, color=colour, linewidth=2.2, label=label)
                bands.append((epochs + 1, mean, std, colour))
        if metric == "loss" and 0 < 4 * lowest < highest:
            _log_scale(axis, highest / lowest)
        limits = axis.get_ylim()  # the lines choose them; a band may reach below zero
        for epochs, mean, std, colour in bands:
            low = np.maximum(mean - std, lowest / 10) if axis.get_yscale() == "log" else mean - std
            axis.fill_between(epochs, low, mean + std, color=colour, alpha=0.18, linewidth=0)
        axis.set_ylim(limits)
        style_axis(axis, "epoch", metric)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    return figure


def strip(
    values: Mapping[str, Sequence[float]],
    *,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    metric: str = "score",
) -> Figure:
    """Draws a metric of every fold as a dot, one row a cross-validation, with mean and interval.

    Args:
        values: Name of a cross-validation → the metric of each of its folds.
        intervals: Name → lower and upper end, such as ``result.interval("val/accuracy")``.
        metric: Name of the metric, under the axis.

    Raises:
        ValueError: There is no value, or `intervals` has a name that `values` lacks.

    Example:
        >>> figure = strip({"MLP": [0.96, 0.97], "CNN": [0.98, 0.99]}, metric="accuracy")
    """
    if not values or not all(len(row) for row in values.values()):
        raise ValueError("values holds a cross-validation without folds; there is none to draw.")
    intervals = intervals or {}
    unknown = [name for name in intervals if name not in values]
    if unknown:
        raise ValueError(
            f"intervals has {unknown[0]!r}, which values lacks; values has: {', '.join(values)}."
        )
    figure = new_figure(6.6, 0.9 + 0.95 * len(values))
    axis = figure.subplots()
    for row, (name, given) in enumerate(values.items()):
        folds = np.sort(np.asarray(given, dtype=float))
        # Neighbours at three heights, so that equal scores do not hide each other.
        heights = row - 0.12 + 0.09 * (np.arange(len(folds)) % 3 - 1)
        axis.plot(folds, heights, "o", color=BLUE, alpha=0.7, markersize=7, markeredgewidth=0)
        mean, below = folds.mean(), row + 0.14
        said = f"mean {mean:.4g}"
        if name in intervals:
            low, high = intervals[name]
            axis.plot([low, high], [below, below], color=RED, linewidth=2.4)
            said += f", 95 % interval {low:.4g} … {high:.4g}"
        axis.plot([mean], [below], "D", color=RED, markersize=7)
        axis.text(mean, below + 0.12, said, ha="center", va="top", fontsize=9, color="#333333")
    style_axis(axis, f"{metric} (dots: folds)", "")
    axis.set_ylim(len(values) - 0.4, -0.5)
    axis.set_yticks(range(len(values)), list(values))
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")
    axis.spines["left"].set_visible(False)
    return figure


def _log_scale(axis: Axes, span: float) -> None:
    """A logarithmic axis with plain numbers, also between the powers of ten if those are few."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    if span < 200:
        subs = (1.5, 2, 3, 5, 7) if span < 20 else (2, 5)
        axis.yaxis.set_minor_locator(LogLocator(subs=subs))
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.grid(True, axis="y", which="minor", color="#e6e6e6", linewidth=0.8)
    else:
        axis.yaxis.set_minor_formatter(NullFormatter())


def _series(history: Sequence[Mapping[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    rows = [(row["epoch"], row[key]) for row in history if key in row]
    epochs = np.array([epoch for epoch, _ in rows], dtype=int)
    return epochs, np.array([value for _, value in rows], dtype=float)


def _mean_curve(
    lines: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # A mean over fewer and fewer fits would jump where one of them stops.
    epochs = np.array(sorted(set.intersection(*(set(epochs.tolist()) for epochs, _ in lines))))
    values = np.array([[v[e == epoch][0] for e, v in lines] for epoch in epochs])
    values = values.reshape(len(epochs), len(lines))  # also where no epoch is shared
    return epochs, values.mean(1), values.std(1, ddof=1)
