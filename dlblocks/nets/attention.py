"""Self- and cross-attention, positions, and a cache of keys and values."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlblocks._errors import check_range, checked

BASE = 10000.0  # of the wavelengths of sinusoidal and rotary positions


class KVCache:
    """Keys and values of tokens that a causal `Transformer` has seen.

    Rows may be of unequal length. ``cache[rows]`` is the cache of some rows.

    Args:
        keys: One tensor for each block, shape (B, K, S, d) for B rows, K heads of keys, and room
            for S tokens.
        values: In the same way.
        lengths: How many tokens each row has, int64 of shape (B,).
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], lengths: Tensor) -> None:
        self.keys, self.values, self.lengths = keys, values, lengths
        # Python's numbers, because reading a tensor would wait for an accelerator.
        self.start: int | None = 0  # `lengths` of all rows, None if they differ
        self.end = 0  # slots that may be in use, at least the largest of `lengths`

    @property
    def room(self) -> int:
        """Most tokens of a row."""
        return self.keys[0].shape[2]

    def __getitem__(self, rows: Tensor) -> KVCache:
        keys, values = ([each[rows] for each in part] for part in (self.keys, self.values))
        found = KVCache(keys, values, self.lengths[rows])
        found._count()
        return found

    def __setitem__(self, rows: Tensor, other: KVCache) -> None:
        """Replace some rows by those of another cache with as much room."""
        for mine, given in zip(self.keys + self.values, other.keys + other.values, strict=True):
            mine[rows] = given
        self.lengths[rows] = other.lengths
        self._count()

    def _count(self) -> None:
        lengths = self.lengths.tolist()
        self.end = max(lengths, default=0)
        self.start = self.end if min(lengths, default=0) == self.end else None

    def add(self, size: int, lengths: Tensor | None) -> None:
        """Count new tokens, of which `append` has written keys and values.

        Args:
            size: New tokens of each row.
            lengths: How many of them count, shape (B,), or None for all.
        """
        self.lengths = self.lengths + (size if lengths is None else lengths)
        self.start = None if self.start is None or lengths is not None else self.start + size

    def append(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values of new tokens, each (B, K, T, d).

        `end` must count them already.

        Returns:
            Those of all slots in use, shape (B, K, S', d). Slots behind the tokens of a row must
            be masked.
        """
        keys, values = self.keys[block], self.values[block]
        if self.start is not None:
            keys[:, :, self.start : self.end] = key
            values[:, :, self.start : self.end] = value
        else:
            steps = torch.arange(key.shape[2], device=key.device)
            slots = self.lengths[:, None] + steps  # (B, T)
            rows = torch.arange(len(slots), device=key.device)[:, None]
            keys[rows, :, slots] = key.transpose(1, 2)
            values[rows, :, slots] = value.transpose(1, 2)
        return keys[:, :, : self.end], values[:, :, : self.end]


def rotate(vectors: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Turn queries or keys by their positions (Su et al. 2021, RoFormer).

    The vector is read as d/2 pairs ``(v[i], v[i + d/2])``. Each pair is turned by its own angle.
    The product of a query and a key then depends on the distance of their positions alone.

    Args:
        vectors: Shape (B, H, T, d).
        turns: Of `rotary_turns`, each (B or 1, 1, T, d).
    """
    cos, sin = turns
    return vectors * cos + vectors.roll(vectors.shape[-1] // 2, -1) * sin


def rotary_turns(angles: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and signed sines of angles, for `rotate`.

    Args:
        angles: Of `rotary_angles`, shape (..., d/2).
        dtype: Dtype of the result, two tensors (..., d).
    """
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotary_angles(positions: Tensor, size: int) -> Tensor:
    """Return the angles ``position / 10000^(2i/d)`` of d/2 pairs.

    Args:
        positions: Shape (..., T).
        size: Size d of one head, even.

    Returns:
        float32 of shape (..., T, d/2).
    """
    pairs = torch.arange(0, size, 2, device=positions.device, dtype=torch.float32)
    return positions[..., None].float() * torch.exp(pairs * (-math.log(BASE) / size))


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return sines and cosines of positions (Vaswani et al. 2017, section 3.5).

    Entry 2i is ``sin(position / 10000^(2i/D))``, entry 2i + 1 the cosine of the same angle.

    Args:
        positions: Shape (..., T).
        width: Number of entries D, even.

    Returns:
        float32 of shape (..., T, D).
    """
    angles = rotary_angles(positions, width)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


class _Heads(nn.Module):
    """Base of attention with several heads."""

    out: nn.Linear

    @checked
    def __init__(
        self, width: int, num_heads: int, *, num_kv_heads: int | None, dropout: float
    ) -> None:
        super().__init__()
        check_range("width", width, 1)
        check_range("num_heads", num_heads, 1)
        check_range("dropout", dropout, 0, 1, high_open=True)
        if width % num_heads:
            raise ValueError(
                f"num_heads={num_heads} does not divide width={width}; each head takes an equal "
                f"part of it, so give num_heads={_divisor(width, num_heads)}, or "
                f"width={width + -width % num_heads}."
            )
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_range("num_kv_heads", kv_heads, 1)
        if num_heads % kv_heads:
            raise ValueError(
                f"num_kv_heads={kv_heads} does not divide num_heads={num_heads}; each head of "
                f"keys serves an equal number of queries, so give "
                f"num_kv_heads={_divisor(num_heads, kv_heads)}."
            )
        self.num_heads, self.num_kv_heads, self.dropout = num_heads, kv_heads, dropout
        self.size = width // num_heads

    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        is_causal: bool = False,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Attend to keys and values (B, K, S, d).

        Args:
            query: Shape (B, H, T, d).
            key: Shape (B, K, S, d).
            value: Shape (B, K, S, d).
            mask: True where a query attends to a key, broadcast to (B, H, T, S).
            is_causal: Each query attends to the keys up to its own place.
            maps: Gets the weights (B, H, T, S) appended.

        Returns:
            Shape (B, T, D).
        """
        if maps is not None:
            maps.append(_weights(query, key, mask, is_causal))
        found = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=is_causal,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=self.num_kv_heads != self.num_heads,
        )  # (B, H, T, d)
        mixed: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return mixed


class Attention(_Heads):
    """Self-attention with several heads.

    Each head computes ``softmax(Q Kᵀ / √d) V`` (Vaswani et al. 2017), by torch's
    `scaled_dot_product_attention`.

    Args:
        width: Size D of a token.
        num_heads: Heads of queries, each of size d = D / num_heads.
        num_kv_heads: Heads of keys and values, each used by as many query heads (grouped queries,
            Ainslie et al. 2023). None for `num_heads`.
        dropout: Probability that a weight of the attention is zeroed in training.
        bias: Whether the linear layers have biases.

    Shape:
        Input and output (B, T, D).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__(width, num_heads, num_kv_heads=num_kv_heads, dropout=dropout)
        self.qkv = nn.Linear(width, (num_heads + 2 * self.num_kv_heads) * self.size, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

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
    ) -> Tensor:
        """Let each token attend to others.

        Args:
            tokens: Shape (B, T, D).
            mask: True where a query (row) attends to a key (column), bool, broadcast to
                (B, H, T, S). A query without any key gets 0 or NaN; let it attend to itself.
            is_causal: Each token attends to itself and to those before. Not with `mask`.
            turns: Of `rotary_turns`, by which queries and keys are turned.
            cache: Keys and values of earlier tokens; those of `tokens` are added.
            block: Number of the block in the cache.
            maps: Gets the weights (B, H, T, S) appended. They are computed by a slow path.
        """
        sizes = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        heads = self.qkv(tokens).unflatten(-1, (sum(sizes), self.size)).transpose(1, 2)
        if turns is not None:
            turned, value = heads.split([sum(sizes[:2]), sizes[2]], 1)
            query, key = rotate(turned, turns).split(sizes[:2], 1)
        else:
            query, key, value = heads.split(sizes, 1)  # (B, H, T, d), (B, K, T, d), (B, K, T, d)
        if cache is not None:
            key, value = cache.append(block, key, value)
        return self.mix(query, key, value, mask, is_causal=is_causal, maps=maps)


class CrossAttention(_Heads):
    """Attention of one sequence to another, the memory (Vaswani et al. 2017).

    Queries are made of the sequence, keys and values of the memory. The memory stays the same while
    a decoder writes, so its keys and values are computed once, by `keys_and_values`.

    Args:
        width: Size D of a token, of both sequences.
        num_heads: Heads of queries.
        num_kv_heads: Heads of keys and values; see `Attention`.
        dropout: Probability that a weight of the attention is zeroed in training.
        bias: Whether the linear layers have biases.

    Shape:
        Input and output (B, T, D), memory (B, S, D).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__(width, num_heads, num_kv_heads=num_kv_heads, dropout=dropout)
        self.query = nn.Linear(width, width, bias=bias)
        self.key_value = nn.Linear(width, 2 * self.num_kv_heads * self.size, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def keys_and_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, each (B, K, S, d), of a memory (B, S, D)."""
        heads = self.key_value(memory).unflatten(-1, (2 * self.num_kv_heads, self.size))
        key, value = heads.transpose(1, 2).chunk(2, 1)
        return key, value

    def forward(
        self,
        tokens: Tensor,
        memory: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        *,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Let each token attend to the memory.

        Args:
            tokens: Shape (B, T, D).
            memory: Of `keys_and_values`.
            mask: True where the memory counts, bool, broadcast to (B, H, T, S).
            maps: Gets the weights (B, H, T, S) appended. They are computed by a slow path.
        """
        query = self.query(tokens).unflatten(-1, (self.num_heads, self.size)).transpose(1, 2)
        return self.mix(query, *memory, mask, maps=maps)


def _divisor(number: int, wanted: int) -> int:
    """Return the largest divisor of a number that is at most `wanted`."""
    return next(each for each in range(min(wanted, number), 0, -1) if number % each == 0)


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Return the weights of the attention, shape (B, H, T, S)."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if is_causal:
        mask = causal_mask(scores.shape[-1], scores.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1)


def causal_mask(size: int, device: torch.device) -> Tensor:
    """Return the mask (size, size) of the lower triangle."""
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()
