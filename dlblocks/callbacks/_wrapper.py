"""Wrap methods of a module or datamodule while a fit lasts.

Lightning has no hook between the arrival of a batch and its forward pass that is called again
wherever the step is: LBFGS evaluates it several times a batch, `SAM` twice. Nor has it one that may
replace a batch that is a tuple. So the callbacks here wrap the methods that Lightning calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

STEP = "training_step"


class UndoneCallback(Callback):
    """A callback whose `on_train_end` undoes what it did, after an error as well."""

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.on_train_end(trainer, pl_module)


class AroundStep(UndoneCallback):
    """A callback whose `around_step` encloses every call of the module's `training_step`.

    Of several such callbacks, the first in the Trainer's list is the outermost.
    """

    def around_step(
        self, trainer: pl.Trainer, run: Callable[[], Any], args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        """Calls ``run()``, which is the step with these arguments, and returns its output."""
        raise NotImplementedError(f"{type(self).__name__} must define around_step().")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wrap(pl_module, STEP, self, trainer, _around_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        unwrap(pl_module, STEP, self)


def _around_step(step: Wrapped, *args: Any, **kwargs: Any) -> Any:
    run = functools.partial(step.inner, *args, **kwargs)
    for callback in reversed(step.callbacks):
        run = functools.partial(callback.around_step, step.trainer, run, args, kwargs)
    return run()


def plain_step(module: pl.LightningModule) -> Callable[..., Any]:
    """The module's `training_step` without what callbacks have put around it."""
    step = getattr(module, STEP)
    return step.inner if isinstance(step, Wrapped) else step


class Wrapped:
    """Stands in for a method of an instance; calls ``call(self, *args, **kwargs)``.

    Attributes:
        inner: The method.
        callbacks: Those that have wrapped it, in the order of the Trainer's list.
    """

    def __init__(
        self, inner: Callable, replaced: Any, trainer: pl.Trainer, call: Callable[..., Any]
    ) -> None:
        # Lightning looks through it for arguments, and for what is overridden.
        functools.update_wrapper(self, inner)
        self.inner, self.replaced, self.trainer, self.call = inner, replaced, trainer, call
        self.callbacks: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self, *args, **kwargs)


def wrap(
    owner: Any, method: str, callback: Callback, trainer: pl.Trainer, call: Callable[..., Any]
) -> None:
    """Puts a callback around a method; all callbacks of a method share one `call`."""
    wrapped = vars(owner).get(method)
    if not isinstance(wrapped, Wrapped):
        wrapped = Wrapped(getattr(owner, method), wrapped, trainer, call)
        vars(owner)[method] = wrapped
    wrapped.callbacks.append(callback)


def unwrap(owner: Any, method: str, callback: Callback) -> None:
    """Takes a callback away again, if it is there; after the last the method is as before."""
    wrapped = vars(owner).get(method)
    if isinstance(wrapped, Wrapped) and callback in wrapped.callbacks:
        wrapped.callbacks.remove(callback)
        if not wrapped.callbacks:
            restore(owner, method, wrapped.replaced)


def restore(owner: Any, name: str, replaced: Any) -> None:
    """Gives an instance its own attribute back, or with None that of its class."""
    del vars(owner)[name]
    if replaced is not None:
        vars(owner)[name] = replaced
