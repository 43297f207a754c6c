"""Step K optimizers in few calls, even if their settings differ."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dlblocks.engine._stacked_models import StackedModels

# Optimizers with a fused kernel: one launch for all tensors, not one for each operation.
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
# Optimizers that treat every value by itself, so that a stack of K tensors can be one tensor.
ELEMENTWISE = (
    *FUSED,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
)
OURS = "dlblocks.optim."
SET_APART = ("params", "param_names")


class StackedOptimizer:
    """Optimizers of several models that step together.

    Every optimizer keeps its own parameter groups, which its schedulers change. Every model keeps
    its own state, step counts included. There are three ways to step:

    - While all models take the same step with the same settings, an optimizer that treats every
      value by itself steps the stacked parameters.
    - Otherwise the parameters of models with equal settings go into one call.
    - Optimizers from elsewhere than torch and this package step one after another.

    Args:
        optimizers: One for each model.
        stack: The models.
    """

    def __init__(self, optimizers: Sequence[Optimizer], stack: StackedModels) -> None:
        self.optimizers = list(optimizers)
        self.stack = stack
        self._steps = [0] * len(optimizers)
        self._equal: dict[tuple[int, ...], list[list[tuple[int, int]]]] = {}
        self._alike: set[tuple[int, ...]] = set()  # with equal settings in matching groups
        self._params: dict[tuple[tuple[int, int], ...], list[Tensor]] = {}
        self._stacked_params: list[list[Tensor]] = []
        self._merged: Optimizer | None = None
        self._stacked: Optimizer | None = None  # holds the state while it exists
        self._changed = True
        cls = type(self.optimizers[0])
        is_known = cls in ELEMENTWISE or cls.__module__.startswith(OURS)
        is_known &= not any(_has_hooks(optimizer) for optimizer in optimizers)
        if is_known and all(type(optimizer) is cls for optimizer in optimizers):
            self._merged = copy.copy(self.optimizers[0])
            state: defaultdict[Tensor, Any] = defaultdict(dict)
            for optimizer in self.optimizers:
                state.update(optimizer.state)
                for group in optimizer.param_groups:
                    _choose_kernel(group, cls)
            self._merged.state = state
        self._can_stack = cls in ELEMENTWISE or getattr(cls, "elementwise", False)

    def step(self, members: Sequence[int]) -> None:
        """Step the optimizers of some models."""
        if self._merged is None:
            for k in members:
                self.optimizers[k].step()
            return
        equal = self._equal.get(key := tuple(members))
        if equal is None:
            equal = self._equal[key] = self._find_equal(members)
            if self._can_stack and len(members) == len(self.optimizers) and self._are_like(equal):
                self._alike.add(key)
        if key in self._alike and len(set(self._steps)) == 1:
            self._step_stacked()
        else:
            self._step_merged(equal)
        for k in members:
            self._steps[k] += 1

    def settings_changed(self) -> None:
        """Compare the settings again, since schedules may have changed them."""
        self._equal, self._alike, self._changed = {}, set(), True

    def _find_equal(self, members: Sequence[int]) -> list[list[tuple[int, int]]]:
        """Group the pairs (model, parameter group) by equal settings."""
        equal: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
        for k in members:
            for j, group in enumerate(self.optimizers[k].param_groups):
                settings = tuple(_hashable(v) for name, v in group.items() if name not in SET_APART)
                equal.setdefault(settings, []).append((k, j))
        return list(equal.values())

    def _are_like(self, equal: Sequence[list[tuple[int, int]]]) -> bool:
        """Check that matching parameter groups of all models have equal settings."""
        count = len(self.optimizers)
        return all(
            set(places) == set(product(range(count), {j for _, j in places})) for places in equal
        )

    def _step_stacked(self) -> None:
        assert self._merged is not None  # for the type checker
        if self._stacked is None:
            self._stacked = copy.copy(self._merged)
            self._stacked.state = defaultdict(dict)
            for name, stacked in self.stack.params.items():
                parts = [
                    self._merged.state.get(model.get_parameter(name), {})
                    for model in self.stack.models
                ]
                if parts[0]:
                    self._stacked.state[stacked] = {
                        key: _stack([part[key] for part in parts], stacked.shape[1:])
                        for key in parts[0]
                    }
            self._merged.state.clear()
            place = {p: name for name, p in self.stack.models[0].named_parameters()}
            self._stacked_params = [
                [self.stack.params[place[p]] for p in group["params"]]
                for group in self.optimizers[0].param_groups
            ]
            self._changed = True
        if self._changed:
            groups = zip(self.optimizers[0].param_groups, self._stacked_params, strict=True)
            self._stacked.param_groups = [{**group, "params": params} for group, params in groups]
            self._changed = False
        self._stacked.step()

    def _step_merged(self, equal: Sequence[list[tuple[int, int]]]) -> None:
        assert self._merged is not None  # for the type checker
        self._unstack()
        groups = []
        for places in equal:
            params = self._params.get(key := tuple(places))
            if params is None:
                found = (self.optimizers[k].param_groups[j]["params"] for k, j in places)
                params = self._params[key] = [p for part in found for p in part]
            k, j = places[0]
            groups.append({**self.optimizers[k].param_groups[j], "params": params})
        self._merged.param_groups = groups
        self._merged.step()

    def _unstack(self) -> None:
        """Give every model its own state back."""
        if self._stacked is None or self._merged is None:
            return
        for k, model in enumerate(self.stack.models):
            self._merged.state.update(self._state_of(k, model))
        self._stacked = None

    def _state_of(self, k: int, model: torch.nn.Module) -> dict[Tensor, dict[str, Any]]:
        if self._merged is None:
            return dict(self.optimizers[k].state)
        if self._stacked is None:
            return {p: self._merged.state[p] for p in model.parameters() if p in self._merged.state}
        found: dict[Tensor, dict[str, Any]] = {}
        for name, stacked in self.stack.params.items():
            if state := self._stacked.state.get(stacked):
                found[model.get_parameter(name)] = {
                    key: _row(value, k, stacked.shape) for key, value in state.items()
                }
        return found

    def keep(self, members: Sequence[int]) -> None:
        """Remove all other models. Call it before `StackedModels.keep`."""
        self._unstack()
        self.optimizers = [self.optimizers[k] for k in members]
        self._steps = [self._steps[k] for k in members]
        self._params = {}
        self.settings_changed()

    def state(self, k: int) -> dict[str, Any]:
        """Return the `state_dict` of model k's optimizer, and its step count."""
        optimizer = self.optimizers[k]
        optimizer.state = defaultdict(dict, self._state_of(k, self.stack.models[k]))
        found = {"optimizer": optimizer.state_dict(), "steps": self._steps[k]}
        if self._merged is not None:
            optimizer.state = defaultdict(dict)
        return found

    def load(self, k: int, state: dict[str, Any]) -> None:
        """Restore the `state` of model k, before the first step."""
        self.optimizers[k].load_state_dict(state["optimizer"])
        self._steps[k] = state["steps"]
        if self._merged is not None:
            self._merged.state.update(self.optimizers[k].state)


