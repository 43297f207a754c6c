"""Split the tiles of large images into blocks, with a margin.

Random folds put neighbouring tiles on both sides, and such a score is too good. Blocks that are
held out with a margin around them prevent that.

References:
    - Roberts et al.: Cross-validation strategies for data with temporal, spatial, hierarchical, or
      phylogenetic structure. Ecography 40, 2017.
    - Valavi, Elith, Lahoz-Monfort, Guillera-Arroita: blockCV. Methods in Ecology and Evolution 10,
      2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dlblocks._errors import check_range

Indices = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]
COLUMNS = "image, row, column, height, width"


@dataclass(frozen=True)
class Plane:
    """Positions of samples, and how to cut them into blocks.

    Attributes:
        positions: Image, top row, left column, height and width of each sample, shape (N, 5).
        margin: Least number of pixels between training samples and those held out.
        num_blocks: Number of blocks of each split; None for as few as possible.
    """

    positions: Array
    margin: float = 1
    num_blocks: int | None = None

    def __getitem__(self, rows: Indices) -> Plane:
        return Plane(self.positions[rows], self.margin, self.num_blocks)

    def blocks(self, needed: int, seed: int) -> Indices:
        """Return the block of each sample, at least `needed` blocks in all."""
        return cut_into_blocks(self.positions, max(needed, self.num_blocks or 0), seed=seed)

    def far_from(self, rest: Indices, held_out: Indices) -> Indices:
        """Return the samples that have the margin to all held out."""
        close = nearer_than(self.positions[rest], self.positions[held_out], self.margin)
        if close.all() and len(close):
            raise ValueError(
                f"margin={self.margin} leaves no sample outside of the part that is held out; use "
                "a smaller margin, more folds, or num_blocks=None."
            )
        return rest[~close]


def check_positions(positions: Any, split: Any, groups: Any) -> None:
    """Raise a `ValueError` for positions that the split would ignore."""
    if positions is not None and groups is None and split != "blocks":
        raise ValueError(
            f"positions= says where tiles lie, but split={split!r} would put neighbours on both "
            "sides; use split='blocks', or groups= with the image of each tile."
        )


def as_positions(
    positions: npt.ArrayLike, num_samples: int, size: tuple[int, ...] | None = None
) -> Array:
    """Return positions as an array (N, 5).

    The columns are image, row, column, height and width.

    Args:
        positions: Shape (N, 5), or (N, 3) without height and width.
        num_samples: Number of samples N.
        size: Height and width of all samples, for shape (N, 3).

    Raises:
        ValueError: The shape is wrong, a value is not finite, a size is not positive, or there are
            no sizes.

    Example:
        >>> as_positions([[0, 64, 0]], 1, (32, 32))
        array([[ 0., 64.,  0., 32., 32.]])
    """
    array = np.asarray(positions)
    if array.shape not in ((num_samples, 3), (num_samples, 5)) or array.dtype.kind not in "iuf":
        raise ValueError(
            f"positions has shape {array.shape} and dtype {array.dtype}; expected numbers of shape "
            f"({num_samples}, 5): {COLUMNS} of each sample."
        )
    array = array.astype(np.float64)
    if array.shape[1] == 3:
        if size is None:
            raise ValueError(
                "positions has shape (N, 3), and the size of the samples is not known; give (N, 5)"
                f": {COLUMNS}. Points have height and width 1."
            )
        array = np.hstack([array, np.broadcast_to(np.asarray(size, float), (num_samples, 2))])
    wrong = ~np.isfinite(array).all(1) | (array[:, 3:] <= 0).any(1)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"positions has {array[row].tolist()} in row {row}; {COLUMNS} must be finite, and "
            "height and width positive."
        )
    return array


def cut_into_blocks(positions: Array, num_blocks: int, *, seed: int = 0) -> Indices:
    """Cut the plane into compact blocks with about equal numbers of samples.

    All samples are cut in two along their longer side, then each half again, as in a k-d tree.
    Several images are told apart first: if there are as many as blocks, no image is cut.

    Args:
        positions: Image, row, column, height and width, shape (N, 5).
        num_blocks: Number of blocks B.
        seed: Seed of the order of the images.

    Returns:
        The block of each sample, 0 … B-1, shape (N,).

    Raises:
        ValueError: The samples are at too few different places.

    Example:
        >>> tiles = np.array([[0, r, c, 8, 8] for r in (0, 8, 16, 24) for c in (0, 8)], float)
        >>> cut_into_blocks(tiles, 2).reshape(4, 2).tolist()
        [[0, 0], [0, 0], [1, 1], [1, 1]]
    """
    check_range("num_blocks", num_blocks, 1)
    image, top, left, height, width = positions.T
    names, image = np.unique(image, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    # By images, rows and columns of the centres.
    axes = np.stack([order[image], top + height / 2, left + width / 2])
    blocks = np.empty(len(positions), np.int64)
    waiting = [(np.arange(len(positions)), 0, num_blocks)]
    while waiting:
        rows, first, count = waiting.pop()
        if count == 1:
            blocks[rows] = first
            continue
        found = axes[:, rows]
        extent = np.ptp(found, axis=1)
        # Images are cut apart before anything else; then the longer side.
        axis = 0 if extent[0] else 1 + int(extent[2] > extent[1])
        if not extent[axis]:
            places = len(np.unique(positions[:, :3], axis=0))
            raise ValueError(
                f"{len(positions)} samples at {places} different places cannot be cut into "
                f"{num_blocks} blocks; use fewer folds."
            )
        share, is_first = _halves(found, axis, count)
        waiting += [
            (rows[is_first], first, share),
            (rows[~is_first], first + share, count - share),
        ]
    return blocks


def _halves(found: Array, axis: int, count: int) -> tuple[int, npt.NDArray[np.bool_]]:
    """Cut samples in two parts.

    Returns the number of blocks of the first part, and the samples that it has.

    Args:
        found: Image, row and column of each sample, shape (3, n).
        axis: The one to cut along.
        count: Number of blocks.
    """
    values, counts = np.unique(found[axis], return_counts=True)
    reached = np.cumsum(counts)[:-1] / counts.sum()  # share of samples up to each value
    shares = np.arange(1, count)[:, None]
    wanted = shares / count
    imbalance = np.abs(reached - wanted) / np.minimum(wanted, 1 - wanted)
    imbalance += 1e-9 * np.abs(wanted - 0.5)  # of equals the middle
    # Each side needs as many different places as it gets blocks.
    distinct = np.unique(found, axis=1)
    places = np.searchsorted(np.sort(distinct[axis]), values[:-1], side="right")
    fits = (places >= shares) & (distinct.shape[1] - places >= count - shares)
    imbalance[~fits] = np.inf
    share, edge = np.unravel_index(int(imbalance.argmin()), imbalance.shape)
    return int(share) + 1, found[axis] <= values[edge]


def nearer_than(positions: Array, others: Array, margin: float) -> npt.NDArray[np.bool_]:
    """Tell which rectangles are near to any of the others, shape (N,).

    The distance is the larger of the gaps along rows and columns: the number of pixels between two
    rectangles that lie side by side, 0 for neighbours that touch, less than 0 if they overlap. In
    different images nothing is near.

    Args:
        positions: Image, row, column, height and width, shape (N, 5).
        others: In the same way, shape (M, 5).
        margin: Least distance.

    Example:
        >>> tiles = np.array([[0, 0, 8, 8, 8], [0, 0, 16, 8, 8], [1, 0, 0, 8, 8]], float)
        >>> nearer_than(tiles, np.array([[0, 0, 0, 8, 8.0]]), margin=1)
        array([ True, False, False])
    """
    near = np.zeros(len(positions), dtype=bool)
    # By image, then by row, so that all that may be near to a rectangle follow one another.
    order = np.lexsort((positions[:, 1], positions[:, 0]))
    image, top, left, height, width = positions[order].T
    highest = height.max(initial=0)
    names, starts = np.unique(image, return_index=True)
    bounds = dict(zip(names.tolist(), zip(starts, [*starts[1:], len(order)], strict=True),
                      strict=True))  # fmt: skip
    for number, row, column, tall, wide in others.tolist():
        start, stop = bounds.get(number, (0, 0))
        tops = top[start:stop]
        first = start + int(np.searchsorted(tops, row - margin - highest, side="left"))
        last = start + int(np.searchsorted(tops, row + tall + margin, side="right"))
        some = slice(first, last)
        gap = np.maximum(top[some] - (row + tall), row - (top[some] + height[some]))
        across = np.maximum(left[some] - (column + wide), column - (left[some] + width[some]))
        near[order[some]] |= np.maximum(gap, across) < margin
    return near
