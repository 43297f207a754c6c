"""MixUp: convex combinations of pairs of samples and of their targets.

For each sample i a partner j and λ ~ Beta(α, α) are drawn, and::

    x̃ = λ x_i + (1 - λ) x_j        ỹ = λ y_i + (1 - λ) y_j

Source: Zhang, Cissé, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", 2018. The
paper draws one λ a batch, here each sample has its own unless ``per_sample=False``.

Suggested: α in 0.1 … 0.4 for ImageNet, 1 for CIFAR-10 (ibid., sections 3.1 and 3.2); 0.8 together
with CutMix for vision transformers (Touvron et al., "Training data-efficient image transformers",
2021). Use it where labels are noisy, data few, or probabilities must be calibrated, and train
longer; leave it off for the last epochs (``stop_epoch=-10``), which brings the training data back
to what will be met (Ge et al., "YOLOX", 2021, leave off the last 15).

Does not mix with: inputs that cannot be averaged, such as token numbers; boxes and other extra
entries, unless it is said what becomes of them; label smoothing, which softens a second time.
With CutMix take one of the two by `OneOf`; one after the other is right too, but hard.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlblocks._errors import checked
from dlblocks.callbacks._mixing import Mix, Mixer, average, draw_mix


def mixup(inputs: Tensor, targets: Tensor, lam: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Mixes each sample with a partner: ``lam * x + (1 - lam) * x[index]``, and its target alike.

    Args:
        inputs: Floating point, shape (N, ...).
        targets: Floating point, shape (N, ...): one-hot or soft rows, several labels, or values.
        lam: Share of the sample itself, in [0, 1], shape (N,).
        index: The partner of each sample, int64, shape (N,).

    Returns:
        New inputs and targets, of the same shapes and dtypes.

    Example:
        >>> x, y = torch.tensor([[0.0], [4.0]]), torch.eye(2)
        >>> mixup(x, y, torch.tensor([0.75, 1.0]), torch.tensor([1, 0]))
        (tensor([[1.],
                [4.]]), tensor([[0.7500, 0.2500],
                [0.0000, 1.0000]]))
    """
    index = index.to(inputs.device, non_blocking=True)
    return average(inputs, lam, index), average(targets, lam, index)


class MixUp(Mixer):
    """Mixes pairs of training samples and their targets; see the module for when to use it.

    Inputs of any shape (N, ...): images, tables, sequences of values, or a nest of several such
    tensors, which are all mixed with the same λ and partner. Floating point of any precision keeps
    its dtype; uint8 images are rounded.

    Class indices (N,) become soft targets (N, C) of the inputs' dtype, masks of classes (N, H, W)
    become (N, C, H, W); soft targets, several labels (N, C) and values keep their shape. Further
    entries can be mixed as targets (sample weights), or as inputs.

    Args:
        alpha: α of the Beta distribution; 0 switches the method off.
        **kwargs: Classes, kind of targets, and when and where it mixes; see `Mixer`.

    Raises:
        ValueError: ``alpha < 0``, inputs that are integers, a label outside the classes, classes
            whose number is not known, a batch of another structure.

    Example:
        >>> mix = MixUp(0.2, num_classes=10, stop_epoch=-10)
        >>> images, labels = torch.rand(8, 1, 28, 28), torch.arange(8)
        >>> inputs, targets = mix.transform(images, labels, torch.Generator().manual_seed(0))
        >>> inputs.shape, targets.shape
        (torch.Size([8, 1, 28, 28]), torch.Size([8, 10]))
    """

    @checked
    def __init__(self, alpha: float = 0.2, **kwargs: Any) -> None:
        super().__init__(alpha, **kwargs)

    def draw(self, inputs: Tensor, generator: torch.Generator) -> Mix:
        lam, index = draw_mix(len(inputs), self.alpha, generator, self.per_sample)
        return Mix(index, lam)

    def mix_input(self, inputs: Tensor, mix: Mix) -> Tensor:
        if inputs.dtype == torch.uint8:
            return (
                average(inputs.float(), mix.lam, mix.partner, self.memory).round_().to(torch.uint8)
            )
        if not inputs.is_floating_point():
            raise ValueError(
                f"MixUp expects floating-point inputs or uint8 images, got {inputs.dtype} of shape "
                f"{tuple(inputs.shape)}; convert values by .float(); token numbers and masks of "
                "classes cannot be averaged: mix embeddings, or make masks one-hot."
            )
        return average(inputs, mix.lam, mix.partner, self.memory)
