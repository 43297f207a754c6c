"""Brightness, contrast and saturation of batches of images, each image by its own factors."""

from __future__ import annotations

import torch
from torch import Tensor

from dlblocks.callbacks.base import per_sample

# Luma of ITU-R BT.601, which PIL and torchvision use.
LUMA = (0.2989, 0.587, 0.114)


def adjust_color(
    images: Tensor,
    *,
    brightness: Tensor | None = None,
    contrast: Tensor | None = None,
    saturation: Tensor | None = None,
    bound: float | None = None,
) -> Tensor:
    """Brightness, then contrast, then saturation: each blends with black, mean grey, or grey.

    ``x ← clip(f x + (1 - f) y)`` with the factor f of the image, where y is 0 for brightness, the
    mean of the image's grey for contrast, and its grey for saturation; f = 1 changes nothing. The
    definitions are those of torchvision's `ColorJitter`, in this fixed order.

    Args:
        images: Shape (N, C, H, W): uint8, or floating point in [0, 1].
        brightness: Factors, at least 0, shape (N,); None leaves it.
        contrast: Likewise.
        saturation: Likewise; needs C = 3.
        bound: The largest value of a pixel; None for 255 of uint8 and 1 of floating point.

    Returns:
        New images, of the same shape and dtype; uint8 is rounded once, at the end.

    Raises:
        ValueError: Saturation of images that have no colours.

    Example:
        >>> image = torch.tensor([0.2, 0.6]).view(1, 1, 1, 2)
        >>> adjust_color(image, contrast=torch.tensor([0.5])).flatten()
        tensor([0.3000, 0.5000])
    """
    if saturation is not None and images.shape[1] != 3:
        raise ValueError(
            f"saturation needs colour images (N, 3, H, W), got shape {tuple(images.shape)}; "
            "leave it out."
        )
    if bound is None:
        bound = 1.0 if images.is_floating_point() else 255.0
    dtype = images.dtype if images.dtype in (torch.float32, torch.float64) else torch.float32
    x = images.to(dtype)
    if brightness is not None:
        x = (x * per_sample(brightness, x)).clamp_(0, bound)
    if contrast is not None:
        mean = _grey(x).mean((1, 2, 3), keepdim=True)
        x = torch.lerp(mean, x, per_sample(contrast, x)).clamp_(0, bound)
    if saturation is not None:
        x = torch.lerp(_grey(x), x, per_sample(saturation, x)).clamp_(0, bound)
    return x.to(images.dtype) if images.is_floating_point() else x.round().to(images.dtype)


def _grey(x: Tensor) -> Tensor:
    """The grey of each pixel, shape (N, 1, H, W): luma, or without colours the mean of channels."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = x.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])[:, None]
