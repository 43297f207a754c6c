"""Windows of time series, with folds in the order of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dlblocks._errors import check_choice, check_range, whole
from dlblocks.data._clock import CALENDAR, Array
from dlblocks.data._holdout import holdout
from dlblocks.data._read_csv import check_name
from dlblocks.data._series import Panel, read_panel
from dlblocks.data._series_encoder import SeriesEncoder
from dlblocks.data._series_sets import SETS, read_named
from dlblocks.data._strata import Indices
from dlblocks.data._windows import (
    Origins,
    check_panel,
    find_places,
    naive_errors,
    series_scales,
    window_inputs,
)
from dlblocks.data.datamodule import DataModule
from dlblocks.data.encoders import Encoder
from dlblocks.data.source import Source
from dlblocks.data.splitting import check_split
from dlblocks.fields import Kind, Values
from dlblocks.nets import SeriesScaler

MAX_BYTES = 2**33  # of all windows


class Window(Kind):
    """Windows of series (N, L, C) in their own units."""

    fixed = "one channel is the number of the series, and values have the units of theirs"


class ForecastDataModule(DataModule):
    """Windows of one or many time series.

    A sample is a window of `context` past steps and `horizon` steps to forecast. Its origin is the
    last past step. Inputs are (N, context + horizon, C), float32, in the units of the series:

    - Channel 0 is the value, 0 in the horizon.
    - Then come the known inputs of all steps: `covariates`, and sine and cosine of each entry of
      `calendar`.
    - The last two are the number of the series, and its naive error: the mean of
      ``|y_i - y_(i-season)|`` from its first value to the origin (Hyndman and Koehler 2006).

    Targets are (N, horizon).

    **Splits** are in the order of time. The test set is the last `test_fraction` of all origins.
    Cross-validation has rolling origins: as in scikit-learn's `TimeSeriesSplit`, fold k trains on
    all origins before those that it validates. Training windows whose targets would reach into the
    validation or test period are left out. A window may look back over the split.

    **Scales**: a `dlblocks.models.Forecaster` takes level and spread of each series from the
    training past of its fold: values up to the last training target. Batches are raw for every
    model; `scales` has the numbers for a module of your own.

    Data are a CSV file, a folder of them, or a DataFrame, wide or long; an array (T,) or (T, S), or
    a list or dictionary of arrays; or one of the names ``"stocks"`` (monthly prices, which come
    with matplotlib; the default), ``"elnino"``, ``"co2"`` and ``"sunspots"`` (of statsmodels, which
    must be installed). Missing values at both ends are cut off. Rows at the end of a table that
    have covariates but no value are for `Predictor.predict`.

    Args:
        data: The series.
        context: Past steps of a window.
        horizon: Steps to forecast.
        season: Steps of a season m, for the naive error and `baselines`. None: 12 of months, 4 of
            quarters, 7 of days, 24 of hours, and others by the usual period; else 1.
        time: The column of times, dates or numbers. None: the dates in the index of a DataFrame,
            else rows follow each other.
        value: The column of values of a long table, or the columns of a wide one, each a series.
            None: all other columns.
        series: The column that names the series of a long table.
        covariates: Columns of inputs that are known ahead, such as holidays.
        calendar: Of the dates: ``"month"``, ``"quarter"``, ``"day_of_month"``, ``"weekday"``,
            ``"hour"``, ``"minute"``.
        regular: Steps must be equally long. False takes the rows of each series as equally spaced,
            such as days with trade.
        stride: Steps between origins. 1 for all of them.
        normalize: ``"series"`` scales each series by its own level and spread; series without
            training values, and new ones, by those of all. ``"global"`` scales all alike. False
            scales nothing.
        read_args: Further arguments of `pandas.read_csv`, such as ``{"sep": ";"}``.
        test_fraction: Share of the origins held out at the end.
        **kwargs: Batches and splits; see `DataModule`.

    Raises:
        ValueError: A series has a gap, a time twice, or a missing value; it is shorter than a
            window; or a split leaves no training window. The message names series, time and cure.
            It is raised at the first use of the data.

    Example:
        >>> data = ForecastDataModule([[float(i % 4) for i in range(40)]], context=8, horizon=4)
        >>> data.input_shape, {part: len(data.indices(part)) for part in ("train", "val", "test")}
        ((12, 3), {'train': 13, 'val': 4, 'test': 6})
    """

    _shared = tuple(
        name for name in DataModule._shared if name not in ("stratify", "balanced_sampling")
    )

    def __init__(
        self,
        data: Any = "stocks",
        *,
        context: int = 36,
        horizon: int = 12,
        season: int | None = None,
        time: str | None = None,
        value: str | Sequence[str] | None = None,
        series: str | None = None,
        covariates: Sequence[str] = (),
        calendar: Sequence[str] = (),
        regular: bool = True,
        stride: int = 1,
        normalize: Literal["series", "global"] | bool = "series",
        read_args: dict[str, Any] | None = None,
        test_fraction: float = 0.2,
        split: Literal["time_series"] = "time_series",
        **kwargs: Any,
    ) -> None:
        check_split(split)
        if split != "time_series":
            raise ValueError(
                f"split={split!r} would train on the future of what it validates; leave it out, so "
                "that training windows end before validation begins."
            )
        super().__init__(split=split, test_fraction=test_fraction, normalize=False, **kwargs)
        check_range("context", context, 2)
        check_range("horizon", horizon, 1)
        check_range("stride", stride, 1)
        if season is not None:
            check_range("season", season, 1)
        for name in calendar:
            check_choice("calendar", name, list(CALENDAR))
        if not isinstance(normalize, bool):
            check_choice("normalize", normalize, ["series", "global"])
        if calendar and not regular:
            raise ValueError(
                f"calendar={list(calendar)} needs the dates of steps to come, which regular=False "
                "leaves open; leave one of them out."
            )
        is_plain = isinstance(data, (str, Path))
        if is_plain:
            check_name("data", data, SETS)
        self.data = str(data) if is_plain else data
        self.context, self.horizon = whole(context), whole(horizon)
        self.given_season = whole(season)
        self.reading: dict[str, Any] = {
            "time": time,
            "value": value if value is None or isinstance(value, str) else list(value),
            "series": series,
            "covariates": list(covariates),
            "regular": regular,
            "read_args": dict(read_args or {}),
        }
        self._own_reading: dict[str, Any] = {}  # of a named data set
        self._origins: Origins  # set by `load`
        self.calendar = list(calendar)
        self.stride = whole(stride)
        self.scaling = "series" if normalize is True else normalize
        self.save_hyperparameters(ignore=[] if is_plain else ["data"])

    # The series

    @cached_property
    def panel(self) -> Panel:
        """The series, without gaps."""
        data, reading = self.data, self.reading
        if isinstance(data, str) and data in SETS:
            for name, given in reading.items():
                if given and name != "regular":
                    raise ValueError(f"{name}={given!r} has no effect on data={data!r}.")
            data, self._own_reading = read_named(data)
            reading = reading | self._own_reading
        panel = read_panel(data, **reading)
        check_panel(panel, self.context, self.horizon, self.season_of(panel), self.calendar)
        return panel

    def season_of(self, panel: Panel) -> int:
        """Return the steps of a season."""
        return self.given_season or panel.clock.season or 1

    @property
    def season(self) -> int:
        """Steps of a season m."""
        return self.season_of(self.panel)

    @property
    def known_names(self) -> list[str]:
        """Names of the known inputs."""
        ends = ("sin", "cos")
        return [*self.reading["covariates"], *(f"{c}_{e}" for c in self.calendar for e in ends)]

    @property
    def num_known(self) -> int:
        """Number of known inputs K."""
        return len(self.known_names)

    @property
    def feature_names(self) -> list[str]:
        """Names of the channels."""
        return ["value", *self.known_names, "series", "naive_error"]

    def load(self) -> Source:
        panel, season = self.panel, self.season
        length = self.context + self.horizon
        places = find_places(panel, self.context, self.horizon, self.stride)
        count = sum(map(len, places))
        needed = 4 * count * length * len(self.feature_names)
        if needed > MAX_BYTES:
            raise ValueError(
                f"{count:,} windows take {needed / 2**30:.0f} GiB; use every n-th origin only, by "
                f"stride={-(-needed * self.stride // MAX_BYTES)}."
            )
        inputs, targets = [], []
        for i, (values, mine) in enumerate(zip(panel.values, places, strict=True)):
            known, errors = self._known(panel, i), naive_errors(values, season)
            made = window_inputs(values, known, mine, i, errors, self.context, self.horizon)
            inputs.append(made)
            ahead = mine[:, None] + np.arange(1, self.horizon + 1)
            targets.append(values[ahead].astype(np.float32))
        if not count:
            raise ValueError(f"stride={self.stride} leaves no window; use a smaller one.")
        numbers = np.repeat(np.arange(len(places)), [len(mine) for mine in places])
        moments = [panel.moments(i) for i in range(len(places))]
        steps, ends = (
            np.concatenate([m[mine + n] for m, mine in zip(moments, places, strict=True)])
            for n in (0, self.horizon)
        )
        order = np.lexsort([numbers, steps])  # in the order of time
        columns = (steps, ends, np.concatenate(places), numbers)
        self._origins = Origins(*(column[order] for column in columns))
        dtype = torch.get_default_dtype()
        return Source(
            torch.from_numpy(np.concatenate(inputs)[order]).to(dtype),
            torch.from_numpy(np.concatenate(targets)[order]).to(dtype),
            feature_names=self.feature_names,
            input_kind=Window(),
            target_kind=Values(),
        )

    def _known(self, panel: Panel, i: int) -> Array:
        """Return the known inputs (T, K) of a series."""
        steps = panel.starts[i] + np.arange(len(panel.values[i]))
        covariates = panel.covariates[i][: len(steps)]
        return np.concatenate([covariates, panel.clock.calendar(steps, self.calendar)], 1)

    @property
    def origins(self) -> Origins:
        """Origins of all windows, in the order of `source`."""
        _ = self.source
        return self._origins

    @property
    def windows(self) -> dict[str, Array]:
        """Series and origin of each window, arrays (N,).

        They are in the order of `source`. An origin is a date, or a number. The first target is
        one step later.
        """
        names = np.array(self.panel.names)
        return {
            "series": names[self.origins.series],
            "origin": self.panel.clock.times(self.origins.steps),
        }

    def history(self, row: int) -> Array:
        """Return the values of a window's series up to its origin."""
        origins = self.origins
        found: Array = self.panel.values[origins.series[row]][: origins.places[row] + 1]
        return found

    # Splits

    def _hold_out_test(self) -> tuple[Indices, Indices]:
        rest, test = self._last(
            np.arange(len(self.origins.steps)), self.test_fraction, "test_fraction"
        )
        return (rest if self.development is None else self.development), test

    def _last(self, rows: Indices, fraction: float, argument: str) -> tuple[Indices, Indices]:
        """Hold out the last origins, and drop windows that reach into them."""
        steps = self.origins.steps[rows]
        unique = np.unique(steps)
        _, last = holdout(len(unique), fraction, in_order=True)
        if not len(last):
            return rows, rows[:0]
        first = unique[last[0]]
        rest = rows[self.origins.ends[rows] <= first]
        if not len(rest):
            raise ValueError(
                f"{argument}={fraction} leaves no window whose {self.horizon} targets end before "
                f"{self.panel.clock.name(int(first) + 1)}; use a smaller share, a shorter horizon, "
                "or more data."
            )
        return rest, rows[steps >= first]

    def _splits(self, num_folds: int | None, repeat: int) -> list[dict[str, Indices]]:
        rest, test = self._hold_out_test()
        if num_folds is None:
            train, val = self._last(rest, self.val_fraction, "val_fraction")
            return [{"train": train, "val": val, "test": test}]
        from sklearn.model_selection import TimeSeriesSplit

        steps = self.origins.steps[rest]
        unique = np.unique(steps)
        check_range("num_folds", num_folds, 2, max(2, len(unique) - 1))
        found = []
        for fold, (_, places) in enumerate(TimeSeriesSplit(num_folds).split(unique)):
            first, last = unique[places[[0, -1]]]
            train = rest[self.origins.ends[rest] <= first]
            if not len(train):
                raise ValueError(
                    f"num_folds={num_folds} leaves fold {fold} no training window: its validation "
                    f"begins at {self.panel.clock.name(int(first) + 1)}, and no window of "
                    f"{self.context} + {self.horizon} steps ends before; use fewer folds, or a "
                    "shorter context or horizon."
                )
            val = rest[(steps >= first) & (steps <= last)]
            found.append({"train": train, "val": val, "test": test})
        return found

    def _with_selection_part(self, fold: int, rows: dict[str, Indices]) -> dict[str, Indices]:
        if not self.selection_fraction:
            return rows
        train, selected_on = self._last(rows["train"], self.selection_fraction, "selection")
        return {**rows, "train": train, "selection": selected_on}

    # Scales

    def _fit_statistics(self) -> None:
        """Leave the batches as they are."""

    def training_pasts(self) -> list[Array]:
        """Return the values of each series up to the last training target of all."""
        self.setup()
        panel, last = self.panel, self.origins.ends[self._rows["train"].numpy()].max()
        return [v[: (panel.moments(i) <= last).sum()] for i, v in enumerate(panel.values)]

    @property
    def scales(self) -> dict[str, torch.Tensor]:
        """Statistics of this fold's training past, for a `SeriesScaler`.

        ``level`` and ``spread`` have shape (S + 1,), the last for series that are new. ``mean``
        and ``std`` (K,) are those of the known inputs, 0 and 1 for the calendar.
        """
        self.setup()
        pasts = self.training_pasts()
        known = [c[: len(past)] for c, past in zip(self.panel.covariates, pasts, strict=True)]
        return series_scales(pasts, known, self.scaling, 2 * len(self.calendar))

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        precision = getattr(self.trainer, "precision", None)
        if precision in ("16-true", "bf16-true"):
            raise ValueError(
                f"precision={precision!r} rounds values and the numbers of series; use "
                "precision='bf16-mixed'."
            )
        scaler = getattr(getattr(self.trainer, "lightning_module", None), "scaler", None)
        if stage == "fit" and isinstance(scaler, SeriesScaler) and not scaler.is_set:
            scaler.set(**self.scales)

    def description(self) -> str:
        clock, panel = self.panel.clock, self.panel
        said = [f"{len(panel.names)} series, {len(self.origins.steps):,} windows"]
        for part, rows in self._rows.items():
            if len(rows):
                first, last = (int(of(self.origins.steps[rows.numpy()])) for of in (np.min, np.max))
                said.append(
                    f"  origins of {part}: {clock.name(first)} … {clock.name(last)} ({len(rows):,})"
                )
        return "\n".join(said)

    def _make_encoder(self, **shared: Any) -> Encoder:
        return SeriesEncoder(
            **shared,
            names=list(self.panel.names),
            context=self.context,
            horizon=self.horizon,
            season=self.season,
            calendar=list(self.calendar),
            clock=asdict(self.panel.clock),
            reading=self.reading | self._own_reading,
        )
