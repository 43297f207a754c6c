"""Forecast without a net, by the last season or exponential smoothing.

References:
    - Holt: Forecasting seasonals and trends by exponentially weighted moving averages. 1957;
      International Journal of Forecasting 20, 2004.
    - Winters: Forecasting sales by exponentially weighted moving averages. Management Science 6,
      1960.
    - Gardner, McKenzie: Forecasting trends in time series. Management Science 31, 1985.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlblocks._errors import check_range
from dlblocks.data._clock import Array
from dlblocks.tasks import PredictionTable

# Parameters that `ExponentialSmoothing.fit` tries, and steps around the best ones.
ALPHA = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
BETA = (0.0, 0.02, 0.1, 0.3)
GAMMA = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7)
PHI = (0.8, 0.9, 0.98, 1.0)
REFINE = 3  # rounds
NARROWER = 0.4  # of each round


def seasonal_naive(history: Array, horizon: int, season: int) -> Array:
    """Repeat the last season.

    Args:
        history: Values up to the origin, shape (T,) with T >= season.
        horizon: Number of steps H.
        season: Steps of a season; 1 repeats the last value.

    Returns:
        Shape (H,).

    Example:
        >>> seasonal_naive(np.array([1.0, 2.0, 3.0]), 5, 2)
        array([2., 3., 2., 3., 2.])
    """
    if len(history) < season:
        raise ValueError(f"history has {len(history)} values, fewer than season={season}.")
    return np.asarray(history[len(history) - season + np.arange(horizon) % season])


@dataclass(frozen=True)
class ExponentialSmoothing:
    """Exponential smoothing with damped additive trend and additive season (Holt-Winters).

    With the value y, level l, trend b and season s of m steps::

        l' = α (y - s) + (1 - α) (l + φ b)
        b' = β (l' - l) + (1 - β) φ b
        s' = γ (y - l - φ b) + (1 - γ) s

    The forecast of h steps ahead is l + (φ + … + φ^h) b + s of that step. Level, trend and season
    start from the first two seasons. Without a season (m = 1) there is no s.

    Attributes:
        season: Steps of a season m.
        alpha: α in (0, 1].
        beta: β in [0, 1].
        gamma: γ in [0, 1].
        phi: φ in (0, 1].

    Example:
        >>> line = np.arange(10.0)
        >>> ExponentialSmoothing(1, alpha=0.5, beta=0.5, gamma=0, phi=1).forecast(line, [9], 2)
        array([[10., 11.]])
    """

    season: int = 1
    alpha: Any = 0.3
    beta: Any = 0.05
    gamma: Any = 0.1
    phi: Any = 0.98

    def start(self, values: Array) -> tuple[float, float, Array]:
        """Return level, trend and season before the first value."""
        m = self.season
        first = values[:m]
        if m == 1:
            trend = float(values[1] - values[0]) if len(values) > 1 else 0.0
            return float(values[0] - trend), trend, np.zeros(1)
        trend = 0.0
        if len(values) >= 2 * m:
            trend = float((values[m : 2 * m].mean() - first.mean()) / m)
        return float(first.mean()), trend, first - first.mean()

    def run(self, values: Array) -> tuple[Array, Array, Array, Array]:
        """Filter values (T,).

        Returns:
            Forecasts of one step, (T, …); level and trend after each step, (T, …); and seasons
            (m + T, …), of which ``[t + 1 : t + 1 + m]`` are those of the steps after t.
        """
        level, trend, season = self.start(values)
        shape = np.broadcast_shapes(*(np.shape(x) for x in (self.alpha, self.beta, self.gamma)))
        steps = len(values)
        ahead, levels, trends = (np.empty((steps, *shape)) for _ in range(3))
        seasons = np.zeros((self.season + steps, *shape))
        l, b = np.full(shape, level), np.full(shape, trend)  # noqa: E741
        seasons[: self.season] = season.reshape(-1, *(1,) * len(shape))
        has_season = self.season > 1
        for t, y in enumerate(values):
            s, before = seasons[t], l + self.phi * b
            ahead[t] = before + s
            new = self.alpha * (y - s) + (1 - self.alpha) * before
            b = self.beta * (new - l) + (1 - self.beta) * self.phi * b
            if has_season:
                seasons[t + self.season] = self.gamma * (y - before) + (1 - self.gamma) * s
            l = new  # noqa: E741
            levels[t], trends[t] = l, b
        return ahead, levels, trends, seasons

    def forecast(self, values: Array, origins: Any, horizon: int) -> Array:
        """Forecast from several origins, each by the values up to it.

        Args:
            values: Shape (T,).
            origins: Places of the last known value, shape (N,).
            horizon: Number of steps H.

        Returns:
            Shape (N, H).
        """
        _, levels, trends, seasons = self.run(values)
        origins = np.asarray(origins)[:, None]
        steps = np.arange(horizon)
        damping = np.cumsum(self.phi ** (steps + 1.0))
        found: Array = levels[origins] + damping * trends[origins]
        found = found + seasons[origins + 1 + steps % self.season]
        return found

    @classmethod
    def fit(cls, values: Array, season: int = 1) -> ExponentialSmoothing:
        """Choose parameters by the squared errors of one step.

        All combinations of a grid are tried, then finer ones around the best.

        Args:
            values: Shape (T,), of at least two seasons and two steps.
            season: Steps of a season.
        """
        check_range("season", season, 1)
        if len(values) < 2 * season + 2:
            raise ValueError(
                f"{len(values)} values are too few for season={season}; give two seasons and two "
                "steps."
            )
        gammas = GAMMA if season > 1 else (0.0,)
        grid = [np.array(axis) for axis in (ALPHA, BETA, gammas, PHI)]
        best = cls._best(values, season, grid)
        width = np.array([0.1, 0.05, 0.1 if season > 1 else 0.0, 0.05])
        for _ in range(REFINE):
            centre = [best.alpha, best.beta, best.gamma, best.phi]
            lows = (0.01, 0.0, 0.0, 0.5)
            grid = [
                np.unique(np.clip([c - w, c - w / 2, c, c + w / 2, c + w], low, 1.0))
                for c, w, low in zip(centre, width, lows, strict=True)
            ]
            best = cls._best(values, season, grid)
            width = width * NARROWER
        return best

    @classmethod
    def _best(cls, values: Array, season: int, grid: list[Array]) -> ExponentialSmoothing:
        """Try all combinations at once."""
        tried = np.array(list(itertools.product(*grid))).T  # (4, G)
        with np.errstate(over="ignore", invalid="ignore"):
            ahead = cls(season, *tried).run(values)[0]  # (T, G)
            error = ((ahead[season:] - values[season:, None]) ** 2).sum(0)
        best = int(np.nanargmin(error))
        return cls(season, *(float(x) for x in tried[:, best]))


def baseline_tables(datamodule: Any, part: str = "test") -> dict[str, PredictionTable]:
    """Forecast the windows of a part without a net.

    Parameters of the exponential smoothing are those of each series up to the last training target.
    A series that is too short by then has the defaults. Level, trend and season follow all values
    up to each origin.

    Args:
        datamodule: A `ForecastDataModule`.
        part: ``"val"`` or ``"test"``, for example.

    Returns:
        Tables like those of a model, with ``score()``, by the names ``"last value"``,
        ``"seasonal naive"`` (with a season) and ``"exponential smoothing"``.
    """
    rows = datamodule.indices(part).numpy()
    panel, season, horizon = datamodule.panel, datamodule.season, datamodule.horizon
    numbers, pasts = datamodule.origins.series[rows], datamodule.training_pasts()
    names = ["last value", *(["seasonal naive"] if season > 1 else []), "exponential smoothing"]
    found = {name: np.empty((len(rows), horizon)) for name in names}
    for number, (values, past) in enumerate(zip(panel.values, pasts, strict=True)):
        mine = np.flatnonzero(numbers == number)
        places = datamodule.origins.places[rows[mine]]
        for name, m in (("last value", 1), ("seasonal naive", season)):
            if name in found and len(mine):
                found[name][mine] = [seasonal_naive(values[: p + 1], horizon, m) for p in places]
        smoothing = ExponentialSmoothing(season)
        if len(past) >= 2 * season + 2:
            smoothing = ExponentialSmoothing.fit(past, season)
        if len(mine):
            found["exponential smoothing"][mine] = smoothing.forecast(values, places, horizon)
    source = datamodule.source
    shared = {
        "index": rows,
        "target": source.targets[rows].numpy(),
        "naive_error": source.inputs[rows, 0, -1].numpy(),
    }
    return {
        name: PredictionTable({**shared, "prediction": values.astype(np.float32)}, task="forecast")
        for name, values in found.items()
    }
