"""Figures of maps of classes: over their images, and how many pixels are confused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dlblocks.plots._shares import draw_shares
from dlblocks.plots._style import check_lengths, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]
SHADE = 0.55  # of a class over the grey image
IGNORED = (0.75, 0.75, 0.75)
LARGEST = 30  # classes whose cells have numbers


def overlays(
    images: npt.ArrayLike,
    targets: npt.ArrayLike,
    predictions: npt.ArrayLike | None,
    class_names: Sequence[str],
    *,
    titles: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw images with their masks (left) and the predicted masks (right).

    The image is grey under the colours of the classes; class 0 has none, and pixels that do not
    count are light grey.

    Args:
        images: Shape (N, C, H, W), uint8 or floating point.
        targets: Classes, shape (N, H, W); other labels do not count.
        predictions: Classes, shape (N, H, W). None draws the masks alone.
        class_names: Names of the classes 0 … C-1.
        titles: One for each image.
        title: Put above.

    Raises:
        ValueError: Lengths differ, or are 0.
    """
    images, targets = np.asarray(images), np.asarray(targets)
    maps = [targets] if predictions is None else [targets, np.asarray(predictions)]
    check_lengths(images=images, targets=targets, predictions=maps[-1])
    colours = _colours(len(class_names))
    columns = min(len(images), 8 // len(maps))
    rows = -(-len(images) // columns)
    figure = new_figure(1.6 * len(maps) * columns, 1.9 * rows + 0.6)
    axes = figure.subplots(rows, len(maps) * columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_frame_on(False)
    for i, places in enumerate(axes.reshape(-1, len(maps))[: len(images)]):
        grey = images[i].astype(float).mean(0)
        low, high = grey.min(), grey.max()
        grey = (grey - low) / (high - low if high > low else 1)
        for axis, labels in zip(places, maps, strict=True):
            numbers = labels[i].astype(np.int64)
            numbers[numbers >= len(class_names)] = -1
            axis.imshow(_shaded(grey, numbers, colours))
        if titles is not None:
            places[0].set_title(literal(titles[i]), fontsize=8, loc="left", pad=3)
    both = np.unique(np.concatenate([labels.ravel() for labels in maps]))
    seen = both[(both > 0) & (both < len(class_names))][:20]
    handles = [_patch(colours[c], literal(class_names[c])) for c in seen]
    if handles:
        figure.legend(
            handles=handles, frameon=False, loc="outside lower center", ncols=10, fontsize=8
        )
    if title:
        figure.suptitle(literal(title), fontsize=11)
    return figure


def _shaded(grey: Array, labels: Array, colours: Array) -> Array:
    """The grey image (H, W) under the colours of its classes: (H, W, 3)."""
    image: Array = np.repeat(grey[..., None], 3, axis=2)
    some = labels > 0
    image[some] = (1 - SHADE) * image[some] + SHADE * colours[labels[some]]
    image[labels < 0] = IGNORED
    return image


def _colours(count: int) -> Array:
    """A colour for each class, (C, 3): the next one a golden angle away, in three strengths."""
    import matplotlib

    hue = (np.arange(count) * 0.618) % 1
    value = np.array([1.0, 0.75, 0.9])[np.arange(count) % 3]
    hsv = np.stack([hue, np.full(count, 0.95), value], axis=1)
    found: Array = matplotlib.colors.hsv_to_rgb(hsv)
    return found


def _patch(colour: Array, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=tuple(colour), label=label)


def pixel_confusion(
    counts: npt.ArrayLike, class_names: Sequence[str], *, title: str | None = None
) -> Figure:
    """Draws which share of each true class (row) was predicted as each class (column).

    Cells have the share in percent, of up to 30 classes. Right ones are blue and wrong ones red,
    the wrong ones on a scale of their own.

    Args:
        counts: Pixels, shape (C, C).
        class_names: Names of the classes 0 … C-1.
        title: Put above, followed by the share of right pixels.

    Raises:
        ValueError: `counts` has another shape.
    """
    counts = np.asarray(counts)
    count = len(class_names)
    if counts.shape != (count, count):
        raise ValueError(f"counts has shape {counts.shape}; expected ({count}, {count}).")
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4.2, 0.5 * min(count, LARGEST) + 1.6)
    figure = new_figure(side + 0.3, side + 1.0)
    axis = figure.subplots()
    draw_shares(figure, axis, share)
    if count <= LARGEST:
        for i, j in np.argwhere(share >= 0.0005):
            text = f"{100 * share[i, j]:.1f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=8 if count <= 12 else 6)
    step = -(-count // 100)
    shown = [literal(name) for name in class_names[::step]]
    turn = 0 if max(map(len, class_names)) <= 3 else 45
    axis.set_xticks(range(0, count, step), shown, rotation=turn, ha="right" if turn else "center")
    axis.set_yticks(range(0, count, step), shown)
    axis.set_xlabel("predicted (% of the true class)")
    axis.set_ylabel("true")
    axis.tick_params(length=0)
    total = counts.sum()
    said = f"{100 * np.trace(counts) / total:.2f} % of {total} pixels right" if total else ""
    axis.set_title(f"{literal(title)}:\n{said}" if title else said, fontsize=10, pad=14)
    return figure
