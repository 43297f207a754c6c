"""Learning-rate schedules by name, with linear warm-up, in steps of the optimizer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, OneCycleLR, ReduceLROnPlateau

from dlblocks.errors import check_choice, check_range, did_you_mean

Factor = Callable[[int], float]


def constant() -> Factor:
    """The learning rate times 1."""
    return lambda step: 1.0


def step_decay(*, step_size: float = 30.0, gamma: float = 0.1, steps_per_epoch: int) -> Factor:
    """The learning rate times ``gamma ** floor(epoch / step_size)``.

    Args:
        step_size: Epochs between two drops.
        gamma: What the rate is multiplied by at each.
        steps_per_epoch: Optimizer steps in an epoch.
    """
    check_range("step_size", step_size, 0, low_open=True)
    check_range("gamma", gamma, 0)
    return lambda step: gamma ** int(step / (step_size * steps_per_epoch))


def cosine(*, final: float = 0.0, total_steps: int, warmup_steps: int = 0) -> Factor:
    """From 1 to `final` along half a cosine (Loshchilov and Hutter 2017, without restarts).

    Args:
        final: The factor at the end.
        total_steps: Optimizer steps of the whole fit.
        warmup_steps: Steps before the cosine begins.
    """
    check_range("final", final, 0)
    length = max(1, total_steps - warmup_steps)

    def factor(step: int) -> float:
        done = min(1.0, max(0, step - warmup_steps) / length)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def with_warmup(factor: Factor, warmup_steps: int) -> Factor:
    """Times ``(step + 1) / warmup_steps`` during the first `warmup_steps` (Goyal et al. 2017)."""
    if not warmup_steps:
        return factor
    return lambda step: min(1.0, (step + 1) / warmup_steps) * factor(step)


def one_cycle(
    *,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    cycle_momentum: bool = True,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
) -> dict[str, Any]:
    """Arguments of torch's `OneCycleLR` (Smith and Topin 2018), whose peak is the rate `lr`."""
    return dict(locals())


def plateau(
    *,
    monitor: str = "val/loss",
    mode: str = "min",
    factor: float = 0.1,
    patience: int = 10,
    min_lr: float = 0.0,
) -> dict[str, Any]:
    """Arguments of torch's `ReduceLROnPlateau`, and the metric that it watches."""
    check_choice("mode", mode, ["min", "max"])
    return dict(locals())


SCHEDULES: dict[str, Callable[..., Any]] = {
    "constant": constant,
    "step": step_decay,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "plateau": plateau,
}
# What the training tells a schedule, and its user does not.
GIVEN = {"steps_per_epoch", "total_steps", "warmup_steps"}


def schedule_needs_total_steps(name: str) -> bool:
    """Whether the schedule must know how long the training is."""
    return name in ("step", "cosine", "one_cycle")


def check_schedule(
    name: str, args: Mapping[str, Any] | None = None, *, warmup_steps: int = 0
) -> None:
    """Raises a `ValueError` if there is no such schedule, or it has no such argument.

    >>> check_schedule("cosin")
    Traceback (most recent call last):
    ValueError: lr_schedule='cosin' is not known; did you mean 'cosine'? Choose from: constant, \
step, cosine, one_cycle, plateau.
    """
    check_choice("lr_schedule", name, SCHEDULES)
    check_range("warmup_steps", warmup_steps, 0)
    known = sorted(inspect.signature(SCHEDULES[name]).parameters.keys() - GIVEN)
    for key in args or {}:
        if key not in known:
            takes = f"it takes {', '.join(known)}." if known else "it takes none."
            raise ValueError(
                f"lr_schedule_args has {key!r}, which {name} does not take"
                f"{did_you_mean(key, known) or f'; {takes}'}"
            )
    if name == "one_cycle" and warmup_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} has no effect on one_cycle, which warms up by itself; "
            "use lr_schedule_args={'pct_start': …}."
        )


def make_schedule(
    name: str,
    optimizer: Optimizer,
    *,
    total_steps: int | None = None,
    steps_per_epoch: int | None = None,
    warmup_steps: int = 0,
    args: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Makes the schedulers of `optimizer`, described as Lightning's `configure_optimizers` wants.

    =========  =================================================  ==================================
    name       the learning rate                                  arguments
    =========  =================================================  ==================================
    constant   stays                                              none
    step       × gamma every step_size epochs                     step_size=30, gamma=0.1
    cosine     falls to final · lr along half a cosine            final=0
    one_cycle  rises to lr and falls to near 0, momentum against  pct_start=0.3, div_factor=25, …
    plateau    × factor when monitor has not improved             monitor="val/loss", mode="min",
               for patience epochs                                factor=0.1, patience=10, min_lr=0
    =========  =================================================  ==================================

    Before any but one_cycle the rate rises linearly over `warmup_steps` optimizer steps; the epochs
    of ``step`` count from the start all the same, and the cosine begins after the warm-up.

    Args:
        name: A name of the table.
        optimizer: Whose rates are scheduled.
        total_steps: Optimizer steps of the whole fit, for cosine and one_cycle.
        steps_per_epoch: Optimizer steps in an epoch, for step.
        warmup_steps: Optimizer steps of warm-up.
        args: Arguments of the schedule.

    Raises:
        ValueError: Unknown name or argument; the length is needed and not known; a warm-up as long
            as the training.
    """
    check_schedule(name, args, warmup_steps=warmup_steps)
    arguments = dict(args or {})
    if name in ("cosine", "one_cycle") and total_steps is None:
        raise ValueError(
            f"lr_schedule={name!r} must know how long the training is; set max_epochs or max_steps."
        )
    if name == "step" and steps_per_epoch is None:
        raise ValueError(
            "lr_schedule='step' must know the length of an epoch, which this data does not have; "
            "use 'constant' or 'plateau', or limit_train_batches."
        )
    if total_steps is not None and warmup_steps >= total_steps > 0:
        raise ValueError(
            f"warmup_steps={warmup_steps} is as long as the training, {total_steps} steps; "
            "make it shorter."
        )
    if name == "one_cycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        settings = one_cycle(**arguments)
        group = optimizer.param_groups[0]
        settings["cycle_momentum"] &= "betas" in group or bool(group.get("momentum"))
        cycle = OneCycleLR(optimizer, rates, total_steps=total_steps, **settings)
        return [_each_step(cycle)]
    if name == "plateau":
        settings = plateau(**arguments)
        monitor = settings.pop("monitor")
        # This warm-up multiplies the present rate, so it leaves room for the plateau to lower it.
        warm = [_each_step(_linear_warmup(optimizer, warmup_steps))] if warmup_steps else []
        watch = {"scheduler": ReduceLROnPlateau(optimizer, **settings), "interval": "epoch"}
        return [*warm, {**watch, "frequency": 1, "monitor": monitor}]
    if name == "constant" and not warmup_steps:
        return []
    if name == "step":
        factor = step_decay(**arguments, steps_per_epoch=steps_per_epoch or 1)
    elif name == "cosine":
        factor = cosine(**arguments, total_steps=total_steps or 1, warmup_steps=warmup_steps)
    else:
        factor = constant()
    return [_each_step(LambdaLR(optimizer, with_warmup(factor, warmup_steps)))]


def _linear_warmup(optimizer: Optimizer, warmup_steps: int) -> LinearLR:
    return LinearLR(optimizer, start_factor=1 / warmup_steps, total_iters=warmup_steps - 1 or 1)


def _each_step(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step", "frequency": 1}
