"""Compute gradients at weights with Gaussian noise.

The loss and its gradient are those of noisy weights; the step starts from the clean ones::

    w̃ = w + σ ε,  or relative  w̃ = w + σ |w| ε        ε ~ N(0, 1)
    w ← optimizer step with ∇L(w̃)

Source: additive in An, "The Effects of Adding Noise During Backpropagation Training on a
Generalization Performance", 1996, and Graves, "Practical Variational Inference for Neural
Networks", 2011; relative to the weight in Murray and Edwards, "Enhanced MLP Performance and Fault
Tolerance Resulting from Synaptic Weight Noise During Training", 1994. Graves, Mohamed and Hinton,
"Speech Recognition with Deep Recurrent Neural Networks", 2013, use σ = 0.075 for recurrent nets of
unit-scale weights. Relative noise of 0.05 … 0.2 suits nets whose layers differ in scale.

Use it for small and recurrent nets, which dropout harms, and for nets that will run on imprecise
hardware. The scale of weights before a norm does not matter, so σ means little there; use the
relative form. `SAM` takes the worst direction rather than a random one; do not use both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from dlblocks._errors import check_range, checked
from dlblocks.callbacks._batch_transform import mix
from dlblocks.callbacks._parameters import (
    check_automatic,
    check_whole_parameters,
    select_parameters,
)
from dlblocks.callbacks._wrapper import AroundStep


@torch.no_grad()
def add_weight_noise(
    weights: Sequence[Tensor],
    std: float,
    *,
    relative: bool = False,
    generator: torch.Generator | None = None,
) -> None:
    """Add Gaussian noise to tensors in place.

    The result is ``w + std * ε``, or ``w + std * |w| * ε`` if `relative`.

    Args:
        weights: Floating-point tensors of any shapes, on the device of `generator`.
        std: Standard deviation σ, in the units of the weights, or as a share of each.
        relative: Take `std` as a share of each weight.
        generator: Source of the draws.

    Example:
        >>> weight = torch.tensor([0.0, 2.0])
        >>> add_weight_noise([weight], 0.1, relative=True)
        >>> weight[0]
        tensor(0.)
    """
    for weight in weights:
        noise = torch.randn(
            weight.shape, generator=generator, device=weight.device, dtype=weight.dtype
        )
        if relative:
            noise *= weight.abs()
        weight.add_(noise, alpha=std)


class WeightNoise(AroundStep):
    """Adds noise to the weights during forward and backward passes.

    The docstring of the module says when to use it.

    Before the optimizer's step, and if a step fails, the weights are restored bit for bit. So the
    noise does not reach clipping, mixed precision, checkpoints, averaged weights or validation. It
    is drawn once in an optimizer step, from (seed, step, rank, place in the Trainer's list).
    Accumulated batches share it, as do the evaluations of LBFGS and `SAM`. A resumed run repeats
    it. Ranks of DDP draw differently and average the gradients of their draws. It is drawn on the
    weights' device; other devices draw other numbers.

    Other callbacks' `on_after_backward` may still see the noisy weights.

    Args:
        std: σ >= 0, in the units of the weights, or as a share of each.
        relative: Take `std` as a share of each weight.
        include: Patterns of parameter names; None for all but norms and biases.
        exclude: Patterns of names that are left out. Frozen parameters get no noise.
        seed: Seed of the draws.

    Raises:
        ValueError: ``std < 0``; at the start of the fit: a pattern that matches nothing, manual
            optimization, parameters spread over processes.
    """

    @checked
    def __init__(
        self,
        std: float,
        *,
        relative: bool = False,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        check_range("std", std, 0, float("inf"), high_open=True)
        self.std = std
        self.relative = relative
        self.include = include
        self.exclude = exclude
        self.seed = seed
        self._place = 0
        self._weights: list[nn.Parameter] = []
        self._saved: list[tuple[Tensor, Tensor]] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_automatic(pl_module, "WeightNoise")
        check_whole_parameters(trainer, "WeightNoise")
        chosen = select_parameters(pl_module, self.include, self.exclude, "WeightNoise")
        self._weights = list(chosen.values())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        noises = [c for c in vars(trainer)["callbacks"] if isinstance(c, WeightNoise)]
        self._place, self._saved = noises.index(self), []

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._restore()
        self._weights = []

    def around_step(
        self,
        trainer: pl.Trainer,
        run: Callable[[], Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if self.std == 0:
            return run()
        self._restore()
        weights = [weight for weight in self._weights if weight.requires_grad]
        self._saved = [(weight, weight.detach().clone()) for weight in weights]
        device = trainer.strategy.root_device
        seed = mix(self.seed, trainer.global_step, trainer.global_rank, self._place)
        generator = torch.Generator(device).manual_seed(seed)
        add_weight_noise(weights, self.std, relative=self.relative, generator=generator)
        output = None
        try:
            output = run()
        finally:
            if output is None:  # failed or skipped, so no backward pass follows
                self._restore()
        return output

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._restore()  # Lightning's SWA has an epoch without backward passes

    @torch.no_grad()
    def _restore(self) -> None:
        for weight, clean in reversed(self._saved):
            weight.copy_(clean)
        self._saved = []
