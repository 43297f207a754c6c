"""Uses of private parts of Lightning 2.6, with reason and test.

``tests/test_lightning.py`` checks that the parts exist, and that no other file uses any. Subclasses
use those of their own base class in their own file: of `LightningCLI` in ``cli``, of `WandbLogger`
in ``tracking/_wandb.py``.
"""

from __future__ import annotations

import builtins
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _Metadata,
    _ResultMetric,
    _Sync,
)
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torchmetrics import Metric, MetricCollection

HOOK = "on_after_batch_transfer"
NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
# Arguments of `self.log` that Lightning keeps as plain values.
META = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph",
        "add_dataloader_idx", "dataloader_idx", "metric_attribute")  # fmt: skip
SYNC = ("_should", "rank_zero_only", "_op")
Plain = dict[str, Any]


@contextlib.contextmanager
def quick_gpu_check() -> Iterator[None]:
    """Make `torch.cuda.is_available` quick on machines without a GPU.

    With a GPU nothing changes.

    Every step of an optimizer asks whether there is an accelerator. Lightning sets an environment
    variable that makes torch ask the driver's library instead of CUDA, because a process that has
    initialised CUDA cannot be forked. Without such a library torch searches for it each time, which
    takes a tenth of a millisecond per step. Without a GPU, CUDA can be asked safely, and it
    remembers its answer. Afterwards the variable has its old value.
    """
    before = os.environ.get(NVML_CHECK)
    if before != "1" or torch.cuda.is_available():
        yield
        return
    os.environ[NVML_CHECK] = "0"
    try:
        yield
    finally:
        os.environ[NVML_CHECK] = before


def send_metrics(trainer: pl.Trainer) -> Callable[..., None]:
    """Return the function that sends a Trainer's metrics to its loggers."""
    connector: Any = trainer._logger_connector
    send: Callable[..., None] = connector.log_metrics
    return send


def intercept_metrics(trainer: pl.Trainer, send: Callable[..., None] | None) -> None:
    """Replace the function of `send_metrics`, or restore it with None.

    The public way is a logger of our own, but a module would find that as its `self.logger`.
    Tests: ``tests/crossval/test_any_module.py``, ``tests/crossval/test_select.py``.
    """
    there: dict[str, Any] = vars(trainer._logger_connector)
    if send is None:
        there.pop("log_metrics", None)
    else:
        there["log_metrics"] = send


@contextlib.contextmanager
def changed_checkpoints(
    trainer: pl.Trainer, change: Callable[[dict[str, Any]], None]
) -> Iterator[None]:
    """Change every checkpoint before it is written, whichever callback writes it.

    The public hooks come too early: the module's own `on_save_checkpoint` runs after them.
    Test: ``tests/test_checkpoints.py``.
    """
    connector: Any = trainer._checkpoint_connector
    dump = connector.dump_checkpoint

    def dump_checkpoint(*args: Any, **kwargs: Any) -> dict[str, Any]:
        checkpoint: dict[str, Any] = dump(*args, **kwargs)
        change(checkpoint)
        return checkpoint

    connector.dump_checkpoint = dump_checkpoint
    try:
        yield
    finally:
        connector.dump_checkpoint = dump


def keep_callbacks(trainer: pl.Trainer) -> None:
    """Let later runs of a Trainer use the callbacks of the fit.

    Every run would call the module's `configure_callbacks` again. The new callbacks would lack the
    state that those of the fit have.
    Test: ``tests/crossval/test_any_module.py``.
    """
    vars(trainer)["_callback_connector"]._attach_model_callbacks = lambda: None


def before_transfer(model: pl.LightningModule, batch: Any) -> Any:
    """Call the hook `on_before_batch_transfer`, as a Trainer does.

    The hook may be the module's or its datamodule's. No public call tells which.
    Tests: ``tests/crossval/test_foreign.py``, ``tests/callbacks/test_sharpness.py``.
    """
    return model._on_before_batch_transfer(batch, dataloader_idx=0)


def csv_writer(logger: CSVLogger) -> Any:
    """Return a CSV logger's writer, or None before the first log.

    The public `experiment` creates a writer, which deletes the file of an earlier run.
    Test: ``tests/callbacks/test_resume_csv.py``.
    """
    return logger._experiment


def set_csv_writer(logger: CSVLogger, writer: Any) -> None:
    """Replace the writer of a CSV logger."""
    logger._experiment = writer


def trainer_of(model: pl.LightningModule) -> pl.Trainer | None:
    """Return a module's Trainer, or None where Lightning raises an error."""
    try:
        return model.trainer
    except RuntimeError:
        return None


def datamodule_of(trainer: pl.Trainer | None) -> Any:
    """Return the datamodule of a Trainer's batches, None for loaders.

    `Trainer.datamodule` may still be that of the call before.
    Test: ``tests/models/test_inputs.py``.
    """
    connector = getattr(trainer, "_data_connector", None)
    selector = getattr(connector, "_datahook_selector", None)
    return getattr(trainer, "datamodule", None) if selector is None else selector.datamodule


def hook_owner(datamodule: Any, module: pl.LightningModule) -> Any:
    """Return the object whose `on_after_batch_transfer` Lightning calls."""
    return datamodule if datamodule and is_overridden(HOOK, datamodule) else module


def log_as(model: pl.LightningModule, name: str, value: Any) -> None:
    """Log another value of a hyperparameter than the model keeps.

    Loggers warn about objects that YAML cannot write.
    Test: ``tests/tasks/test_tasks.py``.
    """
    initial: Any = model._hparams_initial
    if name in initial:
        initial[name] = value


def data_fetcher(trainer: pl.Trainer) -> Any:
    """Return the fetcher of training batches.

    Its loader is replaced to resume in mid-epoch. Replacing the loader that a module returns would
    be too late: Lightning has created its iterator by then.
    Test: ``tests/callbacks/test_exact_resume.py``.
    """
    return trainer.fit_loop._data_fetcher


def fetched_loader(fetcher: Any) -> Any:
    """Return a fetcher's loader, or None where the public property raises."""
    return fetcher._combined_loader


def metric_states(module: pl.LightningModule) -> dict[str, Plain]:
    """Return the sums of all metrics, which a `state_dict` lacks."""
    for part in module.modules():
        if isinstance(part, MetricCollection):
            # Metrics of a collection may share one state; this gives each its copy.
            list(part.values(copy_state=False))
    return {
        name: {"count": part.update_count, "sums": _on_cpu(part.metric_state)}
        for name, part in module.named_modules()
        if isinstance(part, Metric) and part.update_called
    }


def set_metric_states(module: pl.LightningModule, states: dict[str, Plain]) -> None:
    """Restore the sums of `metric_states`."""
    for name, part in module.named_modules():
        if isinstance(part, Metric) and name in states:
            _set_sums(part, states[name]["sums"], part.device)
            part._update_count = states[name]["count"]


def logged_state(trainer: pl.Trainer) -> dict[str, Plain]:
    """Return what `self.log` has collected in this training epoch.

    These are the last values, and the sums for the end of the epoch. Lightning saves neither, so a
    fit resumed in mid-epoch would log other means. Test: ``tests/callbacks/test_exact_resume.py``.
    """
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
            "defaults": _on_cpu(metric._defaults),  # the values that an epoch begins with
            "last": last.detach().cpu().clone() if isinstance(last, Tensor) else None,
        }
    return state


def set_logged_state(
    trainer: pl.Trainer, module: pl.LightningModule, state: dict[str, Plain]
) -> None:
    """Restore `logged_state`, to resume logging in mid-epoch."""
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
    # At the first batch of an epoch Lightning resets the sums. This is not the first.
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
