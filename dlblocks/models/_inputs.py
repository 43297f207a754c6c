"""Apply a model's `preprocess` to the inputs of a batch exactly once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.plugins.precision import HalfPrecision
from torch import Tensor

from dlblocks._lightning import HOOK, hook_owner
from dlblocks._ragged import entries_of
from dlblocks.fields import Padded
from dlblocks.nets.preprocess import preprocess_of

Method = TypeVar("Method", bound=Callable[..., Any])


def adapt(cls: Any, base: Any) -> None:
    """Wrap the methods of a subclass of `Model` and of its mixins.

    These are `forward`, `setup`, and the steps and hooks that get a batch. Each is wrapped once.

    Args:
        cls: The subclass.
        base: `Model`.
    """
    for name, wrap in _WRAPPERS.items():
        definer = next(kind for kind in cls.__mro__ if name in vars(kind))
        is_done = definer is not cls and issubclass(definer, base)
        if not is_done and not issubclass(pl.LightningModule, definer):
            setattr(cls, name, wrap(vars(definer)[name]))


def is_prepared(batch: Any) -> bool:
    """Tell whether batches of this form go through `preprocess` before the steps.

    Tensors and `Padded` do, and lists and tuples whose first entry is one. In other batches, such
    as dictionaries, it is not known which entry the inputs are.
    """
    entries = entries_of(batch)
    return bool(entries) and isinstance(entries[0], (Tensor, Padded))


def inputs_and_targets(batch: Any, who: str, *, weighted: bool = False) -> tuple[Any, Any]:
    """Return the first two entries of a batch.

    Args:
        batch: ``[inputs, targets, …]``.
        who: Name of the model in the message.
        weighted: The batch needs sample weights, too.

    Raises:
        ValueError: The batch has another form.
    """
    entries = entries_of(batch)
    if isinstance(batch, (list, tuple)) and len(entries) >= 2 + weighted:
        return entries[0], entries[1]
    size = f" of {len(batch)}" if isinstance(batch, (list, tuple, dict)) else ""
    raise ValueError(
        f"{who} expects batches [inputs, targets{', weights' if weighted else ''}], got "
        f"{type(batch).__name__}{size}; give your DataLoader a collate_fn that returns such "
        "batches."
    )


def outputs_of(model: Any, inputs: Any) -> Any:
    """Return a model's outputs, or name the cure for a wrong dtype."""
    try:
        return model(inputs)
    except RuntimeError as error:
        weights = model.preprocess.dtype_of.dtype
        is_other = isinstance(inputs, Tensor) and inputs.dtype != weights
        if not is_other or "type" not in str(error):
            raise
        raise ValueError(
            f"{type(model).__name__} got inputs of {inputs.dtype}, and its weights are {weights} "
            f"({error}); let the data set return inputs.to({weights})."
        ) from error


def with_prepared_inputs(method: Method, *, argument: int = 0) -> Method:
    """Let ``self(inputs)`` within a method take inputs that are already prepared.

    Args:
        method: A step or hook.
        argument: The position of its batch.
    """

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = self._prepared
        if before is None:  # not called by another step
            batch = args[argument] if len(args) > argument else kwargs.get("batch")
            self._prepared = is_prepared(batch)
        try:
            return method(self, *args, **kwargs)
        finally:
            self._prepared = before

    return wrapped  # type: ignore[return-value]


def of_raw(forward: Method) -> Method:
    """Let a `forward` that is written for prepared inputs take raw ones."""

    @functools.wraps(forward)
    def wrapped(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        before = self._prepared
        if before:
            return forward(self, inputs, *args, **kwargs)
        self._prepared = True  # so that super().forward does not prepare them again
        try:
            return forward(self, self.preprocess(inputs), *args, **kwargs)
        finally:
            self._prepared = before

    return wrapped  # type: ignore[return-value]


def _with_batches_prepared(setup: Method) -> Method:
    """Let a `setup` prepare batches even without calling super().setup."""

    @functools.wraps(setup)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        prepare_batches(self)
        return setup(self, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


_PARTS = ("train", "validation", "test", "predict")
_WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "forward": of_raw,
    "setup": _with_batches_prepared,
    "training_step": with_prepared_inputs,
    "validation_step": with_prepared_inputs,
    "test_step": with_prepared_inputs,
    "predict_step": with_prepared_inputs,
    **{f"on_{part}_batch_start": with_prepared_inputs for part in _PARTS},
    # In these hooks the batch comes after the outputs.
    **{
        f"on_{part}_batch_end": functools.partial(with_prepared_inputs, argument=1)
        for part in _PARTS
    },
}


def prepare_batches(model: Any) -> None:
    """Apply the model's `preprocess` to each batch of its Trainer on arrival.

    Datamodules of this package do so themselves. For other datamodules and plain loaders, the hook
    that Lightning calls is wrapped until `release_batches`. Half precision would round raw inputs
    before that. So the Trainer's plugin is made to skip them, and `preprocess` rounds its result.
    """
    plugin = getattr(model.trainer, "precision_plugin", None)
    if isinstance(plugin, HalfPrecision):
        vars(plugin).setdefault("convert_input", _ConvertsOthers(model.trainer))
    owner = hook_owner(model.datamodule, model)
    if not getattr(owner, "prepares_inputs", False) and HOOK not in vars(owner):
        vars(owner)[HOOK] = _PreparingHook(owner)


def release_batches(model: Any) -> None:
    """Undo `prepare_batches`."""
    vars(model.trainer.precision_plugin).pop("convert_input", None)
    owner = hook_owner(model.datamodule, model)
    if isinstance(vars(owner).get(HOOK), _PreparingHook):
        del vars(owner)[HOOK]


class _ConvertsOthers:
    """Replacement of half precision's `convert_input` that skips raw inputs."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self.trainer = trainer

    def __call__(self, batch: Any) -> Any:
        plugin = self.trainer.precision_plugin
        converted = type(plugin).convert_input(plugin, batch)
        preprocess = preprocess_of(self.trainer.lightning_module)
        if preprocess is None or not preprocess.is_set or not is_prepared(batch):
            return converted
        if isinstance(batch, (Tensor, Padded)):
            return batch
        if hasattr(batch, "_fields"):  # a namedtuple
            return type(batch)(batch[0], *converted[1:])
        return [batch[0], *converted[1:]]


class _PreparingHook:
    """Replacement of a module's or datamodule's `on_after_batch_transfer`.

    It asks the Trainer for the model each time. If an error leaves the hook behind, it does not
    change the batches of other models.
    """

    def __init__(self, owner: Any) -> None:
        self.inner, self.owner = getattr(owner, HOOK), owner
        self.checked = False
        functools.update_wrapper(self, self.inner)  # Lightning asks what is overridden

    def __call__(self, batch: Any, dataloader_idx: int = 0) -> Any:
        batch = self.inner(batch, dataloader_idx)
        entries = entries_of(batch)
        if not self.checked and entries and isinstance(entries[0], Padded):
            entries[0].check()
        self.checked = True
        trainer = self.owner.trainer
        preprocess = preprocess_of(trainer and trainer.lightning_module)
        if preprocess is None or not preprocess.is_set:
            return batch
        if isinstance(batch, (Tensor, Padded)):
            return preprocess(batch)
        if not is_prepared(batch):
            return batch
        inputs, *rest = batch
        if hasattr(batch, "_fields"):  # a namedtuple
            return type(batch)(preprocess(inputs), *rest)
        return [preprocess(inputs), *rest]
