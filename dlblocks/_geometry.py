"""Flip, crop and map batches of images, each image differently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Padding = Literal["zeros", "border", "reflection"]
# From so many values an image on, the overhead of handling one by one is small on a CPU.
LARGE_IMAGE = 1 << 14
EXACT = (torch.uint8, torch.int8, torch.int16)  # integers that float32 holds with any fill


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

    def moved(self, images: Tensor, *, nearest: bool = False, fill: float = 0) -> Tensor:
        """Move images (N, C, H, W).

        The arguments are those of `affine`.
        """
        if self.whole_pixels:
            shift = self.shift.long()
            return shift_flip(images, shift, self.flip, padding=self.padding, fill=fill)
        matrix = affine_matrix(self.rotation, self.shift, self.scale, self.shear, self.flip)
        return affine(images, matrix, padding=self.padding, nearest=nearest, fill=fill)

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
) -> Tensor:
    """Resamples each image by its own affine map.

    Args:
        images: Shape (N, C, H, W): floating point, or integers, which are rounded.
        matrix: From output to input pixels about the centre, shape (N, 2, 3); see `affine_matrix`.
        padding: What lies outside an image: ``"zeros"``, its ``"border"`` repeated, or its
            ``"reflection"``.
        nearest: Take the nearest pixel, as masks need; otherwise bilinear.
        fill: The value outside an image, instead of zero; needs `nearest`.

    Returns:
        New images, of the same shape and dtype.
    """
    height, width = images.shape[2:]
    if len(images) == 0:
        return images.clone()
    size = torch.tensor([width, height], dtype=torch.float32)
    # From pixels to the [-1, 1] of grid_sample: x / (W / 2), y / (H / 2).
    linear = matrix[:, :, :2] * size[None, None, :] / size[None, :, None]
    theta = torch.cat([linear, matrix[:, :, 2:] * 2 / size[None, :, None]], dim=2)
    dtype = images.dtype if images.dtype in (torch.float32, torch.float64) else torch.float32
    theta = theta.to(images.device, dtype, non_blocking=True)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    if nearest:
        return _nearest(images, grid, padding, fill)
    result = F.grid_sample(
        images.to(dtype), grid, mode="bilinear", padding_mode=padding, align_corners=False
    )
    if not images.is_floating_point():
        result = result.round_()
    return result.to(images.dtype)


def _nearest(images: Tensor, grid: Tensor, padding: Padding, fill: float) -> Tensor:
    """Take the nearest pixels of a grid, exact for every dtype.

    `grid_sample` is ten times faster, but takes floating point only. Large label numbers do not
    survive that, so other integers are gathered.
    """
    if images.dtype in EXACT or (images.is_floating_point() and not fill):
        # It has zeros outside: move `fill` there and back.
        wide = images.to(grid.dtype) - fill
        found = F.grid_sample(wide, grid, mode="nearest", padding_mode=padding, align_corners=False)
        return found.add_(fill).to(images.dtype)
    size, channels, height, width = images.shape
    x = _inside(((grid[..., 0] + 1) * width - 1) / 2, width, padding)
    y = _inside(((grid[..., 1] + 1) * height - 1) / 2, height, padding)
    place = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).view(size, 1, -1)
    pixels = images.reshape(size, channels, -1).gather(2, place.expand(-1, channels, -1))
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
    return pixels.view(images.shape).masked_fill_(outside[:, None], fill)


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
    images: Tensor, shift: Tensor, flip: Tensor, *, padding: Padding = "zeros", fill: float = 0
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
    # A mirrored image moved to the right is the image moved to the left, then mirrored.
    start = torch.where(flip, shift, -shift)
    if images.device.type == "cpu" and images[0].numel() >= LARGE_IMAGE:
        return _shift_flip_one_by_one(images, start, flip, padding, fill)
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
    images: Tensor, start: Tensor, flip: Tensor, padding: Padding, fill: float
) -> Tensor:
    """Do the same with one large array, which has fewer page faults."""
    height, width = images.shape[2:]
    margin = int(start.abs().max()) if padding != "zeros" else 0
    source = _pad(images, margin, padding, fill) if margin else images
    result = torch.full_like(images, fill, memory_format=torch.contiguous_format)
    places = (start + margin).tolist()
    for image, target, (x, y), (across, down) in zip(
        source, result, places, flip.tolist(), strict=True
    ):
        part = image[:, max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
        tall, wide = part.shape[1:]
        top, left = max(-y, 0), max(-x, 0)
        top, left = height - tall - top if down else top, width - wide - left if across else left
        axes = [2] * across + [1] * down
        if part.numel():
            target[:, top : top + tall, left : left + wide] = part.flip(axes) if axes else part
    return result


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
