"""What the optimizers of this package share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dlblocks._errors import check_range


class BaseOptimizer(Optimizer):
    """A `torch.optim.Optimizer` that checks every group and keeps tensors of zeros as state.

    Subclasses define `state_names` and `_update`.

    Attributes:
        state_names: The tensors, of the shape of the parameter, that begin as zeros.
        counts_steps: Whether ``"step"`` is part of the state too.
    """

    state_names: tuple[str, ...] = ()
    counts_steps = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        betas = param_group.get("betas", self.defaults.get("betas"))
        if isinstance(betas, list):  # from YAML
            param_group = {**param_group, "betas": tuple(betas)}
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_group(group)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        if isinstance(group["lr"], Tensor) and group["lr"].numel() != 1:
            raise ValueError(
                f"lr is a tensor of shape {tuple(group['lr'].shape)}; it must be one number."
            )
        for name in ("lr", "eps", "weight_decay", "delta", "wd_ratio"):
            if name in group:
                value = group[name]
                check_range(name, float(value) if isinstance(value, Tensor) else value, 0)
        if "betas" in group:
            betas = group["betas"]
            if (
                not isinstance(betas, tuple)
                or len(betas) != 2
                or not all(isinstance(beta, (int, float)) for beta in betas)
            ):
                raise ValueError(f"betas={betas!r} must be two numbers.")
            for i, beta in enumerate(betas):
                check_range(f"betas[{i}]", beta, 0, 1, high_open=True)
        for p in group["params"]:
            if not p.is_floating_point():
                raise TypeError(
                    f"{type(self).__name__} takes floating-point parameters, got {p.dtype}."
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # other packages' lack some
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        for values in self.state.values():
            if self.counts_steps and values and not isinstance(values["step"], Tensor):
                values["step"] = torch.tensor(float(values["step"]))

    # Dynamo knows this name: it runs it before it traces the step.
    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        *states: list[Tensor],
    ) -> None:
        """Appends the parameters with a gradient, their gradients and their states."""
        names = [*self.state_names, *(["step"] if self.counts_steps else [])]
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise RuntimeError(
                    f"{type(self).__name__} does not take sparse gradients; use "
                    "torch.optim.SparseAdam, or sparse=False in the embedding."
                )
            state = self.state[p]
            if not state:
                for name in self.state_names:
                    state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
                if self.counts_steps:
                    state["step"] = torch.zeros((), dtype=torch.float32)
            if self.counts_steps and self._steps_on_device(group, p):
                state["step"] = state["step"].to(p.device)
            params.append(p)
            grads.append(p.grad)
            for values, name in zip(states, names, strict=True):
                values.append(state[name])

    def _steps_on_device(self, group: dict[str, Any], p: Tensor) -> bool:
        return bool(group.get("capturable"))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient.

        Args:
            closure: Computes the loss anew, with gradients; called once, before the update.

        Returns:
            What `closure` returns, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            states: list[list[Tensor]] = [[] for _ in self.state_names]
            if self.counts_steps:
                states.append([])
            self._init_group(group, params, grads, *states)
            if params:
                self._update(group, params, grads, states)
        return loss

    def _update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        states: Sequence[list[Tensor]],
    ) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define _update.")


def rate(group: dict[str, Any]) -> Any:
    """The learning rate: a number, or a tensor without axes, which fits parameters of any shape."""
    lr = group["lr"]
    return lr.view(()) if isinstance(lr, Tensor) else lr


def by_device_and_dtype(
    params: list[Tensor], grads: list[Tensor], states: Sequence[list[Tensor]]
) -> list[list[list[Tensor]]]:
    """Parts of ``[params, grads, *states]``, each of one device and one dtype."""
    found: dict[tuple[torch.device, torch.dtype], list[list[Tensor]]] = {}
    for row in zip(params, grads, *states, strict=True):
        part = found.setdefault((row[0].device, row[0].dtype), [[] for _ in row])
        for values, value in zip(part, row, strict=True):
            values.append(value)
    return list(found.values())


def bias_correction(beta: float, step: Tensor, dtype: torch.dtype) -> Tensor:
    """``1 - beta ** step``, without the cancellation, in at least float32."""
    if beta == 0:
        return torch.ones_like(step)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    return -torch.expm1(step.to(exact) * math.log(beta))


_kernel = getattr(torch, "_fused_adamw_", None)
DEVICES = ("cpu", "cuda")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def has_fused_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel takes tensors of this device and dtype."""
    return _kernel is not None and device.type in DEVICES and dtype in DTYPES


def fused_adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    """One step of AdamW (Loshchilov and Hutter 2019), in place; `steps` count this step already.

    All tensors of one parameter have the same strides and no gaps.
    """
    assert _kernel is not None  # for the type checker
    _kernel(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        amsgrad=False,
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        maximize=maximize,
        grad_scale=None,
        found_inf=None,
    )
