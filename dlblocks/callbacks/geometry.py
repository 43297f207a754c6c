"""Flips, crops and affine maps of batches of images, each image by its own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Padding = Literal["zeros", "border", "reflection"]
# From so many values an image on, copying row by row beats gathering value by value on a CPU.
LARGE_IMAGE = 8192


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


def affine(images: Tensor, matrix: Tensor, *, padding: Padding = "zeros") -> Tensor:
    """Resamples each image by its own affine map, bilinearly.

    Args:
        images: Shape (N, C, H, W): floating point, or uint8, which is rounded back to uint8.
        matrix: From output to input pixels about the centre, shape (N, 2, 3); see `affine_matrix`.
        padding: What lies outside an image: ``"zeros"``, its ``"border"`` repeated, or its
            ``"reflection"``.

    Returns:
        New images, of the same shape and dtype.
    """
    height, width = images.shape[2:]
    size = torch.tensor([width, height], dtype=torch.float32)
    # From pixels to the [-1, 1] of grid_sample: x / (W / 2), y / (H / 2).
    linear = matrix[:, :, :2] * size[None, None, :] / size[None, :, None]
    theta = torch.cat([linear, matrix[:, :, 2:] * 2 / size[None, :, None]], dim=2)
    dtype = images.dtype if images.dtype in (torch.float32, torch.float64) else torch.float32
    theta = theta.to(images.device, dtype, non_blocking=True)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    result = F.grid_sample(
        images.to(dtype), grid, mode="bilinear", padding_mode=padding, align_corners=False
    )
    if not images.is_floating_point():
        result = result.round_()
    return result.to(images.dtype)


def shift_flip(
    images: Tensor, shift: Tensor, flip: Tensor, *, padding: Padding = "zeros"
) -> Tensor:
    """Moves each image by whole pixels and mirrors it; exact, for any dtype.

    The image is mirrored first: it equals `affine` with the same translation and flip. A random
    crop of the image padded by p pixels (torchvision's ``RandomCrop(padding=p)``) is a shift that
    is uniform in -p … p.

    Args:
        images: Shape (N, C, H, W).
        shift: Pixels to the right and down, int64, shape (N, 2), on the CPU.
        flip: Whether to mirror left and right, and top and bottom, bool, shape (N, 2), on the CPU.
        padding: What comes in at the edges; see `affine`.

    Returns:
        New images, of the same shape and dtype.

    Example:
        >>> image = torch.tensor([[[[1, 2, 3]]]])
        >>> shift_flip(image, torch.tensor([[1, 0]]), torch.tensor([[True, False]]))
        tensor([[[[0, 3, 2]]]])
    """
    size, channels, height, width = images.shape
    # A mirrored image moved to the right is the image moved to the left, then mirrored.
    start = torch.where(flip, shift, -shift)
    margin = int(start.abs().max()) if size else 0
    source = _pad(images, margin, padding) if margin else images
    start = start + margin
    if images.device.type == "cpu" and images[:1].numel() >= LARGE_IMAGE:
        result = torch.empty_like(images, memory_format=torch.contiguous_format)
        for i, ((x, y), (across, down)) in enumerate(
            zip(start.tolist(), flip.tolist(), strict=True)
        ):
            part = source[i, :, y : y + height, x : x + width]
            axes = [2] * across + [1] * down
            result[i] = part.flip(axes) if axes else part
        return result
    columns = _positions(width, flip[:, 0]) + start[:, :1]
    rows = _positions(height, flip[:, 1]) + start[:, 1:]
    index = (rows[:, :, None] * (width + 2 * margin) + columns[:, None, :]).flatten(1)
    index = index.to(images.device, non_blocking=True)[:, None].expand(-1, channels, -1)
    return source.flatten(2).gather(2, index).reshape(images.shape)


def _positions(length: int, mirrored: Tensor) -> Tensor:
    """0 … L-1 for each sample, downwards where mirrored: int64 of shape (N, L)."""
    upwards = torch.arange(length).expand(len(mirrored), -1)
    return torch.where(mirrored[:, None], length - 1 - upwards, upwards)


def _pad(images: Tensor, margin: int, padding: Padding) -> Tensor:
    """Images with `margin` pixels more on each side."""
    if padding == "zeros":
        return F.pad(images, [margin] * 4)
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
