"""Colours of a confusion matrix, and their legend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dlblocks.plots._style import BLUE, RED, rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEEPEST = 0.55  # of the blue of right ones, on which numbers can be read


def draw_shares(figure: Figure, axis: Axes, share: npt.NDArray[np.floating]) -> None:
    """Draw the shares of each true class (row), with a legend below.

    Right ones are blue, wrong ones red. Wrong ones have a scale of their own, so that few errors
    are visible beside many hits.

    Args:
        figure: The figure.
        axis: Its axis for the matrix.
        share: Shape (C, C), between 0 and 1.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    is_right = np.eye(len(share), dtype=bool)
    blue, red = 1 - DEEPEST * (1 - rgb(BLUE)), rgb(RED)
    most_wrong = float(share[~is_right].max(initial=0.0))
    colour = 1 - (share / (most_wrong or 1))[..., None] * (1 - red)
    colour[is_right] = 1 - share[is_right][:, None] * (1 - blue)
    axis.imshow(np.clip(colour, 0, 1))
    for name, darkest, most in (("wrong", red, most_wrong), ("right", blue, 1.0)):
        if not most:
            continue
        colours = LinearSegmentedColormap.from_list(name, [(1, 1, 1), tuple(darkest)])
        scale = ScalarMappable(Normalize(0, 100 * most), colours)
        bar = figure.colorbar(scale, ax=axis, location="bottom", aspect=30, shrink=0.7, pad=0.03)
        bar.set_label(f"{name}, % of the true class", fontsize=8)
        bar.ax.tick_params(labelsize=8, length=2)
        bar.outline.set_edgecolor("#cccccc")
