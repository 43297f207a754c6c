"""AdamP (Heo et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dlblocks._errors import checked
from dlblocks.optim._base import bias_correction, fused_adamw_, has_fused_kernel
from dlblocks.optim._projection import HALF, ProjectedOptimizer


class AdamP(ProjectedOptimizer):
    """Adam that does not make scale-invariant weights grow (Heo et al. 2021).

    With the moments m and v of Adam, d = m̂ / (√v̂ + eps) and p̂ = p / (|p| + eps):

    - where |cos(p, g)| < delta / √dim for every output channel, or else for the whole tensor,
      ``p ← p · (1 - lr · weight_decay · wd_ratio) - lr · (d - p̂ (p̂·d))``, p̂ and p̂·d being those
      of the channel or of the tensor;
    - elsewhere, and for parameters with fewer than two axes, AdamW:
      ``p ← p · (1 - lr · weight_decay) - lr · d``.

    The updates are those of the authors' package ``adamp``, whose `state_dict` can be loaded.
    Products and norms of float16 and bfloat16 parameters are taken in float32.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate; a tensor of one number, too.
        betas: Decay rates of the moments, each in [0, 1).
        eps: Added to the denominator and to norms.
        weight_decay: Decoupled decay of the weights.
        delta: Threshold of the cosine.
        wd_ratio: Share of the decay that projected weights have.
        nesterov: Nesterov's momentum, ``betas[0] · m + (1 - betas[0]) · g`` in place of m.
        foreach: False: one tensor after the other. True: lists of tensors, with no fused kernel.
        maximize: Ascend.
        capturable: No branch on values and no wait for the device, for CUDA graphs.
        fused: Moments by torch's fused kernel of AdamW, where `foreach` is None. None: if it is
            there and takes the parameters.

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
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        fused: bool | None = None,
    ) -> None:
        if fused and (foreach or nesterov):
            raise ValueError(
                "fused=True has no effect with foreach=True or nesterov=True; leave one out."
            )
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
                "foreach": foreach,
                "maximize": maximize,
                "capturable": capturable,
                "fused": fused,
            },
        )

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if group["fused"]:
            for p in group["params"]:
                if not has_fused_kernel(p.device, p.dtype):
                    raise ValueError(
                        f"fused=True, but torch has no fused kernel for {p.dtype} on {p.device}; "
                        "use fused=None."
                    )

    def _is_fused(self, group: dict[str, Any], p: Tensor) -> bool:
        if group["fused"] is False or group["foreach"] is not None or group["nesterov"]:
            return False
        return has_fused_kernel(p.device, p.dtype)

    def _steps_on_device(self, group: dict[str, Any], p: Tensor) -> bool:
        return bool(group["capturable"]) or self._is_fused(group, p)

    def _one_by_one(self, group: dict[str, Any], lr: Any, device: torch.device) -> bool:
        if torch.compiler.is_compiling() or group["foreach"] is False:
            return True
        if all(self._is_fused(group, p) for p in group["params"]) and device.type != "cpu":
            return False
        return isinstance(lr, Tensor) or bool(group["capturable"])

    def _update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        states: Sequence[list[Tensor]],
    ) -> None:
        if torch.compiler.is_compiling():
            for step in states[2]:
                step.add_(1)
        else:
            for part in {step.device for step in states[2]}:
                torch._foreach_add_([step for step in states[2] if step.device == part], 1)
        super()._update(group, params, grads, states)

    def _perturbation(
        self, grad: Tensor, states: Sequence[Tensor], group: dict[str, Any], lr: float | Tensor
    ) -> Tensor:
        exp_avg, exp_avg_sq, step = states
        beta1, beta2 = group["betas"]
        exp_avg.lerp_(grad, 1 - beta1)
        if grad.dtype in HALF:  # as the fused kernel: eps, and squares of 5e-3, are 0 in float16
            exp_avg, grad = exp_avg.float(), grad.float()
            wide = exp_avg_sq.float().mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            exp_avg_sq.copy_(wide)
            exp_avg_sq = wide
        else:
            exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        correction = bias_correction(beta2, step, grad.dtype).sqrt()
        denominator = (exp_avg_sq.sqrt() / correction).add_(group["eps"])
        first = exp_avg.lerp(grad, 1 - beta1) if group["nesterov"] else exp_avg
        return first / denominator * (-lr / bias_correction(beta1, step, grad.dtype))

    def _descend(
        self,
        outs: list[Tensor],
        grads: list[Tensor],
        states: Sequence[list[Tensor]],
        group: dict[str, Any],
        lr: Any,
        decay: Any,
    ) -> None:
        exp_avgs, exp_avg_sqs, steps = states
        betas, eps = group["betas"], group["eps"]
        if self._is_fused(group, outs[0]):
            fused_adamw_(
                outs,
                grads,
                exp_avgs,
                exp_avg_sqs,
                steps,
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=group["weight_decay"] if isinstance(decay, Tensor) or decay else 0.0,
                maximize=group["maximize"],
            )
            return
        beta1, beta2 = betas
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        if decay:
            torch._foreach_mul_(outs, 1 - decay)
        if outs[0].dtype in HALF:
            for out, grad, *state in zip(outs, grads, *states, strict=True):
                out.add_(self._perturbation(grad, state, group, lr))
            return
        torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
        counts = [float(step) for step in steps]
        denominators = list(torch._foreach_sqrt(exp_avg_sqs))
        torch._foreach_div_(denominators, [math.sqrt(1 - beta2**count) for count in counts])
        torch._foreach_add_(denominators, eps)
        firsts = exp_avgs
        if group["nesterov"]:
            firsts = list(torch._foreach_lerp(exp_avgs, grads, 1 - beta1))
        sizes = [-lr / (1 - beta1**count) for count in counts]
        torch._foreach_addcdiv_(outs, firsts, denominators, sizes)
