"""Figures of images with their labels or predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dlblocks.plots._style import GREEN, RED, as_numpy, check_lengths, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def batch(
    images: npt.ArrayLike,
    targets: npt.ArrayLike,
    class_names: Sequence[str] | None = None,
    *,
    values: bool | None = None,
) -> Figure:
    """Draw the images of a batch in a grid, with their labels.

    A soft label shows the shares of its classes, largest first, three at most: ``7: 62 %``. A class
    without a name shows its number. Labels that are not numbers show as they are.

    Args:
        images: Shape (N, C, H, W) with C = 1 or 3, or (N, H, W); uint8, or floating point, which is
            scaled by the range of the whole batch.
        targets: Classes (N,), soft labels or several labels (N, C), or values, floating point of
            shape (N,) or (N, D).
        class_names: Names of the classes; None for their numbers, or for values.
        values: True if targets (N, D) are values rather than shares of classes. None: true if some
            are outside [0, 1].

    Raises:
        ValueError: Lengths differ or are 0, or the images have another shape.
    """
    images, targets = as_numpy(images), as_numpy(targets)
    check_lengths(images=images, targets=targets)
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
    columns = min(len(order), 5 if len(order) <= 20 else 8)
    figure, axes = _grid(len(order), columns, 1.7, 2.3)
    for axis, i in zip(axes, order, strict=False):
        _show_image(axis, _scaled(images[i]))
        guess = int(probabilities[i].argmax())
        axis.set_title(
            literal(f"{class_names[targets[i]]} → {class_names[guess]}"),
            fontsize=11,
            color=GREEN if guess == targets[i] else RED,
            fontweight="bold",
            pad=3,
        )
        said = f"p(true) {true[i]:.2f}\nsample {indices[i]}"
        axis.set_xlabel(said, fontsize=8, color="#444444", labelpad=3)
    figure.suptitle(literal(f"{title}: true → predicted"), fontsize=11)
    return figure
