"""The figures of an experiment, as matplotlib `Figure`s that touch no display and no global state.

Show one in a notebook by ending a cell with it; write one with `save`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dlblocks.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"


def save(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 120) -> None:
    """Writes a figure as PNG, SVG or PDF by the ending of `path`, whole or not at all."""
    with whole_file(path) as part:
        figure.savefig(part, dpi=dpi)


def learning_curves(
    histories: Sequence[Sequence[Mapping[str, float]]],
    *,
    metrics: Sequence[str] = ("loss", "accuracy"),
    best_epochs: Sequence[int] | None = None,
) -> Figure:
    """Draws the metrics of one or more fits over the epochs: training dashed, validation solid.

    Each fit is a thin line; their mean, as far as all of them ran, is thick. A dot marks each fit's
    best epoch.

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
    figure = _figure(4.2 * len(metrics), 3.4)
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        lowest = np.inf
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
                    label=None if thin else _PARTS[part],
                )
                if best_epochs is not None and part == "val":
                    at = epochs == best_epochs[i]
                    axis.plot(epochs[at] + 1, values[at], "o", color=colour, markersize=4)
            values = np.concatenate([values for _, values in lines])
            lowest = min(lowest, values[np.isfinite(values)].min(initial=np.inf))
            if len(lines) > 1 and len(values):
                epochs, mean = _mean_curve(lines)
                axis.plot(epochs + 1, mean, style, color=colour, linewidth=2.2, label=_PARTS[part])
        if metric == "loss" and 0 < lowest < np.inf:
            axis.set_yscale("log")
        _style(axis, "epoch", metric)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    return figure


def confusion_matrix(
    targets: npt.ArrayLike,
    predictions: npt.ArrayLike,
    class_names: Sequence[str],
    *,
    title: str | None = None,
) -> Figure:
    """Draws how often each true class (row) was predicted as each class (column).

    Cells show counts. Right ones are blue and wrong ones red, each by their share of the row, the
    wrong ones on a scale of their own, so that few errors show beside many hits. The last column is
    the recall of each class.

    Args:
        targets: True classes, int, shape (N,).
        predictions: Predicted classes, int, shape (N,).
        class_names: Names of the classes 0 … C-1.
        title: Put above, followed by the accuracy.

    Raises:
        ValueError: Lengths differ, there is no sample, or a label has no name.
    """
    from sklearn.metrics import confusion_matrix as count

    targets, predictions = np.asarray(targets), np.asarray(predictions)
    _check_lengths(targets=targets, predictions=predictions)
    num_classes = len(class_names)
    if max(targets.max(), predictions.max()) >= num_classes:
        raise ValueError(
            f"label {max(targets.max(), predictions.max())} has no name: class_names has "
            f"{num_classes}."
        )
    counts = count(targets, predictions, labels=np.arange(num_classes))
    totals = np.maximum(counts.sum(1, keepdims=True), 1)
    share = counts / totals
    wrong = share * (1 - np.eye(num_classes))
    right = np.diag(share)
    colour = np.ones((num_classes, num_classes, 3))
    blue, red = _rgb(BLUE), _rgb(RED)
    strength = wrong / wrong.max() if wrong.max() > 0 else wrong
    colour -= strength[..., None] * (1 - red)
    for i in range(num_classes):
        colour[i, i] = 1 - 0.55 * right[i] * (1 - blue)
    side = max(4.2, 0.46 * num_classes + 1.6)
    figure = _figure(side + 0.5, side)
    axis = figure.subplots()
    axis.imshow(np.clip(colour, 0, 1))
    small = 9 if num_classes <= 12 else 6
    if num_classes <= 30:
        for i, j in np.argwhere(counts > 0):
            axis.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=small)
    for i in range(num_classes):
        recall = f"{100 * right[i]:.1f} %" if counts[i].sum() else "–"
        axis.text(num_classes - 0.3, i, recall, va="center", fontsize=small, color="#444444")
    axis.text(num_classes - 0.3, -0.85, "recall", va="center", fontsize=small, color="#444444")
    turn = 0 if max(map(len, class_names)) <= 3 else 45
    axis.set_xticks(
        range(num_classes), class_names, rotation=turn, ha="right" if turn else "center"
    )
    axis.set_yticks(range(num_classes), class_names)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    for side_name in ("top", "right", "left", "bottom"):
        axis.spines[side_name].set_color("#cccccc")
    axis.tick_params(length=0)
    errors = int((targets != predictions).sum())
    accuracy = f"{errors} of {len(targets)} wrong, accuracy {1 - errors / len(targets):.4f}"
    axis.set_title(f"{title}: {accuracy}" if title else accuracy, fontsize=10, pad=14)
    return figure


