"""Lion (Chen et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dlblocks._errors import checked
from dlblocks.optim._base import BaseOptimizer, Columns, Group, descend_


class Lion(BaseOptimizer):
    """Steps along the sign of a momentum (Chen et al. 2023, Algorithm 2).

    ``p ← p · (1 - lr · weight_decay) - lr · sign(betas[0] · m + (1 - betas[0]) · g)``, then
    ``m ← betas[1] · m + (1 - betas[1]) · g``. The paper uses a rate 3 to 10 times smaller than
    AdamW's, and a decay larger by the same factor.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate, a number or a tensor of one number.
        betas: Share of the momentum in the step and in the momentum itself, each in [0, 1).
        weight_decay: Decoupled decay of the weights.
        maximize: Ascend.
        capturable: Allow CUDA graphs. The step never waits for the device or branches on values.

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

    elementwise = True

    @checked
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "weight_decay": weight_decay,
                "maximize": maximize,
                "capturable": capturable,
            },
        )

    def _update(self, group: Group, lr: float | Tensor, columns: Columns) -> None:
        (params, grads, exp_avgs), (beta1, beta2) = columns, group["betas"]
        updates = list(torch._foreach_lerp(exp_avgs, grads, 1 - beta1))
        torch._foreach_sign_(updates)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        descend_(params, updates, lr)
        torch._foreach_lerp_(exp_avgs, grads, 1 - beta2)
