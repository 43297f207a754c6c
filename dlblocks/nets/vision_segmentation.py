"""Segmentation nets of torchvision by name: FCN, DeepLab, LR-ASPP.

Long, Shelhamer, Darrell: Fully convolutional networks for semantic segmentation. CVPR 2015.
Chen, Papandreou, Schroff, Adam: Rethinking atrous convolution for semantic image segmentation.
arXiv 1706.05587, 2017.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dlblocks._errors import check_choice, check_range, checked, wrong_channels

ARCHS = (
    "fcn_resnet50",
    "fcn_resnet101",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
)


class VisionSegmentation(nn.Module):
    """A segmentation net of torchvision, with its own number of channels and classes.

    It begins with random weights. Outputs have the images' size.
    DeepLab and LR-ASPP pool the whole image into one value a channel, which batch norm cannot train
    on in a batch of one.

    Args:
        arch: One of `ARCHS`.
        in_channels: Channels of the images.
        out_features: Values for each pixel: classes.
        aux: Add the auxiliary classifier of FCN and DeepLab, which in training puts out as many
            further values behind the others.

    Shape:
        Input (N, in_channels, H, W); output (N, out_features, H, W), and (N, 2 · out_features,
        H, W) in training with `aux`.

    Raises:
        ValueError: `arch` is not known or has no auxiliary classifier, or a batch of one is
            trained on.

    Example:
        >>> import torch
        >>> net = VisionSegmentation("lraspp_mobilenet_v3_large", 1, 3)
        >>> net(torch.zeros(2, 1, 40, 33)).shape
        torch.Size([2, 3, 40, 33])
    """

    @checked
    def __init__(
        self, arch: str, in_channels: int, out_features: int, *, aux: bool = False
    ) -> None:
        from torchvision.models import get_model

        super().__init__()
        check_choice("arch", arch, list(ARCHS))
        check_range("in_channels", in_channels, 1)
        check_range("out_features", out_features, 1)
        if aux and arch.startswith("lraspp"):
            raise ValueError(
                f"{arch} has no auxiliary classifier; set aux_weight=0 (aux=False), or use FCN or "
                "DeepLab."
            )
        self.arch, self.in_channels, self.aux = arch, in_channels, aux
        options: dict[str, Any] = {"aux_loss": True} if aux else {}
        self.net = get_model(
            arch, weights=None, weights_backbone=None, num_classes=out_features, **options
        )
        if in_channels != 3:
            _replace_first(self.net.backbone, in_channels)

    def forward(self, images: Tensor) -> Tensor:
        self.check_input(tuple(images.shape[1:]))
        if self.training and len(images) == 1 and not self.arch.startswith("fcn"):
            raise ValueError(
                f"{self.arch} pools an image into one value a channel, which batch norm cannot "
                "train on in a batch of one; use batch_size of 2 or more."
            )
        found = self.net(images)
        logits: Tensor = found["out"]  # (N, out_features, H, W)
        if self.aux and self.training:
            return torch.cat([logits, found["aux"]], dim=1)
        return logits

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise a `ValueError` unless an image of `shape`, without the batch axis, fits."""
        if len(shape) != 3 or shape[0] != self.in_channels:
            raise wrong_channels(self.in_channels, tuple(shape))


def _replace_first(backbone: nn.Module, in_channels: int) -> None:
    """Put a convolution of `in_channels` in the place of the first one."""
    name, first = next(
        (name, part) for name, part in backbone.named_modules() if isinstance(part, nn.Conv2d)
    )
    new = nn.Conv2d(
        in_channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    owner, _, leaf = name.rpartition(".")
    setattr(backbone.get_submodule(owner), leaf, new)
