"""Check by the arguments whether fits can run as one."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping

from dlblocks._errors import named
from dlblocks.callbacks._batch_transform import BatchTransform
from dlblocks.data import DataModule
from dlblocks.fields import Ragged
from dlblocks.models.model import Model
from dlblocks.nets import Preprocess
from dlblocks.tasks import Task

# Trainer arguments that the engine implements for each member, or that suit all members alike.
TRAINER_ARGUMENTS = {
    "max_epochs", "accelerator", "devices", "precision", "gradient_clip_val",
    "gradient_clip_algorithm", "accumulate_grad_batches", "check_val_every_n_epoch",
    "limit_train_batches", "limit_val_batches", "enable_model_summary", "deterministic",
    "benchmark", "num_sanity_val_steps", "log_every_n_steps", "profiler", "detect_anomaly",
    "inference_mode", "strategy", "num_nodes",
}  # fmt: skip
PRECISIONS = (None, 32, "32", "32-true", "bf16-mixed")
CALLBACKS = (EarlyStopping, BatchTransform)


def check_vectorizable(
    model: Any, datamodule: Any, callbacks: Sequence[Callback], trainer: Mapping[str, Any]
) -> None:
    """Check the arguments of fits that are to run as one.

    Args:
        model: One of the models.
        datamodule: Its data.
        callbacks: Its callbacks.
        trainer: Arguments of the Trainer.

    Raises:
        NotVectorizable: The fits cannot run as one. Other reasons show only when a step is tried.
    """
    if not isinstance(model, Model):
        raise NotVectorizable(
            f"{type(model).__name__} is not a model of dlblocks.models, and its step is unknown"
        )
    changed = _overridden(model)
    if changed:
        raise NotVectorizable(
            f"{type(model).__name__} overrides {changed}, which would run once for all models"
        )
    task = model.task
    if task is not None and type(task).join is not Task.join:
        raise NotVectorizable(f"the loss of {type(task).__name__} needs the inputs of a batch")
    if model.not_vectorizable is not None:
        raise NotVectorizable(model.not_vectorizable)
    if not isinstance(datamodule, DataModule):
        raise NotVectorizable(
            f"{type(datamodule).__name__} is not a datamodule over arrays in memory"
        )
    if datamodule.train_transform is not None:
        raise NotVectorizable("train_transform changes samples one by one, in worker processes")
    for callback in callbacks:
        if not isinstance(callback, CALLBACKS):
            raise NotVectorizable(
                f"the callback {type(callback).__name__} works on a single model; only "
                "EarlyStopping and callbacks that change batches work here"
            )
    _check_data(datamodule)
    _check_trainer(trainer)


# Methods of a datamodule that Lightning would call and the engine does not.
OF_DATA = (
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    "transform",
    "train_dataloader",
    "val_dataloader",
    "_loader",
)


def _check_data(datamodule: DataModule) -> None:
    if isinstance(datamodule.source.inputs, Ragged):
        raise NotVectorizable("inputs of unequal length have no common shape")
    if isinstance(datamodule.source.targets, Ragged):
        raise NotVectorizable("targets of unequal length have no common shape")
    for name in OF_DATA:
        if getattr(type(datamodule), name) is not getattr(DataModule, name):
            raise NotVectorizable(
                f"{type(datamodule).__name__} overrides {name}, which works on a single batch"
            )


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    for name, value in trainer.items():
        default = inspect.signature(pl.Trainer.__init__).parameters[name].default
        if name not in TRAINER_ARGUMENTS and value != default:
            raise NotVectorizable(f"trainer={{{name!r}: {value!r}}} is not supported")
    if trainer.get("precision") not in PRECISIONS:
        raise NotVectorizable(
            f"precision={trainer['precision']!r} is not supported; '32-true' and 'bf16-mixed' are"
        )
    for name, plain in (("strategy", ("auto",)), ("num_nodes", (1,))):
        if trainer.get(name, plain[0]) not in plain:
            raise NotVectorizable(f"{name}={trainer[name]!r}: all models share one device")
    if trainer.get("devices", "auto") not in ("auto", 1, "1", [0], None):
        raise NotVectorizable(f"devices={trainer['devices']!r}: all models share one device")
    epochs = trainer.get("max_epochs")
    if epochs is not None and epochs < 1:
        raise NotVectorizable(f"max_epochs={epochs} does not end the fit")
    for name in ("limit_train_batches", "limit_val_batches"):
        if trainer.get(name) == 0:
            raise NotVectorizable(f"{name}=0 leaves nothing to do")
    if not isinstance(trainer.get("accumulate_grad_batches", 1), int):
        raise NotVectorizable("accumulate_grad_batches must be a number of batches")


# Methods of Lightning that a user's subclass may override. Any other would be called for one model
# only, or never.
FREE = {"forward", "setup", "configure_optimizers", "hparams", "on_save_checkpoint"}


def _overridden(model: Model) -> str | None:
    """Return the first overridden method that would be part of a step."""
    ours = {name for name in vars(Model) if name.startswith(("_step", "_flush", "_log", "_reset"))}
    ours |= {
        "outputs_and_loss",
        "update_metrics",
        "compute_metrics",
        "reset_metrics",
        "flush_metrics",
    }
    for cls in type(model).__mro__:
        if cls.__module__.startswith("dlblocks.models."):
            return None
        for name in vars(cls):
            hook = name.endswith("_step") or name.startswith(("on_", "optimizer_", "lr_"))
            hook |= name in ("backward", "configure_gradient_clipping", "manual_backward")
            if (hook or name in ours) and name not in FREE and hasattr(Model, name):
                return name
    return None


# Attributes that may differ between members, because they only concern the training.
OWN = {
    "lr",
    "weight_decay",
    "optimizer_name",
    "optimizer_args",
    "lr_schedule",
    "lr_schedule_args",
    "warmup_steps",
}
INTERNAL = {"training", "_buffers_of", "_first_batch", "_hparams", "_hparams_initial"}
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def plain_state(model: Model) -> dict[str, Any]:
    """Return plain attributes of a model and its modules, by name.

    Raises:
        NotVectorizable: An attribute is a tensor that is neither a parameter nor a buffer.
    """
    known = vars(pl.LightningModule()).keys() | OWN | INTERNAL
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        if path.startswith("_metrics") or isinstance(module, Preprocess):
            continue
        for name, value in vars(module).items():
            if name in known:
                continue
            where = f"{path}.{name}" if path else name
            if _holds_tensor(value):
                raise NotVectorizable(
                    f"{where} is or holds a tensor that is neither a parameter nor a buffer; use "
                    "register_buffer"
                )
            if _is_plain(value):
                # A copy, so that a comparison also sees changes in place.
                found[where] = copy.deepcopy(value)
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple, set)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, PLAIN)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_tensor(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds_tensor(item) for item in value)
    return isinstance(value, (torch.Tensor, np.ndarray))


class NotVectorizable(ValueError):
    """The models cannot be fitted together in one batched computation."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell if memory was short."""
    # On the CPU torch raises a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        "DefaultCPUAllocator" in str(error)
    )


@contextlib.contextmanager
def naming(name: str | None) -> Iterator[None]:
    """Begin an error's message with a name, unless it is None.

    `NotVectorizable` and lack of memory concern all fits, so they stay as they are.
    """
    try:
        yield
    except NotVectorizable:
        raise
    except Exception as error:
        if name is None or is_out_of_memory(error):
            raise
        raise named(error, name) from error
