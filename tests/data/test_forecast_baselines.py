"""Exponential smoothing against its formulas and statsmodels, and how it is fitted."""

import numpy as np
import pytest

from dlblocks.data import ExponentialSmoothing


def series(length=60, season=4):
    draw = np.random.default_rng(0)
    steps = np.arange(length)
    return 20 + 0.1 * steps + 2 * np.sin(2 * np.pi * steps / season) + draw.standard_normal(length)


def by_hand(values, season, alpha, beta, gamma, phi, horizon):
    """The formulas of the class, one number at a time; forecasts are values without an error."""
    model = ExponentialSmoothing(season, alpha, beta, gamma, phi)
    level, trend, start = model.start(values)
    seasons = [*start] if season > 1 else [0.0]
    ahead = []
    for t in range(len(values) + horizon):
        s = seasons[-season]
        forecast = level + phi * trend + s
        ahead.append(forecast)
        y = values[t] if t < len(values) else forecast
        new = alpha * (y - s) + (1 - alpha) * (level + phi * trend)
        if season > 1:
            seasons.append(gamma * (y - level - phi * trend) + (1 - gamma) * s)
        trend = beta * (new - level) + (1 - beta) * phi * trend
        level = new
    return ahead[: len(values)], ahead[len(values) :]


PARAMETERS = [(4, 0.4, 0.1, 0.2, 0.9), (4, 0.4, 0.1, 0.2, 1.0), (1, 0.6, 0.2, 0.0, 0.95)]


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_forecasts_are_those_of_the_formulas(parameters):
    values = series()
    model = ExponentialSmoothing(*parameters)
    for origin in (20, 41, 59):
        steps, ahead = by_hand(values[: origin + 1], *parameters, horizon=11)
        np.testing.assert_allclose(model.run(values)[0][: origin + 1], steps)
        np.testing.assert_allclose(model.forecast(values, [origin], 11)[0], ahead)


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_steps_are_those_of_statsmodels(parameters):
    holtwinters = pytest.importorskip("statsmodels.tsa.holtwinters")
    season, alpha, beta, gamma, phi = parameters
    model, values = ExponentialSmoothing(*parameters), series()
    level, trend, start = model.start(values)
    # What comes without an error does not change the forecasts of later steps.
    longer = np.concatenate([values, model.forecast(values, [len(values) - 1], 11)[0]])
    known = {"initial_level": level, "initial_trend": trend}
    fixed = {"smoothing_level": alpha, "smoothing_trend": beta, "optimized": False}
    if season > 1:
        known |= {"seasonal": "add", "seasonal_periods": season, "initial_seasonal": start}
        fixed["smoothing_seasonal"] = gamma
    if phi < 1:
        known["damped_trend"] = True
        fixed["damping_trend"] = phi
    theirs = holtwinters.ExponentialSmoothing(
        longer, trend="add", initialization_method="known", **known
    ).fit(**fixed)
    np.testing.assert_allclose(theirs.fittedvalues[: len(values)], model.run(values)[0])
    np.testing.assert_allclose(theirs.fittedvalues[len(values) :], longer[len(values) :])


def test_simple_exponential_smoothing_weighs_the_past_geometrically():
    values = series()
    model = ExponentialSmoothing(1, 0.3, 0.0, 0.0, 1.0)
    level, trend, _ = model.start(values)
    forecast = model.forecast(values, [len(values) - 1], 1)[0, 0]
    # Without a change of the trend it is a weighted mean of y_t + (T - t) trend.
    steps = np.arange(len(values))
    weights = 0.3 * 0.7 ** (len(values) - 1 - steps)
    later = values + (len(values) - steps) * trend
    first = 0.7 ** len(values) * (level + (len(values) + 1) * trend)
    assert forecast == pytest.approx(weights @ later + first)


@pytest.mark.parametrize("season", [1, 4])
def test_fit_is_better_than_a_coarse_grid(season):
    values = series(80, season if season > 1 else 7)
    best = ExponentialSmoothing.fit(values, season)

    def loss(model):
        return ((model.run(values)[0] - values)[season:] ** 2).sum()

    for alpha in (0.05, 0.2, 0.5, 0.9):
        for gamma in (0.0, 0.1, 0.4) if season > 1 else (0.0,):
            assert loss(best) <= loss(ExponentialSmoothing(season, alpha, 0.02, gamma, 0.98))
    assert 0 < best.alpha <= 1 and 0 <= best.beta <= 1 and 0 <= best.gamma <= 1
    with pytest.raises(ValueError, match="9 values are too few for season=4"):
        ExponentialSmoothing.fit(values[:9], 4)
