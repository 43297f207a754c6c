"""Replace a rectangle of each image by that of a partner (CutMix).

For each image a partner, λ ~ Beta(α, α) and a box of sides H√(1-λ) and W√(1-λ) around a uniform
centre are drawn and clipped at the border::

    x̃ = x_j inside the box, x_i outside        ỹ = (1 - a) y_i + a y_j

where a is the share of the image that the clipped box covers.

Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
Features", 2019. The paper draws one λ and box for a batch. Here each image has its own unless
``per_sample=False``.

Suggested: α = 1; p = 0.5 for CIFAR and 1 for ImageNet (ibid., and the authors' code). Use it for
images whose parts show their class, and train longer. ``stop_epoch=-10`` leaves the last epochs
without it.

Do not combine it with tables, with images in which one small place decides the class (the box may
remove it while the label stays), with boxes and key points of objects, or with label smoothing,
which softens a second time. With MixUp use `OneOf` (Touvron et al. 2021).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlblocks._errors import checked
from dlblocks._memory import BatchMemory
from dlblocks.callbacks._batch_transform import check_images
from dlblocks.callbacks._mixing import Mix, Mixer, average, draw_mix, gather

# Integers of the size of each dtype.
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def boxes(center: Tensor, sides: Tensor, height: int, width: int) -> Tensor:
    """Return boxes around pixels, clipped at the border.

    A side of s pixels covers exactly s of them before clipping, odd or even.

    Args:
        center: Row and column of the centre pixel, int64, shape (N, 2).
        sides: Height and width in pixels, int64, shape (N, 2).
        height: Height of the images.
        width: Width of the images.

    Returns:
        Top, left, bottom, right, the last two excluded, int64, shape (N, 4).

    Example:
        >>> boxes(torch.tensor([[4, 0]]), torch.tensor([[5, 4]]), 8, 8)
        tensor([[2, 0, 7, 2]])
    """
    start = center - sides // 2
    ends = torch.cat([start, start + sides], dim=1)
    limit = ends.new_tensor([height, width, height, width])
    return torch.minimum(ends.clamp_(min=0), limit)


def box_mask(box: Tensor, height: int, width: int, device: torch.device) -> Tensor:
    """Return a mask of each sample's box, bool of shape (N, 1, H, W)."""
    box = box.to(device, non_blocking=True)[:, :, None]
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    in_rows = (rows >= box[:, 0]) & (rows < box[:, 2])  # (N, H)
    in_columns = (columns >= box[:, 1]) & (columns < box[:, 3])  # (N, W)
    return in_rows[:, None, :, None] & in_columns[:, None, None, :]


def bits_of(images: Tensor) -> torch.dtype | None:
    """Return the integer dtype by which NumPy can copy `images`, or None.

    Integers are exact for every dtype, including NaN and -0. On the CPU, slices of NumPy take half
    the time of a mask or less (CutMix of 64 images of 224 × 224: 28 ms instead of 56 ms). None
    means a mask: on other devices, and where gradients flow.
    """
    if images.device.type != "cpu" or images.requires_grad:
        return None
    if images.is_conj() or images.is_neg():  # lazy views, whose memory is not their value
        return None
    return BITS.get(images.element_size())


def paste(images: Tensor, box: Tensor, index: Tensor, memory: BatchMemory | None = None) -> Tensor:
    """Replace the box of each image by that of its partner."""
    dtype = bits_of(images)
    if dtype is None:
        height, width = images.shape[2:]
        mask = box_mask(box, height, width, images.device)
        return torch.where(mask, gather(images, index), images)
    pasted = torch.empty_like(images) if memory is None else memory.like(images)
    source, target = images.view(dtype).numpy(), pasted.view(dtype).numpy()
    rows = zip(target, source, index.tolist(), box.tolist(), strict=True)
    for image, own, partner, (top, left, bottom, right) in rows:
        image[:] = own
        image[:, top:bottom, left:right] = source[partner, :, top:bottom, left:right]
    return pasted


