"""What Lightning's checkpoints lack, as plain values: taken from a run, and put back into another.

Random numbers, what is frozen, half-way sums of metrics and of what was logged. `ExactResume` says
when.
"""

from __future__ import annotations

import builtins
import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _Metadata,
    _ResultMetric,
    _Sync,
)
from torch import Tensor
from torchmetrics import Metric, MetricCollection

Plain = dict[str, Any]


def random_state(device: torch.device, *generators: torch.Generator) -> Plain:
    """The states of this process's generators: Python's, NumPy's, torch's and those given."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.as_tensor(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "generators": [generator.get_state() for generator in generators],
    }
    if device.type != "cpu":
        # Of the current device, which Lightning has set to this rank's.
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(device: torch.device, state: Plain, *generators: torch.Generator) -> None:
    """Puts back what `random_state` took."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    for generator, saved in zip(generators, state["generators"], strict=True):
        generator.set_state(saved.cpu())
    if "device" in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"].cpu())


def module_modes(module: pl.LightningModule) -> Plain:
    """Which parameters are trained and which modules in training mode, by their names."""
    return {
        "requires_grad": {name: p.requires_grad for name, p in module.named_parameters()},
        "training": {name: part.training for name, part in module.named_modules()},
        # Lightning's finetuning switches this off while a batch norm is frozen.
        "track_running_stats": {
            name: part.track_running_stats
            for name, part in module.named_modules()
            if hasattr(part, "track_running_stats")
        },
    }


def set_module_modes(module: pl.LightningModule, modes: Plain) -> None:
    """Puts back what `module_modes` took."""
    parts: dict[str, Any] = {**dict(module.named_modules()), **dict(module.named_parameters())}
    for attribute, values in modes.items():
        for name, value in values.items():
            if name in parts and getattr(parts[name], attribute) != value:
                setattr(parts[name], attribute, value)


def metric_states(module: pl.LightningModule) -> dict[str, Plain]:
    """The sums of every metric in the module; a module's `state_dict` leaves them out."""
    for part in module.modules():
        if isinstance(part, MetricCollection):
            # Members that share one sum get their part of it.
            list(part.values(copy_state=False))
    return {
        name: {"count": part.update_count, "sums": _on_cpu(part.metric_state)}
        for name, part in module.named_modules()
        if isinstance(part, Metric) and part.update_called
    }


def set_metric_states(module: pl.LightningModule, states: dict[str, Plain]) -> None:
    """Puts back what `metric_states` took."""
    for name, part in module.named_modules():
        if isinstance(part, Metric) and name in states:
            _set_sums(part, states[name]["sums"], part.device)
            part._update_count = states[name]["count"]


# The arguments of `self.log` that Lightning keeps and that are plain values.
META = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph",
        "add_dataloader_idx", "dataloader_idx", "metric_attribute")  # fmt: skip
SYNC = ("_should", "rank_zero_only", "_op")


def logged_state(trainer: pl.Trainer) -> dict[str, Plain]:
    """What `self.log` in this epoch of training has left: last values, and sums for its end."""
    state = {}
    for key, metric in trainer.fit_loop.epoch_loop._results.items():
        meta = metric.meta
        if metric.has_reset or meta.sync.group is not None:
            continue
        last = metric._forward_cache
        state[key] = {
            "meta": {name: getattr(meta, name) for name in META},
            "sync": {name: getattr(meta.sync, name) for name in SYNC},
            "reduce_fx": meta.reduce_fx.__name__,
            "builtin": meta.reduce_fx in (min, max, sum),
            "sums": _on_cpu(metric.metric_state) if metric.is_tensor else {},
            "defaults": _on_cpu(metric._defaults),  # what later epochs begin with: 0 of some dtype
            "last": last.detach().cpu().clone() if isinstance(last, Tensor) else None,
        }
    return state


def set_logged_state(
    trainer: pl.Trainer, module: pl.LightningModule, state: dict[str, Plain]
) -> None:
    """Puts back what `logged_state` took, so that logging goes on in the middle of an epoch."""
    results = trainer.fit_loop.epoch_loop._results
    metrics = dict(module.named_modules())
    for key, saved in state.items():
        reduce_fx = getattr(builtins if saved["builtin"] else torch, saved["reduce_fx"])
        meta = _Metadata(**saved["meta"], reduce_fx=reduce_fx)
        meta.sync = _Sync(fn=trainer.strategy.reduce, **saved["sync"])
        result = _ResultMetric(meta, is_tensor=bool(saved["sums"]))
        if result.is_tensor:
            _set_sums(result, saved["sums"], module.device)
            result._defaults.update(saved["defaults"])
            result._update_count = 1
        elif meta.metric_attribute in metrics:
            result.value = metrics[meta.metric_attribute]
        else:
            continue
        result._forward_cache = saved["last"]
        if isinstance(saved["last"], Tensor):
            result._forward_cache = saved["last"].to(module.device)
        results[key] = result
    # Not the first batch of an epoch, at which Lightning forgets the sums.
    trainer._logger_connector._first_loop_iter = False


def _on_cpu(sums: dict[str, Any]) -> Plain:
    return {
        name: [v.detach().cpu().clone() for v in value]
        if isinstance(value, list)
        else value.detach().cpu().clone()
        for name, value in sums.items()
    }


def _set_sums(metric: Metric, sums: Plain, device: torch.device) -> None:
    for name, value in sums.items():
        moved = [v.to(device) for v in value] if isinstance(value, list) else value.to(device)
        setattr(metric, name, moved)
    metric._computed = None
