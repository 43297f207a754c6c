"""Colours, axes, files and checks of all figures."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from dlblocks._files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours of Okabe and Ito, which colour-blind people can distinguish.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"
COLOURS = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#333333")


def save(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 120) -> None:
    """Write a figure as PNG, SVG or PDF, by the ending of `path`.

    An error leaves no partial file.
    """
    with atomic_write(path) as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # it is drawn as a box
        if part.suffix.lower() == ".png":
            write_png(figure, part, dpi=dpi)
        else:
            figure.savefig(part, dpi=dpi)


def write_png(figure: Figure, file: Path | BinaryIO, *, dpi: int) -> None:
    """Draw a figure once, into a PNG file.

    `Figure.savefig` draws a figure with a layout twice, and compresses slowly. The pixels are the
    same.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas, usual = figure.canvas, figure.dpi
    drawing = FigureCanvasAgg(figure)  # it is now the canvas of the figure
    try:
        figure.dpi = dpi
        drawing.print_png(file, pil_kwargs={"compress_level": 1})  # type: ignore[no-untyped-call]
    finally:
        figure.dpi = usual
        figure.set_canvas(canvas)


def new_figure(width: float, height: float) -> Figure:
    """Create a figure of `width` by `height` inches without pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def style_axis(axis: Axes, x: str, y: str) -> None:
    """Name the axes, and draw a light grid and half a frame."""
    axis.set_xlabel(literal(x))
    axis.set_ylabel(literal(y))
    axis.grid(True, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def literal(text: str) -> str:
    """Escape a text, because matplotlib reads ``$…$`` as mathematics."""
    return text.replace("$", r"\$")


def rgb(colour: str) -> np.ndarray:
    """Convert ``"#rrggbb"`` to three numbers in [0, 1]."""
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def as_numpy(values: Any) -> np.ndarray:
    """Convert values to an array.

    Tensors may be on any device, have any precision, and require gradients.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)


def check_lengths(**arrays: Any) -> None:
    """Raise a `ValueError` unless arrays have equal lengths above 0."""
    sizes = {name: len(values) for name, values in arrays.items()}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"arrays must be equally long, got {said}.")
    if 0 in sizes.values():
        raise ValueError(f"{', '.join(sizes)}: there is no sample to draw.")
