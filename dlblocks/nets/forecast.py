"""Nets that forecast several steps of a series, and scales of series."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlblocks._errors import check_range, checked
from dlblocks.nets.transformer import Transformer

# Channels of a window: the value, known inputs, and these two, which are the same at all steps.
SERIES, NAIVE_ERROR = -2, -1
NUM_OTHERS = 3  # channels that are not known inputs


class SeriesScaler(nn.Module):
    """Scales of series and of known inputs.

    A fit with a `dlblocks.data.ForecastDataModule` sets it, once, to the statistics of the training
    past. They are saved with the weights. Until then level is 0 and spread 1.

    Attributes:
        level: Mean of each series, float32 of shape (S + 1,). The last is that of series that
            training had not.
        spread: Standard deviation, float32 of shape (S + 1,).
        mean: Of each known input, float32 of shape (K,).
        std: Of each known input, float32 of shape (K,).
    """

    level: Tensor
    spread: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("level", "spread", "mean", "std"):
            self.register_buffer(name, torch.empty(0))

    @property
    def is_set(self) -> bool:
        """True if statistics are set."""
        return self.level.numel() > 0

    def set(self, **statistics: Tensor) -> None:
        """Replace statistics by copies of these, on the device of the old ones."""
        for name, value in statistics.items():
            self._buffers[name] = value.detach().clone().to(self.level.device)

    def of_series(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return level and spread of series, -1 for one that training had not.

        Args:
            numbers: Shape (N,).
        """
        if not self.is_set:
            return torch.zeros_like(numbers), torch.ones_like(numbers)
        rows = numbers.round().long() % len(self.level)  # -1 is the last
        return self.level[rows], self.spread[rows]

    def known(self, inputs: Tensor) -> Tensor:
        """Standardise known inputs (N, L, K)."""
        return (inputs - self.mean) / self.std if self.is_set else inputs

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in self._buffers:  # the saved shapes replace those of the present statistics
            if prefix + name in state_dict:
                like = self._buffers[name]
                self._buffers[name] = torch.empty_like(state_dict[prefix + name]).to(like)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class LSTMForecast(nn.Module):
    """Forecast by an LSTM (Hochreiter and Schmidhuber 1997).

    It reads a window whose last steps are the horizon. At the steps to forecast it sees known
    inputs, and 0 for the value.

    Args:
        in_features: Features of a step F.
        horizon: Steps to forecast H.
        num_outputs: Numbers of a step Q.
        width: Size of the hidden state.
        depth: Number of layers.
        dropout: Probability of dropout between layers and before the output.

    Shape:
        (N, L, F) with L > H → (N, H, Q).

    Example:
        >>> LSTMForecast(2, horizon=3, num_outputs=1)(torch.zeros(4, 10, 2)).shape
        torch.Size([4, 3, 1])
    """

    @checked
    def __init__(
        self,
        in_features: int,
        horizon: int,
        num_outputs: int = 1,
        *,
        width: int = 64,
        depth: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("horizon", horizon), ("width", width), ("depth", depth)):
            check_range(name, value, 1)
        check_range("dropout", dropout, 0, 1, high_open=True)
        between = dropout if depth > 1 else 0.0
        self.horizon = horizon
        self.lstm = nn.LSTM(in_features, width, depth, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, num_outputs)

    def forward(self, steps: Tensor) -> Tensor:
        states, _ = self.lstm(steps)  # (N, L, D)
        found: Tensor = self.out(self.dropout(states[:, -self.horizon :]))
        return found


class TransformerForecast(nn.Module):
    """Forecast by a Transformer over the steps of a window.

    The last steps are the horizon. At the steps to forecast it sees known inputs, and 0 for the
    value. All steps attend to all.

    Args:
        in_features: Features of a step F.
        horizon: Steps to forecast H.
        num_outputs: Numbers of a step Q.
        length: Steps of a window L.
        width: Size of a step within the net.
        depth: Number of blocks.
        num_heads: Heads of the attention.
        dropout: Probability of dropout.
        positions: ``"learned"``, ``"sinusoidal"`` or ``"rotary"``; see `Transformer`.

    Shape:
        (N, L, F) with L > H → (N, H, Q).

    Example:
        >>> net = TransformerForecast(2, horizon=3, num_outputs=1, length=10, width=8, num_heads=2)
        >>> net(torch.zeros(4, 10, 2)).shape
        torch.Size([4, 3, 1])
    """

    @checked
    def __init__(
        self,
        in_features: int,
        horizon: int,
        num_outputs: int = 1,
        *,
        length: int,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        dropout: float = 0.0,
        positions: Literal["learned", "sinusoidal", "rotary"] = "learned",
    ) -> None:
        super().__init__()
        check_range("horizon", horizon, 1)
        self.horizon = horizon
        self.embed = nn.Linear(in_features, width)
        self.transformer = Transformer(
            width, depth, num_heads, context=length, positions=positions, dropout=dropout
        )
        self.out = nn.Linear(width, num_outputs)

    def forward(self, steps: Tensor) -> Tensor:
        states = self.transformer(self.embed(steps))  # (N, L, D)
        found: Tensor = self.out(states[:, -self.horizon :])
        return found
