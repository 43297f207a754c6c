"""Generator and discriminator of generative adversarial networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlblocks._errors import check_choice, check_range, checked
from dlblocks.nets.conditional import Norm

SLOPE = 0.2  # of the leaky rectifiers, as in Radford, Metz and Chintala (2016)
Arch = Literal["mlp", "cnn"]


class Generator(nn.Module):
    """Make images from normal noise, and a class.

    Args:
        image_shape: Channels, height and width, of any size.
        latent_dim: Length Z of the noise.
        num_classes: Number of classes, or None.
        arch: ``"mlp"`` for linear layers, or ``"cnn"`` for 3×3 convolutions, before each of which
            the image is doubled. What is more than `image_shape` is cut off.
        width: Hidden units, or channels.
        depth: Hidden layers, or doublings.

    Shape:
        Noise (N, Z) and classes int64 (N,); output (N, C, H, W) in (-1, 1).

    Example:
        >>> Generator([1, 5, 7], 4, 10, arch="cnn", width=8)(
        ...     torch.zeros(2, 4), torch.tensor([3, 9])).shape
        torch.Size([2, 1, 5, 7])
    """

    @checked
    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        num_classes: int | None = None,
        *,
        arch: Arch = "mlp",
        width: int = 256,
        depth: int = 2,
    ) -> None:
        super().__init__()
        _check(arch, width, depth)
        check_range("latent_dim", latent_dim, 1)
        self.image_shape, self.num_classes = tuple(image_shape), num_classes or 0
        channels, *sizes = image_shape
        given, is_mlp = latent_dim + self.num_classes, arch == "mlp"
        # The size before the doublings.
        self.start = () if is_mlp else tuple(math.ceil(size / 2**depth) for size in sizes)
        self.first = nn.Linear(given, width * math.prod(self.start))
        layers: list[nn.Module] = [] if is_mlp else [nn.Unflatten(1, (width, *self.start))]
        for i in range(depth):
            if not is_mlp:
                layers.append(nn.Upsample(scale_factor=2))
            if i or not is_mlp:
                layers.append(_layer(arch, width, width))
            layers += [Norm(), nn.LeakyReLU(SLOPE)]
        self.inner = nn.Sequential(*layers)
        self.last = _layer(arch, width, math.prod(image_shape) if is_mlp else channels)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        inputs = noise.to(self.first.weight.dtype)
        if self.num_classes:
            assert labels is not None  # for the type checker
            inputs = torch.cat([inputs, F.one_hot(labels, self.num_classes).to(inputs)], 1)
        images: Tensor = torch.tanh(self.last(self.inner(self.first(inputs))))
        if self.start:
            images = images[:, :, : self.image_shape[1], : self.image_shape[2]]
        return images.reshape(-1, *self.image_shape)


class Discriminator(nn.Module):
    """Give each image a score, which is high for real images.

    A class enters by its product with the features (Miyato and Koyama 2018, "cGANs with projection
    discriminator"). There is no norm, so that the score of an image depends on it alone.

    Args:
        image_shape: Channels, height and width, of any size.
        num_classes: Number of classes, or None.
        arch: ``"mlp"`` for linear layers, or ``"cnn"`` for 3×3 convolutions with a stride of 2.
        width: Hidden units, or channels.
        depth: Hidden layers.
        dropout: Share of hidden units that are zeroed in training.

    Shape:
        Images (N, C, H, W) and classes int64 (N,); output (N,).

    Example:
        >>> net = Discriminator([1, 8, 8], 10, width=16)
        >>> net(torch.zeros(2, 1, 8, 8), torch.tensor([3, 9])).shape
        torch.Size([2])
    """

    @checked
    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int | None = None,
        *,
        arch: Arch = "mlp",
        width: int = 256,
        depth: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(arch, width, depth)
        check_range("dropout", dropout, 0, 1, high_open=True)
        channels, *sizes = image_shape
        is_mlp = arch == "mlp"
        layers: list[nn.Module] = [nn.Flatten()] if is_mlp else []
        for i in range(depth):
            before = width if i else (math.prod(image_shape) if is_mlp else channels)
            layers += [
                _layer(arch, before, width, stride=2),
                nn.LeakyReLU(SLOPE),
                nn.Dropout(dropout),
            ]
        self.features = nn.Sequential(*layers, nn.Flatten())
        size = width * (1 if is_mlp else math.prod(math.ceil(size / 2**depth) for size in sizes))
        self.head = nn.Linear(size, 1)
        self.classes = None if num_classes is None else nn.Embedding(num_classes, size)
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=size**-0.5)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        features = self.features(images.to(self.head.weight.dtype))
        scores: Tensor = self.head(features)[:, 0]
        if self.classes is None:
            return scores
        assert labels is not None  # for the type checker
        of_class: Tensor = (self.classes(labels) * features).sum(1)
        return scores + of_class


def _layer(arch: str, before: int, after: int, *, stride: int = 1) -> nn.Module:
    if arch == "mlp":
        return nn.Linear(before, after)
    return nn.Conv2d(before, after, 3, stride=stride, padding=1)


def _check(arch: str, width: int, depth: int) -> None:
    check_choice("arch", arch, ["mlp", "cnn"])
    check_range("width", width, 1)
    check_range("depth", depth, 1)
