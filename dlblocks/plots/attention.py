"""Figures of the attention of a Transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dlblocks.plots._style import as_numpy, check_lengths, literal, new_figure
from dlblocks.plots.images import _grid, _scaled, _show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def attention(
    maps: Sequence[npt.ArrayLike], labels: Sequence[str] | None = None, *, title: str = ""
) -> Figure:
    """Draw the attention of one sequence as heat maps.

    Each block has a row of heat maps, one for each head. Row i of a heat map shows how much
    position i attends to each position. All have one scale, from 0 to the largest weight.

    Args:
        maps: The weights of each block, shape (heads, T, S), such as
            ``[block[0] for block in model.attention_maps(inputs)]``.
        labels: Names of the positions, such as characters; None for their numbers.
        title: Title of the figure.

    Raises:
        ValueError: `maps` is empty or has another shape, or `labels` has another length.
    """
    blocks = [as_numpy(block) for block in maps]
    check_lengths(maps=blocks)
    if any(block.ndim != 3 for block in blocks):
        shapes = ", ".join(str(block.shape) for block in blocks)
        raise ValueError(
            f"maps has shapes {shapes}; expected (heads, T, S) for each block, of one sequence: "
            "[block[0] for block in maps]."
        )
    if labels is not None and len(labels) != blocks[0].shape[-1]:
        raise ValueError(
            f"labels has {len(labels)} names for {blocks[0].shape[-1]} positions; give one each."
        )
    heads, highest = max(len(block) for block in blocks), max(block.max() for block in blocks)
    figure = new_figure(1.8 * heads + 0.8, 1.9 * len(blocks) + 0.4)
    axes = figure.subplots(len(blocks), heads, squeeze=False)
    for number, (row, block) in enumerate(zip(axes, blocks, strict=True)):
        for head, axis in enumerate(row):
            axis.set_visible(head < len(block))
            if head >= len(block):
                continue
            drawn = axis.imshow(block[head], cmap="viridis", vmin=0, vmax=highest)
            axis.set_title(f"block {number + 1}, head {head + 1}", fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
            if labels is not None:
                names = [literal(str(label)) for label in labels]
                axis.set_xticks(range(len(names)), names, fontsize=6)
                if block.shape[1] == len(names):
                    axis.set_yticks(range(len(names)), names, fontsize=6)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="weight")
    figure.supxlabel("attended to", fontsize=9)
    figure.supylabel("from", fontsize=9)
    figure.suptitle(literal(title), fontsize=11)
    return figure


def attention_on_images(
    images: npt.ArrayLike,
    weights: npt.ArrayLike,
    grid: tuple[int, int],
    *,
    titles: Sequence[str] | None = None,
) -> Figure:
    """Draw images, and below each how much its patches are attended to.

    The weights of an image are averaged over heads and queries. They are shown relative to the
    largest of the image.

    Args:
        images: Shape (N, C, H, W) with C = 1 or 3, or (N, H, W).
        weights: The attention of a block, shape (N, heads, T, T). If T is one more than there are
            patches, the first position is a learned token, and its queries alone count.
        grid: Rows and columns of the patches, such as ``model.net.grid`` of a `ViTClassifier`.
        titles: Title of each image.

    Raises:
        ValueError: Lengths differ, or the number of positions is not that of the patches.
    """
    images, weights = as_numpy(images), as_numpy(weights)
    check_lengths(images=images, weights=weights)
    count, positions = grid[0] * grid[1], weights.shape[-1]
    if weights.ndim != 4 or positions not in (count, count + 1):
        raise ValueError(
            f"weights has shape {weights.shape}; expected (N, heads, T, T) with T = {count} or "
            f"{count + 1} for a grid of {grid[0]} × {grid[1]} patches."
        )
    mean = weights.mean(1)  # (N, T, T)
    shares = mean.mean(1) if positions == count else mean[:, 0, 1:]
    figure, axes = _grid(2 * len(images), len(images), 1.3, 1.5)
    scaled = _scaled(images)
    for i, image in enumerate(scaled):
        _show_image(axes[i], image)
        below = axes[len(images) + i]
        height, width = image.shape[-2:]
        below.imshow(
            shares[i].reshape(grid) / max(float(np.max(shares[i])), 1e-12),
            cmap="magma",
            vmin=0,
            vmax=1,
            extent=(0, width, height, 0),
        )
        if titles is not None:
            axes[i].set_title(literal(titles[i]), fontsize=9, pad=3)
    return figure
