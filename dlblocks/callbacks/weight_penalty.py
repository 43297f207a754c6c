"""Penalize weights by L1, L2 or elastic net, or limit their norms.

A penalty is added to the loss through its gradient::

    penalty(w) = l1 Σ |w| + (l2 / 2) Σ w²        ∂penalty/∂w = l1 sign(w) + l2 w

The constraint acts after each step on the weights of every unit, the rows a_j of a weight:
``a_j ← a_j min(1, max_norm / ‖a_j‖)``.

Source: L2, Hoerl and Kennard, "Ridge Regression", 1970, and for nets Krogh and Hertz, "A Simple
Weight Decay Can Improve Generalization", 1992; L1, Tibshirani, "Regression Shrinkage and Selection
via the Lasso", 1996; both, Zou and Hastie, "Regularization and Variable Selection via the Elastic
Net", 2005; max-norm, Srivastava et al., "Dropout", 2014, who take 3 … 4 together with dropout and
a high learning rate. For l2 try 1e-5 … 1e-2, for l1 1e-6 … 1e-4.

Use L1 to find the inputs that matter. Weights come near 0 but not to exactly 0, because this is a
gradient and not a proximal step. With plain SGD, l2 is the optimizer's `weight_decay`. Adam and
similar optimizers divide the penalty's gradient by the root of the mean square, so AdamW's
decoupled decay (Loshchilov and Hutter 2019) is the better choice there; do not use both. The scale
of weights before a norm does not matter, and a penalty on them only changes the step's size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.optim import LBFGS, Optimizer

from dlblocks._errors import check_range, checked
from dlblocks.callbacks._parameters import check_dense, check_whole_parameters, select_parameters
from dlblocks.callbacks._wrapper import UndoneCallback


def weight_penalty(weights: Sequence[Tensor], l1: float = 0.0, l2: float = 0.0) -> Tensor:
    """Return the penalty ``l1 Σ|w| + (l2 / 2) Σw²`` in float32 or wider.

    Args:
        weights: Tensors of any shapes.
        l1: Factor of the absolute values.
        l2: Factor of the squares.

    Example:
        >>> weight_penalty([torch.tensor([1.0, -2.0])], l1=0.1, l2=0.2)
        tensor(0.8000)
    """
    total = torch.zeros((), device=weights[0].device if weights else None)
    for weight in weights:
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        total = total + l1 * wide.abs().sum() + 0.5 * l2 * wide.square().sum()
    return total


@torch.no_grad()
def clip_rows(weight: Tensor, max_norm: float) -> None:
    """Shrink rows whose L2 norm exceeds `max_norm`, in place.

    A row has all axes but the first. In a linear or convolutional weight it is the input of a unit.

    Args:
        weight: Shape (units, ...), at least two axes.
        max_norm: The largest norm allowed.

    Example:
        >>> weight = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> clip_rows(weight, 1.0)
        >>> weight
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    torch.renorm(weight, 2, 0, max_norm, out=weight)


class WeightPenalty(UndoneCallback):
    """Adds the gradients of L1 and L2 penalties, or limits norms.

    The docstring of the module says when to use it.

    The gradient is added once in an optimizer step, after accumulation, after unscaling in mixed
    precision and before clipping, as if the penalty were part of the loss. A parameter without a
    gradient in this step gets none. With several optimizers each acts on its own parameters.
    ``train/penalty`` is logged at the end of each epoch: the penalty's value then.

    Args:
        l1: Factor of ``Σ |w|``.
        l2: Factor of ``Σ w² / 2``.
        max_norm: Largest L2 norm of a unit's incoming weights, or None.
        include: Patterns of parameter names, such as ``"encoder.*"``; None for all but norms and
            biases.
        exclude: Patterns of names that are left out.

    Raises:
        ValueError: A negative factor, or nothing to do; at the start of the fit: a pattern that
            matches nothing, `max_norm` for weights without units in rows, l1 or l2 with LBFGS or a
            fused optimizer under ``"16-mixed"``, parameters spread over processes.
    """

    @checked
    def __init__(
        self,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
        max_norm: float | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        check_range("l1", l1, 0, math.inf, high_open=True)
        check_range("l2", l2, 0, math.inf, high_open=True)
        if max_norm is not None:
            check_range("max_norm", max_norm, 0, low_open=True)
        if not (l1 or l2 or max_norm):
            raise ValueError("WeightPenalty has nothing to do; set l1=, l2= or max_norm=.")
        self.l1 = l1
        self.l2 = l2
        self.max_norm = max_norm
        self.include = include
        self.exclude = exclude
        self._selected: list[nn.Parameter] = []
        self._handles: list[Any] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_whole_parameters(trainer, "WeightPenalty")
        selected = select_parameters(pl_module, self.include, self.exclude, "WeightPenalty")
        if self.l1 or self.l2:
            check_dense(pl_module, selected, "WeightPenalty")
        if self.max_norm is not None:
            _check_rows(pl_module, selected)
        self._selected = list(selected.values())
        for optimizer in trainer.optimizers:
            if not (self.l1 or self.l2):
                break
            if isinstance(optimizer, LBFGS):
                raise ValueError(
                    "WeightPenalty adds l1 and l2 to the gradient only, and LBFGS also uses the "
                    "loss; add the penalty to your loss (callbacks.weight_penalty computes it)."
                )
            # torch and Lightning use this name for optimizers that unscale by themselves.
            is_late = getattr(optimizer, "_step_supports_amp_scaling", False)
            if is_late and getattr(trainer.precision_plugin, "scaler", None) is not None:
                raise ValueError(
                    f"WeightPenalty needs gradients before {type(optimizer).__name__}(fused=True) "
                    "unscales them in its step; use fused=False, or precision='bf16-mixed'."
                )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.max_norm is None:
            return

        def clip(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            for parameter in self._of(optimizer):
                clip_rows(parameter, max_norm)

        max_norm = self.max_norm
        self._handles = [o.register_step_post_hook(clip) for o in trainer.optimizers]

    def _of(self, optimizer: Any) -> list[nn.Parameter]:
        """Return the selected parameters that `optimizer` steps."""
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return [p for p in self._selected if p.requires_grad and id(p) in own]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._selected = [], []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if not (self.l1 or self.l2):
            return
        with torch.no_grad():
            for weight in self._of(optimizer):
                if weight.grad is None:
                    continue
                if self.l2:
                    weight.grad.add_(weight, alpha=self.l2)
                if self.l1:
                    weight.grad.add_(weight.sign(), alpha=self.l1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.l1 or self.l2:
            with torch.no_grad():
                weights = [p for p in self._selected if p.requires_grad]
                value = weight_penalty(weights, self.l1, self.l2)
            pl_module.log("train/penalty", value, sync_dist=trainer.world_size > 1)


def _check_rows(module: nn.Module, selected: dict[str, nn.Parameter]) -> None:
    for name, parameter in selected.items():
        owner = module.get_submodule(name.rpartition(".")[0])
        if parameter.ndim < 2 or isinstance(owner, _ConvTransposeNd):
            what = "is a transposed convolution's" if parameter.ndim > 1 else "has one axis"
            raise ValueError(
                f"max_norm needs weights whose rows are inputs of units, and {name!r} {what}; "
                f"leave it out by exclude=[{name!r}]."
            )
