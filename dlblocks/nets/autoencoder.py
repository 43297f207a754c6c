"""Encoder and decoder of a variational autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlblocks._errors import check_range, checked
from dlblocks.nets.mlp import MLP

MAX_LOG_STD = 5.0


class Autoencoder(nn.Module):
    """Two MLPs, the encoder and the decoder.

    The encoder maps images to normal distributions of codes, the decoder codes to parameters.

    Args:
        image_shape: Channels, height and width.
        latent_dim: Length Z of a code.
        num_params: Numbers P that the decoder puts out for each pixel.
        hidden: Widths of the hidden layers of the encoder; the decoder has them in reverse.
        dropout: Share of hidden units that are zeroed in training.
        num_classes: Number of classes that both parts get, or None.

    Example:
        >>> net = Autoencoder([1, 8, 8], latent_dim=2, num_params=6)
        >>> mean, log_std = net.encode(torch.zeros(3, 1, 8, 8))
        >>> mean.shape, net.decode(mean).shape
        (torch.Size([3, 2]), torch.Size([3, 1, 8, 8, 6]))
    """

    @checked
    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        latent_dim: int,
        num_params: int,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.0,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_range("latent_dim", latent_dim, 1)
        self.image_shape, self.num_params = tuple(image_shape), num_params
        self.num_classes = num_classes or 0
        dims, inner = math.prod(image_shape), list(hidden)

        def mlp(before: int, after: int, widths: list[int]) -> MLP:
            before += self.num_classes
            return MLP(before, after, hidden=widths, activation="silu", dropout=dropout)

        self.encoder = mlp(dims, 2 * latent_dim, inner)
        self.decoder = mlp(latent_dim, dims * num_params, inner[::-1])

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return means and log standard deviations (N, Z) of codes.

        Images (N, C, H, W) lie in [-1, 1].
        """
        out = self.encoder(self._with_class(images.flatten(1), labels)).float()
        mean, log_std = out.chunk(2, 1)
        return mean, log_std.clamp(-MAX_LOG_STD, MAX_LOG_STD)

    def decode(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return parameters (N, C, H, W, P) for codes (N, Z)."""
        out: Tensor = self.decoder(self._with_class(codes, labels))
        return out.reshape(len(codes), *self.image_shape, self.num_params)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.decode(self.encode(images, labels)[0], labels)

    def _with_class(self, inputs: Tensor, labels: Tensor | None) -> Tensor:
        weight = next(self.parameters())
        inputs = inputs.to(weight.dtype)
        if not self.num_classes:
            return inputs
        assert labels is not None  # for the type checker
        return torch.cat([inputs, F.one_hot(labels, self.num_classes).to(inputs)], 1)
