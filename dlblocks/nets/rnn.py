"""Recurrent nets (vanilla, LSTM and GRU)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dlblocks._errors import check_choice, check_range, checked
from dlblocks._ragged import check_lengths
from dlblocks.fields import Padded
from dlblocks.nets._steps import Steps, mean_of_steps

RNNKind = Literal["rnn", "gru", "lstm"]
Readout = Literal["last", "mean", "steps"]
LAYERS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class RNN(nn.Module):
    """Recurrent layers of torch over sequences, then a linear layer.

    - ``"rnn"``: ``h[t] = tanh(W x[t] + U h[t-1] + b)`` (Elman 1990).
    - ``"lstm"``: with a cell and three gates (Hochreiter and Schmidhuber 1997; Gers et al. 2000).
    - ``"gru"``: with two gates (Cho et al. 2014).

    Sequences of unequal length are `dlblocks.fields.Padded`. They are packed, so that a sequence
    gives the same result alone and in a batch. The last state is that after the last step of each
    sequence, and for the backward direction that after its first step.

    `torch.compile` breaks its graph at recurrent layers unless
    ``torch._dynamo.config.allow_rnn = True``. Packed sequences always break it.

    Args:
        in_features: Features F of a step. With `num_tokens`, the size of a token's vector.
        out_features: Values D of an output.
        kind: ``"rnn"``, ``"gru"`` or ``"lstm"``.
        hidden: Size H of the state, of each direction.
        layers: Number of recurrent layers.
        bidirectional: Read sequences in both directions (Schuster and Paliwal 1997).
        dropout: Probability in [0, 1) that a value between layers, or before the linear layer, is
            zeroed in training.
        readout: What the linear layer gets: ``"last"`` for the last state of the last layer,
            ``"mean"`` for the mean over all steps, ``"steps"`` for each step.
        num_tokens: Number of different tokens, if inputs are tokens; None for features.

    Shape:
        Input: features (N, T, F), tokens (N, T), or `Padded` ones. Images (N, C, H, W) are read
        row by row, H steps of C · W features. Output (N, D), or with ``"steps"`` (N, T, D), which
        is 0 at padding.

    Raises:
        ValueError: An argument is out of range, a step has another number of features, a length is
            0 or does not fit its values, or a token is unknown.

    Example:
        >>> net = RNN(4, 3, kind="gru", hidden=8, bidirectional=True)
        >>> net(Padded.of([torch.zeros(2, 4), torch.zeros(5, 4)])).shape
        torch.Size([2, 3])
    """

    takes_padded = True

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kind: RNNKind = "lstm",
        hidden: int = 128,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        readout: Readout = "last",
        num_tokens: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, LAYERS)
        check_choice("readout", readout, ["last", "mean", "steps"])
        check_range("hidden", hidden, 1)
        check_range("layers", layers, 1)
        check_range("dropout", dropout, 0, 1, high_open=True)
        self.kind, self.readout = kind, readout
        self.directions = 1 + bidirectional
        self.steps = Steps(in_features, num_tokens)
        self.rnn = LAYERS[kind](
            in_features,
            hidden,
            num_layers=layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.directions * hidden, out_features)

    def forward(self, inputs: Tensor | Padded) -> Tensor:
        x, lengths = self.steps(inputs)  # (N, T, F)
        if lengths is None:
            states, last = self.rnn(x)  # (N, T, directions * H)
        else:
            packed = pack_padded_sequence(
                x, self._checked(x, lengths), batch_first=True, enforce_sorted=False
            )
            states, last = self.rnn(packed)
        if self.readout == "last":
            # The last state, because the last step may be padding, and is the first one of the
            # backward direction.
            last = last[0] if self.kind == "lstm" else last  # (layers * directions, N, H)
            found = last[-self.directions :].transpose(0, 1).flatten(1)
            return self._out(found)
        if lengths is not None:
            # Without the total length it would drop padding that all sequences have.
            states, _ = pad_packed_sequence(states, batch_first=True, total_length=x.shape[1])
        if self.readout == "mean":
            return self._out(mean_of_steps(states, lengths))
        outputs = self._out(states)
        return outputs if lengths is None else Padded(outputs, lengths).masked(outputs).values

    def _out(self, states: Tensor) -> Tensor:
        found: Tensor = self.head(self.dropout(states))
        return found

    def _checked(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return lengths on the CPU, where torch packs by them."""
        if torch.compiler.is_exporting():
            raise ValueError(
                "recurrent nets over sequences of unequal length cannot be exported; export one "
                "that was trained on sequences of equal length, (N, T, F)"
            )
        on_cpu = lengths.cpu()
        check_lengths("inputs", Padded(x, on_cpu))
        if not on_cpu.all():
            row = int((on_cpu == 0).nonzero()[0])
            raise ValueError(
                f"inputs has length 0 in row {row}; a recurrent net needs at least one step, so "
                "remove this row."
            )
        return on_cpu

    def check_input(self, shape: tuple[int | None, ...]) -> None:
        """Raise a `ValueError` unless inputs of a shape (T, F) fit."""
        self.steps.check_input(shape)