def cutmix(images: Tensor, targets: Tensor, box: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Replace each image's box by its partner's, and mix targets by area.

    Args:
        images: Shape (N, C, H, W), any dtype.
        targets: Floating point, shape (N, ...).
        box: Top, left, bottom, right of each image, the last two excluded, int64, shape (N, 4).
        index: The partner of each image, int64, shape (N,).

    Returns:
        New images and targets, of the same shapes and dtypes.

    Example:
        >>> images = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 1, 1, 4)
        >>> box = torch.tensor([[0, 0, 1, 1], [0, 2, 1, 4]])
        >>> cutmix(images, torch.eye(2), box, torch.tensor([1, 0]))
        (tensor([[[[1., 0., 0., 0.]]],
        <BLANKLINE>
                [[[1., 1., 0., 0.]]]]), tensor([[0.7500, 0.2500],
                [0.5000, 0.5000]]))
    """
    index = index.to(images.device, non_blocking=True)
    height, width = images.shape[2:]
    lam = kept_share(box, height, width, targets.dtype)
    return paste(images, box, index), average(targets, lam, index)


def kept_share(box: Tensor, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the share of each image outside its box, shape (N,)."""
    dtype = torch.promote_types(dtype, torch.float32)
    sides = (box[:, 2:] - box[:, :2]).to(dtype)
    return sides.prod(1).div_(-height * width).add_(1)


class CutMix(Mixer):
    """Replaces a rectangle of each training image by that of another image.

    The docstring of the module says when to use it.

    Images are (N, C, H, W) of any dtype, which stays. A nest of several of the same height and
    width gets the same boxes. Class indices (N,) become soft targets (N, C). Floating-point targets
    and several labels keep their shape. Targets with values for pixels, (N, H, W) or (N, C, H, W),
    are pasted like the images and keep their dtype, as are masks named by
    ``data_keys={"mask": "input"}``.

    Args:
        alpha: α of the Beta distribution of the share that stays; 0 switches the method off.
        **kwargs: Classes, kind of targets, and when and where it mixes; see `Mixer`.

    Raises:
        ValueError: ``alpha < 0``, inputs that are not images, a label outside the classes, an
            unknown number of classes, a batch of another structure.

    Example:
        >>> cut = CutMix(num_classes=10, p=0.5)
        >>> images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)
        >>> inputs, targets = cut.transform(images, labels, torch.Generator().manual_seed(0))
        >>> inputs.shape, targets.shape
        (torch.Size([8, 3, 32, 32]), torch.Size([8, 10]))
    """

    @checked
    def __init__(self, alpha: float = 1.0, **kwargs: Any) -> None:
        super().__init__(alpha, **kwargs)

    def check_inputs(self, inputs: list[Tensor]) -> None:
        check_images(inputs[0], "CutMix", "use MixUp for tabular data")
        size = inputs[0].shape[2:]
        for other in inputs[1:]:
            if other.ndim not in (3, 4) or other.shape[-2:] != size:
                raise ValueError(
                    f"CutMix pastes the same box into all inputs of a sample, (N, C, H, W) or (N, "
                    f"H, W), but got shapes {tuple(inputs[0].shape)} and {tuple(other.shape)}; "
                    "resize one of them, or set input_key= to the images alone."
                )

    def draw(self, inputs: Tensor, generator: torch.Generator) -> Mix:
        size, (height, width) = len(inputs), inputs.shape[2:]
        lam, index = draw_mix(size, self.alpha, generator, self.per_sample)
        limit = torch.tensor([float(height), float(width)])
        sides = ((1 - lam).sqrt_()[:, None] * limit).round_().long()
        count = size if self.per_sample else 1
        center = torch.rand(count, 2, generator=generator).mul_(limit).long().expand(size, 2)
        box = boxes(center, sides, height, width)
        return Mix(index, kept_share(box, height, width), box)

    def unmixed(self, inputs: Tensor) -> Mix:
        return super().unmixed(inputs)._replace(box=torch.zeros(len(inputs), 4).long())

    def mix_input(self, inputs: Tensor, mix: Mix) -> Tensor:
        assert mix.box is not None  # for the type checker
        images = inputs.unsqueeze(1) if inputs.ndim == 3 else inputs
        mixed = paste(images, mix.box, mix.partner, self.memory)
        return mixed.squeeze(1) if inputs.ndim == 3 else mixed

    def pasted(self, target: Tensor, inputs: Tensor) -> bool:
        if target.ndim < 3:
            return False
        if target.ndim > 4 or target.shape[-2:] != inputs.shape[-2:]:
            raise ValueError(
                f"CutMix pastes targets of the images' height and width, (N, H, W) or (N, C, H, W) "
                f"with images {tuple(inputs.shape)}, got shape {tuple(target.shape)}; resize them, "
                "or use MixUp."
            )
        return True