def batch(
    images: npt.ArrayLike,
    targets: npt.ArrayLike,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draws the images of a batch in a grid, each with its label.

    A soft label is drawn with the shares of its classes, largest first, three at most: ``7 62 %``.

    Args:
        images: Shape (N, C, H, W) with C = 1 or 3, or (N, H, W); uint8, or floating point, which is
            scaled by the range of the whole batch.
        targets: Classes (N,), soft labels or several labels (N, C), or values, floating point of
            shape (N,) or (N, 1).
        class_names: Names of the classes; None for their numbers, or for values.

    Raises:
        ValueError: Lengths differ, there is no sample, or the images have another shape.
    """
    images, targets = np.asarray(images), np.asarray(targets)
    _check_lengths(images=images, targets=targets)
    if images.dtype != np.uint8:
        low, high = float(images.min()), float(images.max())
        images = (images - low) / (high - low if high > low else 1.0)
    # As near to a square as the labels under the images allow.
    columns = min(len(images), max(4, round(len(images) ** 0.5)))
    rows = -(-len(images) // columns)
    figure = _figure(1.4 * columns, 1.75 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_frame_on(False)
    for axis, image, target in zip(axes, images, targets, strict=False):
        _show_image(axis, image)
        axis.set_xlabel(_label(target, class_names), fontsize=9, labelpad=3)
    return figure


def _show_image(axis: Axes, image: np.ndarray) -> None:
    """Draws one image (C, H, W) or (H, W), uint8 or floats in [0, 1]."""
    if image.ndim == 3:
        if image.shape[0] not in (1, 3):
            raise ValueError(
                f"images have {image.shape[0]} channels; only 1 (grey) or 3 (colour) can be drawn."
            )
        image = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    grey: dict[str, Any] = {"cmap": "gray_r", "vmin": 0}
    grey["vmax"] = 255 if image.dtype == np.uint8 else 1
    axis.imshow(image, **(grey if image.ndim == 2 else {}))


def _label(target: np.ndarray, class_names: Sequence[str] | None) -> str:
    """A class, the shares of several classes, or a value, in words."""
    if target.ndim == 1 and len(target) > 1:
        largest = np.argsort(-target, kind="stable")[:3]
        shares = [(i, float(target[i])) for i in largest if target[i] > 0.005]
        names = [str(i) if class_names is None else class_names[i] for i, _ in shares]
        if len(shares) == 1 and shares[0][1] > 0.995:
            return names[0]
        parts = [f"{name}: {100 * p:.0f} %" for name, (_, p) in zip(names, shares, strict=True)]
        return ("\n" if max(map(len, names), default=0) > 4 else ", ").join(parts)
    value = target.reshape(-1)[0]
    if np.issubdtype(value.dtype, np.integer):
        return str(value) if class_names is None else class_names[value]
    return f"{value:.3g}"


def hardest(
    images: npt.ArrayLike,
    targets: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    class_names: Sequence[str],
    *,
    indices: npt.ArrayLike | None = None,
    count: int = 20,
) -> Figure:
    """Draws the samples whose true class got the lowest probability, hardest first.

    Args:
        images: Shape (N, C, H, W) with C = 1 or 3, or (N, H, W); uint8, or floating point, which is
            scaled by its own range.
        targets: True classes, int, shape (N,).
        probabilities: Shape (N, C).
        class_names: Names of the classes.
        indices: Number of each sample in its data set; by default 0 … N-1.
        count: How many to draw.

    Raises:
        ValueError: Lengths differ, or there is no sample.
    """
    images, targets = np.asarray(images), np.asarray(targets)
    probabilities = np.asarray(probabilities)
    indices = np.arange(len(targets)) if indices is None else np.asarray(indices)
    _check_lengths(images=images, targets=targets, probabilities=probabilities, indices=indices)
    true = np.take_along_axis(probabilities, targets[:, None], axis=1)[:, 0]
    order = np.argsort(true, kind="stable")[:count]
    columns = min(len(order), 5 if len(order) <= 20 else 8)
    rows = -(-len(order) // columns)
    figure = _figure(1.7 * columns, 2.3 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_frame_on(False)
    for axis, i in zip(axes, order, strict=False):
        image = images[i]
        if image.dtype != np.uint8:
            low, high = float(image.min()), float(image.max())
            image = (image - low) / (high - low if high > low else 1.0)
        _show_image(axis, image)
        guess = int(probabilities[i].argmax())
        axis.set_title(
            f"{class_names[targets[i]]} → {class_names[guess]}",
            fontsize=11,
            color=GREEN if guess == targets[i] else RED,
            fontweight="bold",
            pad=3,
        )
        said = f"p(true) {true[i]:.2f}\nsample {indices[i]}"
        axis.set_xlabel(said, fontsize=8, color="#444444", labelpad=3)
    figure.suptitle("hardest samples: true → predicted", fontsize=11)
    return figure


def predicted_vs_true(targets: npt.ArrayLike, predictions: npt.ArrayLike) -> Figure:
    """Draws predicted over true values, with the line of equality; RMSE and R² in the title.

    Args:
        targets: Shape (N,).
        predictions: Shape (N,).
    """
    targets, predictions = np.asarray(targets), np.asarray(predictions)
    _check_lengths(targets=targets, predictions=predictions)
    figure = _figure(4.6, 4.4)
    axis = figure.subplots()
    low = float(min(targets.min(), predictions.min()))
    high = float(max(targets.max(), predictions.max()))
    axis.plot([low, high], [low, high], color=GREY, linewidth=1)
    axis.plot(targets, predictions, ".", color=BLUE, alpha=0.5, markersize=5)
    residual = predictions - targets
    spread = float(((targets - targets.mean()) ** 2).sum())
    r2 = 1 - float((residual**2).sum()) / spread if spread > 0 else float("nan")
    _style(axis, "true", "predicted")
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
    figure = _figure(7.0, 3.6)
    axis = figure.subplots()
    axis.plot(np.asarray(x), np.asarray(y), ".", color=GREY, markersize=3, label="samples")
    if truth is not None:
        axis.plot(np.asarray(grid), np.asarray(truth), color=ORANGE, linewidth=1.5, label="truth")
    axis.plot(np.asarray(grid), np.asarray(predictions), color=BLUE, linewidth=2, label="fit")
    _style(axis, "x", "y")
    axis.legend(frameon=False)
    return figure


_PARTS = {"train": "training", "val": "validation"}


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _style(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(True, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _series(history: Sequence[Mapping[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    rows = [(row["epoch"], row[key]) for row in history if key in row]
    epochs = np.array([epoch for epoch, _ in rows], dtype=int)
    return epochs, np.array([value for _, value in rows], dtype=float)


def _mean_curve(lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    # A mean over fewer and fewer fits would jump where one of them stops.
    epochs = np.array(sorted(set.intersection(*(set(epochs.tolist()) for epochs, _ in lines))))
    return epochs, np.array([np.mean([v[e == epoch][0] for e, v in lines]) for epoch in epochs])


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _check_lengths(**arrays: Any) -> None:
    sizes = {name: len(values) for name, values in arrays.items()}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"arrays must be equally long, got {said}.")
    if 0 in sizes.values():
        raise ValueError(f"{', '.join(sizes)}: there is no sample to draw.")
