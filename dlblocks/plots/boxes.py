"""Figures of boxes over their images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dlblocks.plots._style import GREEN, RED, check_lengths, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]
MOST = 100  # boxes of an image with a text


def boxes(
    images: npt.ArrayLike,
    targets: Sequence[npt.ArrayLike],
    predictions: Sequence[npt.ArrayLike] | None = None,
    class_names: Sequence[str] = (),
    *,
    titles: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw images with boxes of objects and of detections.

    Objects are green, detections red and dashed. Objects have their class below the box,
    detections their class and score above it.

    Args:
        images: Shape (N, C, H, W), uint8 or floating point.
        targets: For each image rows (x0, y0, x1, y1, class), (n, 5) or (n, 4).
        predictions: For each image rows (x0, y0, x1, y1, score, class), or None.
        class_names: Names of the classes 0 … C-1; with a single one, texts leave it out.
        titles: One for each image.
        title: Put above.

    Raises:
        ValueError: Lengths differ, or they are 0.
    """
    images = np.asarray(images)
    given: dict[str, Any] = {"images": images, "targets": targets}
    if predictions is not None:
        given["predictions"] = predictions
    check_lengths(**given)
    columns = min(len(images), 4)
    rows = -(-len(images) // columns)
    figure = new_figure(2.8 * columns, 2.9 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_frame_on(False)
    for i, axis in enumerate(axes[: len(images)]):
        height, width = images.shape[2:]
        # Pixel i covers i … i + 1, as boxes count.
        axis.imshow(_shown(images[i]), cmap="gray", extent=(0, width, height, 0))
        _draw(axis, np.asarray(targets[i]), class_names, GREEN, scored=False)
        if predictions is not None:
            _draw(axis, np.asarray(predictions[i]), class_names, RED, scored=True)
        if titles is not None:
            axis.set_title(literal(titles[i]), fontsize=8, loc="left", pad=3)
    if title:
        figure.suptitle(literal(title), fontsize=11)
    return figure


def _draw(axis: Any, rows: Array, names: Sequence[str], colour: Any, *, scored: bool) -> None:
    from matplotlib.patches import Rectangle

    for row in rows:
        x0, y0, x1, y1 = (float(value) for value in row[:4])
        style = "--" if scored else "-"
        axis.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, lw=1.2, ls=style)
        )
        if len(rows) > MOST:
            continue
        text = ""
        if len(row) > 4 + scored and len(names) != 1:
            label = int(row[-1])
            text = names[label] if label < len(names) else str(label)
        if scored:
            text = f"{text} {row[4]:.2f}".strip()
        shown = axis.text(
            x0, y0 if scored else y1, literal(text), color=colour, fontsize=6,
            ha="left", va="bottom" if scored else "top", clip_on=True,
        )  # fmt: skip
        shown.set_in_layout(False)  # measuring hundreds of texts takes seconds


def _shown(image: Array) -> Array:
    """Return an image (H, W) or (H, W, 3) in 0 … 1."""
    if image.dtype == np.uint8:
        values = image / 255
    else:
        low, high = float(image.min()), float(image.max())
        values = (image - low) / (high - low if high > low else 1)
    shown: Array = values.transpose(1, 2, 0) if len(values) == 3 else values.mean(0)
    return shown
