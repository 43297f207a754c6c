"""Wrap methods of a module or datamodule while a fit lasts.

Lightning has no hook around each call of `training_step`, which LBFGS calls several times a batch
and `SAM` twice. It also has no hook that can replace a batch that is a tuple. So the callbacks here
wrap the methods that Lightning calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

STEP = "training_step"


class UndoneCallback(Callback):
    """Calls `on_train_end`, which undoes its changes, after errors too."""

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.on_train_end(trainer, pl_module)


class AroundStep(UndoneCallback):
    """A callback whose `around_step` encloses every call of the module's `training_step`.

    Of several such callbacks, the first in the Trainer's list is the outermost.
    """

    def around_step(
        self,
        trainer: pl.Trainer,
        run: Callable[[], Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call ``run()``, the step with these arguments, and return its output."""
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
    """Return the module's `training_step` without the callbacks around it."""
    step = getattr(module, STEP)
    return step.inner if isinstance(step, Wrapped) else step


class Wrapped:
    """Replaces a method of an instance by ``call(self, *args, **kwargs)``.

    Attributes:
        inner: The method.
        callbacks: The callbacks that have wrapped it, in the order of the Trainer's list.
    """

    def __init__(
        self,
        inner: Callable[..., Any],
        replaced: Any,
        trainer: pl.Trainer,
        call: Callable[..., Any],
    ) -> None:
        # Lightning inspects its arguments, and whether it is overridden.
        functools.update_wrapper(self, inner)
        self.inner, self.replaced, self.trainer, self.call = inner, replaced, trainer, call
        self.callbacks: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self, *args, **kwargs)


def wrap(
    owner: Any, method: str, callback: Callback, trainer: pl.Trainer, call: Callable[..., Any]
) -> None:
    """Wrap a method by a callback. Callbacks of a method share one `call`."""
    wrapped = vars(owner).get(method)
    if not isinstance(wrapped, Wrapped):
        wrapped = Wrapped(getattr(owner, method), wrapped, trainer, call)
        vars(owner)[method] = wrapped
    wrapped.callbacks.append(callback)


def unwrap(owner: Any, method: str, callback: Callback) -> None:
    """Remove a callback from a method, if it is there.

    Without callbacks the method is as before.
    """
    wrapped = vars(owner).get(method)
    if isinstance(wrapped, Wrapped) and callback in wrapped.callbacks:
        wrapped.callbacks.remove(callback)
        if not wrapped.callbacks:
            restore(owner, method, wrapped.replaced)


def restore(owner: Any, name: str, replaced: Any) -> None:
    """Restore an attribute of an instance, or with None that of its class."""
    del vars(owner)[name]
    if replaced is not None:
        vars(owner)[name] = replaced
