"""What each schedule multiplies the learning rate by, as a function of the step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dlblocks.errors import check_choice, check_range

Factor = Callable[[int], float]
UNITS = ("epoch", "step")


class Length(NamedTuple):
    """How long the training is, in steps of the optimizer; None where it is not known."""

    total_steps: int | None = None
    steps_per_epoch: int | None = None
    warmup_steps: int = 0

    def steps_in(self, unit: str, name: str) -> int:
        """Steps in one `unit`."""
        check_choice("unit", unit, UNITS)
        if unit == "step":
            return 1
        if self.steps_per_epoch is None:
            raise ValueError(
                f"lr_schedule={name!r} must know the length of an epoch, which this data does not "
                "have; use lr_schedule_args={'unit': 'step'}, or limit_train_batches."
            )
        return self.steps_per_epoch

    def span(self, length: float | None, unit: str, name: str) -> tuple[int, int]:
        """First and number of the steps of a fall that begins after the warm-up.

        `length` units from the start of the training, or all of it.
        """
        check_choice("unit", unit, UNITS)
        if length is not None:
            check_range("length", length, 0, low_open=True)
            end = round(length * self.steps_in(unit, name))
        elif self.total_steps is None:
            raise ValueError(
                f"lr_schedule={name!r} must know how long the training is; set max_epochs or "
                "max_steps, or lr_schedule_args={'length': …}."
            )
        else:
            end = self.total_steps
        return self.warmup_steps, max(1, end - self.warmup_steps)


def constant(known: Length) -> Factor:
    """The learning rate times 1."""
    return lambda step: 1.0


def step_decay(
    known: Length, *, step_size: float = 30.0, gamma: float = 0.1, unit: str = "epoch"
) -> Factor:
    """The learning rate times ``gamma ** floor(t / step_size)``.

    Args:
        known: The length of the training.
        step_size: Epochs, or steps, between two drops.
        gamma: What the rate is multiplied by at each.
        unit: ``"epoch"`` or ``"step"``, in which t and `step_size` count.
    """
    check_range("step_size", step_size, 0, low_open=True)
    check_range("gamma", gamma, 0)
    length = step_size * known.steps_in(unit, "step")
    return lambda step: gamma ** int(step / length)


def multi_step(
    known: Length, *, milestones: Sequence[float] = (), gamma: float = 0.1, unit: str = "epoch"
) -> Factor:
    """The learning rate times `gamma` at each of the milestones.

    Args:
        known: The length of the training.
        milestones: Epochs, or steps, at which the rate drops; rising.
        gamma: What the rate is multiplied by at each.
        unit: ``"epoch"`` or ``"step"``, in which `milestones` count.
    """
    if isinstance(milestones, (int, float)) or not milestones:
        raise ValueError(f"milestones={milestones!r} must be a list of numbers, such as [30, 60].")
    for i, milestone in enumerate(milestones):
        check_range(f"milestones[{i}]", milestone, 0, low_open=True)
    if list(milestones) != sorted(milestones):
        raise ValueError(f"milestones={list(milestones)} must rise.")
    check_range("gamma", gamma, 0)
    each = known.steps_in(unit, "multi_step")
    steps = [milestone * each for milestone in milestones]
    return lambda step: gamma ** bisect_right(steps, step)


def exponential(known: Length, *, gamma: float = 0.95, unit: str = "epoch") -> Factor:
    """The learning rate times ``gamma ** t``, once an epoch or at each step.

    Args:
        known: The length of the training.
        gamma: What the rate is multiplied by each time.
        unit: ``"epoch"`` or ``"step"``.
    """
    check_range("gamma", gamma, 0)
    each = known.steps_in(unit, "exponential")
    return lambda step: gamma ** (step // each)


def cosine(
    known: Length, *, final: float = 0.0, length: float | None = None, unit: str = "epoch"
) -> Factor:
    """From 1 to `final` along half a cosine (Loshchilov and Hutter 2017, without restarts).

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
    """Half cosines from 1 to `final`, one after the other (Loshchilov and Hutter 2017, SGDR).

    Args:
        known: The length of the training.
        period: Epochs, or steps, of the first.
        period_factor: How many times longer each is than the one before, >= 1.
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
    """From 1 to `final` as ``(1 - t) ** power``; a straight line with ``power=1``.

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

    def factor(step: int) -> float:
        left = 1 - min(1.0, max(0, step - start) / steps)
        return final + (1 - final) * left**power

    return factor


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
    """Arguments of torch's `ReduceLROnPlateau`, and the metric that it watches."""
    found = dict(locals())
    check_choice("mode", mode, ["min", "max"])
    check_range("factor", factor, 0, 1, high_open=True)
    check_range("patience", patience, 0)
    check_range("min_lr", min_lr, 0)
    return found


def with_warmup(factor: Factor, warmup_steps: int) -> Factor:
    """Times ``(step + 1) / warmup_steps`` during the first `warmup_steps` (Goyal et al. 2017)."""
    if not warmup_steps:
        return factor
    return lambda step: min(1.0, (step + 1) / warmup_steps) * factor(step)


def _half_cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))
