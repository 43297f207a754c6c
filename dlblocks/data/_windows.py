"""Cut windows out of series, and scale them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from dlblocks.data._clock import Array
from dlblocks.data._normalization import needs_float64
from dlblocks.data._series import Panel

SHOWN = 4  # series in a message


@dataclass
class Origins:
    """Last steps of windows before the steps to forecast, arrays (N,).

    Attributes:
        steps: Step of the origin. With ``regular=False`` it is the place of the origin's time among
            the times of all series.
        ends: Step of the last target, counted in the same way.
        places: Place of the origin among the values of its series.
        series: Number of the series.
    """

    steps: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    series: npt.NDArray[np.int64]


def naive_errors(values: Array, season: int) -> Array:
    """Return the mean of ``|y_i - y_(i-season)|`` up to each step.

    The mean of ``|y_i|`` replaces an error of 0, and 1 replaces it if that is 0 too. The first
    `season` steps have no error and are NaN. The result has shape (T,).

    Example:
        >>> naive_errors(np.array([1.0, 3.0, 2.0]), 1)
        array([nan, 2. , 1.5])
    """
    found = np.full(len(values), np.nan)
    differences = np.abs(values[season:] - values[:-season])
    counts = np.arange(1, len(values) + 1)
    found[season:] = np.cumsum(differences) / counts[: len(differences)]
    size = np.cumsum(np.abs(values)) / counts
    size[size == 0] = 1.0
    return np.where(found == 0, size, found)


def window_inputs(
    values: Array,
    known: Array,
    origins: Array,
    number: int,
    errors: Array,
    context: int,
    horizon: int,
) -> Array:
    """Return the inputs of windows of one series.

    `ForecastDataModule` says what they hold.

    Args:
        values: Shape (T,).
        known: Known inputs, of `horizon` steps after the last origin at least, shape (T', K).
        origins: Places of the origins, from `context` - 1 on, shape (N,).
        number: Number of the series.
        errors: Naive error up to each step, shape (T,).
        context: Past steps.
        horizon: Steps to forecast.

    Returns:
        Float32 of shape (N, context + horizon, 1 + K + 2).
    """
    starts = origins - context + 1
    inputs = np.zeros((len(origins), context + horizon, known.shape[1] + 3), dtype=np.float32)
    if not len(origins):
        return inputs
    inputs[:, :context, 0] = sliding_window_view(values, context)[starts]
    if known.shape[1]:
        windows = sliding_window_view(known, context + horizon, axis=0)  # (T', K, L)
        inputs[:, :, 1:-2] = windows[starts].transpose(0, 2, 1)
    inputs[:, :, -2] = number
    inputs[:, :, -1] = errors[origins][:, None]
    return inputs


def check_panel(
    panel: Panel, context: int, horizon: int, season: int, calendar: Sequence[str]
) -> None:
    """Raise a `ValueError` if the series have no windows.

    Args:
        panel: The series.
        context: Past steps.
        horizon: Steps to forecast.
        season: Steps of a season.
        calendar: Features of dates.
    """
    if calendar and panel.clock.unit not in ("seconds", "months"):
        raise ValueError(
            f"calendar={calendar} needs dates, but steps are counted by numbers; name the column "
            "of dates by time=."
        )
    length = context + horizon
    if context <= season:
        raise ValueError(
            f"context={context} must be longer than a season of {season} steps, which the naive "
            f"error compares; use context={2 * season}, or season=1."
        )
    short = [n for n, v in zip(panel.names, panel.values, strict=True) if len(v) < length]
    if short:
        shown = ", ".join(map(repr, short[:SHOWN])) + (" …" if len(short) > SHOWN else "")
        count = min(map(len, panel.values))
        raise ValueError(
            f"series {shown} have fewer than context + horizon = {length} steps, the shortest "
            f"{count}; use a shorter context or horizon, or leave them out."
        )
    for name, values in zip(panel.names, panel.values, strict=True):
        if needs_float64(torch.tensor(values)[:, None]):
            raise ValueError(
                f"series {name!r} has values that float32 rounds too much, such as {values[0]!r}; "
                "subtract an offset."
            )


def find_places(panel: Panel, context: int, horizon: int, stride: int) -> list[Array]:
    """Return the places of the origins in each series.

    They are `stride` steps apart, counted back from the last origin of all series.
    """
    last, places = int(panel.ends.max()) - horizon - 1, []
    for start, values in zip(panel.starts, panel.values, strict=True):
        found = np.arange(context - 1, len(values) - horizon)
        places.append(found[(last - start - found) % stride == 0])
    return places


def series_scales(
    pasts: Sequence[Array], known: Sequence[Array], scaling: str | bool, num_calendar: int
) -> dict[str, Tensor]:
    """Return level and spread of series and of known inputs.

    Args:
        pasts: Values of each of S series in training, shape (T_s,).
        known: Their covariates, shape (T_s, K).
        scaling: ``"series"`` for the statistics of each, ``"global"`` for those of all, or False.
        num_calendar: Number of known inputs of the calendar, which are not scaled.

    Returns:
        ``level`` and ``spread`` of shape (S + 1,), the last for new series, ``mean`` and ``std`` of
        shape (K + num_calendar,), all float32.
    """
    everything = np.concatenate(pasts)
    level = np.full(len(pasts) + 1, everything.mean())
    spread = np.full(len(pasts) + 1, everything.std())
    if scaling == "series":
        for i, past in enumerate(pasts):
            if len(past) > 1:
                level[i], spread[i] = past.mean(), past.std()
    covariates = np.concatenate(known)
    mean = np.concatenate([covariates.mean(0), np.zeros(num_calendar)])
    std = np.concatenate([covariates.std(0), np.ones(num_calendar)])
    if not scaling:
        level[:], spread[:], mean[:], std[:] = 0, 1, 0, 1
    # Constant channels stay finite.
    spread = np.where(spread <= 1e-7 * np.abs(level), 1.0, spread)
    std = np.where(std <= 1e-7 * np.abs(mean), 1.0, std)
    found = {"level": level, "spread": spread, "mean": mean, "std": std}
    return {name: torch.from_numpy(value).float() for name, value in found.items()}
