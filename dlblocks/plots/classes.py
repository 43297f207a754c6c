"""Figures of predicted classes and of their probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dlblocks._scores import NUM_BINS, calibration_bins, calibration_error
from dlblocks.plots._shares import draw_shares
from dlblocks.plots._style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    check_lengths,
    literal,
    new_figure,
    style_axis,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOST_NAMED = 100


def confusion_matrix(
    targets: npt.ArrayLike,
    predictions: npt.ArrayLike,
    class_names: Sequence[str],
    *,
    title: str | None = None,
) -> Figure:
    """Draw the confusion matrix, with true classes as rows.

    Cells show counts, for up to 30 classes. Correct ones are blue and wrong ones red, by their
    share of the row. Wrong ones have a scale of their own, so that few errors are visible beside
    many hits. The last column is the recall of each class. With more than 100 classes only some
    have their names.

    Args:
        targets: True classes, int, shape (N,).
        predictions: Predicted classes, int, shape (N,).
        class_names: Names of the classes 0 … C-1.
        title: Title, followed by the accuracy.

    Raises:
        ValueError: Lengths differ or are 0, or a label lacks a name.
    """
    from sklearn.metrics import confusion_matrix as count

    targets, predictions = np.asarray(targets), np.asarray(predictions)
    check_lengths(targets=targets, predictions=predictions)
    num_classes = len(class_names)
    if max(targets.max(), predictions.max()) >= num_classes:
        raise ValueError(
            f"label {max(targets.max(), predictions.max())} has no name; class_names has "
            f"{num_classes} names."
        )
    counts = count(targets, predictions, labels=np.arange(num_classes))
    totals = np.maximum(counts.sum(1, keepdims=True), 1)
    share = counts / totals
    right = np.diag(share)
    # With many classes only some names have room.
    step = -(-num_classes // MOST_NAMED)
    side = max(4.2, 0.46 * min(num_classes, 30) + 1.6)
    figure = new_figure(side + 0.5, side + 1.0)
    axis = figure.subplots()
    draw_shares(figure, axis, share)
    small = 9 if num_classes <= 12 else 6
    if num_classes <= 30:
        for i, j in np.argwhere(counts > 0):
            cell = axis.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=small)
            cell.set_in_layout(False)  # it lies within the axis, and measuring takes time
    named = range(0, num_classes, step)
    for i in named:
        recall = f"{100 * right[i]:.1f} %" if counts[i].sum() else "–"
        axis.text(num_classes - 0.3, i, recall, va="center", fontsize=small, color="#444444")
    axis.text(num_classes - 0.3, -0.55, "recall", va="bottom", fontsize=small, color="#444444")
    turn = 0 if max(map(len, class_names)) <= 3 else 45
    shown = [literal(class_names[i]) for i in named]
    size = 10 if num_classes <= 30 else 7
    axis.set_xticks(named, shown, rotation=turn, ha="right" if turn else "center", fontsize=size)
    axis.set_yticks(named, shown, fontsize=size)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    for side_name in ("top", "right", "left", "bottom"):
        axis.spines[side_name].set_color("#cccccc")
    axis.tick_params(length=0)
    errors = int((targets != predictions).sum())
    accuracy = f"{errors} of {len(targets)} wrong, accuracy {1 - errors / len(targets):.4f}"
    axis.set_title(f"{literal(title)}:\n{accuracy}" if title else accuracy, fontsize=10, pad=14)
    return figure


def reliability(
    targets: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    num_bins: int = NUM_BINS,
    title: str | None = None,
    error: float | None = None,
) -> Figure:
    """Draw accuracy over confidence (reliability diagram).

    Samples are put in bins of equal width by their confidence, the largest probability. A bar shows
    the accuracy in its bin. A line leads from it to the bin's mean confidence on the diagonal: bars
    below it are over-confident, bars above it under-confident. The lower panel counts the samples
    of each bin. The title shows `dlblocks._scores.calibration_error`, as the models log it.

    Args:
        targets: True classes, int, shape (N,).
        probabilities: Shape (N, C).
        num_bins: Number of bins of confidence over [0, 1].
        title: Title, followed by the error.
        error: The error to show, such as a mean over repeats; None for that of these samples.

    Raises:
        ValueError: Lengths differ or are 0, or `probabilities` is not two-dimensional or not
            between 0 and 1.
    """
    targets, probabilities = np.asarray(targets), np.asarray(probabilities)
    check_lengths(targets=targets, probabilities=probabilities)
    if probabilities.ndim != 2:
        raise ValueError(f"probabilities have shape {probabilities.shape}; expected (N, C).")
    low, high = float(probabilities.min()), float(probabilities.max())
    if not (low >= 0 and high < 1.01):  # allow rounding
        raise ValueError(
            f"probabilities reach from {low:.4g} to {high:.4g}; expected 0 … 1. Pass logits "
            "through a softmax first."
        )
    if error is None:
        error = calibration_error(targets, probabilities, num_bins=num_bins)
    counts, accuracy, confidence = calibration_bins(targets, probabilities, num_bins)
    # A confidence of 1 has its own bin, but is drawn as part of the last bar.
    last = counts[-2:].sum()
    for means in (accuracy, confidence):
        means[-2] = (means[-2:] * counts[-2:]).sum() / max(last, 1)
    counts[-2] = last
    counts, accuracy, confidence = counts[:-1], accuracy[:-1], confidence[:-1]

    figure = new_figure(5.4, 5.0)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    edges = np.linspace(0, 1, num_bins + 1)
    middle, width, some = (edges[:-1] + edges[1:]) / 2, 1 / num_bins, counts > 0
    shape = {"width": 0.92 * width, "color": BLUE, "linewidth": 0}
    top.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1.2, label="confidence = accuracy")
    top.bar(middle[some], accuracy[some], alpha=0.75, label="accuracy", **shape)
    top.vlines(confidence[some], accuracy[some], confidence[some], color=RED, linewidth=1.8)
    top.plot(
        confidence[some], confidence[some], "o", color=RED, markersize=5, label="mean confidence"
    )
    top.set_xlim(0, 1)
    top.set_ylim(0, 1.02)
    style_axis(top, "", "accuracy")
    top.legend(frameon=False, loc="upper left", fontsize=9).set_in_layout(False)
    bottom.bar(middle[some], counts[some], **shape)
    bottom.set_yscale("log")
    bottom.yaxis.set_major_formatter("{x:g}")
    bottom.set_ylim(0.7, 6 * counts.max())
    for x, count in zip(middle[some], counts[some], strict=True):
        bottom.text(x, 1.15 * count, f"{count}", ha="center", va="bottom", fontsize=7)
    style_axis(bottom, "confidence: largest probability", "samples")
    said = f"expected calibration error {error:.4f}"
    top.set_title(f"{literal(title)}:\n{said}" if title else said, fontsize=10)
    return figure


def labels(
    metrics: Mapping[str, npt.ArrayLike],
    names: Sequence[str],
    *,
    counts: npt.ArrayLike | None = None,
    title: str | None = None,
) -> Figure:
    """Draw metrics of each label, for samples of several labels.

    Args:
        metrics: One value in [0, 1] for each label, by name of the metric. NaN is left out.
        names: Names of the labels.
        counts: Number of samples with each label.
        title: Title.

    Raises:
        ValueError: Lengths differ or are 0.

    Example:
        >>> figure = labels({"f1": [0.5, 0.9]}, ["cat", "dog"], counts=[10, 40])
    """
    arrays = {name: np.asarray(values, dtype=float) for name, values in metrics.items()}
    check_lengths(names=np.asarray(names), **arrays)
    shown = [literal(name) for name in names]
    if counts is not None:
        shown = [f"{name} ({n})" for name, n in zip(shown, np.asarray(counts), strict=True)]
    place = np.arange(len(names))[::-1]  # the first is at the top
    figure = new_figure(6.4, max(2.6, 0.3 * min(len(names), 200) + 1.4))
    axis = figure.subplots()
    colours = (BLUE, ORANGE, GREEN, RED, GREY)
    for i, (name, values) in enumerate(arrays.items()):
        axis.plot(values, place, "o", color=colours[i % len(colours)], markersize=6, label=name)
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.6, len(names) - 0.4)
    step = -(-len(names) // MOST_NAMED)
    axis.set_yticks(place[::step], shown[::step])
    about = "" if counts is None else " (samples)"
    style_axis(axis, "score", f"label{about}")
    axis.grid(axis="y", alpha=0.3)
    figure.legend(frameon=False, loc="outside lower center", ncols=len(arrays))
    if title:
        axis.set_title(literal(title))
    return figure
