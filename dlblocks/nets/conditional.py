"""Nets for flows and diffusion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlblocks._errors import check_choice, check_range, checked

FREQUENCIES = 32
HIGHEST = 1000.0  # of the frequencies of the time


class ConditionalNet(nn.Module):
    """A residual net over images, a time and a class.

    Each block is norm – layer – SiLU – layer; the time and the class scale and shift its norm
    (Perez et al. 2018, "FiLM"). The last layer of each block, and the output, start at 0.

    Args:
        image_shape: Channels, height and width, of any size.
        num_classes: Number of classes C; None for a net without classes. The number C stands for
            an unknown class.
        arch: ``"mlp"`` for linear layers on the flattened image, or ``"cnn"`` for 3×3 convolutions,
            which keep the size of the image.
        width: Hidden units, or channels.
        depth: Number of blocks.
        dropout: Share of hidden units that are zeroed in training.
        outputs: Values of each pixel K, or None for one.

    Shape:
        Images (N, C, H, W), times in [0, 1] (N,), classes int64 (N,); output (N, C, H, W), or
        with `outputs` (N, C, H, W, K).

    Example:
        >>> net = ConditionalNet([1, 8, 8], 10, width=16, depth=1)
        >>> net(torch.zeros(2, 1, 8, 8), torch.rand(2), torch.tensor([3, 10])).shape
        torch.Size([2, 1, 8, 8])
    """

    @checked
    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int | None = None,
        *,
        arch: Literal["mlp", "cnn"] = "mlp",
        width: int = 256,
        depth: int = 4,
        dropout: float = 0.0,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("arch", arch, ["mlp", "cnn"])
        check_range("width", width, 1)
        check_range("depth", depth, 1)
        check_range("dropout", dropout, 0, 1, high_open=True)
        if outputs is not None:
            check_range("outputs", outputs, 1)
        self.image_shape, self.arch = tuple(image_shape), arch
        self.num_classes, self.outputs = num_classes, outputs
        size = math.prod(image_shape) if arch == "mlp" else image_shape[0]
        self.time = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.classes = None if num_classes is None else nn.Embedding(num_classes + 1, width)
        self.first = self._layer(size, width)
        self.blocks = nn.ModuleList(_Block(self._layer, width, dropout) for _ in range(depth))
        self.norm = Norm()
        self.last = self._layer(width, size * (outputs or 1))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        frequencies = torch.logspace(0, math.log10(HIGHEST), FREQUENCIES)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def _layer(self, before: int, after: int) -> Any:
        if self.arch == "mlp":
            return nn.Linear(before, after)
        return nn.Conv2d(before, after, 3, padding=1)

    def forward(self, images: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
        assert isinstance(self.frequencies, Tensor)  # for the type checker
        angles = times[:, None].float() * self.frequencies.float()
        waves = torch.cat([angles.sin(), angles.cos()], 1)  # (N, 2 · FREQUENCIES)
        given = self.time(waves.to(self.first.weight.dtype))  # (N, width)
        if self.classes is not None:
            assert labels is not None  # for the type checker
            given = given + self.classes(labels)
        hidden = images.to(self.first.weight.dtype)
        hidden = self.first(hidden.flatten(1) if self.arch == "mlp" else hidden)
        for block in self.blocks:
            hidden = block(hidden, given)
        out: Tensor = self.last(self.norm(hidden))
        if self.outputs is None:
            return out.reshape(images.shape)
        if self.arch == "mlp":
            return out.reshape(*images.shape, self.outputs)
        grouped: Tensor = out.unflatten(1, (-1, self.outputs))
        return grouped.movedim(2, -1)


class Norm(nn.Module):
    """Norm over the channels of each place, without weights."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + 1e-5)


class _Block(nn.Module):
    def __init__(self, layer: Any, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = Norm()
        self.given = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.inner = nn.Sequential(layer(width, width), nn.SiLU(), nn.Dropout(dropout))
        self.outer = layer(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        scale, shift = self.given(given).chunk(2, 1)
        if x.ndim == 4:
            scale, shift = scale[:, :, None, None], shift[:, :, None, None]
        out: Tensor = x + self.outer(self.inner(self.norm(x) * (1 + scale) + shift))
        return out
