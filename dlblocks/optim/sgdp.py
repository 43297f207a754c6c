"""SGDP (Heo et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dlblocks._errors import check_range, checked
from dlblocks.optim._base import Columns, Group, takes_kernel
from dlblocks.optim._projection import ProjectedOptimizer


class SGDP(ProjectedOptimizer):
    """SGD that does not make scale-invariant weights grow (Heo et al. 2021).

    With the buffer ``b ← momentum · b + (1 - dampening) · g`` (from 0) and d = b, or
    ``g + momentum · b`` with `nesterov`:

    - if the weight looks scale-invariant, as in `AdamP`,
      ``p ← p · (1 - lr · weight_decay · wd_ratio / (1 - momentum)) - lr · (d - p̂ (p̂·d))``;
    - otherwise ``p ← p · (1 - lr · weight_decay / (1 - momentum)) - lr · d``.

    Unlike `torch.optim.SGD`, the decay is decoupled, and dampening acts from the first step. The
    updates are those of the authors' package ``adamp``, whose `state_dict` can be loaded. As in
    that package but not in the paper, the projection also changes the buffer without `nesterov`.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate, a number or a tensor of one number.
        momentum: Momentum in [0, 1).
        dampening: Dampening of the momentum.
        weight_decay: Decoupled decay of the weights.
        nesterov: Nesterov's momentum.
        eps: Added to norms.
        delta: Threshold of the cosine.
        wd_ratio: Share of the decay for projected weights.
        maximize: Ascend.
        capturable: Do not branch on values or wait for the device, for CUDA graphs.

    Raises:
        ValueError: A negative rate, or no parameters.
        TypeError: A parameter that is not floating point.

    Example:
        >>> net = torch.nn.Linear(4, 2)
        >>> optimizer = SGDP(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        >>> net(torch.ones(3, 4)).square().mean().backward()
        >>> optimizer.step()
    """

    state_names = ("momentum",)

    @checked
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        eps: float = 1e-8,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        *,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "eps": eps,
                "delta": delta,
                "wd_ratio": wd_ratio,
                "maximize": maximize,
                "capturable": capturable,
            },
        )

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        check_range("momentum", group["momentum"], 0, 1, high_open=True)

    def _decay(self, group: Group) -> float:
        return float(group["weight_decay"] / (1 - group["momentum"]))

    def _step_unprojected(self, group: Group, lr: float | Tensor, columns: Columns) -> None:
        params, grads, buffers = columns
        # The kernel leaves out the buffer without momentum.
        if not group["momentum"] or not takes_kernel(columns):
            super()._step_unprojected(group, lr, columns)
            return
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - float(lr) * self._decay(group))
        torch._fused_sgd_(
            params,
            grads,
            buffers,
            weight_decay=0.0,
            momentum=group["momentum"],
            lr=float(lr),
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=False,
            is_first_step=False,
        )

    def _directions(self, group: Group, columns: Columns) -> list[Tensor]:
        (_, grads, buffers), momentum = columns, group["momentum"]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads, alpha=1 - group["dampening"])
        if group["nesterov"]:
            return list(torch._foreach_add(grads, buffers, alpha=momentum))
        return buffers  # the projection changes them, as the authors' code does
