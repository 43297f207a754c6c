"""Run a module's steps without changing its metrics, buffers and logs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from dlblocks.callbacks._resume import (
    Plain,
    module_modes,
    random_state,
    set_module_modes,
    set_random_state,
)
from dlblocks.callbacks._wrapper import restore

# Modules that keep sums outside of torchmetrics stop while this attribute is True, as
# `dlblocks.models.Model` does.
PAUSED = "metrics_paused"


@contextlib.contextmanager
def metrics_kept(module: nn.Module) -> Iterator[None]:
    """Restore the sums of every metric of `module` afterwards."""
    kept = []
    for part in module.modules():
        if isinstance(part, Metric):
            # Metrics of one collection may share a tensor, so restore its identity too.
            contents = {
                name: list(value) if isinstance(value, list) else value.clone()
                for name, value in part.metric_state.items()
            }
            kept.append((part, dict(vars(part)), contents))
    try:
        yield
    finally:
        for part, attributes, contents in kept:
            vars(part).update(attributes)
            for name, content in contents.items():
                held = attributes[name]
                if isinstance(held, list):
                    held[:] = content
                else:
                    held.copy_(content)


@contextlib.contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Restore every buffer of `module` afterwards, such as batch norm's statistics."""
    kept = [
        (part, name, buffer, buffer.clone())
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for part, name, buffer, content in kept:
                buffer.copy_(content)
                if getattr(part, name) is not buffer:
                    setattr(part, name, buffer)


@contextlib.contextmanager
def logging_to(module: pl.LightningModule, log: Callable[..., None]) -> Iterator[None]:
    """Let ``module.log`` and ``module.log_dict`` call `log` instead."""
    had = vars(module).get("log")
    vars(module)["log"] = log
    try:
        yield
    finally:
        restore(module, "log", had)


@contextlib.contextmanager
def values_kept(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Give copies of tensors, and restore their values afterwards."""
    copies = [tensor.detach().clone() for tensor in tensors]
    try:
        yield copies
    finally:
        with torch.no_grad():
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy)


@contextlib.contextmanager
def paused(module: pl.LightningModule) -> Iterator[None]:
    """Keep logs, metrics and buffers unchanged by the steps within."""
    before = getattr(module, PAUSED, None)
    if before is not None:
        setattr(module, PAUSED, True)
    try:
        with metrics_kept(module), buffers_kept(module), logging_to(module, _nothing):
            yield
    finally:
        if before is not None:
            setattr(module, PAUSED, before)


@contextlib.contextmanager
def random_kept(device: torch.device) -> Iterator[Plain]:
    """Give the states of the random generators, and restore them afterwards."""
    state = random_state(device)
    try:
        yield state
    finally:
        set_random_state(device, state)


@contextlib.contextmanager
def evaluated(module: pl.LightningModule) -> Iterator[None]:
    """Put `module` into evaluation mode, and restore all modes afterwards."""
    modes = module_modes(module)
    module.eval()
    try:
        yield
    finally:
        set_module_modes(module, modes)


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass
