"""Encoder-decoder nets, which turn a sequence of tokens into another one."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dlblocks._errors import check_range, checked
from dlblocks._ragged import check_lengths
from dlblocks.fields import Padded
from dlblocks.nets.attention import KVCache
from dlblocks.nets.language import TokenNet
from dlblocks.nets.transformer import STD, Transformer
from dlblocks.nets.transformer_block import Memory


class TransformerState:
    """Memory and cache of the rows that a decoder writes.

    Args:
        memory: Keys and values of the sources.
        cache: Those of the tokens that are written.
    """

    def __init__(self, memory: Memory, cache: KVCache) -> None:
        self.memory, self.cache = memory, cache

    def __getitem__(self, rows: Tensor) -> TransformerState:
        return TransformerState(self.memory.rows(rows), self.cache[rows])


class _EncoderDecoder(TokenNet):
    """Base of nets with tables of source and target tokens."""

    takes_padded = True

    def __init__(
        self,
        source_vocab_size: int,
        target_vocab_size: int,
        width: int,
        *,
        tied: bool,
        dropout: float,
    ) -> None:
        super().__init__(target_vocab_size, width, tied=tied, dropout=dropout)
        check_range("source_vocab_size", source_vocab_size, 1)
        self.source_vocab_size = source_vocab_size
        self.source_embedding = nn.Embedding(source_vocab_size, width)
        nn.init.normal_(self.source_embedding.weight, std=STD)

    def check_input(self, shape: tuple[int | None, ...]) -> None:
        """Raise a `ValueError` unless inputs have the shape (S,)."""
        if len(shape) != 1:
            raise ValueError(
                f"{type(self).__name__} expects tokens (N, S), or Padded ones, got inputs of shape "
                f"{shape}."
            )

    def _source(self, inputs: Tensor | Padded) -> tuple[Tensor, Tensor | None]:
        """Return embedded sources (N, S, D), and their lengths or None."""
        values, lengths = inputs if isinstance(inputs, Padded) else (inputs, None)
        self.check_input(tuple(values.shape[1:]))
        is_traced = torch.compiler.is_compiling() or torch.compiler.is_exporting()
        if lengths is not None and lengths.device.type == "cpu" and not is_traced:
            check_lengths("inputs", Padded(values, lengths))
        return self.source_embedding(values), lengths


class Seq2SeqTransformer(_EncoderDecoder):
    """A Transformer encoder and decoder (Vaswani et al. 2017).

    Args:
        source_vocab_size: Number of source tokens.
        target_vocab_size: Number of target tokens V.
        width: Size D of an embedded token.
        depth: Blocks of the encoder.
        decoder_depth: Blocks of the decoder; None for `depth`.
        num_heads: Heads of the attention.
        context: Most tokens of a source, and of a target with the token that begins it. None for
            any number, which learned positions cannot.
        positions: ``"rotary"``, ``"sinusoidal"`` or ``"learned"``; see `Transformer`.
        tied: Whether target table and last layer share their weights (Press and Wolf 2017).
        dropout: Probability in [0, 1) of dropout.
        **kwargs: Further arguments of `Transformer`, of encoder and decoder.

    Shape:
        Sources (N, S), or `Padded`, and target tokens (N, T), integers; output (N, T, V), logits of
        the token that follows each.

    Example:
        >>> net = Seq2SeqTransformer(20, 30, width=16, depth=1, num_heads=2)
        >>> sources = Padded.of([torch.tensor([3, 4]), torch.tensor([5, 6, 7])])
        >>> net(sources, torch.ones(2, 4, dtype=torch.int64)).shape
        torch.Size([2, 4, 30])
    """

    @checked
    def __init__(
        self,
        source_vocab_size: int,
        target_vocab_size: int,
        *,
        width: int = 128,
        depth: int = 3,
        decoder_depth: int | None = None,
        num_heads: int = 4,
        context: int | None = None,
        positions: Literal["rotary", "sinusoidal", "learned"] = "rotary",
        tied: bool = True,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(source_vocab_size, target_vocab_size, width, tied=tied, dropout=dropout)
        kwargs |= {"context": context, "positions": positions, "dropout": dropout}
        self.context = context
        self.encoder = Transformer(width, depth, num_heads, **kwargs)
        self.decoder = Transformer(
            width,
            depth if decoder_depth is None else decoder_depth,
            num_heads,
            causal=True,
            cross=True,
            **kwargs,
        )

    def forward(self, inputs: Tensor | Padded, tokens: Tensor) -> Tensor:
        """Return logits (N, T, V) of the token that follows each."""
        # Padding of targets comes last, where a causal decoder does not see it.
        hidden = self.decoder(self.embedding(tokens), memory=self.memory(inputs))
        return self.logits(hidden)

    def memory(self, inputs: Tensor | Padded) -> Memory:
        """Encode sources for the decoder."""
        source, lengths = self._source(inputs)
        return self.decoder.make_memory(self.encoder(source, lengths=lengths), lengths)

    def start(self, inputs: Tensor | Padded, room: int) -> TransformerState:
        """Return the state before the first token.

        Args:
            inputs: Sources.
            room: Most tokens that will be written.
        """
        memory = self.memory(inputs)
        return TransformerState(memory, self.decoder.make_cache(len(memory.layers[0][0]), room))

    def step(self, tokens: Tensor, state: TransformerState) -> Tensor:
        """Add `tokens` (N,) to the state, and return the next logits (N, V)."""
        hidden = self.decoder(
            self.embedding(tokens[:, None]), cache=state.cache, memory=state.memory
        )
        return self.logits(hidden[:, 0])

    def attention_maps(self, inputs: Tensor | Padded, tokens: Tensor) -> list[Tensor]:
        """Return the weights (N, H, T, S) of each block's attention to the source."""
        maps: list[Tensor] = []
        self.decoder(self.embedding(tokens), memory=self.memory(inputs), maps=maps)
        return maps


