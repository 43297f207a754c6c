"""Private parts of Lightning 2.6 that this package uses, each with its reason and its test.

Nothing else in the package may use a private part of Lightning; ``tests/test_lightning.py`` holds
it, and that the parts are still there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger

NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"


@contextlib.contextmanager
def quick_gpu_check() -> Iterator[None]:
    """Makes `torch.cuda.is_available` quick while it is False; changes nothing where it is True.

    Every step of an optimizer asks whether there is an accelerator. Lightning has set an
    environment variable by which torch asks the driver's library and not CUDA, since processes
    forked from one that has begun CUDA cannot use it. Where there is no such library it is searched
    for each time, a tenth of a millisecond a step. Without a GPU there is nothing to begin: CUDA
    may be asked, and remembers its answer. Afterwards the variable is as before.
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
    """The function through which a Trainer sends metrics to its loggers."""
    connector: Any = trainer._logger_connector
    send: Callable[..., None] = connector.log_metrics
    return send


def intercept_metrics(trainer: pl.Trainer, send: Callable[..., None] | None) -> None:
    """Put a function in the place of `send_metrics`; None ends it.

    The public way is a logger of one's own. A module would then find it as its `self.logger`.
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

    The public hooks come too early: the module's own `on_save_checkpoint` is the last.
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
    """Let later runs of a Trainer use the callbacks that it has.

    Every run attaches the module's `configure_callbacks` anew. Those of the fit have its state.
    Test: ``tests/crossval/test_any_module.py``.
    """
    vars(trainer)["_callback_connector"]._attach_model_callbacks = lambda: None


def before_transfer(model: pl.LightningModule, batch: Any) -> Any:
    """Call the hook `on_before_batch_transfer` of the module or its datamodule, as a Trainer does.

    There is no public call that finds out whose hook it is.
    Tests: ``tests/crossval/test_foreign.py``, ``tests/callbacks/test_sharpness.py``.
    """
    return model._on_before_batch_transfer(batch, dataloader_idx=0)


def csv_writer(logger: CSVLogger) -> Any:
    """The writer of a CSV logger, or None where it has none yet.

    The public `experiment` makes one, which deletes the file of an earlier run.
    Test: ``tests/callbacks/test_resume_csv.py``.
    """
    return logger._experiment


def set_csv_writer(logger: CSVLogger, writer: Any) -> None:
    """Let a CSV logger write by another writer; see `csv_writer`."""
    logger._experiment = writer


def trainer_of(model: pl.LightningModule) -> pl.Trainer | None:
    """The Trainer of a module; None where it has none, for which Lightning raises an error."""
    try:
        return model.trainer
    except RuntimeError:
        return None
