"""A block of a Transformer (Vaswani et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from dlblocks._errors import check_choice, check_range, checked
from dlblocks.nets.attention import Attention, CrossAttention, KVCache

Norm = Literal["layer", "rms"]
Activation = Literal["gelu", "relu", "swiglu"]

EPS = 1e-5


class FeedForward(nn.Module):
    """Two linear layers with an activation between, for each token by itself.

    ``"swiglu"`` is ``W₂ (silu(W₁ x) ⊙ W₃ x)`` (Shazeer 2020).

    Args:
        width: Size D of a token.
        hidden: Size between the layers. None for 4 D, or with ``"swiglu"``, which has three
            matrices, for about 8 D / 3, so that the number of weights stays the same.
        activation: ``"gelu"``, ``"relu"`` or ``"swiglu"``.
        dropout: Probability that a hidden value is zeroed in training.
        bias: Whether the linear layers have biases.

    Shape:
        Input and output (..., D).
    """

    @checked
    def __init__(
        self,
        width: int,
        *,
        hidden: int | None = None,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ["gelu", "relu", "swiglu"])
        self.is_gated = activation == "swiglu"
        if hidden is None:
            hidden = max(8, round(width / 3) * 8) if self.is_gated else 4 * width
        check_range("hidden", hidden, 1)
        self.activation = activation
        self.expand = nn.Linear(width, hidden * (1 + self.is_gated), bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, width, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.expand(tokens)
        if self.is_gated:
            gate, hidden = hidden.chunk(2, -1)
            hidden = F.silu(gate) * hidden
        else:
            hidden = F.gelu(hidden) if self.activation == "gelu" else F.relu(hidden)
        found: Tensor = self.out(self.dropout(hidden))
        return found


class Memory(NamedTuple):
    """Keys and values to which a decoder attends.

    Attributes:
        layers: Keys and values of each block, each of shape (B, K, S, d).
        mask: True at steps that count, bool of shape (B, 1, 1, S); None if all do.
    """

    layers: list[tuple[Tensor, Tensor]]
    mask: Tensor | None

    def rows(self, rows: Tensor) -> Memory:
        """Return the memory of some rows."""
        layers = [(key[rows], value[rows]) for key, value in self.layers]
        return Memory(layers, None if self.mask is None else self.mask[rows])


class TransformerBlock(nn.Module):
    """Attention and a feed-forward net with norms and residual connections.

    ``x = x + attention(norm(x)); x = x + feed_forward(norm(x))``. With ``pre_norm=False`` the norm
    comes after each sum, as in Vaswani et al. (2017): ``x = norm(x + attention(x))``. It then needs
    a warm-up of the learning rate (Xiong et al. 2020).

    Args:
        width: Size D of a token.
        num_heads: Heads of the attention.
        num_kv_heads: Heads of keys and values; see `Attention`.
        hidden: Size between the layers of the feed-forward net; see `FeedForward`.
        pre_norm: Whether the norm comes before attention and feed-forward net.
        norm: ``"layer"`` (Ba et al. 2016) or ``"rms"`` (Zhang and Sennrich 2019).
        activation: ``"gelu"``, ``"relu"`` or ``"swiglu"``.
        dropout: Probability in [0, 1) of dropout, at weights of the attention, hidden values, and
            what is added to the residual. In training only.
        bias: Whether linear layers and layer norms have biases.
        cross: Whether tokens attend to a memory, too, after the attention to each other.

    Shape:
        Input and output (B, T, D).

    Example:
        >>> import torch
        >>> TransformerBlock(8, num_heads=2)(torch.zeros(1, 5, 8), is_causal=True).shape
        torch.Size([1, 5, 8])
    """

    @checked
    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        hidden: int | None = None,
        pre_norm: bool = True,
        norm: Norm = "layer",
        activation: Activation = "gelu",
        dropout: float = 0.0,
        bias: bool = True,
        cross: bool = False,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.norm1, self.norm2 = (make_norm(norm, width, bias=bias) for _ in range(2))
        self.attention = Attention(
            width, num_heads, num_kv_heads=num_kv_heads, dropout=dropout, bias=bias
        )
        self.feed_forward = FeedForward(
            width, hidden=hidden, activation=activation, dropout=dropout, bias=bias
        )
        self.dropout = nn.Dropout(dropout)
        self.cross: CrossAttention | None = None
        if cross:
            self.cross_norm = make_norm(norm, width, bias=bias)
            self.cross = CrossAttention(
                width, num_heads, num_kv_heads=num_kv_heads, dropout=dropout, bias=bias
            )

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        *,
        is_causal: bool = False,
        turns: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
        block: int = 0,
        maps: list[Tensor] | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Transform tokens (B, T, D).

        `Attention.forward` describes the arguments. With a `memory`, `maps` gets the weights of the
        attention to it.
        """
        own_maps = maps if memory is None else None

        def attend(x: Tensor) -> Tensor:
            found: Tensor = self.attention(
                x, mask, is_causal=is_causal, turns=turns, cache=cache, block=block, maps=own_maps
            )
            return found

        x = self._add(tokens, attend, self.norm1)  # (B, T, D)
        if self.cross is not None:
            if memory is None:
                raise ValueError("a block with cross=True needs a memory.")
            cross, given = self.cross, memory
            x = self._add(
                x,
                lambda x: cross(x, given.layers[block], given.mask, maps=maps),
                self.cross_norm,
            )
        return self._add(x, self.feed_forward, self.norm2)

    def _add(self, x: Tensor, change: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        """Add a change of the input, with a norm before or after."""
        if self.pre_norm:
            found: Tensor = x + self.dropout(change(norm(x)))
        else:
            found = norm(x + self.dropout(change(x)))
        return found


def make_norm(norm: str, width: int, *, bias: bool = True) -> nn.Module:
    """Make a layer norm or an RMS norm of the last axis."""
    check_choice("norm", norm, ["layer", "rms"])
    if norm == "rms":
        return nn.RMSNorm(width, eps=EPS)
    return nn.LayerNorm(width, eps=EPS, bias=bias)
