"""Cutout: a square of each image is erased.

Source: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
2017: a square of fixed size around a uniform centre, clipped at the border, is set to the mean
image, which after normalisation is 0; 16 pixels for CIFAR-10, 8 for CIFAR-100, 20 for SVHN. Use it
for images in which the class shows in more than one place.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dlblocks.callbacks.base import BatchTransform, check_images
from dlblocks.callbacks.cutmix import box_mask, boxes
from dlblocks.errors import check_range


def cutout(images: Tensor, box: Tensor, fill: float = 0.0) -> Tensor:
    """Sets each image's box to `fill`.

    Args:
        images: Shape (N, C, H, W), any dtype.
        box: Top, left, bottom, right of each image, the last two excluded, int64, shape (N, 4).
        fill: The value inside the box.

    Returns:
        New images, of the same shape and dtype.
    """
    return images.masked_fill(box_mask(box, images.shape[2], images.shape[3], images.device), fill)


class Cutout(BatchTransform):
    """Erases a square of each training image, after normalisation; see the module.

    Args:
        size: Side of the square: pixels as an int, or a share of height and width as a float.
        fill: Value inside the square; 0 is the mean of normalised images.
        p: Probability that a batch is transformed.
        start_epoch: First epoch with it.
        stop_epoch: First epoch without it again.
        seed: Seed of the draws.
        input_key: Where the images are in the batch.
        target_key: Where the targets are.
        extras: See `BatchTransform`.

    Raises:
        ValueError: `size` is negative, or a share above 1; inputs that are not images.
    """

    def __init__(
        self,
        size: int | float = 0.5,
        *,
        fill: float = 0.0,
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
        check_range("size", size, 0, None if isinstance(size, int) else 1)
        self.size = size
        self.fill = fill

    def transform(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        check_images(inputs, "Cutout", "use dropout for tabular data")
        height, width = inputs.shape[2:]
        limit = torch.tensor([height, width])
        sides = [self.size] * 2 if isinstance(self.size, int) else (limit * self.size).round()
        center = (torch.rand(len(inputs), 2, generator=generator) * limit).long()
        box = boxes(center, torch.as_tensor(sides).long().expand(len(inputs), 2), height, width)
        return cutout(inputs, box, self.fill), targets
