"""Lion (Chen et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dlblocks._errors import checked
from dlblocks.optim._base import BaseOptimizer, by_device_and_dtype, rate


class Lion(BaseOptimizer):
    """Steps of one size, the sign of a momentum (Chen et al. 2023, Algorithm 2).

    ``p ← p · (1 - lr · weight_decay) - lr · sign(betas[0] · m + (1 - betas[0]) · g)``, then
    ``m ← betas[1] · m + (1 - betas[1]) · g``. The paper takes a rate 3 to 10 times smaller than
    AdamW's, and a decay as many times larger.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate; a tensor of one number, too.
        betas: Share of the momentum in the step and in the momentum itself, each in [0, 1).
        weight_decay: Decoupled decay of the weights.
        foreach: False: one tensor after the other.
        maximize: Ascend.
        capturable: For CUDA graphs; nothing here waits for the device or branches on values.

    Raises:
        ValueError: A negative rate, betas outside [0, 1), or no parameters.
        TypeError: A parameter that is not floating point.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> p.grad = torch.tensor([0.3, -20.0])
        >>> Lion([p], lr=0.5).step()
        >>> p.detach()
        tensor([ 0.5000, -0.5000])
    """

    state_names = ("exp_avg",)

    elementwise = True  # what it does to a value depends on no other

    @checked
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "weight_decay": weight_decay,
                "foreach": foreach,
                "maximize": maximize,
                "capturable": capturable,
            },
        )

    def _update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        states: Sequence[list[Tensor]],
    ) -> None:
        lr, (beta1, beta2) = rate(group), group["betas"]
        if group["foreach"] is False or isinstance(lr, Tensor) or torch.compiler.is_compiling():
            for p, grad, exp_avg in zip(params, grads, states[0], strict=True):
                grad = -grad if group["maximize"] else grad
                update = exp_avg.lerp(grad, 1 - beta1).sign_()
                p.mul_(1 - lr * group["weight_decay"]).sub_(update * lr)
                exp_avg.lerp_(grad, 1 - beta2)
            return
        for some, their_grads, exp_avgs in by_device_and_dtype(params, grads, states):
            if group["maximize"]:
                their_grads = list(torch._foreach_neg(their_grads))
            updates = torch._foreach_lerp(exp_avgs, their_grads, 1 - beta1)
            torch._foreach_sign_(updates)
            if group["weight_decay"]:
                torch._foreach_mul_(some, 1 - lr * group["weight_decay"])
            torch._foreach_add_(some, updates, alpha=-lr)
            torch._foreach_lerp_(exp_avgs, their_grads, 1 - beta2)
