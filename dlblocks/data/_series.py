"""Read time series, and number their steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dlblocks._errors import did_you_mean
from dlblocks.data._clock import Array, Clock, check_repeated, find_clock, number_steps, show_time
from dlblocks.data._read_csv import NO_NAME, read_table


@dataclass
class Panel:
    """One or many series on one clock, without gaps.

    Attributes:
        names: Names of the series.
        values: Values of each series, float64 of shape (T_s,).
        starts: Step of the first value of each series, int64 of shape (S,).
        covariates: Known inputs of each series from its first value on, shape (T_s + more, K).
        clock: The times of the steps.
        ranks: Of rows of unequal distance, the place of each value's time among all times, int64
            of shape (T_s,). Steps of two series would not say which is earlier.
    """

    names: list[str]
    values: list[Array]
    starts: npt.NDArray[np.int64]
    covariates: list[Array] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    ranks: list[Array] | None = None

    def moments(self, i: int) -> Array:
        """Return the place in time of each value of a series, int64 of shape (T_s,)."""
        if self.ranks is not None:
            return self.ranks[i]
        found: Array = self.starts[i] + np.arange(len(self.values[i]))
        return found

    @property
    def ends(self) -> npt.NDArray[np.int64]:
        """The step after the last value of each series, shape (S,)."""
        return self.starts + np.array([len(values) for values in self.values], dtype=np.int64)


def read_panel(
    data: Any,
    *,
    time: str | None = None,
    value: str | Sequence[str] | None = None,
    series: str | None = None,
    covariates: Sequence[str] = (),
    regular: bool = True,
    read_args: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
) -> Panel:
    """Read series from a file, a data frame or arrays.

    Args:
        data: A CSV file or a folder of them, a DataFrame, an array (T,) or (T, S), or a list or
            dictionary of arrays (T_s,).
        time: The column of times, dates or numbers. None: the dates in the index of a DataFrame,
            else rows follow each other.
        value: The column of values of a long table, or the columns of a wide one, each a series.
            None: all other columns.
        series: The column that names the series of a long table.
        covariates: Columns of known inputs.
        regular: Whether steps must be equally long.
        read_args: Arguments of `pandas.read_csv`.
        clock: The clock to count on; None for that of these data.

    Raises:
        ValueError: A column is unknown, a series has a gap, a time twice, or a value is missing
            between others; the message names series, time and cure.
    """
    if isinstance(data, (str, Path)):
        data = read_table(Path(data), dict(read_args or {}))
    if hasattr(data, "to_frame") and not hasattr(data, "columns"):
        data = data.to_frame()  # a Series of pandas
    if hasattr(data, "iloc"):
        return _from_table(data, time, value, series, covariates, regular, clock)
    if time or value or series or covariates:
        raise ValueError(
            "time, value, series and covariates name columns of a CSV file or DataFrame, but data "
            f"is a {type(data).__name__}; leave them out."
        )
    named = _arrays(data)
    found = [_between(name, column, lambda i: str(i)) for name, column in named.items()]
    starts = np.array([first for first, _ in found], dtype=np.int64)
    values = [column for _, column in found]
    empty = [np.empty((len(column), 0)) for column in values]
    return Panel([*named], values, starts, empty, clock or Clock())


def _arrays(data: Any) -> dict[str, Array]:
    if isinstance(data, Mapping):
        named = {str(name): np.asarray(column, dtype=float) for name, column in data.items()}
    elif isinstance(data, (list, tuple)) and data and np.ndim(data[0]):
        named = {str(i): np.asarray(column, dtype=float) for i, column in enumerate(data)}
    else:
        array = np.asarray(data, dtype=float)
        if array.ndim not in (1, 2):
            raise ValueError(
                f"data has shape {array.shape}; expected one series (T,), several (T, S), or a "
                "list of arrays (T,) for series of unequal length."
            )
        columns = array[:, None] if array.ndim == 1 else array
        named = {str(i): columns[:, i] for i in range(columns.shape[1])}
    for name, column in named.items():
        if column.ndim != 1:
            raise ValueError(
                f"series {name!r} has shape {column.shape}; a series is (T,), one value a step."
            )
    if not named:
        raise ValueError("data has no series.")
    return named


def _between(name: str, column: Array, time_of: Any) -> tuple[int, Array]:
    """Cut missing values off both ends, and refuse those between."""
    known = np.flatnonzero(~np.isnan(column))
    if not len(known):
        raise ValueError(f"series {name!r} has no value; leave it out.")
    first, last = int(known[0]), int(known[-1])
    values = column[first : last + 1]
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        place = first + int(bad[0])
        raise ValueError(
            f"series {name!r} has {values[bad[0]]} at time {time_of(place)} ({len(bad)} such "
            "values); fill them in, by data.interpolate() for example, or leave the series out."
        )
    return first, values


def _from_table(
    table: Any,
    time: str | None,
    value: str | Sequence[str] | None,
    series: str | None,
    covariates: Sequence[str],
    regular: bool,
    clock: Clock | None,
) -> Panel:
    import pandas as pd

    _check_names(table, time)
    if time is None and isinstance(table.index, (pd.DatetimeIndex, pd.PeriodIndex)):
        stamps = table.index
        index = stamps.to_timestamp() if isinstance(stamps, pd.PeriodIndex) else stamps
        table = table.reset_index(drop=True)
    else:
        index = None
    for argument, given in (("time", time), ("series", series)):
        if given is not None:
            _check_column(argument, given, table)
    for name in covariates:
        _check_column("covariates", name, table)
    used = {time, series, *covariates}
    others = [c for c in table.columns if c not in used and not str(c).startswith(NO_NAME)]
    wanted = others if value is None else [value] if isinstance(value, str) else list(value)
    for name in wanted:
        _check_column("value", name, table)
    if not wanted:
        raise ValueError("data has no column of values; set value=.")
    for both in used.intersection(wanted):
        raise ValueError(
            f"column {both!r} is named by value= and also by time=, series= or covariates=; a "
            "value that is known ahead needs no forecast, so name it once."
        )
    if series is not None and len(wanted) > 1:
        raise ValueError(
            f"series={series!r} names the series of a long table, which has one column of values, "
            f"but there are {', '.join(map(repr, wanted[:8]))}; set value=."
        )
    raw = index if index is not None else table[time] if time is not None else None
    times = None if raw is None else _times(raw, time or "the index")
    numbers = {column: _numbers(table[column], column) for column in [*wanted, *covariates]}
    known = np.stack([numbers[c] for c in covariates], 1) if covariates else None
    rows = {str(c): np.arange(len(table)) for c in wanted}
    columns = {str(c): numbers[c] for c in wanted}
    if series is not None:
        cells = table[series]
        if cells.isna().any():
            row = int(cells.isna().to_numpy().argmax()) + 1
            raise ValueError(f"column {series!r} has no name of a series in row {row}; add it.")
        codes, names = pd.factorize(cells, sort=True)
        rows = {str(name): np.flatnonzero(codes == i) for i, name in enumerate(names)}
        columns = {name: numbers[wanted[0]][mine] for name, mine in rows.items()}
    if clock is None:
        clock = Clock() if times is None else find_clock(times, regular)
    ranks = None if times is None or regular else np.unique(times)
    made = Panel([], [], np.empty(0, np.int64), [], clock, None if ranks is None else [])
    starts = []
    for name, column in columns.items():
        mine = rows[name]
        if times is None:
            steps = np.arange(len(mine))
        else:
            order = np.argsort(times[mine], kind="stable")
            mine, column = mine[order], column[order]
            check_repeated(name, times[mine])
            if ranks is None:
                steps = number_steps(name, times[mine], clock)
            else:
                steps = np.searchsorted(ranks, times[mine])

        def time_of(i: int, mine: Array = mine) -> str:
            return str(i) if times is None else show_time(times[mine[i]])

        first, values = _between(name, column, time_of)
        made.names.append(name)
        made.values.append(values)
        starts.append(int(steps[first]))
        if made.ranks is not None:
            made.ranks.append(steps[first : first + len(values)])
        rest = np.empty((len(mine), 0)) if known is None else known[mine]
        made.covariates.append(_covariates(name, rest[first:], covariates, len(values), time_of))
    made.starts = np.array(starts, dtype=np.int64)
    return made


def _covariates(name: str, found: Array, names: Sequence[str], needed: int, time_of: Any) -> Array:
    """Cut rows without covariates off the end, and refuse those before."""
    bad = np.flatnonzero(~np.isfinite(found).all(1))
    if len(bad) and bad[0] < needed:
        column = int(np.flatnonzero(~np.isfinite(found[bad[0]]))[0])
        raise ValueError(
            f"covariate {names[column]!r} of series {name!r} is missing in row {bad[0]} of the "
            "series; fill it in."
        )
    return found[: bad[0]] if len(bad) else found


def _check_column(argument: str, column: str, table: Any) -> None:
    if column not in table.columns:
        names = [str(name) for name in table.columns]
        raise ValueError(
            f"{argument}={column!r} is not a column of the data"
            f"{did_you_mean(str(column), names) or '.'} There are {', '.join(names[:12])}."
        )


def _check_names(table: Any, time: str | None) -> None:
    import pandas as pd

    twice = table.columns[table.columns.duplicated()]
    if len(twice):
        raise ValueError(f"data has two columns {twice[0]!r}; rename one of them.")
    if time is None and pd.api.types.is_string_dtype(table.index) and len(table):
        raise ValueError(
            f"the index of data holds text, such as {table.index[0]!r}; turn dates into dates by "
            "data.index = pandas.to_datetime(data.index), or drop it by reset_index(drop=True)."
        )


def _numbers(cells: Any, column: str) -> Array:
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(cells):
        raise ValueError(
            f"column {column!r} holds dates, which are no values; name it by time={column!r}, or "
            "name the columns to use by value=."
        )
    found = pd.to_numeric(cells, errors="coerce")
    bad = (found.isna() & cells.notna()).to_numpy()
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"column {column!r} has {cells.iloc[row]!r} in row {row + 1}, which is not a number; "
            "name the columns to use by value=, time= and series=."
        )
    values: Array = found.to_numpy(dtype=float)
    return values


def _times(cells: Any, column: str) -> Array:
    """Return numbers, or datetime64[s]."""
    import pandas as pd

    cells = pd.Series(np.asarray(cells)) if not isinstance(cells, pd.Series) else cells
    if cells.isna().any():
        row = int(cells.isna().to_numpy().argmax()) + 1
        raise ValueError(f"column {column!r} has no time in row {row}; add it, or leave it out.")
    if pd.api.types.is_numeric_dtype(cells):
        numbers: Array = cells.to_numpy(dtype=float)
        return numbers
    try:
        found = pd.to_datetime(cells, utc=True)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"column {column!r} has times that cannot be read ({error}); write them as "
            "2020-01-31, or as numbers."
        ) from error
    times: Array = found.dt.tz_localize(None).to_numpy().astype("datetime64[s]")
    return times
