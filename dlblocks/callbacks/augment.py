"""Augmentation: random flips and small affine maps of each training image.

Every image is mapped by its own random scale, rotation, shear and translation about its centre,
all in one bilinear resampling. Suggested: what leaves the label true. For digits a few degrees and
pixels and no flip (Simard, Steinkraus and Platt 2003); for photographs ``horizontal_flip=0.5``
(Krizhevsky et al. 2012).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dlblocks.callbacks.base import BatchTransform, check_images
from dlblocks.errors import check_choice, check_range

Padding = Literal["zeros", "border", "reflection"]


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
        flip: Whether to mirror left and right, bool, shape (N,).

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
    mirror = torch.where(flip, -1.0, 1.0)
    inverse[:, 0] *= mirror[:, None]
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


class Augment(BatchTransform):
    """Random flip, rotation, scale, shear and translation of each training image.

    Images (N, C, H, W), uint8 or floating point, on any device. The datamodule's own
    `on_after_batch_transfer` comes afterwards, so that a fill of zeros is black, whatever it
    normalises. Each part is off by default.

    Args:
        horizontal_flip: Probability of mirroring left and right.
        translation: Uniform in ± this share of width and height.
        rotation: Uniform in ± this many degrees.
        scale: Uniform between these two factors of size.
        shear: Uniform in ± this many degrees.
        padding: What comes in at the edges: ``"zeros"``, ``"border"`` or ``"reflection"``.
        p: Probability that a batch is augmented.
        start_epoch: First epoch with it.
        stop_epoch: First epoch without it again.
        seed: Seed of the draws.
        input_key: Where the images are in the batch.
        target_key: Where the targets are.
        extras: See `BatchTransform`.

    Raises:
        ValueError: An argument out of range; inputs that are not images.

    Example:
        >>> augment = Augment(rotation=10, translation=0.1, scale=(0.9, 1.1))
        >>> images, generator = torch.rand(4, 1, 8, 8), torch.Generator().manual_seed(0)
        >>> augment.transform(images, torch.zeros(4), generator)[0].shape
        torch.Size([4, 1, 8, 8])
    """

    before_hook = True

    def __init__(
        self,
        *,
        horizontal_flip: float = 0.0,
        translation: float = 0.0,
        rotation: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        shear: float = 0.0,
        padding: Padding = "zeros",
        p: float = 1.0,
        start_epoch: int = 0,
        stop_epoch: int | None = None,
        seed: int = 0,
        input_key: int | str = 0,
        target_key: int | str = 1,
        extras: Literal["refuse", "keep"] = "refuse",
    ) -> None:
        super().__init__(
            p=p,
            start_epoch=start_epoch,
            stop_epoch=stop_epoch,
            seed=seed,
            input_key=input_key,
            target_key=target_key,
            extras=extras,
        )
        check_range("horizontal_flip", horizontal_flip, 0, 1)
        check_range("translation", translation, 0, 1)
        check_range("rotation", rotation, 0, 180)
        check_range("shear", shear, 0, 90, high_open=True)
        check_choice("padding", padding, ["zeros", "border", "reflection"])
        low, high = scale
        if not (0 < low <= high and math.isfinite(high)):
            raise ValueError(f"scale={scale} must be two factors with 0 < low <= high.")
        self.horizontal_flip = horizontal_flip
        self.translation = translation
        self.rotation = rotation
        self.scale = (low, high)
        self.shear = shear
        self.padding = padding

    def transform(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        check_images(inputs, "Augment", "use MixUp for tabular data")
        size, (height, width) = len(inputs), inputs.shape[2:]
        # All draws are made, whatever is off, so that switching one part on moves no other.
        draws = torch.rand(6, size, generator=generator)
        signed = 2 * draws - 1
        flip = draws[5] < self.horizontal_flip
        low, high = self.scale
        if not (self.translation or self.rotation or self.shear or low != 1 or high != 1):
            mask = flip.to(inputs.device, non_blocking=True)[:, None, None, None]
            return torch.where(mask, inputs.flip(3), inputs), targets
        moves = torch.stack([signed[0] * width, signed[1] * height], dim=1) * self.translation
        matrix = affine_matrix(
            signed[2] * self.rotation,
            moves,
            low + draws[3] * (high - low),
            signed[4] * self.shear,
            flip,
        )
        return affine(inputs, matrix, padding=self.padding), targets
