"""A causal Transformer over the pixels of an image.

Vaswani et al. (2017), and for pixels Chen et al. (2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlblocks._errors import check_range, checked

ABOVE = (-1, 0, 1)  # columns of the pixels above, beside the pixel's own


class PixelTransformer(nn.Module):
    """Predict each pixel from those before it.

    The order is that of channels, rows and columns. The token before a pixel stands for it. It is
    the sum of vectors of the level before, of the class, of the pixel's channel, row and column,
    and of the levels of the three pixels above it, which are known then. So the attention need not
    find out from few images which pixels lie side by side.

    Args:
        image_shape: Channels, height and width.
        levels: Number of values L of a pixel.
        num_classes: Number of classes, or None.
        width: Length of the vectors.
        depth: Number of blocks.
        heads: Heads of the attention; they divide `width`.
        dropout: Share of values that are zeroed in training.

    Shape:
        The first T levels of each image, int64 (N, T) with T from 0 to D - 1; output logits
        (N, T + 1, L) of the first T + 1 levels.

    Example:
        >>> net = PixelTransformer([1, 8, 8], 17, width=8, depth=1, heads=2)
        >>> net(torch.zeros(2, 5, dtype=torch.long)).shape
        torch.Size([2, 6, 17])
    """

    @checked
    def __init__(
        self,
        image_shape: Sequence[int],
        levels: int,
        num_classes: int | None = None,
        *,
        width: int = 96,
        depth: int = 3,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_range("depth", depth, 1)
        check_range("heads", heads, 1)
        check_range("dropout", dropout, 0, 1, high_open=True)
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}.")
        self.levels = levels
        self.values = nn.Embedding(levels + 1, width)  # and one for none
        self.given = nn.Embedding(num_classes or 1, width)
        self.axes = nn.ModuleList(nn.Embedding(length, width) for length in image_shape)
        self.above = nn.Embedding(len(ABOVE) * (levels + 1), width)
        places, above = _places(image_shape)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("places_above", above, persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, levels)
        for part in self.modules():
            if isinstance(part, (nn.Linear, nn.Embedding)):
                nn.init.normal_(part.weight, std=0.02)

    def forward(self, levels: Tensor, labels: Tensor | None = None) -> Tensor:
        assert isinstance(self.places, Tensor)  # for the type checker
        assert isinstance(self.places_above, Tensor)
        if labels is None:
            labels = levels.new_zeros(len(levels))
        count = levels.shape[1] + 1
        # The last column stands for pixels that there are none of.
        known = F.pad(levels, (1, 1), value=self.levels)  # (N, T + 2)
        above = self.places_above[:, :count]
        above = known[:, torch.where(above < 0, count, above + 1)]  # (N, 3, T + 1)
        above = above + (self.levels + 1) * torch.arange(len(ABOVE), device=levels.device)[:, None]
        tokens = self.values(known[:, :-1]) + self.above(above).sum(1) + self.given(labels)[:, None]
        for axis, place in zip(self.axes, self.places, strict=True):
            tokens = tokens + axis(place[:count])
        hidden = self.dropout(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(self.norm(hidden))  # (N, T + 1, L)
        return logits


def _places(image_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return where each pixel is, and which pixels are above it.

    They are channel, row and column (3, D), and the numbers of pixels (3, D), -1 for none.
    """
    numbers = torch.arange(math.prod(image_shape))
    places = torch.stack(torch.unravel_index(numbers, tuple(image_shape)))
    width = image_shape[2]
    aside = torch.tensor(ABOVE)[:, None]
    column = places[2] + aside
    exists = (places[1] > 0) & (column >= 0) & (column < width)
    return places, torch.where(exists, numbers - width + aside, -1)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.queries = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.queries(self.norms[0](x)).chunk(3, -1)  # (N, T, W) each
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        # It drops out in evaluation too, unless told.
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        x = x + self.dropout(self.join(mixed.transpose(1, 2).flatten(2)))
        out: Tensor = x + self.dropout(self.mlp(self.norms[1](x)))
        return out
