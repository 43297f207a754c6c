"""Convolutional net (LeCun et al. 1998)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dlblocks._errors import check_range, checked, wrong_channels
from dlblocks.nets._layers import Init, init_weights, make_activation


class CNN(nn.Module):
    """Blocks of convolutions and pooling, then dense layers.

    A block is `convs_per_block` times a convolution that keeps height and width, a norm and an
    activation. Between two blocks 2×2 pooling halves height and width (rounding down). After the
    last block the map is averaged over its positions (``head="gap"``, Lin et al. 2014) or pooled
    and flattened (``head="flatten"``). Dense layers with activations and the linear output follow,
    with dropout before each of them.

    Args:
        in_channels: Channels of the images.
        out_features: Values in one output.
        channels: Channels of each block.
        convs_per_block: Convolutions in each block.
        kernel_size: Side of the kernels, odd.
        norm: ``"batch"`` (Ioffe and Szegedy 2015) or None.
        activation: Name of the activation; see `dlblocks.nets._layers.ACTIVATIONS`.
        pool: ``"max"`` or ``"avg"``.
        head: ``"gap"``, for images of any size, or ``"flatten"``, for images of `image_size`.
        image_size: Height and width of the images, or one number for square ones.
        hidden: Widths of the dense layers before the last.
        dropout: Probability in [0, 1) that an input of a dense layer is zeroed in training.
        init: ``"kaiming"``, ``"xavier"`` or None; see `dlblocks.nets._layers.init_weights`.

    Shape:
        Input (N, in_channels, H, W); output (N, out_features).

    Raises:
        ValueError: An argument is out of range, or images are too small for the pooling.

    Example:
        >>> import torch
        >>> CNN(1, 10, channels=[8, 16])(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    @checked
    def __init__(
        self,
        in_channels: int,
        out_features: int,
        *,
        channels: Sequence[int] = (32, 64),
        convs_per_block: int = 1,
        kernel_size: int = 3,
        norm: Literal["batch"] | None = "batch",
        activation: str = "relu",
        pool: Literal["max", "avg"] = "max",
        head: Literal["gap", "flatten"] = "gap",
        image_size: int | Sequence[int] | None = None,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        init: Init | None = "kaiming",
    ) -> None:
        super().__init__()
        check_range("in_channels", in_channels, 1)
        check_range("out_features", out_features, 1)
        check_range("convs_per_block", convs_per_block, 1)
        check_range("kernel_size", kernel_size, 1)
        check_range("dropout", dropout, 0, 1, high_open=True)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd, to keep height and width.")
        if not channels:
            raise ValueError("channels=[] has no block; give at least one, such as channels=[32].")
        for width in channels:
            check_range("channels", width, 1)
        for width in hidden:
            check_range("hidden", width, 1)
        self.in_channels = in_channels
        self.num_pools = len(channels) - (head == "gap")
        self.image_size = _pair(image_size)

        blocks: list[nn.Module] = []
        width = in_channels
        for number, block_width in enumerate(channels):
            for _ in range(convs_per_block):
                blocks.append(
                    nn.Conv2d(
                        width,
                        block_width,
                        kernel_size,
                        padding=kernel_size // 2,
                        # Batch norm subtracts the mean, so a bias before it has no effect.
                        bias=norm is None,
                    )
                )
                if norm is not None:
                    blocks.append(nn.BatchNorm2d(block_width))
                blocks.append(make_activation(activation))
                width = block_width
            if number < self.num_pools:
                blocks.append(nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2))
        self.blocks = nn.Sequential(*blocks)

        if self.image_size is not None:
            self.check_input((in_channels, *self.image_size))
        if head == "flatten":
            if self.image_size is None:
                raise ValueError(
                    "head='flatten' needs the size of the images: set image_size=(height, width), "
                    "or use head='gap'."
                )
            height, breadth = (side >> self.num_pools for side in self.image_size)
            width *= height * breadth
        layers: list[nn.Module] = [] if head == "flatten" else [nn.AdaptiveAvgPool2d(1)]
        layers.append(nn.Flatten())
        for dense in hidden:
            layers += [nn.Dropout(dropout)] if dropout else []
            layers += [nn.Linear(width, dense), make_activation(activation)]
            width = dense
        layers += [nn.Dropout(dropout)] if dropout else []
        layers.append(nn.Linear(width, out_features))
        self.head = nn.Sequential(*layers)
        init_weights(self, init, activation)

    __jit_unused_properties__ = ("min_image_size",)

    @property
    def min_image_size(self) -> int:
        """Smallest height and width that the pooling allows."""
        found: int = 2**self.num_pools
        return found

    def forward(self, images: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            self.check_input(tuple(images.shape[1:]))
        maps = self.blocks(images)  # (N, channels[-1], H', W')
        found: Tensor = self.head(maps)
        return found

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise a `ValueError` unless images of a shape (C, H, W) fit."""
        if len(shape) != 3:
            raise ValueError(f"CNN expects images (C, H, W), got inputs of shape {shape}; use MLP.")
        if shape[0] != self.in_channels:
            raise wrong_channels(self.in_channels, tuple(shape))
        if min(shape[1:]) < self.min_image_size:
            raise ValueError(
                f"images of {shape[1]}×{shape[2]} are too small for {self.num_pools} poolings, "
                f"which need at least {self.min_image_size}×{self.min_image_size}; "
                "give fewer channels, or larger images."
            )
        if self.image_size is not None and tuple(shape[1:]) != self.image_size:
            raise ValueError(
                f"image_size={self.image_size}, but one image has shape {shape}; "
                f"set image_size={tuple(shape[1:])}."
            )


def _pair(image_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    sides = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"image_size={image_size!r} must be (height, width) or one number >= 1.")
    return sides[0], sides[1]
