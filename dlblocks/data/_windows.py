"""Cut windows out of series."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dlblocks.data._series import Array


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
