"""AdamP (Heo et al. 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dlblocks._errors import checked
from dlblocks.optim._base import Columns, Group, takes_kernel
from dlblocks.optim._projection import ProjectedOptimizer


class AdamP(ProjectedOptimizer):
    """Adam that does not make scale-invariant weights grow (Heo et al. 2021).

    With the moments m and v of Adam, d = m̂ / (√v̂ + eps) and ``p̂ = p / (|p| + eps)``:

    - if ``|cos(p, g)| < delta / √dim`` for every output channel, or else for the whole tensor,
      ``p ← p · (1 - lr · weight_decay · wd_ratio) - lr · (d - p̂ (p̂·d))``, with p̂ and p̂·d of the
      channel or of the tensor;
    - otherwise, and for parameters with fewer than two axes, AdamW:
      ``p ← p · (1 - lr · weight_decay) - lr · d``.

    The updates are those of the authors' package ``adamp``, whose `state_dict` can be loaded.
    float16 and bfloat16 parameters are updated in float32 and rounded.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate, a number or a tensor of one number.
        betas: Decay rates of the moments, each in [0, 1).
        eps: Added to the denominator and to norms.
        weight_decay: Decoupled decay of the weights.
        delta: Threshold of the cosine.
        wd_ratio: Share of the decay for projected weights.
        nesterov: Nesterov's momentum, ``betas[0] · m + (1 - betas[0]) · g`` instead of m.
        maximize: Ascend.
        capturable: Do not branch on values or wait for the device, for CUDA graphs.

    Raises:
        ValueError: A negative rate, betas outside [0, 1), or no parameters.
        TypeError: A parameter that is not floating point.

    Example:
        >>> net = torch.nn.Linear(4, 2)
        >>> optimizer = AdamP(net.parameters(), lr=1e-3, weight_decay=1e-2)
        >>> net(torch.ones(3, 4)).square().mean().backward()
        >>> optimizer.step()
    """

    state_names = ("exp_avg", "exp_avg_sq")
    counts_steps = True

    @checked
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "delta": delta,
                "wd_ratio": wd_ratio,
                "nesterov": nesterov,
                "maximize": maximize,
                "capturable": capturable,
            },
        )

    def _step_unprojected(self, group: Group, lr: float | Tensor, columns: Columns) -> None:
        if not group["nesterov"] and takes_kernel(columns[:4]):
            _run_kernel(group, columns, lr=float(lr), weight_decay=group["weight_decay"])
        else:
            super()._step_unprojected(group, lr, columns)

    def _directions(self, group: Group, columns: Columns) -> list[Tensor]:
        _, grads, exp_avgs, exp_avg_sqs, steps = columns
        beta1, beta2 = group["betas"]
        if not group["nesterov"] and takes_kernel(columns[:4]):
            directions = [torch.zeros_like(grad) for grad in grads]
            _run_kernel(group, [directions, *columns[1:]], lr=-1.0, weight_decay=0.0)
            return directions
        torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
        firsts = torch._foreach_lerp(exp_avgs, grads, 1 - beta1) if group["nesterov"] else exp_avgs
        # m̂ / (√v̂ + eps) = m / (√v · c1 / √c2 + c1 · eps), with the corrections of the two biases
        counts = torch.stack(steps).to(torch.promote_types(grads[0].dtype, torch.float32))
        first, second = _bias_correction(beta1, counts), _bias_correction(beta2, counts)
        denominators = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_mul_(denominators, (first / second.sqrt()).unbind())
        torch._foreach_add_(denominators, (first * group["eps"]).unbind())
        torch._foreach_reciprocal_(denominators)  # in place, because new memory is slow on a CPU
        torch._foreach_mul_(denominators, firsts)
        return list(denominators)


def _run_kernel(group: Group, columns: Columns, *, lr: float, weight_decay: float) -> None:
    params, grads, exp_avgs, exp_avg_sqs, steps = columns
    beta1, beta2 = group["betas"]
    torch._fused_adamw_(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )


def _bias_correction(beta: float, steps: Tensor) -> Tensor:
    """Return ``1 - beta ** steps`` without cancellation."""
    return -torch.expm1(steps * math.log(beta)) if beta else torch.ones_like(steps)
