"""CutMix: a rectangle of each image is replaced by that of a partner, the target by its area.

For each image a partner, λ ~ Beta(α, α) and a box of sides H√(1-λ) and W√(1-λ) around a uniform
centre are drawn, clipped at the border, and::

    x̃ = x_j inside the box, x_i outside        ỹ = (1 - a) y_i + a y_j

where a is the share of the image that the clipped box really covers.

Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
Features", 2019: α = 1, p = 0.5 on CIFAR and 1 on ImageNet. Use it for images whose parts show their
class; not for tables, nor where one small place decides the class.
"""

from __future__ import annotations

from typing import Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from dlblocks.callbacks.base import BatchTransform, check_images, per_sample, soft_targets
from dlblocks.callbacks.mixup import draw_mix, find_num_classes
from dlblocks.errors import check_range


def boxes(center: Tensor, sides: Tensor, height: int, width: int) -> Tensor:
    """Boxes around pixels, clipped at the border: rows (top, left, bottom, right), end excluded.

    A side of s pixels covers exactly s of them before clipping, odd or even.

    Args:
        center: Row and column of the centre pixel, int64, shape (N, 2).
        sides: Height and width in pixels, int64, shape (N, 2).
        height: Height of the images.
        width: Width of the images.

    Returns:
        int64 of shape (N, 4).

    Example:
        >>> boxes(torch.tensor([[4, 0]]), torch.tensor([[5, 4]]), 8, 8)
        tensor([[2, 0, 7, 2]])
    """
    start = center - sides // 2
    limit = torch.tensor([height, width])
    first = start.clamp(min=0)
    last = torch.minimum(start + sides, limit)
    return torch.cat([first, torch.maximum(last, first)], dim=1)


def box_mask(box: Tensor, height: int, width: int, device: torch.device) -> Tensor:
    """Which pixels lie in each sample's box: bool of shape (N, 1, H, W)."""
    box = box.to(device, non_blocking=True)[:, :, None]
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    in_rows = (rows >= box[:, 0]) & (rows < box[:, 2])  # (N, H)
    in_columns = (columns >= box[:, 1]) & (columns < box[:, 3])  # (N, W)
    return in_rows[:, None, :, None] & in_columns[:, None, None, :]


def cutmix(images: Tensor, targets: Tensor, box: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Replaces each image's box by the same box of its partner, and mixes targets by its area.

    Args:
        images: Shape (N, C, H, W), any dtype.
        targets: Floating point, shape (N, ...).
        box: Top, left, bottom, right of each image, the last two excluded, int64, shape (N, 4).
        index: The partner of each image, int64, shape (N,).

    Returns:
        New images and targets, of the same shapes and dtypes.
    """
    height, width = images.shape[2:]
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    share = per_sample(area.float() / (height * width), targets)
    index = index.to(images.device, non_blocking=True)
    inside = box_mask(box, height, width, images.device)
    return (
        torch.where(inside, images.index_select(0, index), images),
        torch.lerp(targets, targets.index_select(0, index), share),
    )


class CutMix(BatchTransform):
    """Replaces a rectangle of each training image by another's; see the module.

    Images (N, C, H, W). Class indices (N,) become soft targets (N, C); floating-point targets and
    several labels keep their shape.

    Args:
        alpha: α of the Beta distribution of the share that stays; 0 switches the method off.
        num_classes: Number of classes, for targets that are class indices; None takes that of the
            module or the datamodule.
        per_sample: Draw λ for each sample rather than for the batch.
        p: Probability that a batch is mixed.
        start_epoch: First epoch with mixing.
        stop_epoch: First epoch without it again.
        seed: Seed of the draws.
        input_key: Where the images are in the batch.
        target_key: Where the targets are.
        extras: See `BatchTransform`.

    Raises:
        ValueError: ``alpha < 0``, inputs that are not images, a label outside the classes.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        num_classes: int | None = None,
        per_sample: bool = True,
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
        check_range("alpha", alpha, 0)
        self.alpha = alpha
        self.num_classes = num_classes
        self.per_sample = per_sample
        self.found_classes: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.found_classes = find_num_classes(trainer, pl_module)
        super().on_train_start(trainer, pl_module)

    def transform(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        check_images(inputs, "CutMix", "use MixUp for tabular data")
        if self.alpha == 0:
            return inputs, targets
        targets = soft_targets(targets, self.num_classes, self.found_classes, "CutMix", inputs)
        size, (height, width) = len(inputs), inputs.shape[2:]
        lam, index = draw_mix(size, self.alpha, generator, self.per_sample)
        limit = torch.tensor([height, width])
        sides = ((1 - lam).sqrt()[:, None] * limit).round().long()
        count = size if self.per_sample else 1
        center = (torch.rand(count, 2, generator=generator) * limit).long().expand(size, 2)
        return cutmix(inputs, targets, boxes(center, sides, height, width), index)
