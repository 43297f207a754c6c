"""Erase a square of each image (Cutout).

A centre is drawn uniformly from the pixels. The square of fixed side around it, clipped at the
border, is set to the mean image, which is 0 after normalisation.

Source: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
2017. Suggested there: 16 pixels for CIFAR-10, 8 for CIFAR-100, 20 for SVHN, 24 and 32 for STL-10
with and without augmentation. Use it for images in which the class shows in more than one place.
`Augment` has rectangles of random size (``erase``).

Erased pixels of a mask become `ignore_index`, because their class cannot be seen. A box becomes the
smallest one around what is left of it.

Do not combine it with images in which one small place decides the class, or with targets that have
values for pixels, which the net would have to guess. After CutMix it erases pixels that the label
counts, so use `OneOf`. Label smoothing, weight decay and dropout go well with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlblocks._errors import check_range, checked
from dlblocks._memory import BatchMemory
from dlblocks.callbacks._batch_transform import EntriesTransform, check_images
from dlblocks.callbacks._pixel_transform import PixelTransform
from dlblocks.callbacks.cutmix import bits_of, box_mask, boxes


def cutout(
    images: Tensor, box: Tensor, fill: float = 0.0, memory: BatchMemory | None = None
) -> Tensor:
    """Set each image's box to `fill`.

    Args:
        images: Shape (N, C, H, W), any dtype.
        box: Top, left, bottom, right of each image, the last two excluded, int64, shape (N, 4).
        fill: The value inside the box.
        memory: Memory to reuse for large new images; None for new memory.

    Returns:
        New images, of the same shape and dtype.

    Example:
        >>> cutout(torch.ones(1, 1, 2, 3), torch.tensor([[0, 1, 2, 2]]))
        tensor([[[[1., 0., 1.],
                  [1., 0., 1.]]]])
    """
    dtype = bits_of(images)
    if dtype is None:  # a clone, because masked_fill forgets channels last
        height, width = images.shape[2:]
        return images.clone().masked_fill_(box_mask(box, height, width, images.device), fill)
    erased = torch.empty_like(images) if memory is None else memory.like(images)
    bits = torch.tensor(fill, dtype=images.dtype).view(dtype).item()
    rows = zip(erased.view(dtype).numpy(), images.view(dtype).numpy(), box.tolist(), strict=True)
    for image, own, (top, left, bottom, right) in rows:
        image[:] = own
        image[:, top:bottom, left:right] = bits
    return erased


class Cutout(PixelTransform, EntriesTransform):
    """Erases a square of each training image, after normalisation.

    The docstring of the module says when to use it.

    Images are (N, C, H, W) of any dtype, which stays. A nest of several of the same height and
    width loses the same square. Masks change, other targets stay; see `PixelTransform`.

    Args:
        size: Side of the square: pixels as an int, or a share of height and width as a float.
        fill: Value inside the square; 0 is the mean of normalised images.
        **kwargs: The kind of targets, and when and where it acts; see `PixelTransform` and
            `BatchTransform`.

    Raises:
        ValueError: `size` is negative, or a share above 1; inputs that are not images; a `fill`
            that their dtype cannot hold.

    Example:
        >>> images, generator = torch.rand(4, 3, 32, 32), torch.Generator().manual_seed(0)
        >>> erased, _ = Cutout(16).transform(images, torch.arange(4), generator)
        >>> int((erased == 0).sum((1, 2, 3)).max()) <= 3 * 16 * 16
        True
    """

    extra_actions = ("keep", "input")

    @checked
    def __init__(
        self,
        size: int | float = 0.5,
        *,
        fill: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_range("size", size, 0, None if isinstance(size, int) else 1)
        self.size = size
        self.fill = fill

    def transform_entries(
        self, inputs: list[Tensor], targets: list[Any], generator: torch.Generator
    ) -> tuple[list[Any], list[Any]]:
        for images in inputs:
            self._check(images, inputs[0])
        size, (height, width) = len(inputs[0]), inputs[0].shape[2:]
        limit = torch.tensor([height, width])
        sides = [self.size] * 2 if isinstance(self.size, int) else (limit * self.size).round()
        center = (torch.rand(size, 2, generator=generator) * limit).long()
        box = boxes(center, torch.as_tensor(sides).long().expand(size, 2), height, width)
        targets = [self.changed(y, inputs[0], lambda kind, y: kind.erase(y, box)) for y in targets]
        return [cutout(images, box, self.fill, self.memory) for images in inputs], targets

    def _check(self, images: Tensor, first: Tensor) -> None:
        if images is not first and not images.is_floating_point():
            raise ValueError(
                f"Cutout got a further input of {images.dtype}, but masks of classes have no mean "
                "value; keep them by data_keys={...: 'keep'}."
            )
        check_images(images, "Cutout", "use dropout for tabular data")
        if images.shape[2:] != first.shape[2:]:
            raise ValueError(
                f"Cutout erases the same square of all inputs, but got shapes "
                f"{tuple(first.shape)} and {tuple(images.shape)}; resize one of them, or set "
                "input_key= to the images alone."
            )
        if not images.is_floating_point():
            high = 1 if images.dtype == torch.bool else torch.iinfo(images.dtype).max
            if self.fill != int(self.fill) or not 0 <= self.fill <= high:
                raise ValueError(
                    f"fill={self.fill} does not fit images of {images.dtype}; give a whole number "
                    f"in 0 … {high}."
                )
