"""Create the schedulers of torch from the name of a schedule."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, OneCycleLR, ReduceLROnPlateau

from dlblocks._errors import check_choice, check_whole, did_you_mean
from dlblocks.optim.schedules import (
    SCHEDULES,
    Factor,
    Length,
    one_cycle,
    plateau,
    schedule_needs_total_steps,
    with_warmup,
)


def check_schedule(
    name: str, args: Mapping[str, Any] | None = None, *, warmup_steps: int = 0
) -> None:
    """Raise a `ValueError` if a schedule or its arguments are wrong.

    >>> check_schedule("cosin")
    Traceback (most recent call last):
    ValueError: lr_schedule='cosin' is not known; did you mean 'cosine'? Choose from: constant, \
step, multi_step, exponential, cosine, cosine_restarts, one_cycle, polynomial, plateau.
    """
    check_choice("lr_schedule", name, SCHEDULES)
    check_whole("warmup_steps", warmup_steps, 0)
    known = sorted(inspect.signature(SCHEDULES[name]).parameters.keys() - {"known"})
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
    if name in ("one_cycle", "plateau"):
        SCHEDULES[name](**(args or {}))
    else:  # any length will do, to find wrong values before the training starts
        SCHEDULES[name](Length(1000, 10, 0), **(args or {}))


def make_schedule(
    name: str,
    optimizer: Optimizer,
    *,
    total_steps: int | None = None,
    steps_per_epoch: float | None = None,
    warmup_steps: int = 0,
    args: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Create schedulers, in the form of Lightning's `configure_optimizers`.

    ===============  ===============================================  =============================
    name             the learning rate                                arguments
    ===============  ===============================================  =============================
    constant         stays                                            none
    step             × gamma every step_size                          step_size=30, gamma=0.1, unit
    multi_step       × gamma at each milestone                        milestones, gamma=0.1, unit
    exponential      × gamma every epoch, or step                     gamma=0.95, unit
    cosine           falls to final · lr along half a cosine          final=0, length=None, unit
    cosine_restarts  the same repeatedly, each                        period=10, period_factor=1,
                     period_factor times longer                       final=0, unit
    one_cycle        rises to lr and falls to near 0, momentum        pct_start=0.3,
                     against it                                       div_factor=25, …
    polynomial       falls to final · lr as (1 - t) ** power          power=1, final=0,
                                                                      length=None, unit
    plateau          × factor when monitor has not improved for       monitor="val/loss", factor=0.1
                     patience epochs                                  patience=10, min_lr=0, mode
    ===============  ===============================================  =============================

    ``unit="epoch"`` or ``"step"`` is the unit of the schedule's numbers. The rate changes at every
    optimizer step in both cases. The rate first rises linearly over `warmup_steps` optimizer steps,
    except with one_cycle. Epochs count from the start of the training; cosines and polynomial start
    after the warm-up.

    A parameter group that is added later, as by Lightning's `BackboneFinetuning`, starts at its own
    rate, which the schedule multiplies from then on.

    There is a warning if the schedule ends before or after the training, and if a resumed training
    has another length than the one of its schedule.

    Args:
        name: A name of the table.
        optimizer: The optimizer.
        total_steps: Optimizer steps of the whole fit.
        steps_per_epoch: Optimizer steps in an epoch, on average.
        warmup_steps: Optimizer steps of warm-up.
        args: Arguments of the schedule.

    Raises:
        ValueError: Unknown name or argument, unknown length of the training, or a warm-up that is
            as long as the training.
    """
    check_schedule(name, args, warmup_steps=warmup_steps)
    arguments = dict(args or {})
    known = Length(total_steps, steps_per_epoch, warmup_steps)
    if total_steps is not None and warmup_steps >= total_steps > 0:
        raise ValueError(
            f"warmup_steps={warmup_steps} is as long as the training, {total_steps} steps; "
            "make it shorter."
        )
    if name == "one_cycle":
        _, steps = known.span(None, "step", name)
        rates = [group["lr"] for group in optimizer.param_groups]
        settings = one_cycle(**arguments)
        group = optimizer.param_groups[0]
        settings["cycle_momentum"] &= "betas" in group or bool(group.get("momentum"))
        return [_each_step(_OneCycle(optimizer, rates, total_steps=steps, **settings))]
    if name == "plateau":
        settings = plateau(**arguments)
        monitor = settings.pop("monitor")
        # LinearLR multiplies the present rate, so the plateau can lower it too.
        warm = []
        if warmup_steps:
            rise = LinearLR(optimizer, 1 / warmup_steps, total_iters=warmup_steps - 1 or 1)
            warm = [_each_step(rise)]
        watch = {"scheduler": ReduceLROnPlateau(optimizer, **settings), "interval": "epoch"}
        return [*warm, {**watch, "frequency": 1, "monitor": monitor}]
    if name == "constant" and not warmup_steps:
        return []
    factor = SCHEDULES[name](known, **arguments)
    _compare(name, arguments, known)
    made_for = total_steps if schedule_needs_total_steps(name) else None
    return [_each_step(_Schedule(optimizer, with_warmup(factor, warmup_steps), made_for))]


