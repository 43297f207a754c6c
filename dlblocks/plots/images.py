"""Figures of images with their labels or predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dlblocks.plots._style import GREEN, RED, as_numpy, check_lengths, literal, new_figure
from dlblocks.plots.masks import overlays

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def batch(
    images: npt.ArrayLike,
    targets: npt.ArrayLike,
    class_names: Sequence[str] | None = None,
    *,
    values: bool | None = None,
    ignore_index: int = 255,
) -> Figure:
    """Draw the images of a batch with their labels or masks.

    A soft label shows the shares of its classes, largest first, three at most: ``7: 62 %``. A class
    without a name shows its number. Labels that are not numbers show as they are.

    Args:
        images: Shape (N, C, H, W) with C = 1 or 3, or (N, H, W); uint8, or floating point, which is
            scaled by the range of the whole batch.
        targets: Classes (N,), soft labels or several labels (N, C), or values, floating point of
            shape (N,) or (N, D). Or masks: classes (N, H, W), or soft masks (N, C, H, W), of which
            the likeliest class is drawn.
        class_names: Names of the classes; None for their numbers, or for values.
        values: True if targets (N, D) are values rather than shares of classes. None: true if some
            are outside [0, 1].
        ignore_index: The label of pixels that do not count.

    Raises:
        ValueError: Lengths differ or are 0, or the images have another shape.
    """
    images, targets = as_numpy(images), as_numpy(targets)
    check_lengths(images=images, targets=targets)
    if targets.ndim > 2 and targets.shape[-2:] == images.shape[-2:]:
        return _masks(images, targets, class_names, ignore_index)
    images = _scaled(images)
    if values is None and targets.ndim == 2 and targets.dtype.kind == "f":
        values = bool((targets < 0).any() or (targets > 1.01).any())  # allow rounding
    # Nearly a square, with enough width for the labels.
    columns = min(len(images), max(4, round(len(images) ** 0.5)))
    figure, axes = _grid(len(images), columns, 1.4, 1.75)
    for axis, image, target in zip(axes, images, targets, strict=False):
        _show_image(axis, image)
        said = _values(target) if values else _label(target, class_names)
        axis.set_xlabel(literal(said), fontsize=9, labelpad=3)
    return figure


def _masks(
    images: np.ndarray, targets: np.ndarray, class_names: Sequence[str] | None, ignore_index: int
) -> Figure:
    """Draw images under their masks."""
    if targets.ndim == 4:  # soft masks; where nothing counts, all shares are 0
        labels = np.where(targets.sum(1) > 0, targets.argmax(1), -1)
        count = targets.shape[1]
    else:
        labels = np.where(targets == ignore_index, -1, targets.astype(np.int64))
        count = int(labels.max(initial=0)) + 1
    names = class_names or [str(i) for i in range(count)]
    pixels = images if images.ndim == 4 else images[:, None]
    return overlays(pixels, labels, None, names)


def _grid(count: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """Create a figure with empty axes in rows, of a size in inches each."""
    rows = -(-count // columns)
    figure = new_figure(width * columns, height * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_frame_on(False)
    return figure, axes


def _scaled(images: np.ndarray) -> np.ndarray:
    """Scale floating-point images to [0, 1] by their range."""
    if images.dtype == np.uint8:
        return images
    low, high = float(images.min()), float(images.max())
    return (images - low) / (high - low if high > low else 1.0)


def _show_image(axis: Axes, image: np.ndarray) -> None:
    """Draw one image (C, H, W) or (H, W)."""
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
    """Describe a class, the shares of several classes, or values."""
    if target.ndim == 1 and len(target) > 1:
        largest = np.argsort(-target, kind="stable")[:3]
        shares = [(i, float(target[i])) for i in largest if target[i] > 0.005]
        names = [_name(i, class_names) for i, _ in shares]
        if len(shares) == 1 and shares[0][1] > 0.995:
            return names[0]
        parts = [f"{name}: {100 * p:.0f} %" for name, (_, p) in zip(names, shares, strict=True)]
        return ("\n" if max(map(len, names), default=0) > 4 else ", ").join(parts)
    value = target.reshape(-1)[0]
    return _name(int(value), class_names) if isinstance(value, np.integer) else _values(target)


def _name(number: int, class_names: Sequence[str] | None) -> str:
    names = class_names or ()
    return names[number] if 0 <= number < len(names) else str(number)


def _values(target: np.ndarray) -> str:
    """Describe one value or several, three at most."""
    parts = [f"{v:.3g}" if isinstance(v, np.floating) else str(v) for v in target.flat]
    return ", ".join(parts[:3]) + ("" if len(parts) <= 3 else ", …")


def hardest(
    images: npt.ArrayLike,
    targets: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    class_names: Sequence[str],
    *,
    indices: npt.ArrayLike | None = None,
    count: int = 20,
    title: str = "hardest samples",
) -> Figure:
    """Draw the samples with the lowest probability of their true class.

    Args:
        images: Shape (N, C, H, W) with C = 1 or 3, or (N, H, W); uint8, or floating point, which is
            scaled by its own range.
        targets: True classes, int, shape (N,).
        probabilities: Shape (N, C).
        class_names: Names of the classes.
        indices: Number of each sample in its data set; by default 0 … N-1.
        count: Number of samples to draw.
        title: Title, followed by the meaning of the images' own titles.

    Raises:
        ValueError: Lengths differ or are 0.
    """
    images, targets = np.asarray(images), np.asarray(targets)
    probabilities = np.asarray(probabilities)
    indices = np.arange(len(targets)) if indices is None else np.asarray(indices)
    check_lengths(images=images, targets=targets, probabilities=probabilities, indices=indices)
    true = np.take_along_axis(probabilities, targets[:, None], axis=1)[:, 0]
    order = np.argsort(true, kind="stable")[:count]
    guess = probabilities[order].argmax(1)
    return answers(
        images[order],
        [
            f"{class_names[t]} → {class_names[g]}"
            for t, g in zip(targets[order], guess, strict=True)
        ],
        captions=[f"p(true) {true[i]:.2f}\nsample {indices[i]}" for i in order],
        right=guess == targets[order],
        title=f"{title}: true → predicted",
    )


def answers(
    images: npt.ArrayLike,
    said: Sequence[str],
    *,
    captions: Sequence[str] | None = None,
    right: npt.ArrayLike | None = None,
    title: str | None = None,
) -> Figure:
    """Draw images with what was predicted of each.

    Args:
        images: Shape (N, C, H, W) with C = 1 or 3, or (N, H, W); uint8, or floating point, each of
            which is scaled by its own range.
        said: A text above each image.
        captions: A text below each image.
        right: Whether each prediction is right, shape (N,): its text is green or red.
        title: Title.

    Raises:
        ValueError: Lengths differ or are 0.
    """
    images = as_numpy(images)
    check_lengths(images=images, said=said)
    columns = min(len(images), 5 if len(images) <= 20 else 8)
    figure, axes = _grid(len(images), columns, 1.7, 2.3)
    colours = ["black"] * len(images)
    if right is not None:
        colours = [GREEN if one else RED for one in as_numpy(right)]
    for i, axis in enumerate(axes[: len(images)]):
        _show_image(axis, _scaled(images[i]))
        axis.set_title(literal(said[i]), fontsize=11, color=colours[i], fontweight="bold", pad=3)
        if captions is not None:
            axis.set_xlabel(literal(captions[i]), fontsize=8, color="#444444", labelpad=3)
    if title:
        figure.suptitle(literal(title), fontsize=11, y=1 - GAP / figure.get_figheight())
    below = _lines(captions) * 8 if captions is not None else 0
    _place(figure, axes, columns, _lines(said) * 11, below, 11 * _lines([title or ""]))
    return figure


GAP = 0.06  # inches around images and texts
LINE = 1.4 / 72  # inches of a line of text, for each point of its size


def _lines(texts: Sequence[str]) -> int:
    """Return the most lines that a text has."""
    return max(text.count("\n") + bool(text) for text in texts)


def _place(
    figure: Figure, axes: np.ndarray, columns: int, above: int, below: int, title: int
) -> None:
    """Place images in rows, with room for texts of known heights.

    matplotlib's layout would find the same, and take longer than drawing.

    Args:
        figure: The figure.
        axes: Its axes, row by row.
        columns: Axes in a row.
        above: Height of the text above each image, in points.
        below: Height of the text below.
        title: Height of the title of the figure.
    """
    figure.set_layout_engine("none")
    width, height = figure.get_size_inches()
    cell = (height - LINE * title) / (len(axes) / columns), width / columns
    size = cell[0] - LINE * (above + below) - 3 * GAP, cell[1] - 2 * GAP
    for i, axis in enumerate(axes):
        row, column = divmod(i, columns)
        left, top = column * cell[1] + GAP, LINE * title + row * cell[0] + LINE * above + GAP
        bottom = height - top - size[0]
        axis.set_position([left / width, bottom / height, size[1] / width, size[0] / height])
