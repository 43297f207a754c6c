"""Where the inputs of a `Model` go through its `preprocess`: once, wherever they come from."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from dlblocks.nets import Preprocess

HOOK = "on_after_batch_transfer"
Method = TypeVar("Method", bound=Callable[..., Any])


def with_prepared_inputs(method: Method) -> Method:
    """Let ``self(inputs)`` within a method take inputs that are prepared already."""

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        before, self._prepared = self._prepared, True
        try:
            return method(self, *args, **kwargs)
        finally:
            self._prepared = before

    return wrapped  # type: ignore[return-value]


def of_raw(forward: Method) -> Method:
    """Let the `forward` of a subclass take raw inputs, although it is written for prepared ones."""

    def wrapped(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self._prepared:
            return forward(self, inputs, *args, **kwargs)
        self._prepared = True  # for a call of super().forward
        try:
            return forward(self, self.preprocess(inputs), *args, **kwargs)
        finally:
            self._prepared = False

    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(wrapped, name, getattr(forward, name))
    # Not `functools.wraps`: TorchScript would compile what it leads to, without `preprocess`.
    wrapped.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return wrapped  # type: ignore[return-value]


def prepare_batches(model: Any) -> None:
    """Let the batches of the model's Trainer go through its `preprocess` when they arrive.

    Datamodules of this package do so themselves. Of others, and of plain loaders, the hook that
    Lightning calls is wrapped, until `release_batches`.
    """
    owner = _owner(model)
    if not getattr(owner, "prepares_inputs", False) and HOOK not in vars(owner):
        vars(owner)[HOOK] = _PreparingHook(owner)


def release_batches(model: Any) -> None:
    """Undo `prepare_batches`."""
    owner = _owner(model)
    if isinstance(vars(owner).get(HOOK), _PreparingHook):
        del vars(owner)[HOOK]


def _owner(model: Any) -> Any:
    """Whose hook Lightning calls."""
    data = model.datamodule
    return data if data is not None and is_overridden(HOOK, data) else model


class _PreparingHook:
    """Stands in for `on_after_batch_transfer` of a module or datamodule.

    It asks the Trainer for the model: left behind after an error, it leaves the batches of other
    models alone.
    """

    def __init__(self, owner: Any) -> None:
        self.inner, self.owner = getattr(owner, HOOK), owner
        functools.update_wrapper(self, self.inner)  # Lightning asks what is overridden

    def __call__(self, batch: Any, dataloader_idx: int = 0) -> Any:
        batch = self.inner(batch, dataloader_idx)
        trainer = self.owner.trainer
        preprocess = getattr(trainer and trainer.lightning_module, "preprocess", None)
        if not isinstance(preprocess, Preprocess) or not preprocess.is_set:
            return batch
        if isinstance(batch, Tensor):
            return preprocess(batch)
        if not isinstance(batch, (list, tuple)):
            return batch
        inputs, *rest = batch
        return [preprocess(inputs), *rest]
