"""A stack of Transformer blocks (Vaswani et al. 2017)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from dlblocks._errors import check_choice, check_range, checked
from dlblocks.nets.attention import (
    Attention,
    CrossAttention,
    KVCache,
    causal_mask,
    rotary_angles,
    rotary_turns,
    sinusoids,
)
from dlblocks.nets.transformer_block import (
    Activation,
    FeedForward,
    Memory,
    Norm,
    TransformerBlock,
    make_norm,
)

Positions = Literal["learned", "sinusoidal", "rotary"]

STD = 0.02  # of initial weights, as in GPT-2


class Transformer(nn.Module):
    """Stack `TransformerBlock` layers over embedded inputs, with positions.

    An encoder without `causal`, a decoder with it. After blocks with ``pre_norm=True`` there is a
    last norm. Weights start as in GPT-2: normal with standard deviation 0.02, which is divided by
    √n for the n layers whose results are added to the residual.

    Args:
        width: Size D of a token.
        depth: Number of blocks.
        num_heads: Heads of the attention.
        context: Most tokens of a sequence. None for any number, which learned positions cannot.
        causal: Each token sees only itself and those before.
        positions: ``"learned"``: a table, added to the inputs. ``"sinusoidal"``: fixed sines, added
            to them; see `sinusoids`. ``"rotary"``: queries and keys are turned; see `rotate`. None
            for inputs that need none.
        num_kv_heads: Heads of keys and values; see `Attention`.
        hidden: Size between the layers of the feed-forward net; see `FeedForward`.
        pre_norm: Whether the norm comes before attention and feed-forward net.
        norm: ``"layer"`` or ``"rms"``.
        activation: ``"gelu"``, ``"relu"`` or ``"swiglu"``.
        dropout: Probability in [0, 1) of dropout, in blocks and after positions are added.
        bias: Whether linear layers and layer norms have biases.
        cross: Whether tokens attend to a memory, too, such as that of an encoder.

    Shape:
        Input and output (B, T, width).

    Raises:
        ValueError: An argument is out of range, or a sequence is longer than `context`.

    Example:
        >>> net = Transformer(16, depth=2, num_heads=4, context=10)
        >>> net(torch.zeros(2, 7, 16), lengths=torch.tensor([7, 3])).shape
        torch.Size([2, 7, 16])
    """

    @checked
    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        *,
        context: int | None = None,
        causal: bool = False,
        positions: Positions | None = "learned",
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
        check_range("depth", depth, 1)
        check_range("width", width, 1)
        if context is not None:
            check_range("context", context, 1)
        if positions is not None:
            check_choice("positions", positions, ["learned", "sinusoidal", "rotary"])
        self.width, self.context, self.causal, self.positions = width, context, causal, positions
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width,
                num_heads,
                num_kv_heads=num_kv_heads,
                hidden=hidden,
                pre_norm=pre_norm,
                norm=norm,
                activation=activation,
                dropout=dropout,
                bias=bias,
                cross=cross,
            )
            for _ in range(depth)
        )
        self.norm = make_norm(norm, width, bias=bias) if pre_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.size = width // num_heads
        if positions == "learned":
            if context is None:
                raise ValueError(
                    "positions='learned' is a table with one row a position; set context= to the "
                    "most tokens of a sequence, or use positions='rotary'."
                )
            self.position_table = nn.Parameter(torch.empty(context, width))
            nn.init.normal_(self.position_table, std=STD)
        if positions == "sinusoidal" and width % 2:
            raise ValueError(f"positions='sinusoidal' needs an even width, got width={width}.")
        if positions == "rotary" and self.size % 2:
            raise ValueError(
                f"positions='rotary' turns pairs, so that width / num_heads must be even, got "
                f"{width} / {num_heads} = {self.size}; change one of them."
            )
        _init_weights(self, depth * (3 if cross else 2))

    def forward(
        self,
        tokens: Tensor,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        maps: list[Tensor] | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Transform embedded tokens (B, T, D).

        Args:
            tokens: Shape (B, T, D).
            lengths: How many tokens of each row count, the first ones, int64 of shape (B,). The
                others are padding: they change nothing, and the result is 0 there, in a row without
                any token too.
            mask: True where a query attends to a key, bool of shape (B, T, T) or (T, T), such as
                that of documents. Each token attends to itself in any case.
            cache: Of `make_cache`. `tokens` follow those that it has, and are added to it. The
                result is that of the new tokens, as if all were given at once.
            maps: Gets the weights of the attention (B, H, T, S) of each block appended, for a
                figure; with `memory` those of the attention to it. A slow path computes them.
            memory: Of `make_memory`, for a stack with ``cross=True``.
        """
        if tokens.ndim != 3 or tokens.shape[2] != self.width:
            raise ValueError(
                f"Transformer expects embedded tokens (B, T, {self.width}), got shape "
                f"{tuple(tokens.shape)}."
            )
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        if cache is None:
            places = steps[None]  # (1, T)
            self._check_length(tokens.shape[1])
        else:
            self._check_cache(cache, tokens, lengths, mask)
            places = cache.lengths[:, None] + steps  # (B, T)
        inside = None if lengths is None else (steps < lengths[:, None])[..., None]  # (B, T, 1)
        x = tokens if inside is None else torch.where(inside, tokens, 0)
        if self.positions == "learned":
            table, last = self.position_table, len(self.position_table) - 1
            # Padding of a cached call may lie behind the table.
            x = x + (table[: len(steps)] if cache is None else table[places.clamp(max=last)])
        elif self.positions == "sinusoidal":
            x = x + sinusoids(places, self.width).to(x.dtype)
        turns = None
        if self.positions == "rotary":
            turns = rotary_turns(rotary_angles(places, self.size)[:, None], x.dtype)
        x = self.dropout(x)
        seen = self._mask(places, inside, mask, cache)
        # The first tokens of a cache see each other like those without one; a single one sees all.
        is_causal = self.causal and seen is None and (cache is None or tokens.shape[1] > 1)
        for number, block in enumerate(self.blocks):
            x = block(
                x,
                seen,
                is_causal=is_causal,
                turns=turns,
                cache=cache,
                block=number,
                maps=maps,
                memory=memory,
            )
        x = self.norm(x)
        if cache is not None:
            cache.add(tokens.shape[1], lengths)
        return x if inside is None else torch.where(inside, x, 0)

    def _mask(
        self, places: Tensor, inside: Tensor | None, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor | None:
        """Return the mask (B or 1, 1, T, S), or None if `is_causal` says all."""
        if cache is not None:
            if cache.start is not None and (cache.start == 0 or places.shape[1] == 1):
                return None
            # Unused slots of a row lie behind its own tokens.
            slots = torch.arange(cache.end, device=places.device)
            return (slots <= places[..., None])[:, None]
        if inside is None and mask is None:
            return None
        size, device = places.shape[1], places.device
        seen = torch.ones(1, 1, dtype=torch.bool, device=device)
        if mask is not None:
            seen = mask if mask.ndim == 3 else mask[None]  # (B or 1, T, T)
        if inside is not None:
            seen = seen & inside.transpose(1, 2)  # keys that count: (B, 1, T)
        if self.causal:
            seen = seen & causal_mask(size, device)
        # A query without a key would be NaN, or have a NaN gradient.
        return (seen | torch.eye(size, dtype=torch.bool, device=device))[:, None]

    def make_memory(self, encoded: Tensor, lengths: Tensor | None = None) -> Memory:
        """Compute keys and values of a memory for all blocks.

        Args:
            encoded: Shape (B, S, D), such as the result of an encoder.
            lengths: How many steps of each row count, the first ones, shape (B,); None for all. A
                row without any has one step, which should be 0.
        """
        mask = None
        if lengths is not None:
            steps = torch.arange(encoded.shape[1], device=encoded.device)
            # A query without a key would be NaN.
            mask = (steps < lengths.clamp(min=1)[:, None])[:, None, None]  # (B, 1, 1, S)
        layers = []
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)  # for the type checker
            if block.cross is None:
                raise ValueError("a Transformer attends to a memory only with cross=True.")
            layers.append(block.cross.keys_and_values(encoded))
        return Memory(layers, mask)

    def make_cache(
        self, batch_size: int, room: int | None = None, *, dtype: torch.dtype | None = None
    ) -> KVCache:
        """Create an empty cache of keys and values.

        Args:
            batch_size: Number of rows B.
            room: Most tokens of a row; None for `context`.
            dtype: Dtype of keys and values; None for that of the weights.
        """
        room = self.context if room is None else room
        if not self.causal or room is None:
            raise ValueError(
                "a cache needs causal=True, and context= or room=, the most tokens of a row."
            )
        self._check_length(room)
        attention = self.blocks[0].attention
        assert isinstance(attention, Attention)  # for the type checker
        weight = attention.out.weight
        shape = (batch_size, attention.num_kv_heads, room, attention.size)
        dtype = weight.dtype if dtype is None else dtype
        keys, values = (
            [torch.zeros(shape, dtype=dtype, device=weight.device) for _ in self.blocks]
            for _ in range(2)
        )
        lengths = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        return KVCache(keys, values, lengths)

    def attention_maps(self, tokens: Tensor, **kwargs: Tensor) -> list[Tensor]:
        """Return the attention's weights (B, H, T, T) in each block.

        Args:
            tokens: Shape (B, T, D).
            **kwargs: `lengths` and `mask`, as for `forward`.
        """
        maps: list[Tensor] = []
        self(tokens, maps=maps, **kwargs)
        return maps

    def _check_length(self, size: int) -> None:
        if self.context is not None and size > self.context:
            raise ValueError(
                f"a sequence of {size} tokens is longer than context={self.context}; cut it, or "
                f"set context={size}."
            )

    def _check_cache(
        self, cache: KVCache, tokens: Tensor, lengths: Tensor | None, mask: Tensor | None
    ) -> None:
        """Reserve room for new tokens, or raise a `ValueError`."""
        if mask is not None:
            raise ValueError("mask= and cache= do not work together; leave one of them out.")
        end, room = cache.end + tokens.shape[1], cache.room
        if end > room:
            raise ValueError(
                f"the cache has room for {room} tokens, and its longest row would have {end}; "
                "create it with more room, or start a new one."
            )
        cache.end = end


def _init_weights(stack: nn.Module, additions: int) -> None:
    """Draw weights of a stack with so many additions to the residual."""
    for module in stack.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in stack.modules():
        if isinstance(module, (Attention, CrossAttention, FeedForward)):
            nn.init.normal_(module.out.weight, std=STD / math.sqrt(additions))
