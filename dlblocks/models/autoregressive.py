"""Autoregressive models of pixels, with exact likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlblocks._errors import check_range
from dlblocks.models._image_checks import check_image_shape
from dlblocks.models._level_model import LevelModel
from dlblocks.models._likelihood import bits_per_dim, choose
from dlblocks.models._noise import AnyNoise, Noise
from dlblocks.nets.pixel_transformer import PixelTransformer


class PixelAutoregressive(LevelModel):
    """A product of probabilities, of each pixel given all before it.

    p(x) = Π p(x_i | x_1 … x_{i-1}), in the order of channels, rows and columns (van den Oord,
    Kalchbrenner and Kavukcuoglu 2016). The net is a causal Transformer. It gives logits beside the
    logarithms of the shares of all levels at each pixel of the training part, so with zeros it is
    exact for independent pixels. The loss is -log2 p(x) per pixel, which is exact: ``loss`` and
    ``bits_per_dim`` are the same.

    A sample takes one evaluation of the net for each pixel, so images should be small.

    Args:
        image_shape: Channels, height and width.
        levels: Number of values of a pixel.
        width: Length of the net's vectors.
        depth: Number of blocks.
        heads: Heads of the attention; they divide `width`.
        dropout: Share of values that are zeroed in training.
        num_classes: Number of classes of a conditional model, or None.
        **kwargs: Values, average and optimization; see `GenerativeModel`.

    Example:
        >>> model = PixelAutoregressive([1, 2, 2], levels=17, width=8, depth=1, heads=2)
        >>> model.sample(3).shape
        torch.Size([3, 1, 2, 2])
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (1, 8, 8),
        *,
        levels: int = 256,
        width: int = 96,
        depth: int = 3,
        heads: int = 4,
        dropout: float = 0.1,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_image_shape(image_shape)
        check_range("levels", levels, 2)
        net = self.make_net(
            image_shape, levels, num_classes, width=width, depth=depth, heads=heads, dropout=dropout
        )
        super().__init__(net, image_shape, levels=levels, num_classes=num_classes, **kwargs)

    def make_net(
        self, image_shape: Sequence[int], levels: int, num_classes: int | None, **arguments: Any
    ) -> nn.Module:
        """Create the net, called with (levels, labels) as a `PixelTransformer`.

        A subclass may create another one.
        """
        return PixelTransformer(image_shape, levels, num_classes, **arguments)

    def losses(self, levels: Tensor, labels: Tensor | None, noise: AnyNoise) -> dict[str, Tensor]:
        flat = levels.flatten(1)
        logits = self._logits(flat[:, :-1], labels)  # (N, D, L)
        nats = F.cross_entropy(logits.transpose(1, 2), flat, reduction="none").sum(1)
        bits = bits_per_dim(nats, self.num_dims)
        return {"loss": bits, "bits_per_dim": bits}

    def _logits(self, known: Tensor, labels: Tensor | None) -> Tensor:
        logits: Tensor = self.used_net(known, labels).float()
        return logits + self.log_prior.flatten(0, 2)[: logits.shape[1]]

    def draw(
        self,
        noise: Noise,
        labels: Tensor | None,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Make images of levels.

        Args:
            noise: All random numbers.
            labels: Classes (N,), or None.
            steps: Not used.
            guidance: Not used.
            temperature: By which logits are divided. Below 1, pixels are more typical.
        """
        check_range("temperature", temperature, 0, low_open=True)
        uniform = noise.uniform(self.num_dims)
        known = torch.zeros(len(noise), 0, dtype=torch.int64, device=uniform.device)
        for i in range(self.num_dims):
            logits = self._logits(known, labels)[:, -1]
            known = torch.cat([known, choose(logits / temperature, uniform[:, i])[:, None]], 1)
        return known.reshape(-1, *self.image_shape)
