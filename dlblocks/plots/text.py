"""Figure of a text with the probability of each character."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dlblocks.plots._style import check_lengths, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORST_BITS = 10.0  # the darkest colour


def text_bits(
    text: str,
    probabilities: npt.ArrayLike,
    *,
    width: int = 80,
    max_lines: int = 40,
    title: str | None = None,
) -> Figure:
    """Draw a text, coloured by the bits of each character.

    White costs no bit, and the darkest red ten bits or more: ``-log2(probability)``.

    Args:
        text: N characters.
        probabilities: The probability of each, given those before, shape (N,).
        width: Characters of a line.
        max_lines: Lines that are drawn, the first ones.
        title: Put above.

    Raises:
        ValueError: Lengths differ, or there is no text.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    chances = np.asarray(probabilities, dtype=float)
    check_lengths(text=text, probabilities=chances)
    bits = -np.log2(np.maximum(chances, 2.0**-WORST_BITS))
    rows, columns, row, column = [], [], 0, 0
    for character in text:
        if column == width:
            row, column = row + 1, 0
        if row == max_lines:
            break
        rows.append(row)
        columns.append(column)
        row, column = (row + 1, 0) if character == "\n" else (row, column + 1)
    count = max(rows) + 1
    grid = np.full((count, width), np.nan)
    grid[rows, columns] = bits[: len(rows)]
    figure = new_figure(0.11 * width + 1.2, 0.22 * count + 0.8)
    axis = figure.subplots()
    colours = colormaps["Reds"]
    norm = Normalize(0, 1.4 * WORST_BITS)  # the darkest stays light enough for black letters
    axis.imshow(grid, cmap=colours, norm=norm, aspect="auto")
    for character, y, x in zip(text, rows, columns, strict=False):
        shown = {"\n": "↵", "\t": "→"}.get(character, character)
        axis.text(x, y, literal(shown), family="monospace", fontsize=7, ha="center", va="center")
    axis.set_axis_off()
    if title is not None:
        axis.set_title(literal(title), fontsize=9)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axis, fraction=0.02, pad=0.01)
    bar.ax.set_ylim(0, WORST_BITS)
    bar.set_label("bits")
    return figure
