"""Intervals of means over overlapping windows hold the mean as often as they say."""

import numpy as np
import pytest
from scipy.stats import t as student

from dlblocks.crossval import block_interval


def test_it_is_students_interval_of_the_block_means():
    draw = np.random.default_rng(0)
    values = draw.standard_normal((2, 40))  # two series at each time
    low, high = block_interval(values.ravel(), [*range(40)] * 2, 10)
    means = values.mean(0).reshape(4, 10).mean(1)
    half = student.ppf(0.975, 3) * means.std(ddof=1) / 2
    assert (low, high) == pytest.approx((means.mean() - half, means.mean() + half))


def test_coverage_where_windows_overlap():
    draw, horizon, held, naive = np.random.default_rng(0), 6, 0, 0
    for _ in range(400):
        steps = draw.standard_normal(120 + horizon)
        windows = np.convolve(steps, np.ones(horizon) / horizon, "valid")[:120]
        low, high = block_interval(windows, np.arange(120), 2 * horizon)
        held += low < 0 < high
        half = 1.96 * windows.std(ddof=1) / np.sqrt(120)  # as if windows were independent
        naive += abs(windows.mean()) < half
    assert 0.87 < held / 400 < 0.97  # of these blocks a little dependence is left
    assert naive / 400 < 0.7


def test_bad_input():
    with pytest.raises(ValueError, match="11 origins are fewer than three blocks of 4"):
        block_interval(np.ones(11), range(11), 4)
    with pytest.raises(ValueError, match=r"shape \(3,\) and times \(2,\)"):
        block_interval(np.ones(3), range(2), 1)