def _stack(parts: Sequence[Any], shape: torch.Size) -> Any:
    """Stack the state of one parameter in all models.

    State of the parameter's shape is stacked. Anything else, such as a step count, is equal in all
    models and is kept once.
    """
    if isinstance(parts[0], Tensor) and parts[0].shape == shape and parts[0].ndim:
        return torch.stack(list(parts))
    return parts[0].clone() if isinstance(parts[0], Tensor) else parts[0]


def _row(value: Any, k: int, shape: torch.Size) -> Any:
    """Return model k's part of the state of a stacked parameter."""
    if isinstance(value, Tensor) and value.shape == shape:
        return value[k].clone()
    return value.clone() if isinstance(value, Tensor) else value


def _choose_kernel(group: dict[str, Any], cls: type[Optimizer]) -> None:
    if any(group.get(name) is not None for name in ("fused", "foreach")):
        return  # the user's choice
    if any(group.get(name) for name in ("capturable", "differentiable")):
        return
    floating = all(p.is_floating_point() for p in group["params"])
    if cls in FUSED and floating and not isinstance(group["lr"], Tensor):
        group["fused"] = True
    elif "foreach" in group:
        group["foreach"] = True


def _has_hooks(optimizer: Optimizer) -> bool:
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def _hashable(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value)
    return tuple(value) if isinstance(value, list) else value
