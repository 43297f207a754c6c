"""Flip, crop and map batches of images, each image differently."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Padding = Literal["zeros", "border", "reflection"]
Memory = Callable[[Tensor], Tensor]
# From so many values an image on, the overhead of handling one by one is small on a CPU.
LARGE_IMAGE = 1 << 13
EXACT = (torch.uint8, torch.int8, torch.int16)  # integers that float32 holds with any fill
EXACT_TO = 1 << 23  # other integers up to here, too
# Pixels resampled at a time on a CPU. Image, grid and result then stay in its cache, which is up to
# eight times as fast as the whole batch at once.
AT_ONCE = 1 << 16
COPIED_AT_ONCE = 1 << 20  # values


@dataclass(frozen=True)
class Geometry:
    """Flips, scales, shears, rotations and shifts of the images of a batch.

    Tensors are on the CPU.

    Attributes:
        size: Height and width of the images.
        flip: Whether to mirror left and right, and top and bottom, bool, shape (N, 2).
        shift: Pixels to the right and down, shape (N, 2).
        rotation: Degrees, clockwise as seen, shape (N,).
        scale: Factor of size, shape (N,).
        shear: Degrees along x, shape (N,).
        padding: What comes in at the edges; see `affine`.
        whole_pixels: Whether there is nothing but flips and shifts by whole pixels.
    """

    size: tuple[int, int]
    flip: Tensor
    shift: Tensor
    rotation: Tensor
    scale: Tensor
    shear: Tensor
    padding: Padding = "zeros"
    whole_pixels: bool = False

    def moved(
        self,
        images: Tensor,
        *,
        nearest: bool = False,
        fill: float = 0,
        memory: Memory | None = None,
    ) -> Tensor:
        """Move images (N, C, H, W).

        The arguments are those of `affine`.
        """
        given: dict[str, Any] = {"padding": self.padding, "fill": fill, "memory": memory}
        if self.whole_pixels:
            return shift_flip(images, self.shift.long(), self.flip, **given)
        matrix = affine_matrix(self.rotation, self.shift, self.scale, self.shear, self.flip)
        return affine(images, matrix, nearest=nearest, **given)

    def points(self, image: int, points: Tensor) -> Tensor:
        """Move points of one image.

        Args:
            image: Number of the image in the batch.
            points: x and y from the upper left corner of the image, floating point (P, 2).

        Returns:
            Where they are in the moved image, also outside of it, float64 (P, 2).
        """
        one = slice(image, image + 1)
        rotation, scale, shear = (x[one].double() for x in (self.rotation, self.scale, self.shear))
        shift = self.shift[one].double()
        matrix = affine_matrix(rotation, shift, scale, shear, self.flip[one])[0].to(points.device)
        centre = points.new_tensor([self.size[1] / 2, self.size[0] / 2], dtype=torch.float64)
        # From input to output: p_in = A p_out + b about the centre, so p_out = A⁻¹ (p_in - b).
        inner = points.double() - centre - matrix[:, 2]
        moved: Tensor = torch.linalg.solve(matrix[:, :2], inner.T).T + centre
        return moved


def affine_matrix(
    rotation: Tensor, translation: Tensor, scale: Tensor, shear: Tensor, flip: Tensor
) -> Tensor:
    """Maps from output to input pixels, both measured from the image's centre.

    The image is flipped, then scaled, sheared and rotated about its centre, then moved: the order
    of torchvision's `affine`, and its signs.

    Args:
        rotation: Degrees, clockwise as seen (rows run downwards), shape (N,).
        translation: Pixels to the right and down, shape (N, 2).
        scale: Factor of size, shape (N,).
        shear: Degrees along x, shape (N,).
        flip: Whether to mirror left and right, and top and bottom, bool, shape (N, 2).

    Returns:
        Float32 of shape (N, 2, 3): ``[x, y]_in = M[:, :2] [x, y]_out + M[:, 2]``.
    """
    angle, slant = torch.deg2rad(rotation), torch.deg2rad(shear)
    cos, sin, tan = angle.cos(), angle.sin(), slant.tan()
    # Forward: scale · R(angle) · [[1, -tan], [0, 1]], of determinant scale²; inverted by hand.
    inverse = torch.stack(
        [
            torch.stack([cos - sin * tan, sin + cos * tan], dim=1),
            torch.stack([-sin, cos], dim=1),
        ],
        dim=1,
    )
    inverse = inverse / scale[:, None, None]
    # Mirroring is the first thing done to the image, so the last on the way back.
    inverse = inverse * torch.where(flip, -1.0, 1.0)[:, :, None]
    offset = -(inverse @ translation[:, :, None])
    return torch.cat([inverse, offset], dim=2)


def affine(
    images: Tensor,
    matrix: Tensor,
    *,
    padding: Padding = "zeros",
    nearest: bool = False,
    fill: float = 0,
    memory: Memory | None = None,
) -> Tensor:
    """Resamples each image by its own affine map.

    Args:
        images: Shape (N, C, H, W): floating point, or integers, which are rounded.
        matrix: From output to input pixels about the centre, shape (N, 2, 3); see `affine_matrix`.
        padding: What lies outside an image: ``"zeros"``, its ``"border"`` repeated, or its
            ``"reflection"``.
        nearest: Take the nearest pixel, as masks need; otherwise bilinear.
        fill: The value outside an image, instead of zero; needs `nearest`.
        memory: Makes an uninitialised tensor like the one given; None for new memory.

    Returns:
        New images, of the same shape and dtype.
    """
    size, _, height, width = images.shape
    if size == 0:
        return images.clone()
    dtype = images.dtype if images.dtype in (torch.float32, torch.float64) else torch.float32
    # In the units of grid_sample, in which half the width and half the height are 1.
    half = torch.tensor([[[width], [height]]]) / 2
    maps = (matrix / half).to(images.device, dtype, non_blocking=True)
    x, y = (torch.arange(side).to(maps).add_((1 - side) / 2) for side in (width, height))
    across = maps[:, :, 0, None, None] * x
    down = maps[:, :, 1, None, None] * y[:, None] + maps[:, :, 2, None, None]
    in_parts = images.device.type == "cpu"
    count = max(1, AT_ONCE // (height * width)) if in_parts else size
    rows = max(1, AT_ONCE // width) if in_parts else height
    result = _result(images, memory)
    for first in range(0, size, count):
        some = slice(first, first + count)
        source = images[some] if nearest else images[some].to(dtype)
        for top in range(0, height, rows):
            part = result[some, :, top : top + rows]
            # grid_sample takes x and y last. In memory they come first, which is faster to make.
            grid = (across[some] + down[some, :, top : top + rows]).permute(0, 2, 3, 1)
            if nearest:
                part.copy_(_nearest(source, grid, padding, fill))
            else:
                part.copy_(_bilinear(source, grid, padding, part.dtype))
    return result


def _bilinear(images: Tensor, grid: Tensor, padding: Padding, dtype: torch.dtype) -> Tensor:
    """Interpolate images.

    They have the dtype of the grid. The result is rounded if `dtype` is of integers.
    """
    found = F.grid_sample(images, grid, padding_mode=padding, align_corners=False)
    if dtype.is_floating_point:
        return found
    found = found.round_()
    # On a CPU, torch is three times as fast from float to uint8 by way of int16.
    return found.to(torch.int16) if dtype == torch.uint8 else found


def _nearest(images: Tensor, grid: Tensor, padding: Padding, fill: float) -> Tensor:
    """Take the nearest pixels of a grid, exact for every dtype.

    `grid_sample` is faster, but takes floating point only. Large label numbers do not survive that,
    so they are gathered.
    """
    if _survives_float(images, fill):
        # It has zeros outside: move `fill` there and back.
        wide = images.to(grid.dtype)
        wide = wide - fill if fill else wide
        found = F.grid_sample(wide, grid, mode="nearest", padding_mode=padding, align_corners=False)
        found = found.add_(fill) if fill else found
        return found.to(torch.int16) if images.dtype == torch.uint8 else found
    size, channels, height, width = images.shape
    x = _inside(((grid[..., 0] + 1) * width - 1) / 2, width, padding)
    y = _inside(((grid[..., 1] + 1) * height - 1) / 2, height, padding)
    place = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1))[:, None]
    planes = torch.arange(size * channels, device=place.device).view(size, channels, 1, 1)
    place = planes * (height * width) + place
    pixels = images.reshape(-1).index_select(0, place.flatten()).view(place.shape)
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
    return pixels.masked_fill_(outside[:, None], fill)


def _survives_float(images: Tensor, fill: float) -> bool:
    """Tell whether float32 holds all values, before and after `fill` is subtracted."""
    if images.is_floating_point():
        return not fill
    if images.dtype in EXACT:
        return True
    if images.device.type != "cpu" or images.dtype == torch.bool:  # an accelerator would wait
        return False
    low, high = images.aminmax()
    return abs(fill) <= EXACT_TO and int(low) >= -EXACT_TO and int(high) <= EXACT_TO


def _inside(position: Tensor, length: int, padding: Padding) -> Tensor:
    """Round positions along an axis, as `padding` says of those outside."""
    if padding == "border":
        position = position.clamp(0, length - 1)
    elif padding == "reflection":
        # About the outer edge of the last pixel, as grid_sample does.
        position = (position + 0.5) % (2 * length)
        position = torch.minimum(position, 2 * length - position) - 0.5
        position = position.clamp(0, length - 1)
    return position.round().long()


def shift_flip(
    images: Tensor,
    shift: Tensor,
    flip: Tensor,
    *,
    padding: Padding = "zeros",
    fill: float = 0,
    memory: Memory | None = None,
) -> Tensor:
    """Move each image by whole pixels and mirror it.

    It is exact for any dtype.

    The image is mirrored first: it equals `affine` with the same translation and flip. A random
    crop of the image padded by p pixels (torchvision's ``RandomCrop(padding=p)``) is a shift that
    is uniform in -p … p.

    Args:
        images: Shape (N, C, H, W).
        shift: Pixels to the right and down, int64, shape (N, 2), on the CPU.
        flip: Whether to mirror left and right, and top and bottom, bool, shape (N, 2), on the CPU.
        padding: What comes in at the edges; see `affine`.
        fill: What comes in instead of zeros.
        memory: Makes the result; see `affine`.

    Returns:
        New images, of the same shape and dtype.

    Example:
        >>> image = torch.tensor([[[[1, 2, 3]]]])
        >>> shift_flip(image, torch.tensor([[1, 0]]), torch.tensor([[True, False]]))
        tensor([[[[0, 3, 2]]]])
    """
    size, channels, height, width = images.shape
    if size == 0:
        return images.clone()
    if images.device.type == "cpu" and images[0].numel() >= LARGE_IMAGE:
        result = _result(images, memory)
        return _shift_flip_one_by_one(images, shift, flip, padding, fill, result)
    # A mirrored image moved to the right is the image moved to the left, then mirrored.
    start = torch.where(flip, shift, -shift)
    margin = int(start.abs().max())
    # Rows of values that lie side by side, which padding leaves as they were in NHWC.
    source = (_pad(images, margin, padding, fill) if margin else images).contiguous()
    tall, wide = source.shape[2:]
    # Those to be mirrored last, side by side.
    order = flip[:, 0].int().argsort(stable=True)
    shown = size - int(flip[:, 0].sum())
    rows = torch.arange(height).expand(size, -1)
    rows = torch.where(flip[:, 1:], height - 1 - rows, rows) + start[:, 1:] + margin
    # A row of the result is a run of `width` values of the source: copied whole, which is many
    # times faster than gathering value by value. Here are all such runs, overlapping.
    runs = source.as_strided((source.numel() - width + 1, width), (1, 1))
    planes = torch.arange(size * channels).view(size, channels, 1)
    first = (planes * tall + rows[:, None]) * wide + start[:, None, :1] + margin
    first = first.index_select(0, order).flatten().to(images.device, non_blocking=True)
    result = runs.index_select(0, first).view(images.shape)
    if shown == size:
        return result
    result[shown:] = result[shown:].flip(3)
    return result.index_select(0, order.argsort().to(images.device, non_blocking=True))


def _shift_flip_one_by_one(
    images: Tensor, shift: Tensor, flip: Tensor, padding: Padding, fill: float, result: Tensor
) -> Tensor:
    """Move and mirror the images one by one.

    Some are mirrored at a time, so that they are still in the processor's cache when copied.
    """
    count = max(1, COPIED_AT_ONCE // images[0].numel())
    for some in (slice(i, i + count) for i in range(0, len(images), count)):
        margin = int(shift[some].abs().max()) if padding != "zeros" else 0
        source = _pad(images[some], margin, padding, fill) if margin else images[some]
        copies = zip(_mirrored(source, flip[some]), _array(result[some]), strict=True)
        _copy_shifted(copies, shift[some], margin, images.shape[2:], fill)
    return result


def _mirrored(images: Tensor, flip: Tensor) -> list[Any]:
    """Return the images, mirrored where `flip` says so, as arrays."""
    found, (across, down) = list(_array(images)), flip.unbind(1)
    kinds = [([3], across & ~down), ([2], down & ~across), ([2, 3], across & down)]
    for axes, chosen in kinds:
        rows = chosen.nonzero().flatten()
        if len(rows):
            mirrored = _array(images.index_select(0, rows).flip(axes))
            for row, image in zip(rows.tolist(), mirrored, strict=True):
                found[row] = image
    return found


def _copy_shifted(
    copies: Iterable[tuple[Any, Any]], shift: Tensor, margin: int, size: Sequence[int], fill: float
) -> None:
    """Copy images to their targets, moved by `shift`.

    Args:
        copies: Pairs of image and target. Images have `margin` pixels more on each side.
        shift: Pixels to the right and down, int64 (N, 2), at most `margin` if there is one.
        margin: See `copies`.
        size: Height and width of the targets.
        fill: What comes in if there is no margin.
    """
    height, width = size
    if margin:
        for (image, target), (x, y) in zip(copies, (margin - shift).tolist(), strict=True):
            target[:] = image[:, y : y + height, x : x + width]
        return
    sides = torch.tensor([width, height])
    forward, back = (torch.minimum(s.clamp(min=0), sides).tolist() for s in (shift, -shift))
    for (image, target), (right, down), (left, up) in zip(copies, forward, back, strict=True):
        bottom, end = height - up, width - left
        target[:, down:bottom, right:end] = image[:, up : height - down, left : width - right]
        if down or up:
            target[:, slice(down) if down else slice(bottom, None)] = fill
        if right or left:
            target[:, :, slice(right) if right else slice(end, None)] = fill


def _result(images: Tensor, memory: Memory | None) -> Tensor:
    """Return an uninitialised tensor like the images, contiguous."""
    if memory is not None and images.is_contiguous():
        return memory(images)
    return torch.empty_like(images, memory_format=torch.contiguous_format)


def _array(images: Tensor) -> Any:
    """Return a NumPy array, whose small copies are faster, if possible."""
    return images if images.dtype == torch.bfloat16 or images.requires_grad else images.numpy()


def _pad(images: Tensor, margin: int, padding: Padding, fill: float) -> Tensor:
    """Images with `margin` pixels more on each side."""
    if padding == "zeros":
        return F.pad(images, [margin] * 4, value=fill)
    for axis in (2, 3):
        length = images.shape[axis]
        position = torch.arange(-margin, length + margin, device=images.device)
        if padding == "border":
            position = position.clamp(0, length - 1)
        else:
            # About the outer edge of the last pixel, as grid_sample does: 2 1 0 | 0 1 2.
            position = position % (2 * length)
            position = torch.minimum(position, 2 * length - 1 - position)
        images = images.index_select(axis, position)
    return images


def tile_starts(side: int, tile: int, stride: int) -> list[int]:
    """Return where tiles begin along one side of an image.

    The last one ends with the image. An image that is not longer than `tile` is one tile.

    Example:
        >>> tile_starts(10, 4, 4)
        [0, 4, 6]
    """
    if side <= tile:
        return [0]
    return [*range(0, side - tile, stride), side - tile]