def _compare(name: str, arguments: Mapping[str, Any], known: Length) -> None:
    """Warn if a schedule does not fit the length of the training."""
    total, parameters = known.total_steps, inspect.signature(SCHEDULES[name]).parameters
    lengths = [a for a in ("step_size", "milestones", "length", "period") if a in parameters]
    if total is None or not lengths:
        return
    value = arguments.get(lengths[0], parameters[lengths[0]].default)
    if value is None:
        return  # the whole training
    unit = arguments.get("unit", "epoch")
    each = known.steps_in(unit, name)
    last = each * (max(value) if name == "multi_step" else value)
    if name in ("step", "multi_step"):
        fits, what = last < total, "never gets to its last drop"
    elif last > total:
        fits, what = round(last) == total, "does not get to its last value"
    else:
        fits = name == "cosine_restarts" or round(last) == total
        what = "stays at its last value"
    if not fits:
        warnings.warn(
            f"lr_schedule={name!r} has {lengths[0]}={value}, in {unit}s, but the training lasts "
            f"{total / each:g}: the rate {what}.",
            stacklevel=3,
        )


class _Schedule(LambdaLR):
    """A factor of the step that knows the length of the training."""

    def __init__(self, optimizer: Optimizer, factor: Factor, total_steps: int | None) -> None:
        self.total_steps = total_steps
        super().__init__(optimizer, factor)

    def get_lr(self) -> Any:
        factor, step = self.lr_lambdas[0], self.last_epoch
        before = factor(step - 1) if step else 1.0
        added = self.optimizer.param_groups[len(self.base_lrs) :]
        ratio = factor(step) / before if before else 1.0
        return [*super().get_lr(), *(group["lr"] * ratio for group in added)]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved, own = state_dict.get("total_steps"), self.total_steps
        super().load_state_dict(state_dict)
        self.total_steps = own
        _say_other_length(saved, own, f"goes on as one of {own} steps")


class _OneCycle(OneCycleLR):
    """OneCycleLR that keeps its last rate.

    Lightning steps it once more than torch allows, and a fit may be continued.
    """

    def get_lr(self) -> Any:
        step, groups = self.last_epoch, self.optimizer.param_groups
        self.last_epoch = min(step, self.total_steps - 1)
        first, before = groups[0], groups[0]["lr"]
        self.optimizer.param_groups = groups[: len(self.base_lrs)]
        try:
            rates = super().get_lr()
        finally:
            self.last_epoch, self.optimizer.param_groups = step, groups
        for group in groups[len(self.base_lrs) :]:
            rates.append(group["lr"] * rates[0] / before if before else group["lr"])
            if self.cycle_momentum and self.use_beta1:
                group["betas"] = (first["betas"][0], *group["betas"][1:])
            elif self.cycle_momentum:
                group["momentum"] = first["momentum"]
        return rates

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = self.total_steps
        super().load_state_dict(state_dict)
        _say_other_length(self.total_steps, own, "keeps its end")


def _say_other_length(saved: int | None, own: int | None, what: str) -> None:
    if saved != own and saved is not None and own is not None:
        warnings.warn(
            f"the learning-rate schedule was made for a training of {saved} steps, and this one "
            f"has {own}; it {what}.",
            stacklevel=3,
        )


def _each_step(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step", "frequency": 1}
