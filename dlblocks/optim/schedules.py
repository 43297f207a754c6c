"""Multiply the learning rate by a factor that depends on the step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dlblocks._errors import check_choice, check_range

Factor = Callable[[int], float]
UNITS = ("epoch", "step")


class Length(NamedTuple):
    """Length of the training in optimizer steps, None if not known."""

    total_steps: int | None = None
    steps_per_epoch: float | None = None
    warmup_steps: int = 0

    def steps_in(self, unit: str, name: str) -> float:
        """Return the number of steps in one `unit`."""
        check_choice("unit", unit, UNITS)
        if unit == "step":
            return 1
        if self.steps_per_epoch is None:
            raise ValueError(
                f"lr_schedule={name!r} needs the length of an epoch, which is not known for this "
                "data; use lr_schedule_args={'unit': 'step'}, or limit_train_batches."
            )
        return self.steps_per_epoch

    def span(self, length: float | None, unit: str, name: str) -> tuple[int, int]:
        """Return the first step and the number of steps after the warm-up.

        The end is `length` units after the start of the training, or the end of the training.
        """
        check_choice("unit", unit, UNITS)
        if length is not None:
            check_range("length", length, 0, low_open=True)
            end = round(length * self.steps_in(unit, name))
        elif self.total_steps is None:
            raise ValueError(
                f"lr_schedule={name!r} needs the length of the training; set max_epochs or "
                "max_steps, or lr_schedule_args={'length': …}."
            )
        else:
            end = self.total_steps
        return self.warmup_steps, max(1, end - self.warmup_steps)


def constant(known: Length) -> Factor:
    """Return the factor 1."""
    return lambda step: 1.0


def step_decay(
    known: Length, *, step_size: float = 30.0, gamma: float = 0.1, unit: str = "epoch"
) -> Factor:
    """Return the factor ``gamma ** floor(t / step_size)``.

    Args:
        known: The length of the training.
        step_size: Epochs, or steps, between two drops.
        gamma: Factor of each drop.
        unit: ``"epoch"`` or ``"step"``, the unit of t and `step_size`.
    """
    check_range("step_size", step_size, 0, low_open=True)
    check_range("gamma", gamma, 0)
    length = step_size * known.steps_in(unit, "step")
    return lambda step: gamma ** int(step / length)


def multi_step(
    known: Length, *, milestones: Sequence[float] = (), gamma: float = 0.1, unit: str = "epoch"
) -> Factor:
    """Return a factor that drops by `gamma` at each milestone.

    Args:
        known: The length of the training.
        milestones: Epochs, or steps, at which the rate drops, in increasing order.
        gamma: Factor of each drop.
        unit: ``"epoch"`` or ``"step"``, the unit of `milestones`.
    """
    if isinstance(milestones, (int, float)) or not milestones:
        raise ValueError(f"milestones={milestones!r} must be a list of numbers, such as [30, 60].")
    for i, milestone in enumerate(milestones):
        check_range(f"milestones[{i}]", milestone, 0, low_open=True)
    if list(milestones) != sorted(milestones):
        raise ValueError(f"milestones={list(milestones)} must increase.")
    check_range("gamma", gamma, 0)
    each = known.steps_in(unit, "multi_step")
    steps = [milestone * each for milestone in milestones]
    return lambda step: gamma ** bisect_right(steps, step)


def exponential(known: Length, *, gamma: float = 0.95, unit: str = "epoch") -> Factor:
    """Return the factor ``gamma ** t`` of the epoch or step t.

    Args:
        known: The length of the training.
        gamma: Factor of each epoch or step.
        unit: ``"epoch"`` or ``"step"``.
    """
    check_range("gamma", gamma, 0)
    each = known.steps_in(unit, "exponential")
    return lambda step: gamma ** (step // each)


def cosine(
    known: Length, *, final: float = 0.0, length: float | None = None, unit: str = "epoch"
) -> Factor:
    """Return a factor that falls from 1 to `final` along half a cosine.

    The source is Loshchilov and Hutter 2017, without restarts.

    Args:
        known: The length of the training.
        final: The factor at the end.
        length: Epochs, or steps, at which it ends; None for the whole training.
        unit: ``"epoch"`` or ``"step"``, in which `length` counts.
    """
    check_range("final", final, 0)
    start, steps = known.span(length, unit, "cosine")
    return lambda step: final + (1 - final) * _half_cosine(min(1.0, max(0, step - start) / steps))


def cosine_restarts(
    known: Length,
    *,
    period: float = 10.0,
    period_factor: float = 1.0,
    final: float = 0.0,
    unit: str = "epoch",
) -> Factor:
    """Return half cosines from 1 to `final` in sequence.

    The source is SGDR (Loshchilov and Hutter 2017).

    Args:
        known: The length of the training.
        period: Epochs, or steps, of the first.
        period_factor: Length of each divided by that of the one before, >= 1.
        final: The factor at the end of each.
        unit: ``"epoch"`` or ``"step"``, in which `period` counts.
    """
    check_range("period", period, 0, low_open=True)
    check_range("period_factor", period_factor, 1)
    check_range("final", final, 0)
    first = period * known.steps_in(unit, "cosine_restarts")
    start = known.warmup_steps

    def factor(step: int) -> float:
        done, length = float(max(0, step - start)), first
        if period_factor == 1:
            done %= length
        while done >= length:
            done, length = done - length, length * period_factor
        return final + (1 - final) * _half_cosine(done / length)

    return factor


def polynomial(
    known: Length,
    *,
    power: float = 1.0,
    final: float = 0.0,
    length: float | None = None,
    unit: str = "epoch",
) -> Factor:
    """Return a factor that falls from 1 to `final` as ``(1 - t) ** power``.

    It is a straight line for ``power=1``.

    Args:
        known: The length of the training.
        power: The power, > 0.
        final: The factor at the end.
        length: Epochs, or steps, at which it ends; None for the whole training.
        unit: ``"epoch"`` or ``"step"``, in which `length` counts.
    """
    check_range("power", power, 0, low_open=True)
    check_range("final", final, 0)
    start, steps = known.span(length, unit, "polynomial")
    return lambda step: final + (1 - final) * (1 - min(1.0, max(0, step - start) / steps)) ** power


def one_cycle(
    *,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    cycle_momentum: bool = True,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
) -> dict[str, Any]:
    """Return arguments of torch's `OneCycleLR` (Smith and Topin 2018).

    The peak is the optimizer's `lr`.
    """
    found = dict(locals())
    check_range("pct_start", pct_start, 0, 1)
    check_range("div_factor", div_factor, 0, low_open=True)
    check_range("final_div_factor", final_div_factor, 0, low_open=True)
    check_range("base_momentum", base_momentum, 0, 1, high_open=True)
    check_range("max_momentum", max_momentum, 0, 1, high_open=True)
    return found


def plateau(
    *,
    monitor: str = "val/loss",
    mode: str = "min",
    factor: float = 0.1,
    patience: int = 10,
    min_lr: float = 0.0,
) -> dict[str, Any]:
    """Return arguments of torch's `ReduceLROnPlateau`, and its metric."""
    found = dict(locals())
    check_choice("mode", mode, ["min", "max"])
    check_range("factor", factor, 0, 1, high_open=True)
    check_range("patience", patience, 0)
    check_range("min_lr", min_lr, 0)
    return found


def with_warmup(factor: Factor, warmup_steps: int) -> Factor:
    """Multiply a factor by ``(step + 1) / warmup_steps`` during the warm-up.

    The source is Goyal et al. 2017.
    """
    if not warmup_steps:
        return factor
    return lambda step: min(1.0, (step + 1) / warmup_steps) * factor(step)


def _half_cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


SCHEDULES: dict[str, Callable[..., Any]] = {
    "constant": constant,
    "step": step_decay,
    "multi_step": multi_step,
    "exponential": exponential,
    "cosine": cosine,
    "cosine_restarts": cosine_restarts,
    "one_cycle": one_cycle,
    "polynomial": polynomial,
    "plateau": plateau,
}


def schedule_needs_total_steps(name: str) -> bool:
    """Return True if the schedule depends on the length of the training."""
    return name not in ("constant", "plateau")
