"""Number the times of steps, and count within the calendar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Calendar features: how to count within a period, and its length.
CALENDAR: dict[str, int] = {
    "month": 12, "quarter": 4, "day_of_month": 31, "weekday": 7, "hour": 24, "minute": 60,
}  # fmt: skip


DAY = 86_400  # seconds


# Seconds of a step, or its months, and the usual season in steps.
SEASONS = {("months", 1): 12, ("months", 3): 4, ("seconds", DAY): 7, ("seconds", 7 * DAY): 52,
           ("seconds", 3600): 24, ("seconds", 1800): 48, ("seconds", 900): 96}  # fmt: skip


@dataclass(frozen=True)
class Clock:
    """The times of steps 0, 1, ….

    Attributes:
        unit: ``"number"``; ``"seconds"`` or ``"months"`` for dates; ``"rows"`` for rows of unequal
            distance.
        start: Time of step 0: a number, seconds since 1970, or months since 1970.
        step: Length of a step in this unit.
        rest: Of months, the seconds within the month, or -1 for its last day.
    """

    unit: str = "number"
    start: float = 0
    step: float = 1
    rest: int = 0

    def times(self, steps: Array) -> Array:
        """Return the times of steps, numbers or datetime64[s]."""
        places: Array = self.start + np.asarray(steps) * self.step
        if self.unit == "seconds":
            return places.astype("int64").astype("datetime64[s]")
        if self.unit == "months":
            months = places.astype("int64").astype("datetime64[M]")
            if self.rest < 0:
                return (months + np.timedelta64(1, "M")).astype("datetime64[s]") - np.timedelta64(
                    DAY, "s"
                )
            return months.astype("datetime64[s]") + np.timedelta64(self.rest, "s")
        return places

    def name(self, step: int) -> str:
        """Return the time of a step as text."""
        return show_time(self.times(np.array([step]))[0])

    @property
    def season(self) -> int | None:
        """Steps of the usual season, such as 12 of months, or None."""
        return SEASONS.get((self.unit, int(self.step)))

    def calendar(self, steps: Array, names: Sequence[str]) -> Array:
        """Return sine and cosine of the place in each period.

        Args:
            steps: Shape (T,).
            names: Names in `CALENDAR`, P of them.

        Returns:
            Shape (T, 2 P).
        """
        times = self.times(steps)
        columns = []
        for name in names:
            angle = 2 * np.pi * _place(times, name) / CALENDAR[name]
            columns += [np.sin(angle), np.cos(angle)]
        found: Array = np.stack(columns, 1) if columns else np.empty((len(times), 0))
        return found


def _place(times: Array, name: str) -> Array:
    """Count from 0 within a period of the calendar."""
    if name in ("month", "quarter"):
        months: Array = times.astype("datetime64[M]").astype(int) % 12
        return months // 3 if name == "quarter" else months
    if name == "day_of_month":
        days = times.astype("datetime64[D]") - times.astype("datetime64[M]").astype("datetime64[D]")
        found: Array = days.astype(int)
        return found
    if name == "weekday":
        found = (times.astype("datetime64[D]").astype(int) + 3) % 7  # 1970 began on a Thursday
        return found
    seconds: Array = times.astype("datetime64[s]").astype(int)
    return seconds // 3600 % 24 if name == "hour" else seconds // 60 % 60


def show_time(time: Any) -> str:
    """Return a time as short text.

    Example:
        >>> show_time(np.datetime64("2020-01-01T00:00:00")), show_time(np.float64(3.0))
        ('2020-01-01', '3')
    """
    if isinstance(time, np.datetime64):
        return str(time.astype("datetime64[s]")).removesuffix("T00:00:00")
    return f"{float(time):g}" if isinstance(time, (float, np.floating)) else str(time)


def find_clock(times: Array, regular: bool = True) -> Clock:
    """Find the step that most times are apart.

    Example:
        >>> times = np.array(["2020-01-31", "2020-02-29", "2020-03-31"], "datetime64[s]")
        >>> clock = find_clock(times)
        >>> clock.unit, clock.step, clock.name(3)
        ('months', 1.0, '2020-04-30')
    """
    unique = np.unique(times)
    if not regular:
        return Clock("rows")
    if len(unique) < 2:
        raise ValueError("all values are of one time; a series needs several.")
    if unique.dtype.kind != "M":
        return Clock("number", float(unique[0]), _usual(np.diff(unique)))
    months = unique.astype("datetime64[M]")
    rests = (unique - months.astype("datetime64[s]")).astype(int)
    ends = ((months + np.timedelta64(1, "M")).astype("datetime64[s]") - unique).astype(int) == DAY
    if (rests == rests[0]).all() or ends.all():
        numbers = months.astype(int)
        if len(np.unique(numbers)) == len(numbers):
            rest = int(rests[0]) if (rests == rests[0]).all() else -1
            return Clock("months", float(numbers[0]), _usual(np.diff(numbers)), rest)
    seconds = unique.astype(int)
    return Clock("seconds", float(seconds[0]), _usual(np.diff(seconds)))


def _usual(distances: Array) -> float:
    """Return the most frequent distance, the smallest of several."""
    found, counts = np.unique(np.round(distances, 9), return_counts=True)
    return float(found[counts.argmax()])


def check_repeated(name: str, times: Array) -> None:
    """Raise a `ValueError` if a time is among sorted times twice."""
    again = np.flatnonzero(times[1:] == times[:-1])
    if len(again):
        raise ValueError(
            f"series {name!r} has time {show_time(times[again[0]])} more than once "
            f"({len(again)} such rows); name the column of series by series=, or aggregate the "
            "rows."
        )


def number_steps(name: str, times: Array, clock: Clock) -> Array:
    """Number sorted times, and refuse gaps."""
    if times.dtype.kind == "M" and clock.unit == "months":
        exact = (times.astype("datetime64[M]").astype(int) - clock.start) / clock.step
    else:
        numbers = times.astype(int) if times.dtype.kind == "M" else times
        exact = (numbers - clock.start) / clock.step
    steps = np.round(exact).astype(np.int64)
    cure = (
        "; add the missing rows, leave the series out, or set regular=False, which takes rows as "
        "equally spaced."
    )
    odd = np.flatnonzero((np.abs(exact - steps) > 1e-3) | (clock.times(steps) != times))
    if times.dtype.kind != "M":
        odd = np.flatnonzero(np.abs(exact - steps) > 1e-3)
    if len(odd):
        raise ValueError(
            f"series {name!r} has time {show_time(times[odd[0]])}, which is not a whole number of "
            f"steps of {clock.step:g} {clock.unit} after {clock.name(0)}{cure}"
        )
    gaps = np.flatnonzero(np.diff(steps) != 1)
    if len(gaps):
        before, after = (show_time(times[gaps[0] + i]) for i in (0, 1))
        missing = int(steps[gaps[0] + 1] - steps[gaps[0]]) - 1
        raise ValueError(
            f"series {name!r} has a gap: {after} follows {before}, {missing} step(s) of "
            f"{clock.step:g} {clock.unit} are missing ({len(gaps)} such gaps){cure}"
        )
    return steps
