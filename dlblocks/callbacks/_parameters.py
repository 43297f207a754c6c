"""Select the parameters that a callback acts on."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn

from dlblocks._errors import did_you_mean


def select_parameters(
    module: nn.Module,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    who: str = "select_parameters",
) -> dict[str, nn.Parameter]:
    """Return the parameters that a regularizer of weights acts on, by name.

    Norms and biases (every parameter with at most one axis) only shift and scale. Noise on them, or
    shrinking them, hurts the fit. They are left out unless `include` names them, as in
    `dlblocks.optim.param_groups`.

    Args:
        module: Its parameters, frozen ones too; a shared one counts once.
        include: Patterns of `fnmatch`, such as ``"encoder.*"``. A name must match one of them. None
            for every parameter with more than one axis.
        exclude: Patterns that a name must not match.
        who: The caller's name, for the message.

    Raises:
        ValueError: A pattern matches no parameter, or none is left.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> list(select_parameters(net)), list(select_parameters(net, ["1.*"]))
        (['0.weight', '1.weight'], ['1.weight', '1.bias'])
    """
    names = [name for name, _ in module.named_parameters()]
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns or ():
            if not fnmatch.filter(names, pattern):
                hint = did_you_mean(pattern, names) or f"; names are {', '.join(names[:8])}"
                raise ValueError(
                    f"{who}: {argument} has {pattern!r}, which matches no parameter of "
                    f"{type(module).__name__}{hint}."
                )
    found = {
        name: parameter
        for name, parameter in module.named_parameters()
        if (parameter.ndim > 1 if include is None else _matches(name, include))
        and not _matches(name, exclude)
    }
    if not found:
        raise ValueError(
            f"{who}: include={include!r} and exclude={exclude!r} leave no parameter of "
            f"{type(module).__name__}; norms and biases are taken only if include= names them."
        )
    return found


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check_dense(module: nn.Module, names: Iterable[str], who: str) -> None:
    """Raise a `ValueError` if one of these parameters gets sparse gradients."""
    wanted = {*names}
    for name, part in module.named_modules():
        if getattr(part, "sparse", False) is True and f"{name}.weight".lstrip(".") in wanted:
            raise ValueError(
                f"{who} needs dense gradients, and {name or type(part).__name__} gives sparse "
                "ones; use sparse=False there."
            )


def check_whole_parameters(trainer: pl.Trainer, who: str) -> None:
    """Raise a `ValueError` if processes hold parts of parameters."""
    strategy: Any = trainer.strategy
    if isinstance(strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)):
        raise ValueError(
            f"{who} needs whole parameters, which {type(strategy).__name__} spreads over the "
            "processes; use strategy='ddp'."
        )


def check_automatic(pl_module: pl.LightningModule, who: str) -> None:
    """Raise a `ValueError` if the module steps its optimizers by itself."""
    if not pl_module.automatic_optimization:
        raise ValueError(
            f"{who} needs Lightning to step the optimizers, and {type(pl_module).__name__} does so "
            "by itself (automatic_optimization=False); use automatic optimization."
        )


def check_step(pl_module: pl.LightningModule, who: str) -> None:
    """Raise a `ValueError` if `training_step` does not take a batch."""
    check_automatic(pl_module, who)
    if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
        raise ValueError(
            f"{who} runs training_step once more on a batch, and this one takes a "
            "dataloader_iter; give it (batch, batch_idx)."
        )
