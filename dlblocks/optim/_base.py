"""Base of the optimizers of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dlblocks._errors import check_range

Group = dict[str, Any]
Columns = list[list[Tensor]]  # parameters, gradients, and each state


class BaseOptimizer(Optimizer):
    """Checks every group, and starts all states at zero.

    Subclasses define `state_names` and `_update`.

    Attributes:
        state_names: Names of state tensors, which have the shape of the parameter.
        counts_steps: True if the state also counts steps, as ``"step"``.
        elementwise: True if the update of a value depends on no other value.
    """

    state_names: tuple[str, ...] = ()
    counts_steps = False
    elementwise = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if not p.is_floating_point():
                raise TypeError(
                    f"{type(self).__name__} takes floating-point parameters, got {p.dtype}."
                )

    def _check_group(self, group: Group) -> None:
        """Raise a `ValueError` if a setting is out of its range."""
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
            if not isinstance(betas, tuple) or len(betas) != 2:
                raise ValueError(f"betas={betas!r} must be two numbers.")
            for i, beta in enumerate(betas):
                check_range(f"betas[{i}]", beta, 0, 1, high_open=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # those of other packages lack some settings
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        for values in self.state.values():
            if self.counts_steps and values and not isinstance(values["step"], Tensor):
                values["step"] = torch.tensor(float(values["step"]))

    # Dynamo runs a function of this name before it traces the step.
    def _init_group(self, group: dict[str, Any], rows: list[tuple[Tensor, ...]]) -> None:
        """Append (parameter, gradient, states …) of parameters with gradients."""
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
            if self.counts_steps and group["capturable"]:
                state["step"] = state["step"].to(p.device)
            rows.append((p, p.grad, *(state[name] for name in names)))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: Computes loss and gradients again. It is called once, before the update.

        Returns:
            The result of `closure`, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rows: list[tuple[Tensor, ...]] = []
            self._init_group(group, rows)
            lr = group["lr"]
            if isinstance(lr, Tensor):
                lr = lr.view(())  # a tensor without axes fits parameters of any shape
            for columns in _by_device_and_dtype(rows):
                if group["maximize"]:
                    columns[1] = list(torch._foreach_neg(columns[1]))
                if self.counts_steps:
                    torch._foreach_add_(columns[-1], 1)
                self._update(group, lr, columns)
        return loss

    def _update(self, group: Group, lr: float | Tensor, columns: Columns) -> None:
        """Update parameters of one device and dtype, and their states, in place."""
        raise NotImplementedError(f"{type(self).__name__} must define _update.")


def descend_(params: list[Tensor], directions: list[Tensor], lr: float | Tensor) -> None:
    """Subtract ``lr * directions`` from the parameters, in place."""
    if isinstance(lr, Tensor):
        torch._foreach_sub_(params, torch._foreach_mul(directions, lr))
    else:
        torch._foreach_add_(params, directions, alpha=-lr)


def takes_kernel(columns: Columns) -> bool:
    """Return True if torch's fused CPU kernels can take the step.

    They are several times as fast as foreach, since they read the memory once.
    """
    first = columns[0][0]
    if torch.compiler.is_compiling() or not first.is_cpu:
        return False
    return all(
        x.is_contiguous() and x.dtype == first.dtype and not x.is_neg()
        for column in columns
        for x in column
    )


def _by_device_and_dtype(rows: list[tuple[Tensor, ...]]) -> list[Columns]:
    """Turn rows into columns, separately for each device and dtype."""
    found: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, ...]]] = {}
    for row in rows:
        found.setdefault((row[0].device, row[0].dtype), []).append(row)
    return [[list(column) for column in zip(*part, strict=True)] for part in found.values()]
