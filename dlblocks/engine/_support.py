"""What can be fitted together, as far as it can be seen before it is tried."""

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

# Trainer arguments that are heeded here, or that only concern what is the same for all members.
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
    """Raises `NotVectorizable` if fits of this kind cannot be run as one, as far as can be seen.

    Args:
        model: One of the models.
        datamodule: Its data.
        callbacks: Its callbacks.
        trainer: Arguments of the Trainer.
    """
    if not isinstance(model, Model):
        raise NotVectorizable(
            f"{type(model).__name__} is no model of dlblocks.models, whose step is known"
        )
    changed = _overridden(model)
    if changed:
        raise NotVectorizable(
            f"{type(model).__name__} has a {changed} of its own, which would run once for all"
        )
    if getattr(model, "changes_while_fitting", False):
        raise NotVectorizable(f"unfreeze_epoch changes what {type(model).__name__} trains")
    if not isinstance(datamodule, DataModule):
        raise NotVectorizable(f"{type(datamodule).__name__} is no datamodule over arrays in memory")
    if datamodule.train_transform is not None:
        raise NotVectorizable("train_transform changes samples one by one, in worker processes")
    for callback in callbacks:
        if not isinstance(callback, CALLBACKS):
            raise NotVectorizable(
                f"the callback {type(callback).__name__} works on one model; only EarlyStopping "
                "and callbacks that change batches work here"
            )
    _check_data(datamodule)
    _check_trainer(trainer)


# What Lightning would call of a datamodule, and the engine does not.
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
    if isinstance(datamodule.source.targets, Ragged):
        raise NotVectorizable("targets of unequal length have no common shape")
    for name in OF_DATA:
        if getattr(type(datamodule), name) is not getattr(DataModule, name):
            raise NotVectorizable(
                f"{type(datamodule).__name__} has a {name} of its own, which works on one batch"
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
            raise NotVectorizable(f"{name}={trainer[name]!r}: one device fits all")
    if trainer.get("devices", "auto") not in ("auto", 1, "1", [0], None):
        raise NotVectorizable(f"devices={trainer['devices']!r}: one device fits all")
    epochs = trainer.get("max_epochs")
    if epochs is not None and epochs < 1:
        raise NotVectorizable(f"max_epochs={epochs} sets no end")
    for name in ("limit_train_batches", "limit_val_batches"):
        if trainer.get(name) == 0:
            raise NotVectorizable(f"{name}=0 leaves nothing to do")
    if not isinstance(trainer.get("accumulate_grad_batches", 1), int):
        raise NotVectorizable("accumulate_grad_batches must be a number of batches")


# What a model of ours may define without losing its place: all else that Lightning calls would be
# called for one model, or not at all.
FREE = {"forward", "setup", "configure_optimizers", "hparams", "on_save_checkpoint"}


def _overridden(model: Model) -> str | None:
    """The first method of a user's subclass that Lightning or `Model` would call in a step."""
    ours = {name for name in vars(Model) if name.startswith(("_step", "_flush", "_log", "_reset"))}
    ours |= {"update_metrics", "compute_metrics", "reset_metrics", "flush_metrics"}
    for cls in type(model).__mro__:
        if cls.__module__.startswith("dlblocks.models."):
            return None
        for name in vars(cls):
            hook = name.endswith("_step") or name.startswith(("on_", "optimizer_", "lr_"))
            hook |= name in ("backward", "configure_gradient_clipping", "manual_backward")
            if (hook or name in ours) and name not in FREE and hasattr(Model, name):
                return name
    return None


# What may differ between members, because it only decides how each is trained.
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
    """The attributes of all modules of a model that are plain values, by their names.

    Raises:
        NotVectorizable: An attribute is a tensor that is no parameter or buffer.
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
                # A copy: what a step changes in place is seen too.
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
    """Models cannot be fitted together in one batched computation; the message says why."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short; on the CPU torch raises a plain `RuntimeError`."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        "DefaultCPUAllocator" in str(error)
    )


@contextlib.contextmanager
def naming(name: str | None) -> Iterator[None]:
    """Begins the message of an error with a name, unless that is None.

    Lack of memory, and what cannot be fitted together, belong to all.
    """
    try:
        yield
    except NotVectorizable:
        raise
    except Exception as error:
        if name is None or is_out_of_memory(error):
            raise
        raise named(error, name) from error
