"""One step of K optimizers in few calls, whatever differs between them."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

# Each treats every tensor by itself, so that the tensors of several models may share a step.
# Fused kernels do for all tensors of a call what the others do operation by operation.
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
SEPARABLE = (
    *FUSED,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
)


class MergedOptimizer:
    """Steps the optimizers of several models together.

    Every optimizer keeps its own parameter groups, which its schedulers change; parameter groups
    whose settings are equal at the time of a step go into one call. The state is kept by parameter,
    so that each model has its own, step counts included. Optimizers that torch does not have step
    one after another.

    Args:
        optimizers: One a model.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        first = self.optimizers[0]
        self._merged: Optimizer | None = None
        self._params: dict[tuple[tuple[int, int], ...], list[torch.Tensor]] = {}
        cls = type(first)
        if len(optimizers) > 1 and _is_separable(cls) and all(type(o) is cls for o in optimizers):
            self._merged = copy.copy(first)
            state: defaultdict[torch.Tensor, Any] = defaultdict(dict)
            for optimizer in self.optimizers:
                state.update(optimizer.state)
            self._merged.state = state
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    _choose_kernel(group, cls)

    def step(self, members: Sequence[int]) -> None:
        """Steps the optimizers of some models."""
        if self._merged is None:
            for k in members:
                self.optimizers[k].step()
            return
        equal: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
        for k in members:
            for j, group in enumerate(self.optimizers[k].param_groups):
                settings = tuple(_hashable(v) for name, v in group.items() if name not in SET_APART)
                equal.setdefault(settings, []).append((k, j))
        groups = []
        for places in equal.values():
            params = self._params.get(key := tuple(places))
            if params is None:
                found = (self.optimizers[k].param_groups[j]["params"] for k, j in places)
                params = self._params[key] = [p for part in found for p in part]
            k, j = places[0]
            groups.append({**self.optimizers[k].param_groups[j], "params": params})
        self._merged.param_groups = groups
        self._merged.step()

    def keep(self, members: Sequence[int]) -> None:
        """Leaves only these optimizers; the others keep the state they have here."""
        self.optimizers = [self.optimizers[k] for k in members]
        self._params = {}

    def state(self, k: int) -> dict[str, Any]:
        """The state of model k's optimizer, as its `state_dict`."""
        optimizer = self.optimizers[k]
        if self._merged is not None:
            params = {p for group in optimizer.param_groups for p in group["params"]}
            mine = {p: s for p, s in self._merged.state.items() if p in params}
            optimizer.state = defaultdict(dict, mine)
        return optimizer.state_dict()

    def load(self, k: int, state: dict[str, Any]) -> None:
        """Restores what `state` returned for model k."""
        self.optimizers[k].load_state_dict(state)
        if self._merged is not None:
            self._merged.state.update(self.optimizers[k].state)


SET_APART = ("params", "param_names")


def _is_separable(cls: type[Optimizer]) -> bool:
    return cls in SEPARABLE or cls.__module__.startswith("dlblocks.optim.")


def _choose_kernel(group: dict[str, Any], cls: type[Optimizer]) -> None:
    if any(group.get(name) is not None for name in ("fused", "foreach")):
        return  # the user's choice
    if any(group.get(name) for name in ("capturable", "differentiable")):
        return
    floating = all(p.is_floating_point() for p in group["params"])
    if cls in FUSED and floating and not isinstance(group["lr"], torch.Tensor):
        group["fused"] = True
    elif "foreach" in group:
        group["foreach"] = True


def _hashable(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return id(value)
    return tuple(value) if isinstance(value, list) else value
