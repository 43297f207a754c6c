"""MixUp: convex combinations of pairs of samples and of their targets.

For each sample i a partner j and λ ~ Beta(α, α) are drawn, and::

    x̃ = λ x_i + (1 - λ) x_j        ỹ = λ y_i + (1 - λ) y_j

Source: Zhang, Cissé, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", 2018. They
use α in 0.1 … 0.4 on ImageNet and 1 on CIFAR-10; the paper draws one λ a batch, here each sample
has its own unless ``per_sample=False``. Use it where labels are noisy, data few, or probabilities
must be calibrated; it needs longer training. Not for inputs that cannot be averaged (token
numbers). With label smoothing it softens twice: use one of them.
"""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from dlblocks.callbacks.base import BatchTransform, per_sample, soft_targets
from dlblocks.errors import check_range


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
    return (
        torch.lerp(inputs.index_select(0, index), inputs, per_sample(lam, inputs)),
        torch.lerp(targets.index_select(0, index), targets, per_sample(lam, targets)),
    )


class MixUp(BatchTransform):
    """Mixes pairs of training samples and their targets; see the module for when to use it.

    Inputs of any shape (N, ...), floating point. Class indices (N,) become soft targets (N, C);
    soft targets, several labels (N, C) and values keep their shape.

    Args:
        alpha: α of the Beta distribution; 0 switches the method off.
        num_classes: Number of classes, for targets that are class indices; None takes that of the
            module or the datamodule.
        per_sample: Draw λ for each sample rather than for the batch.
        p: Probability that a batch is mixed.
        start_epoch: First epoch with mixing.
        stop_epoch: First epoch without it again.
        seed: Seed of the draws.
        input_key: Where the inputs are in the batch.
        target_key: Where the targets are.
        extras: See `BatchTransform`.

    Raises:
        ValueError: ``alpha < 0``, inputs that are integers, a label outside the classes.
    """

    def __init__(
        self,
        alpha: float = 0.2,
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
        if self.alpha == 0:
            return inputs, targets
        if not inputs.is_floating_point():
            raise ValueError(
                f"MixUp expects floating-point inputs, got {inputs.dtype}; convert images to float "
                "in the datamodule; token numbers cannot be averaged."
            )
        targets = soft_targets(targets, self.num_classes, self.found_classes, "MixUp", inputs)
        lam, index = draw_mix(len(inputs), self.alpha, generator, self.per_sample)
        return mixup(inputs, targets, lam, index)


def draw_mix(
    size: int, alpha: float, generator: torch.Generator, per_sample: bool
) -> tuple[Tensor, Tensor]:
    """Draws λ ~ Beta(α, α), float32 (N,), and a random partner for each sample, int64 (N,)."""
    # Two gamma variables make a beta variable; drawn in float64, where a small α does not
    # underflow to 0 / 0.
    shape = torch.full((2, size if per_sample else 1), alpha, dtype=torch.float64)
    gamma = torch._standard_gamma(shape, generator=generator)
    lam = (gamma[0] / gamma.sum(0)).nan_to_num(1.0).float().expand(size)
    return lam, torch.randperm(size, generator=generator)


def find_num_classes(trainer: Any, pl_module: Any) -> int | None:
    """Number of classes of the module or, failing that, of the datamodule."""
    for thing in (pl_module, trainer.datamodule):
        found = getattr(thing, "num_classes", None)
        if isinstance(found, int):
            return found
    return None
