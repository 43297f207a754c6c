"""Cut large images into tiles, and put maps of tiles together again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dlblocks._errors import check_range
from dlblocks._geometry import tile_starts

Array = npt.NDArray[Any]


def cut_tiles(
    images: Sequence[Any] | Array | Tensor, tile: int, *, stride: int | None = None
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Cut images, or masks of the same sizes, into square tiles.

    Tiles begin every `stride` pixels. The last one of a row or column ends with the image, so it
    may share pixels with the one before. Give the positions to `ArrayDataModule` with
    ``split="blocks"``, which keeps neighbours apart.

    Args:
        images: Images of any sizes, each of shape (..., H, W), or an array of them (N, ..., H, W).
        tile: Height and width of a tile in pixels.
        stride: Pixels from one tile to the next; None for `tile`.

    Returns:
        Tiles, shape (M, ..., tile, tile), and their positions: image, row, column, height and
        width, int64 of shape (M, 5).

    Raises:
        ValueError: An image is smaller than a tile, or there is none.

    Example:
        >>> tiles, positions = cut_tiles([np.zeros((3, 40, 50))], 16)
        >>> tiles.shape, positions[-1].tolist()
        ((12, 3, 16, 16), [0, 24, 34, 16, 16])
    """
    check_range("tile", tile, 1)
    stride = tile if stride is None else stride
    check_range("stride", stride, 1, tile)
    if not len(images):
        raise ValueError("images is empty; cut_tiles needs at least one image.")
    arrays = [np.asarray(image) for image in images]
    found = []
    for i, array in enumerate(arrays):
        if array.ndim < 2 or min(array.shape[-2:]) < tile:
            raise ValueError(
                f"images[{i}] has shape {array.shape}; tile={tile} needs at least that height and "
                "width: use a smaller tile, or give a single image as [image]."
            )
        found.append(positions_in(array.shape[-2], array.shape[-1], tile, stride, image=i))
    positions = np.concatenate(found)
    tiles = np.stack(
        [arrays[i][..., r : r + tile, c : c + tile] for i, r, c in positions[:, :3].tolist()]
    )
    return tiles, positions


def positions_in(
    height: int, width: int, tile: int, stride: int, *, image: int = 0
) -> npt.NDArray[np.int64]:
    """Return the positions (M, 5) of all tiles of an image."""
    rows, columns = (tile_starts(side, tile, stride) for side in (height, width))
    return np.array([(image, r, c, tile, tile) for r in rows for c in columns], np.int64)


def boxes_of_tiles(
    boxes: Sequence[npt.ArrayLike], positions: npt.ArrayLike, *, min_visible: float = 0.3
) -> list[Array]:
    """Return the boxes that lie in each tile, clipped and in its pixels.

    Args:
        boxes: For each image x0, y0, x1, y1, and further columns such as the class, (n, 4 + k).
        positions: Image, row, column, height and width of each tile, shape (M, 5), of `cut_tiles`.
        min_visible: Least share of a box that is in a tile; otherwise it is not in it.

    Returns:
        For each tile, its boxes, floating point (m, 4 + k).

    Raises:
        ValueError: A tile is of an image without an entry in `boxes`, or a box is not finite,
            inverted or without area.

    Example:
        >>> tiles, positions = cut_tiles([np.zeros((3, 20, 40))], 20)
        >>> [rows.tolist() for rows in boxes_of_tiles([[[15, 2, 25, 12]]], positions)]
        [[[15.0, 2.0, 20.0, 12.0]], [[0.0, 2.0, 5.0, 12.0]]]
    """
    check_range("min_visible", min_visible, 0, 1)
    rows = [np.asarray(each, float) for each in boxes]
    # An image without boxes has as many columns as the others, so that `[:, 4]` is always a class.
    columns = max([4, *(each.shape[1] for each in rows if each.ndim == 2)])
    rows = [each if each.size else each.reshape(0, columns) for each in rows]
    for i, each in enumerate(rows):
        if each.ndim != 2 or each.shape[1] < 4:
            raise ValueError(
                f"boxes has shape {each.shape} in image {i}; expected (n, 4) or more columns, also "
                "for one box: (1, 4)."
            )
        wrong = ~(np.isfinite(each[:, :4]).all(1) & (each[:, 2:4] > each[:, :2]).all(1))
        if wrong.any():
            raise ValueError(
                f"boxes has {each[wrong.argmax(), :4].tolist()} in image {i}; expected finite "
                "corners x0 < x1 and y0 < y1."
            )
    found = []
    for image, top, left, height, width in np.asarray(positions).tolist():
        if not 0 <= image < len(rows):
            raise ValueError(
                f"positions has image {image}, but boxes has {len(rows)} entries; give one for "
                "each image."
            )
        inside = rows[int(image)].copy()
        whole = np.prod(inside[:, 2:4] - inside[:, :2], 1)
        inside[:, :4] -= [left, top, left, top]
        inside[:, :4] = np.clip(inside[:, :4], 0, [width, height, width, height])
        share = np.prod(inside[:, 2:4] - inside[:, :2], 1) / whole
        found.append(inside[(share >= min_visible) & (share > 0)])
    return found


