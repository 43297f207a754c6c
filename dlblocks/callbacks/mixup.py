"""Average pairs of samples and of their targets (MixUp).

Each sample i is averaged with a partner j, with λ ~ Beta(α, α)::

    x̃ = λ x_i + (1 - λ) x_j        ỹ = λ y_i + (1 - λ) y_j

Source: Zhang, Cissé, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", 2018. The
paper draws one λ for a batch. Here each sample has its own unless ``per_sample=False``.

Suggested: α in 0.1 … 0.4 for ImageNet, 1 for CIFAR-10 (ibid., sections 3.1 and 3.2); 0.8 together
with CutMix for vision transformers (Touvron et al., "Training data-efficient image transformers",
2021). Use it for noisy labels, few data, or if probabilities must be calibrated, and train longer.
``stop_epoch=-10`` leaves the last epochs without it, so that training ends with real data (Ge et
al., "YOLOX", 2021, leave out the last 15).

Do not combine it with inputs that cannot be averaged, such as token numbers, or with label
smoothing, which softens a second time. For boxes and other extra entries set `data_keys`. With
CutMix use `OneOf`. Both in sequence are correct too, but make the task hard.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlblocks._errors import checked
from dlblocks.callbacks._mixing import Mix, Mixer, average, draw_mix


def mixup(inputs: Tensor, targets: Tensor, lam: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each sample with a partner, and its target in the same way.

    The result is ``lam * x + (1 - lam) * x[index]``.

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
    """Mixes pairs of training samples and their targets.

    The docstring of the module says when to use it.

    Inputs have any shape (N, ...): images, tables, sequences of values. All tensors of a nest are
    mixed with the same λ and partner. Floating point of any precision keeps its dtype; uint8 images
    are rounded.

    Class indices (N,) become soft targets (N, C) of the inputs' dtype, and masks of classes
    (N, H, W) become (N, C, H, W). Soft targets, several labels (N, C) and values keep their shape.
    Further entries can be mixed as targets (sample weights) or as inputs.

    Args:
        alpha: α of the Beta distribution; 0 switches the method off.
        **kwargs: Classes, kind of targets, and when and where it mixes; see `Mixer`.

    Raises:
        ValueError: ``alpha < 0``, inputs that are integers, a label outside the classes, an unknown
            number of classes, a batch of another structure.

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
