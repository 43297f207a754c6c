"""Nets that predict the next token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dlblocks._errors import check_range, checked
from dlblocks.nets.attention import KVCache
from dlblocks.nets.transformer import STD, Transformer


class TokenNet(nn.Module):
    """Base of nets that begin and end with a table of tokens.

    Tied weights (Press and Wolf 2017) are one parameter that is used twice, so that copies,
    `load_state_dict` and `to_empty` cannot untie them.
    """

    context: int | None = None
    """Most tokens of a sequence; None for any number."""

    def __init__(self, vocab_size: int, width: int, *, tied: bool, dropout: float) -> None:
        super().__init__()
        check_range("vocab_size", vocab_size, 2)
        check_range("width", width, 1)
        check_range("dropout", dropout, 0, 1, high_open=True)
        self.vocab_size, self.width = vocab_size, width
        self.embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=STD)
        self.head: nn.Linear | None = None
        if not tied:
            self.head = nn.Linear(width, vocab_size, bias=False)
            nn.init.normal_(self.head.weight, std=STD)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., V) of the next token."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(hidden, weight)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise a `ValueError` unless sequences of a shape (T,) fit."""
        if len(shape) != 1:
            raise ValueError(
                f"{type(self).__name__} expects tokens (B, T), got inputs of shape {shape}."
            )
        if self.context is not None and shape[0] > self.context:
            raise ValueError(
                f"sequences have {shape[0]} tokens, more than context={self.context}; set "
                f"context={shape[0]} of the model, or block_size={self.context} of the data."
            )


class GPT(TokenNet):
    """A causal `Transformer` that predicts the next token (Radford et al. 2018).

    Args:
        vocab_size: Number of tokens V.
        width: Size D of an embedded token.
        depth: Number of blocks.
        num_heads: Heads of the attention.
        context: Most tokens of a sequence.
        separator: Number of the token that begins a document. If it is given, a token sees only
            those of its own document. None: it sees all before.
        tied: Whether table and last layer share their weights (Press and Wolf 2017).
        dropout: Probability in [0, 1) of dropout.
        **kwargs: Further arguments of `Transformer`, such as ``positions="rotary"``.

    Shape:
        Input (B, T), integers; output (B, T, V), logits of the token that follows each.

    Example:
        >>> GPT(50, width=16, depth=1, num_heads=2, context=8)(torch.zeros(2, 5).long()).shape
        torch.Size([2, 5, 50])
    """

    @checked
    def __init__(
        self,
        vocab_size: int,
        *,
        width: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        context: int = 256,
        separator: int | None = None,
        tied: bool = True,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(vocab_size, width, tied=tied, dropout=dropout)
        self.context, self.separator = context, separator
        self.transformer = Transformer(
            width, depth, num_heads, context=context, causal=True, dropout=dropout, **kwargs
        )

    def forward(
        self, tokens: Tensor, *, lengths: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Return logits (B, T, V).

        `Transformer.forward` describes `lengths` and `cache`.
        """
        return self.logits(self.hidden(tokens, lengths=lengths, cache=cache))

    def hidden(
        self,
        tokens: Tensor,
        *,
        lengths: Tensor | None = None,
        cache: KVCache | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Return what comes before the last layer, shape (B, T, D)."""
        mask = None
        if self.separator is not None and cache is None:
            documents = (tokens == self.separator).cumsum(1)
            mask = documents[:, :, None] == documents[:, None]  # (B, T, T)
        found: Tensor = self.transformer(
            self.embedding(tokens), lengths=lengths, mask=mask, cache=cache, maps=maps
        )
        return found

    def make_cache(self, batch_size: int) -> KVCache:
        """Create an empty cache for the tokens of `context`."""
        return self.transformer.make_cache(batch_size)

    def attention_maps(self, tokens: Tensor) -> list[Tensor]:
        """Return the attention's weights (B, H, T, T) in each block."""
        maps: list[Tensor] = []
        self.hidden(tokens, maps=maps)
        return maps


class RNNState:
    """The state of an LSTM after the tokens that it has seen.

    Args:
        hidden: Hidden and cell values, each of shape (layers, B, hidden).
        lengths: How many tokens each row has, int64 of shape (B,).
    """

    def __init__(self, hidden: tuple[Tensor, Tensor], lengths: Tensor) -> None:
        self.hidden, self.lengths = hidden, lengths

    def __getitem__(self, rows: Tensor) -> RNNState:
        h, c = self.hidden
        return RNNState((h[:, rows], c[:, rows]), self.lengths[rows])

    def __setitem__(self, rows: Tensor, other: RNNState) -> None:
        for mine, given in zip(self.hidden, other.hidden, strict=True):
            mine[:, rows] = given
        self.lengths[rows] = other.lengths


class LSTMDecoder(TokenNet):
    """An LSTM that predicts the next token (Zaremba et al. 2014).

    Args:
        vocab_size: Number of tokens V.
        width: Size D of an embedded token.
        hidden: Hidden values of each layer. A linear layer brings them to D if they are not.
        num_layers: Layers, each above the other.
        tied: Whether table and last layer share their weights (Press and Wolf 2017).
        dropout: Probability in [0, 1) of dropout of embedded tokens, between layers, and after the
            last one.

    Shape:
        Input (B, T), integers; output (B, T, V), logits of the token that follows each.

    Example:
        >>> LSTMDecoder(50, width=8, hidden=16)(torch.zeros(2, 5).long()).shape
        torch.Size([2, 5, 50])
    """

    @checked
    def __init__(
        self,
        vocab_size: int,
        *,
        width: int = 128,
        hidden: int = 256,
        num_layers: int = 1,
        tied: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(vocab_size, width, tied=tied, dropout=dropout)
        check_range("hidden", hidden, 1)
        check_range("num_layers", num_layers, 1)
        between = dropout if num_layers > 1 else 0.0
        self.lstm = nn.LSTM(width, hidden, num_layers, batch_first=True, dropout=between)
        self.out = nn.Identity() if hidden == width else nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Tensor, *, lengths: Tensor | None = None, cache: RNNState | None = None
    ) -> Tensor:
        """Return logits (B, T, V).

        Args:
            tokens: Shape (B, T).
            lengths: How many tokens of each row count, the first ones, at least 1, of shape (B,).
            cache: Of `make_cache`. `tokens` follow those that it has seen.
        """
        return self.logits(self.hidden(tokens, lengths=lengths, cache=cache))

    def hidden(
        self, tokens: Tensor, *, lengths: Tensor | None = None, cache: RNNState | None = None
    ) -> Tensor:
        """Return what comes before the last layer, shape (B, T, D)."""
        x: Any = self.dropout(self.embedding(tokens))  # (B, T, D)
        if lengths is not None:  # the state must be that of the last token, not of padding
            x = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        x, state = self.lstm(x, None if cache is None else cache.hidden)
        if lengths is not None:
            x, _ = pad_packed_sequence(x, batch_first=True, total_length=tokens.shape[1])
        if cache is not None:
            cache.hidden = state
            cache.lengths = cache.lengths + (tokens.shape[1] if lengths is None else lengths)
        found: Tensor = self.out(self.dropout(x))
        return found

    def make_cache(self, batch_size: int) -> RNNState:
        """Create the state before the first token."""
        weight = self.embedding.weight
        shape = (self.lstm.num_layers, batch_size, self.lstm.hidden_size)
        h, c = (torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
        lengths = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        return RNNState((h, c), lengths)
