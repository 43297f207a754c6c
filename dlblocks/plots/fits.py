"""Figures of metrics over the epochs, and of scores of folds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dlblocks.plots._style import BLUE, GREEN, GREY, ORANGE, RED, literal, new_figure, style_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour and line of each part of the data.
PARTS = {
    "training": (ORANGE, "--"),
    "validation": (BLUE, "-"),
    "selection": (GREEN, "-"),
    "test": (RED, "-"),
    "": (GREY, "-"),  # names without a part
}
WORDS = {
    "training": "training",
    "train": "training",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "selection": "selection",
    "test": "test",
}
_WORD = "|".join(WORDS)
BEFORE = re.compile(rf"({_WORD})[/_.\- ](.+)", re.IGNORECASE)
AFTER = re.compile(rf"(.+)[/_.\- ]({_WORD})", re.IGNORECASE)
MAX_PANELS = 4

Series = dict[str, dict[str, str]]  # metric → part → the name under which it was logged


def part_and_metric(name: str) -> tuple[str, str]:
    """Split the name of a logged metric into part and metric.

    The part is ``""`` if the name has none.

    Example:
        >>> [part_and_metric(name) for name in ("val/loss", "train_acc_epoch", "Loss/valid", "f1")]
        [('validation', 'loss'), ('training', 'acc'), ('validation', 'Loss'), ('', 'f1')]
    """
    name = name.removesuffix("_epoch")
    if found := BEFORE.fullmatch(name):
        return WORDS[found[1].lower()], found[2]
    if found := AFTER.fullmatch(name):
        return WORDS[found[2].lower()], found[1]
    return "", name


def curve_metrics(
    histories: Sequence[Sequence[Mapping[str, float]]], *, monitor: str | None = None
) -> list[str]:
    """Return the metrics that `learning_curves` draws by default, at most four.

    The loss comes first, then the metric of `monitor`, then those of several parts of the data,
    then the others. Learning rates are left out.
    """
    found = _find_series(histories)
    chosen = part_and_metric(monitor or "")[1]
    is_loss = [metric for metric in found if metric.lower() == "loss"]
    is_loss = is_loss or [metric for metric in found if metric.lower().endswith("loss")][:1]
    several = [metric for metric, parts in found.items() if len(parts) > 1]
    order = [*is_loss, *([chosen] if chosen in found else []), *several, *found]
    return list(dict.fromkeys(order))[:MAX_PANELS]


def learning_curves(
    histories: Sequence[Sequence[Mapping[str, float]]],
    *,
    metrics: Sequence[str] | None = None,
    best_epochs: Sequence[int] | None = None,
    monitor: str = "val/loss",
) -> Figure:
    """Draw the metrics of one or more fits over the epochs.

    Each part of the data has its colour. ``train/loss``, ``train_loss``, ``train_loss_epoch`` and
    ``loss/train`` are all the loss of the training part. A name without a part belongs to the part
    that the other names lack. Each fit is a thin line. A thick line is their mean over the epochs
    that all fits have, in a band of one standard deviation (n - 1 in the denominator) to either
    side. A dot marks each fit's best epoch on the part that `monitor` was computed on, which is the
    selection part if there is one.

    Args:
        histories: One row per epoch for each fit, ``{"epoch": 0, "train/loss": …, "val/loss": …}``.
            Keys may be missing.
        metrics: Names without a part, such as ``"loss"``, for one panel each. Those that were not
            logged are left out. None: those of `curve_metrics`.
        best_epochs: The best epoch of each fit, from 0.
        monitor: The metric that selected them.

    Raises:
        ValueError: No metric was logged, or the numbers of best epochs and of fits differ.
    """
    if best_epochs is not None and len(best_epochs) != len(histories):
        raise ValueError(
            f"best_epochs has {len(best_epochs)} entries and histories {len(histories)}; "
            "give one for each fit."
        )
    found = _find_series(histories)
    wanted = curve_metrics(histories, monitor=monitor) if metrics is None else metrics
    shown = [metric for metric in wanted if metric in found]
    if not shown:
        raise ValueError(
            "histories is empty; there is no epoch to draw."
            if not found
            else f"metrics={list(wanted)} were not logged; there are: {', '.join(found)}."
        )
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    figure = new_figure(4.2 * columns, 3.4 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(shown) :]:
        axis.remove()
    has_selection = any("selection" in parts for parts in found.values())
    named = {name: part for parts in found.values() for part, name in parts.items()}
    selected = named.get(monitor, part_and_metric(monitor)[0])
    if has_selection and selected != "training":
        selected = "selection"
    for axis, metric in zip(axes, shown, strict=False):
        lines = {
            part: [_series(history, name) for history in histories]
            for part, name in found[metric].items()
        }
        _draw_panel(axis, metric, lines, selected, best_epochs)
    return figure


def _draw_panel(
    axis: Axes,
    metric: str,
    parts: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]],
    selected: str,
    best_epochs: Sequence[int] | None,
) -> None:
    """Draw one metric, with a line for each fit and part."""
    lowest, highest, bands = np.inf, -np.inf, []
    for part, lines in parts.items():
        colour, style = PARTS[part]
        thin = len(lines) > 1
        for i, (epochs, values) in enumerate(lines):
            axis.plot(
                epochs + 1,
                values,
                style,
                color=colour,
                linewidth=0.8 if thin else 1.8,
                alpha=0.45 if thin else 1.0,
                label=None if thin else part or literal(metric),
            )
            if best_epochs is not None and part == selected:
                at = epochs == best_epochs[i]
                axis.plot(epochs[at] + 1, values[at], "o", color=colour, markersize=4)
        values = np.concatenate([values for _, values in lines])
        values = values[np.isfinite(values)]
        lowest = min(lowest, values.min(initial=np.inf))
        highest = max(highest, values.max(initial=-np.inf))
        if thin and len(values):
            epochs, mean, std = _mean_curve(lines)
            label = f"{part or literal(metric)}: mean ± std, {len(lines)} fits"
            axis.plot(epochs + 1, mean, style, color=colour, linewidth=2.2, label=label)
            bands.append((epochs + 1, mean, std, colour))
    if metric.lower().endswith("loss") and 0 < 4 * lowest < highest:
        _log_scale(axis, highest / lowest)
    limits = axis.get_ylim()  # lines set the limits, because a band may reach below zero
    for epochs, mean, std, colour in bands:
        low = np.maximum(mean - std, lowest / 10) if axis.get_yscale() == "log" else mean - std
        axis.fill_between(epochs, low, mean + std, color=colour, alpha=0.18, linewidth=0)
    axis.set_ylim(limits)
    style_axis(axis, "epoch", metric)
    locator: Any = axis.xaxis.get_major_locator()
    locator.set_params(integer=True)
    if axis.get_legend_handles_labels()[0]:
        # It lies within the axis, and looking for its place takes time.
        axis.legend(frameon=False).set_in_layout(False)


def _find_series(histories: Sequence[Sequence[Mapping[str, float]]]) -> Series:
    """Find the series of every metric, the training part first.

    A name without a part becomes the part that the others lack.
    """
    rows = [row for history in histories for row in history]
    names = list(dict.fromkeys(k for row in rows for k, v in row.items() if np.isfinite(v)))
    found: Series = {}
    for name in names:
        of_steps = name.endswith("_step") and f"{name.removesuffix('_step')}_epoch" in names
        if name in ("epoch", "step") or name.startswith("lr-") or of_steps:
            continue
        part, metric = part_and_metric(name)
        found.setdefault(metric, {})[part] = name
    for metric, parts in found.items():
        if "" in parts and len(parts) > 1:
            part = "validation" if "training" in parts else "training"
            if part not in parts:
                parts[part] = parts.pop("")
        found[metric] = {part: parts[part] for part in PARTS if part in parts}
    return found


def strip(
    values: Mapping[str, Sequence[float] | npt.NDArray[np.floating]],
    *,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    metric: str = "score",
    dots: str = "folds",
) -> Figure:
    """Draw a metric of every fold as a dot, with mean and interval.

    Each cross-validation is a row.

    Args:
        values: Name of a cross-validation → the metric of each of its folds.
        intervals: Name → lower and upper end, such as ``result.interval("val/accuracy")``.
        metric: Name of the metric, under the axis.
        dots: What a dot is, such as ``"seeds"``.

    Raises:
        ValueError: `values` is empty, or `intervals` has a name that `values` lacks.

    Example:
        >>> figure = strip({"MLP": [0.96, 0.97], "CNN": [0.98, 0.99]}, metric="accuracy")
    """
    if not values or not all(len(row) for row in values.values()):
        raise ValueError("values is empty, or has a cross-validation without folds.")
    intervals = intervals or {}
    unknown = [name for name in intervals if name not in values]
    if unknown:
        raise ValueError(
            f"intervals has {unknown[0]!r}, which values lacks; values has: {', '.join(values)}."
        )
    # 5 inches for the axis; a letter takes 0.09.
    figure = new_figure(max(6.6, 5 + 0.09 * max(map(len, values))), 0.9 + 0.95 * len(values))
    axis = figure.subplots()
    for row, (name, given) in enumerate(values.items()):
        folds = np.sort(np.asarray(given, dtype=float))
        # Use three heights, so that equal scores do not hide each other.
        heights = row - 0.12 + 0.09 * (np.arange(len(folds)) % 3 - 1)
        axis.plot(folds, heights, "o", color=BLUE, alpha=0.7, markersize=7, markeredgewidth=0)
        mean, below = folds.mean(), row + 0.14
        said = f"mean {mean:.4g}"
        if name in intervals:
            low, high = intervals[name]
            axis.plot([low, high], [below, below], color=RED, linewidth=2.4)
            said += f", 95 % interval {low:.4g} … {high:.4g}"
        axis.plot([mean], [below], "D", color=RED, markersize=7)
        axis.text(
            0.5, below + 0.12, said, ha="center", va="top", fontsize=9, color="#333333",
            transform=axis.get_yaxis_transform(),  # within the axis, wherever the mean is
        )  # fmt: skip
    style_axis(axis, f"{metric} (dots: {dots})", "")
    axis.set_ylim(len(values) - 0.4, -0.5)
    axis.set_yticks(range(len(values)), [literal(name) for name in values])
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")
    axis.spines["left"].set_visible(False)
    return figure


def _log_scale(axis: Axes, span: float) -> None:
    """Make the axis logarithmic, with plain numbers.

    If there are few powers of ten, numbers between them are shown too.
    """
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
    # A mean over a varying number of fits would jump when one of them stops.
    epochs = np.array(sorted(set.intersection(*(set(epochs.tolist()) for epochs, _ in lines))))
    values = np.array([[v[e == epoch][0] for e, v in lines] for epoch in epochs])
    values = values.reshape(len(epochs), len(lines))  # also if no epoch is shared
    return epochs, values.mean(1), values.std(1, ddof=1)
