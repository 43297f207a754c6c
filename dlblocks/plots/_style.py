"""What the figures share: colours, axes, the writing of files and the check of lengths."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from dlblocks._files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"
COLOURS = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#333333")


def save(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 120) -> None:
    """Writes a figure as PNG, SVG or PDF by the ending of `path`, whole or not at all."""
    with atomic_write(path) as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # it is drawn as a box
        figure.savefig(part, dpi=dpi)


def new_figure(width: float, height: float) -> Figure:
    """A figure of `width` by `height` inches, out of pyplot's sight."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def style_axis(axis: Axes, x: str, y: str) -> None:
    """Names the axes; a light grid and no frame at the top and right."""
    axis.set_xlabel(literal(x))
    axis.set_ylabel(literal(y))
    axis.grid(True, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def literal(text: str) -> str:
    """The text as it is, where matplotlib would read ``$…$`` as mathematics."""
    return text.replace("$", r"\$")


def rgb(colour: str) -> np.ndarray:
    """``"#rrggbb"`` as three numbers in [0, 1]."""
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def as_numpy(values: Any) -> np.ndarray:
    """An array; of a tensor, too, on any device, of any precision, with a gradient or without."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)


def check_lengths(**arrays: Any) -> None:
    """Raises a `ValueError` unless all arrays are equally long and hold something."""
    sizes = {name: len(values) for name, values in arrays.items()}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"arrays must be equally long, got {said}.")
    if 0 in sizes.values():
        raise ValueError(f"{', '.join(sizes)}: there is no sample to draw.")