def join_tiles(tiles: npt.ArrayLike, positions: npt.ArrayLike) -> dict[int, Array]:
    """Put maps of tiles together into maps of whole images.

    In an overlap, each pixel comes from the tile in which it is farthest from the edge. So
    out-of-fold predictions become maps of whole images, and each pixel is predicted by a model
    that was not trained on it:
    ``join_tiles(result.oof.prediction, datamodule.columns.positions[result.oof.index])``.

    Args:
        tiles: Shape (M, ..., h, w).
        positions: Image, row, column, height and width of each tile, shape (M, 5).

    Returns:
        The map (..., H, W) of each image, by its number. Pixels of no tile are NaN; in integers
        255 (uint8) or -1, which do not count in segmentation.

    Raises:
        ValueError: Shapes do not fit, or tiles have been resized.

    Example:
        >>> tiles, positions = cut_tiles([np.arange(20).reshape(4, 5)], 3)
        >>> join_tiles(tiles, positions)[0][3].tolist()
        [15, 16, 17, 18, 19]
    """
    array, places = np.asarray(tiles), np.asarray(positions)
    if array.ndim < 3 or places.shape != (len(array), 5):
        raise ValueError(
            f"tiles has shape {array.shape} and positions {places.shape}; expected (M, ..., h, w) "
            "and (M, 5): image, row, column, height, width."
        )
    height, width = array.shape[-2:]
    other = (places[:, 3:] != (height, width)).any(1)
    if other.any():
        raise ValueError(
            f"positions[{other.argmax()}] has height and width {places[other.argmax(), 3:]}, but "
            f"the tiles are {height}×{width}; resize the tiles first."
        )
    # Distance of each pixel from the edge of its tile.
    down, right = (np.minimum(np.arange(n), np.arange(n)[::-1]) + 1 for n in (height, width))
    central = np.minimum(down[:, None], right)
    fill: Any = np.nan
    if array.dtype.kind in "iub":
        fill = 255 if array.dtype == np.uint8 else -1
    found: dict[int, Array] = {}
    places = places.astype(np.int64)
    for image in np.unique(places[:, 0]).tolist():
        rows = np.flatnonzero(places[:, 0] == image)
        size = (places[rows, 1].max() + height, places[rows, 2].max() + width)
        whole = np.full((*array.shape[1:-2], *size), fill, array.dtype)
        best = np.zeros(size, np.int64)
        for i in rows.tolist():
            top, left = places[i, 1:3]
            some = np.s_[..., top : top + height, left : left + width]
            better = central > best[some]
            whole[some][..., better] = array[i][..., better]
            best[some] = np.maximum(best[some], central)
        found[image] = whole
    return found