class RNNState:
    """Memory and state of the rows that an LSTM decoder writes.

    Args:
        encoded: Result of the encoder, shape (N, S, D).
        mask: True at steps that count, shape (N, S).
        hidden: Hidden and cell values, each of shape (1, N, H).
    """

    def __init__(self, encoded: Tensor, mask: Tensor, hidden: tuple[Tensor, Tensor]) -> None:
        self.encoded, self.mask, self.hidden = encoded, mask, hidden

    def __getitem__(self, rows: Tensor) -> RNNState:
        h, c = self.hidden
        return RNNState(self.encoded[rows], self.mask[rows], (h[:, rows], c[:, rows]))


class Seq2SeqRNN(_EncoderDecoder):
    """An LSTM encoder and decoder with attention (Luong et al. 2015).

    With states h[t] of the decoder and e[s] of the encoder, the weights of the attention are
    ``softmax(h[t]ᵀ W e[s])`` over s, and the token comes from ``tanh(U [Σ weight e[s]; h[t]])``.
    The decoder starts from the encoder's last states.

    Args:
        source_vocab_size: Number of source tokens.
        target_vocab_size: Number of target tokens V.
        width: Size D of an embedded token.
        hidden: Hidden values H of each direction of the encoder, and of the decoder.
        num_layers: Layers of the encoder.
        tied: Whether target table and last layer share their weights (Press and Wolf 2017).
        dropout: Probability in [0, 1) of dropout of embedded tokens, between layers, and before the
            last one.

    Shape:
        As for `Seq2SeqTransformer`.
    """

    @checked
    def __init__(
        self,
        source_vocab_size: int,
        target_vocab_size: int,
        *,
        width: int = 128,
        hidden: int = 128,
        num_layers: int = 1,
        tied: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(source_vocab_size, target_vocab_size, width, tied=tied, dropout=dropout)
        check_range("hidden", hidden, 1)
        check_range("num_layers", num_layers, 1)
        self.encoder = nn.LSTM(
            width,
            hidden,
            num_layers,
            batch_first=True,
            bidirectional=True,
            dropout=dropout if num_layers > 1 else 0.0,
        )
        self.bridge = nn.Linear(2 * hidden, hidden)
        self.decoder = nn.LSTM(width, hidden, batch_first=True)
        self.key = nn.Linear(2 * hidden, hidden, bias=False)
        self.mix = nn.Linear(3 * hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor | Padded, tokens: Tensor) -> Tensor:
        """Return logits (N, T, V) of the token that follows each."""
        return self._decode(tokens, self.start(inputs))

    def start(self, inputs: Tensor | Padded, room: int = 0) -> RNNState:
        """Return the state before the first token."""
        source, lengths = self._source(inputs)
        source = self.dropout(source)
        if lengths is None:
            lengths = torch.full((len(source),), source.shape[1], device=source.device)
        packed = pack_padded_sequence(  # so that padding changes nothing
            source, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        packed, (h, c) = self.encoder(packed)
        encoded, _ = pad_packed_sequence(packed, batch_first=True, total_length=source.shape[1])
        steps = torch.arange(source.shape[1], device=source.device)
        # The last layer's states, both directions side by side: (1, N, 2H).
        h, c = (x[-2:].transpose(0, 1).flatten(1)[None] for x in (h, c))
        h = torch.tanh(self.bridge(h))
        return RNNState(encoded, steps < lengths[:, None], (h, self.bridge(c)))

    def step(self, tokens: Tensor, state: RNNState) -> Tensor:
        """Add `tokens` (N,) to the state, and return the next logits (N, V)."""
        return self._decode(tokens[:, None], state)[:, 0]

    def _decode(self, tokens: Tensor, state: RNNState) -> Tensor:
        states, state.hidden = self.decoder(
            self.dropout(self.embedding(tokens)), state.hidden
        )  # (N, T, H)
        scores = states @ self.key(state.encoded).transpose(1, 2)  # (N, T, S)
        weights = scores.masked_fill(~state.mask[:, None], -torch.inf).softmax(2)
        mixed = torch.tanh(self.mix(torch.cat([weights @ state.encoded, states], 2)))
        return self.logits(self.dropout(mixed))


def shifted(targets: Tensor | Padded, separator: int) -> tuple[Tensor, Tensor]:
    """Return what a decoder gets and what it shall say.

    Args:
        targets: Tokens (N, T), or `Padded`.
        separator: Token that begins and ends a target.

    Returns:
        Inputs, which begin with the separator, and labels, the token that follows each: at the end
        of a target the separator, and -1 at padding. Both int64 (N, T + 1).

    Example:
        >>> [part.tolist() for part in shifted(torch.tensor([[5, 6]]), 1)]
        [[[1, 5, 6]], [[5, 6, 1]]]
    """
    values, lengths = targets if isinstance(targets, Padded) else (targets, None)
    if lengths is None:
        lengths = torch.full((len(values),), values.shape[1], device=values.device)
    steps = torch.arange(values.shape[1] + 1, device=values.device)
    labels = F.pad(values, (0, 1)).masked_fill(steps >= lengths[:, None], -1)
    return (
        F.pad(values, (1, 0), value=separator),
        labels.masked_fill(steps == lengths[:, None], separator),
    )
