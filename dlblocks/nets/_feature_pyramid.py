"""Feature pyramids over backbones of several levels, for detectors."""

from __future__ import annotations

from collections import OrderedDict
from os import PathLike
from typing import Any

from torch import Tensor, nn

from dlblocks._errors import did_you_mean
from dlblocks.nets.backbone import Backbone, load_weights, set_channels

SMALL = (64, 128, 256)  # channels of the levels of backbone="small"


class FeaturePyramid(nn.Module):
    """A backbone with a feature pyramid (Lin, Dollár et al. 2017).

    Args:
        name: ``"small"``, a ResNet of torchvision, or ``"timm:…"``.
        in_channels: Channels of the images.
        weights: As for `dlblocks.nets.Backbone`.
        channels: Channels of each level.
    """

    def __init__(
        self, name: str, in_channels: int, weights: str | PathLike[str] | None, channels: int
    ) -> None:
        from torchvision.ops import FeaturePyramidNetwork

        super().__init__()
        body: Any = _body(name, in_channels, weights)
        self.body = body
        self.strides: tuple[int, ...] = body.strides
        self.pyramid = FeaturePyramidNetwork(list(body.widths), channels)
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        named = OrderedDict((str(i), x) for i, x in enumerate(maps))
        found: dict[str, Tensor] = self.pyramid(named)
        return found


class _Small(nn.Module):
    """A small residual net with levels at strides 4, 8 and 16."""

    widths, strides = SMALL, (4, 8, 16)

    def __init__(self, in_channels: int) -> None:
        from torchvision.models.resnet import BasicBlock, conv1x1

        super().__init__()
        width = SMALL[0] // 2
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        levels = []
        for wide in SMALL:
            shortcut = nn.Sequential(conv1x1(width, wide, 2), nn.BatchNorm2d(wide))
            levels.append(BasicBlock(width, wide, 2, shortcut))
            width = wide
        self.levels = nn.ModuleList(levels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        x, found = self.stem(images), []
        for level in self.levels:
            x = level(x)
            found.append(x)
        return found


class _ResNet(nn.Module):
    """The four stages of a ResNet of torchvision."""

    strides = (4, 8, 16, 32)

    def __init__(self, net: Any) -> None:
        super().__init__()
        net.fc = nn.Identity()
        self.net = net
        last = [[m for m in stage.modules() if isinstance(m, nn.BatchNorm2d)]
                for stage in (net.layer1, net.layer2, net.layer3, net.layer4)]  # fmt: skip
        bottleneck = "Bottleneck" in type(net.layer1[0]).__name__
        self.widths = tuple(stage[0 if not bottleneck else 2].num_features for stage in last)

    def forward(self, images: Tensor) -> list[Tensor]:
        net: Any = self.net
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        found = []
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = stage(x)
            found.append(x)
        return found


class _Timm(nn.Module):
    """The stages of a net of timm, from stride 4 on."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        strides = list(net.feature_info.reduction())
        self.first = next(i for i, stride in enumerate(strides) if stride >= 4)
        self.strides = tuple(strides[self.first :])
        self.widths = tuple(net.feature_info.channels()[self.first :])

    def forward(self, images: Tensor) -> list[Tensor]:
        found: list[Tensor] = self.net(images)[self.first :]
        return found


def _body(name: str, in_channels: int, weights: str | PathLike[str] | None) -> nn.Module:
    from torchvision import models

    if name == "small":
        if weights is not None:
            raise ValueError(
                f"weights={str(weights)!r}, but there are none of backbone='small'; use a ResNet, "
                "or a net of timm."
            )
        return _Small(in_channels)
    if name.startswith("timm:"):
        return _Timm(_of_timm(name, in_channels, weights))
    known = [each for each in models.list_models(module=models) if "resnet" in each]
    if name not in known:
        hint = did_you_mean(name, ["small", *known]) or "; there are small, resnet18 and others."
        raise ValueError(f"backbone={name!r} is not a ResNet of torchvision{hint}")
    net = models.get_model(name, weights=None)
    set_channels(net, in_channels)
    if weights is not None:
        load_weights(net, name, weights)
    return _ResNet(net)


def _of_timm(name: str, in_channels: int, weights: str | PathLike[str] | None) -> Any:
    whole = Backbone(name, 1000, in_channels=in_channels, weights=weights)
    import timm

    net = timm.create_model(name.removeprefix("timm:"), features_only=True, in_chans=in_channels)
    if weights is not None:
        # A net with features lacks the head, and may lack what follows the last stage.
        state = whole.model.state_dict()
        own = net.state_dict()
        missing = [key for key in own if key not in state]
        if missing:
            raise ValueError(
                f"weights={str(weights)!r} lack {missing[0]!r} of the features of {name}; use "
                "another backbone."
            )
        net.load_state_dict({key: state[key] for key in own})
    return net
