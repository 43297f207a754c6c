"""Predict large images tile by tile, with overlapping tiles that fade into each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dlblocks._errors import check_range
from dlblocks._geometry import tile_starts
from dlblocks._quiet import evaluating
from dlblocks.models.model import Model


@torch.no_grad()
def predict_tiles(
    model: nn.Module, images: Tensor, *, tile: int, overlap: int, batch_size: int = 8
) -> Tensor:
    """Predict a map for each image from overlapping tiles.

    Of two neighbours, each is used alone in its own quarter of their overlap, and in the half
    between them they fade into each other linearly. So the result is that of the whole image where
    the model sees no further than a quarter of `overlap`. A net with pooling, such as a U-Net, also
    needs a `tile` and an `overlap` that are multiples of all its strides (16 for a depth of 4);
    only the last tile of a row may then begin elsewhere.

    The model is in evaluation mode meanwhile. Tiles go to its device, the result stays on that of
    the images.

    Args:
        model: Maps (N, C, h, w) to (N, K, h, w). A `dlblocks.models.Model` gets raw images, and its
            task makes predictions of the outputs: probabilities.
        images: Shape (N, C, H, W).
        tile: Height and width of a tile; of a smaller image the whole is one tile.
        overlap: Pixels that neighbours share, less than `tile`.
        batch_size: Tiles at once.

    Returns:
        Floating point, shape (N, K, H, W).

    Raises:
        ValueError: An argument is out of range, or the model changes height or width.

    Example:
        >>> net = nn.Conv2d(1, 2, 3, padding=1)
        >>> images = torch.randn(1, 1, 40, 50)
        >>> torch.allclose(predict_tiles(net, images, tile=16, overlap=4), net(images), atol=1e-6)
        True
    """
    check_range("tile", tile, 1)
    check_range("overlap", overlap, 0)
    check_range("batch_size", batch_size, 1)
    if overlap >= tile:
        raise ValueError(f"overlap={overlap} must be less than tile={tile}.")
    if images.ndim != 4:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (N, C, H, W).")
    device = next((p.device for p in model.parameters()), images.device)
    with evaluating(model):
        return _predicted(model, images, tile, overlap, batch_size, device)


def _predicted(
    model: Any, images: Tensor, tile: int, overlap: int, batch_size: int, device: torch.device
) -> Tensor:
    count, _, height, width = images.shape
    rows, columns = (tile_starts(side, tile, tile - overlap) for side in (height, width))
    down, right = (
        _fades(starts, side, tile) for starts, side in ((rows, height), (columns, width))
    )
    # All tiles have one size, so that some of any image make a batch.
    places = [
        (i, r, c) for i in range(count) for r in range(len(rows)) for c in range(len(columns))
    ]
    total: Tensor | None = None
    for start in range(0, len(places), batch_size):
        some = places[start : start + batch_size]
        cut = [images[i, :, rows[r] : rows[r] + tile, columns[c] : columns[c] + tile]
               for i, r, c in some]  # fmt: skip
        batch = torch.stack(cut).to(device)
        outputs = model(batch)
        if isinstance(model, Model) and model.task is not None:
            outputs = model.task.predict(outputs)
        if outputs.shape[2:] != batch.shape[2:]:
            raise ValueError(
                f"{type(model).__name__} makes {tuple(outputs.shape)} of tiles "
                f"{tuple(batch.shape)}; it must keep height and width."
            )
        outputs = outputs.to(images.device, torch.promote_types(outputs.dtype, torch.float32))
        if total is None:
            total = outputs.new_zeros(count, outputs.shape[1], height, width)
        for (i, r, c), output in zip(some, outputs, strict=True):
            share = down[r].to(output)[:, None] * right[c].to(output)
            at = total[i, :, rows[r] : rows[r] + tile, columns[c] : columns[c] + tile]
            at += output * share
    assert total is not None  # for the type checker
    return total


def _fades(starts: list[int], side: int, tile: int) -> list[Tensor]:
    """The share of each tile at each of its pixels; those of all tiles sum to 1."""
    length = min(side, tile)
    place = torch.arange(length, dtype=torch.float64) + 0.5
    fades = [torch.ones(length, dtype=torch.float64) for _ in starts]
    for k in range(1, len(starts)):
        shared = starts[k - 1] + length - starts[k]
        if shared:
            rise = ((place[:shared] / shared - 0.25) / 0.5).clamp(0, 1)
            fades[k][:shared] *= rise
            fades[k - 1][length - shared :] *= 1 - rise
    sums = torch.zeros(side, dtype=torch.float64)
    for start, fade in zip(starts, fades, strict=True):
        sums[start : start + length] += fade
    return [fade / sums[start : start + length] for start, fade in zip(starts, fades, strict=True)]
