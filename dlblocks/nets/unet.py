"""U-Net: a class for each pixel, from coarse and fine maps together.

An encoder halves the map level by level, a decoder doubles it again, and at each level the decoder
also gets the encoder's map of the same size, which still knows where edges are.

Ronneberger, Fischer, Brox: U-Net: Convolutional networks for biomedical image segmentation. MICCAI
2015. Unlike there, convolutions pad, so that outputs have the image's size, and norms follow them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlblocks._errors import check_choice, check_range, checked, wrong_channels
from dlblocks.nets._layers import Init, init_weights, make_activation

GROUPS = 8  # of channels, for the group norm


class UNet(nn.Module):
    """A U-Net; see the module.

    Level l has ``width * 2**l`` channels. Images of any size are padded at the bottom and on the
    right to a multiple of ``2**depth``, by the pixels of their edges, and outputs are cut to the
    size of the images.

    Args:
        in_channels: Channels of the images.
        out_features: Values for each pixel: classes.
        width: Channels of the first level.
        depth: How often the map is halved.
        norm: ``"batch"`` (Ioffe and Szegedy 2015), ``"group"`` (Wu and He 2018; for batches of one
            or two images), or None.
        activation: Name of the activation; see `dlblocks.nets._layers.ACTIVATIONS`.
        init: ``"kaiming"``, ``"xavier"`` or None; see `dlblocks.nets._layers.init_weights`.

    Shape:
        Input (N, in_channels, H, W); output (N, out_features, H, W).

    Raises:
        ValueError: An argument is out of range; or batch norm would see a single value a channel,
            as of one image of ``2**depth`` pixels in training.

    Example:
        >>> import torch
        >>> UNet(1, 3, width=4, depth=2)(torch.zeros(2, 1, 13, 10)).shape
        torch.Size([2, 3, 13, 10])
    """

    @checked
    def __init__(
        self,
        in_channels: int,
        out_features: int,
        *,
        width: int = 32,
        depth: int = 4,
        norm: Literal["batch", "group"] | None = "batch",
        activation: str = "relu",
        init: Init | None = "kaiming",
    ) -> None:
        super().__init__()
        check_range("in_channels", in_channels, 1)
        check_range("out_features", out_features, 1)
        check_range("width", width, 1)
        check_range("depth", depth, 1)
        if norm is not None:
            check_choice("norm", norm, ["batch", "group"])
        self.in_channels, self.depth = in_channels, depth
        self.unit = 2**depth  # height and width are multiples of it
        self.batch_norm = norm == "batch"
        widths = [width * 2**level for level in range(depth + 1)]

        def block(channels: int, out: int) -> nn.Sequential:
            return _block(channels, out, norm, activation)

        self.down = nn.ModuleList(
            block(before, after)
            for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (coarse, fine), from below
        self.grow = nn.ModuleList(nn.ConvTranspose2d(c, f, 2, stride=2) for c, f in pairs)
        self.up = nn.ModuleList(block(2 * fine, fine) for _, fine in pairs)
        self.head = nn.Conv2d(width, out_features, 1)
        init_weights(self, init, activation)

    def forward(self, images: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            self.check_input(tuple(images.shape[1:]))
        height, width = images.shape[2:]
        maps = self._padded(images)  # (N, in_channels, H', W'), multiples of 2**depth
        skipped: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                maps = F.max_pool2d(maps, 2)  # half the height and width
            maps = block(maps)  # (N, width * 2**level, H' / 2**level, W' / 2**level)
            skipped.append(maps)
        for level, (grow, block) in enumerate(zip(self.grow, self.up, strict=True)):
            maps = grow(maps)  # half the channels, twice the height and width
            fine = skipped[self.depth - 1 - level]  # of the same shape
            maps = block(torch.cat([fine, maps], 1))  # (N, channels of `fine`, …)
        logits: Tensor = self.head(maps)  # (N, out_features, H', W')
        return logits[..., :height, :width]  # (N, out_features, H, W)

    def _padded(self, images: Tensor) -> Tensor:
        below, right = -images.shape[2] % self.unit, -images.shape[3] % self.unit
        if below or right:
            images = F.pad(images, [0, right, 0, below], mode="replicate")
        positions = (images.shape[2] // self.unit) * (images.shape[3] // self.unit)
        if self.training and self.batch_norm and positions * len(images) == 1:
            raise ValueError(
                f"one image leaves a single value a channel after {self.depth} halvings, which "
                "batch norm cannot train on; use larger batches, norm='group' or a smaller depth."
            )
        return images

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raises a `ValueError` unless an image of `shape`, without the batch axis, fits."""
        if len(shape) != 3:
            raise ValueError(f"UNet expects images (C, H, W), got inputs of shape {shape}.")
        if shape[0] != self.in_channels:
            raise wrong_channels(self.in_channels, tuple(shape))


def _block(channels: int, out: int, norm: str | None, activation: str) -> nn.Sequential:
    """Twice convolution – norm – activation: (N, channels, H, W) to (N, out, H, W)."""
    layers: list[nn.Module] = []
    for before in (channels, out):
        # A norm subtracts the mean, and with it any bias before it.
        layers.append(nn.Conv2d(before, out, 3, padding=1, bias=norm is None))
        if norm == "batch":
            layers.append(nn.BatchNorm2d(out))
        elif norm == "group":
            # Of at least two channels: one value alone would always become 0.
            groups = max((g for g in range(1, GROUPS + 1) if out % (2 * g) == 0), default=1)
            layers.append(nn.GroupNorm(groups, out))
        layers.append(make_activation(activation))
    return nn.Sequential(*layers)
