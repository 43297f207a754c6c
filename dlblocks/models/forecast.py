"""Forecasters over any net, an LSTM, or a Transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from dlblocks._errors import check_range
from dlblocks.models.model import Model
from dlblocks.nets import LSTMForecast, SeriesScaler, TransformerForecast
from dlblocks.nets.forecast import NAIVE_ERROR, NUM_OTHERS, SERIES
from dlblocks.tasks import ForecastTask

MIN_SPREAD = 1e-3  # of a window, in spreads of its series


class Forecaster(Model):
    """A forecaster over any net.

    Inputs are windows (N, L, C) of a `dlblocks.data.ForecastDataModule` with L = context + horizon
    steps, in the units of the series. Channel 0 is the value, 0 in the horizon; then come K known
    inputs, the number of the series, and the naive error. `forward` returns forecasts in the units
    of the series, (N, H, 1) or (N, H, Q).

    Scales: a fit sets `scaler` to level and spread of each series in the training past, and to mean
    and standard deviation of the known inputs. Checkpoints keep it. With `window_norm`, values are
    standardised once more, by mean and standard deviation of the context (Kim et al. 2022), so that
    a series may leave the range of the training.

    The net gets (N, L, K + 2): the scaled value, known inputs, and whether the step is in the
    horizon. It puts out (N, H, Q), on the scale of the values.

    Args:
        net: Maps (N, L, K + 2) to (N, H, Q), with Q = 1 without `quantiles`.
        horizon: Number of steps to forecast H.
        quantiles: Levels in (0, 1), with 0.5, learned by the pinball loss. None for one value.
        loss: ``"mae"`` or ``"mse"``, without `quantiles`.
        window_norm: Standardise each window by its context.
        residual_season: The net learns the difference to the value this number of steps ago: 12 is
            the seasonal naive method of months, and 1 the last value. None for the value itself.
        metrics: Further metrics of validation and test: names of torchmetrics' classes, or metrics.
        **kwargs: Optimization; see `dlblocks.models.Model`.

    Raises:
        ValueError: A quantile is outside (0, 1), or the data have other windows.

    Example:
        >>> from dlblocks.nets import LSTMForecast
        >>> model = Forecaster(LSTMForecast(2, horizon=3), horizon=3)
        >>> model(torch.zeros(5, 12, 3)).shape
        torch.Size([5, 3, 1])
    """

    def __init__(
        self,
        net: nn.Module,
        horizon: int,
        *,
        quantiles: Sequence[float] | None = None,
        loss: Literal["mae", "mse"] = "mae",
        window_norm: bool = True,
        residual_season: int | None = None,
        metrics: Sequence[str | Metric] | None = None,
        **kwargs: Any,
    ) -> None:
        if residual_season is not None:
            check_range("residual_season", residual_season, 1)
        self.horizon = horizon
        self.quantiles = None if quantiles is None else list(quantiles)
        task = ForecastTask(horizon, quantiles=quantiles, loss=loss, metrics=metrics)
        super().__init__(net, task, **kwargs)
        self.loss_name = loss
        self.window_norm, self.residual_season = window_norm, residual_season
        self.scaler = SeriesScaler()

    def forward(self, inputs: Tensor) -> Tensor:
        past = inputs.shape[1] - self.horizon
        level, spread = self.scaler.of_series(inputs[:, 0, SERIES])  # (N,)
        values = inputs[:, :past, 0]  # (N, context)
        values = (values - level[:, None]) / spread[:, None]
        if self.window_norm:
            mean = values.mean(1)
            deviation = values.std(1, correction=0).clamp(min=MIN_SPREAD)
            values = (values - mean[:, None]) / deviation[:, None]
            level, spread = level + spread * mean, spread * deviation
        known = self.scaler.known(inputs[..., 1:SERIES])  # (N, L, K)
        is_ahead = torch.zeros_like(inputs[..., :1])
        is_ahead[:, past:] = 1
        padded = nn.functional.pad(values, (0, self.horizon))[..., None]
        outputs: Tensor = self.net(torch.cat([padded, known, is_ahead], 2))  # (N, H, Q)
        if self.residual_season is not None:
            season = self.residual_season
            ahead = torch.arange(self.horizon, device=inputs.device) % season
            outputs = outputs + values[:, past - season + ahead][..., None]
        outputs = outputs * spread[:, None, None] + level[:, None, None]
        assert self.task is not None  # for the type checker
        return self.task.decode(outputs)

    def outputs_and_loss(
        self, inputs: Tensor, targets: Any, weights: Tensor | None = None
    ) -> tuple[Any, Tensor]:
        if self._first_batch:
            self._check_windows(inputs)
        return super().outputs_and_loss(inputs, targets, weights)

    def _check_windows(self, inputs: Tensor) -> None:
        """Raise a `ValueError` unless inputs have the channels of a `ForecastDataModule`."""
        shape = tuple(inputs.shape)
        if len(shape) != 3 or shape[2] < NUM_OTHERS or shape[1] <= self.horizon:
            raise ValueError(
                f"inputs have shape {shape}; expected windows (N, context + horizon, channels): "
                "the value, known inputs, the number of the series and the naive error. Windows "
                "without the last two get them by torch.cat([x, zeros, ones], 2)."
            )
        number, error = inputs[..., SERIES], inputs[..., NAIVE_ERROR]
        bad = (error != error[:, :1]) | (error <= 0) | (number != number[:, :1])
        if bad.any():
            row = int(bad.any(1).nonzero()[0])
            raise ValueError(
                f"inputs have {error[row, 0]:g}, {error[row, 1]:g}, … in the last channel of "
                f"window {row}, and {number[row, 0]:g}, {number[row, 1]:g}, … in the one before. "
                "Those are the naive error and the number of the series, the same at all steps of "
                "a window, the error above 0; append 1 and 0 where they are not known."
            )

    def check_data(self, datamodule: Any) -> None:
        super().check_data(datamodule)
        context = getattr(datamodule, "context", None)
        if context is None:
            return
        if self.residual_season is not None and self.residual_season > context:
            raise ValueError(
                f"residual_season={self.residual_season} is longer than context={context} of "
                f"{type(datamodule).__name__}; use a longer context."
            )
        found = getattr(datamodule, "num_known", None)
        expected = getattr(self, "num_known", found)
        if found != expected:
            names = ", ".join(datamodule.known_names) or "none"
            raise ValueError(
                f"num_known={expected}, but {type(datamodule).__name__} has {found} known inputs "
                f"({names}); set num_known={found}."
            )
        length = getattr(self, "context", context)
        if length != context:
            raise ValueError(
                f"context={length}, but {type(datamodule).__name__} has context={context}; set "
                f"context={context}."
            )


class LSTMForecaster(Forecaster):
    """An LSTM as forecaster.

    The net is `dlblocks.nets.LSTMForecast`.

    Args:
        horizon: Number of steps to forecast.
        num_known: Number of known inputs, ``data.num_known``.
        quantiles: Levels in (0, 1), with 0.5; None for one value.
        width: Size of the hidden state.
        depth: Number of layers.
        dropout: Probability of dropout between layers and before the output.
        **kwargs: Loss, scales and optimization; see `Forecaster`.

    Example:
        >>> LSTMForecaster(horizon=3, quantiles=[0.1, 0.5, 0.9])(torch.zeros(5, 12, 3)).shape
        torch.Size([5, 3, 3])
    """

    def __init__(
        self,
        horizon: int,
        *,
        num_known: int = 0,
        quantiles: Sequence[float] | None = None,
        width: int = 64,
        depth: int = 1,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_range("num_known", num_known, 0)
        net = LSTMForecast(
            num_known + 2, horizon, len(quantiles or [0.5]), width=width, depth=depth,
            dropout=dropout,
        )  # fmt: skip
        super().__init__(net, horizon, quantiles=quantiles, **kwargs)
        self.num_known = num_known


class TransformerForecaster(Forecaster):
    """A Transformer as forecaster.

    The net is `dlblocks.nets.TransformerForecast`.

    Args:
        horizon: Number of steps to forecast.
        context: Number of past steps of a window.
        num_known: Number of known inputs, ``data.num_known``.
        quantiles: Levels in (0, 1), with 0.5; None for one value.
        width: Size of a step within the net.
        depth: Number of blocks.
        num_heads: Heads of the attention.
        dropout: Probability of dropout.
        positions: ``"learned"``, ``"sinusoidal"`` or ``"rotary"``.
        **kwargs: Loss, scales and optimization; see `Forecaster`.

    Example:
        >>> model = TransformerForecaster(horizon=3, context=9, width=8, num_heads=2)
        >>> model(torch.zeros(5, 12, 3)).shape
        torch.Size([5, 3, 1])
    """

    def __init__(
        self,
        horizon: int,
        context: int,
        *,
        num_known: int = 0,
        quantiles: Sequence[float] | None = None,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        dropout: float = 0.0,
        positions: Literal["learned", "sinusoidal", "rotary"] = "learned",
        **kwargs: Any,
    ) -> None:
        check_range("num_known", num_known, 0)
        net = TransformerForecast(
            num_known + 2, horizon, len(quantiles or [0.5]), length=context + horizon,
            width=width, depth=depth, num_heads=num_heads, dropout=dropout, positions=positions,
        )  # fmt: skip
        super().__init__(net, horizon, quantiles=quantiles, **kwargs)
        self.num_known, self.context = num_known, context
