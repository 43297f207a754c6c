"""The place around `training_step`, for callbacks that change what it computes with.

Lightning has no hook between a batch's arrival and its forward pass that is called again wherever
the step is: LBFGS evaluates it several times a batch, `SAM` twice. So the callbacks here wrap the
module's `training_step` while the fit lasts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

STEP = "training_step"


class AroundStep(Callback):
    """A callback whose `around_step` encloses every call of the module's `training_step`.

    Of several such callbacks, the first in the Trainer's list is the outermost.
    """

    def around_step(self, run: Callable[[], Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Calls ``run()``, which is the step with these arguments, and returns its output."""
        raise NotImplementedError(f"{type(self).__name__} must define around_step().")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = vars(pl_module).get(STEP)
        if not isinstance(step, _Step):
            step = _Step(getattr(pl_module, STEP), replaced=step)
            vars(pl_module)[STEP] = step
        step.around.append(self)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = vars(pl_module).get(STEP)
        if isinstance(step, _Step) and self in step.around:
            step.around.remove(self)
            if not step.around:
                del vars(pl_module)[STEP]
                if step.replaced is not None:
                    vars(pl_module)[STEP] = step.replaced

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.on_train_end(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.on_train_end(trainer, pl_module)


class _Step:
    """Stands in for `training_step`."""

    def __init__(self, inner: Callable, replaced: Any) -> None:
        functools.update_wrapper(self, inner)  # Lightning looks through it for its arguments
        self.inner, self.replaced = inner, replaced
        self.around: list[AroundStep] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = functools.partial(self.inner, *args, **kwargs)
        for callback in reversed(self.around):
            run = functools.partial(callback.around_step, run, args, kwargs)
        return run()


def plain_step(module: pl.LightningModule) -> Callable[..., Any]:
    """The module's `training_step` without what callbacks have put around it."""
    step = getattr(module, STEP)
    return step.inner if isinstance(step, _Step) else step
