"""Nets of torchvision and timm by their names, for any number of channels and small images."""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import torch
from torch import Tensor, nn

from dlblocks._errors import check_range, did_you_mean, wrong_channels

SMALL_SIDE = 64  # below it, stem="auto" is "small"
SIDES = (8, 12, 16, 24, 32, 48, 64, 75, 96, 112, 128, 160, 192, 224, 256, 299)
# Nets that have further outputs in training, which a loss of one output cannot take.
WITH_AUX = {"googlenet": {"aux_logits": False}, "inception_v3": {"aux_logits": False}}
# The beginning of a name → the first convolution, and poolings to leave out, of stem="small".
SMALL: dict[str, tuple[str, tuple[str, ...]]] = {
    "alexnet": ("features.0", ("features.2",)),
    "densenet": ("features.conv0", ("features.pool0",)),
    "efficientnet": ("features.0.0", ()),
    "googlenet": ("conv1.conv", ("maxpool1", "maxpool2")),
    "mnasnet": ("layers.0", ()),
    "mobilenet": ("features.0.0", ()),
    "regnet": ("stem.0", ()),
    "resnet": ("conv1", ("maxpool",)),
    "resnext": ("conv1", ("maxpool",)),
    "shufflenet": ("conv1.0", ("maxpool",)),
    "squeezenet": ("features.0", ("features.2",)),
    "vgg": ("features.0", ()),  # and the last two poolings
    "wide_resnet": ("conv1", ("maxpool",)),
}

Stem = Literal["auto", "small", "imagenet"]


class Backbone(nn.Module):
    """A net of torchvision or timm with a head of its own.

    The stem is what comes first and shrinks an image of 224×224 fast. For small images it shrinks
    too much: ``"small"`` makes the first convolution 3×3 with stride 1 and leaves out the poolings
    behind it (He et al. 2016, section 4.2, for CIFAR-10).

    Args:
        arch: Name of a classification net of torchvision, such as ``"resnet18"``, or of timm, such
            as ``"timm:convnext_atto"``.
        num_outputs: Outputs of the head.
        in_channels: Channels of the images.
        weights: None for random ones; ``"DEFAULT"`` for those of ImageNet, which are downloaded; or
            a file of a state dict. The head is new if it has another size. Weights of the first
            convolution are those of three channels, repeated, times 3 over `in_channels`; for one
            channel their sum.
        stem: ``"small"``, ``"imagenet"``, or ``"auto"``: small for images below 64×64, if the net
            has random weights and its stem is known.
        image_size: Side of the images, or height and width, for ``stem="auto"`` and an early check.

    Raises:
        ValueError: `arch` is not known, weights do not fit, or images are too small.
        ModuleNotFoundError: timm is not installed.

    Example:
        >>> Backbone("resnet18", 10, in_channels=1, image_size=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        arch: str,
        num_outputs: int,
        *,
        in_channels: int = 3,
        weights: str | PathLike[str] | None = None,
        stem: Stem = "auto",
        image_size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_range("num_outputs", num_outputs, 1)
        check_range("in_channels", in_channels, 1)
        if image_size is not None:
            image_size = [image_size] * 2 if isinstance(image_size, int) else [*image_size]
        self.arch, self.in_channels = arch, in_channels
        self.model = _make(arch, num_outputs, in_channels)
        family = next((name for name in SMALL if arch.startswith(name)), None)
        if stem == "auto":
            is_small = image_size is not None and min(image_size) < SMALL_SIDE
            stem = "small" if is_small and family and weights is None else "imagenet"
        if stem == "small":
            if family is None:
                raise ValueError(
                    f"stem='small' is not known of arch={arch!r}, only of {', '.join(SMALL)} of "
                    "torchvision; use stem='imagenet' and larger images."
                )
            _make_small(self.model, family)
        self.stem = stem
        if not arch.startswith("timm:"):
            set_channels(self.model, in_channels)
        if weights is not None:
            load_weights(self.model, arch, weights)
        if image_size is not None:
            self.check_input((in_channels, *image_size))

    @property
    def head(self) -> str:
        """Name of the last layer within this module, such as ``"model.fc"``."""
        return f"model.{_head(self.model)}"

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.model(images)  # (N, num_outputs)
        return outputs

    def check_input(self, shape: Sequence[int]) -> None:
        """Raise a `ValueError` unless the net takes images of `shape` (C, H, W)."""
        if len(shape) != 3 or shape[0] != self.in_channels:
            raise wrong_channels(self.in_channels, tuple(shape))
        sizes = tuple(tuple(p.shape) for p in self.model.parameters())
        size = (repr(self.model), sizes, *shape)
        if size in _FITTING:
            return
        failed = _why_not(self.model, shape)
        if failed is None:
            _FITTING.add(size)
            return
        channels, height, width = shape
        works = next(
            (
                side
                for side in SIDES
                if side > min(height, width)
                and _why_not(self.model, (channels, side, side)) is None
            ),
            None,
        )
        cure = f"the smallest square that works is {works}×{works}" if works else "use another arch"
        known = any(self.arch.startswith(name) for name in SMALL)
        small = ", or stem='small'" if known and self.stem == "imagenet" else ""
        raise ValueError(
            f"{self.arch} cannot take images of {height}×{width}: {failed}; {cure}: resize the "
            f"images{small}."
        )


def architectures() -> list[str]:
    """Return the names of torchvision's classification nets."""
    models = importlib.import_module("torchvision.models")
    return list(models.list_models(module=models))


def _make(arch: str, num_outputs: int, in_channels: int) -> nn.Module:
    """Make the net with random weights, its first convolution for three channels."""
    if arch.startswith("timm:"):
        return _make_of_timm(arch.removeprefix("timm:"), num_outputs, in_channels)
    known = architectures()
    if arch not in known:
        hint = did_you_mean(arch, known) or "; see dlblocks.nets.backbone.architectures()."
        raise ValueError(f"arch={arch!r} is not a classification net of torchvision{hint}")
    models = importlib.import_module("torchvision.models")
    more: dict[str, Any] = dict(WITH_AUX.get(arch, {}))
    if more:
        more["init_weights"] = True
    model: nn.Module = models.get_model(arch, weights=None, num_classes=num_outputs, **more)
    return model


def _make_of_timm(name: str, num_outputs: int, in_channels: int) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"arch='timm:{name}' needs timm, which dlblocks does not install: pip install timm."
        ) from error
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models()) or "; see timm.list_models()."
        raise ValueError(f"arch='timm:{name}' is not a net of timm{hint}")
    model: nn.Module = timm.create_model(name, num_classes=num_outputs, in_chans=in_channels)
    return model


def _make_small(model: nn.Module, family: str) -> None:
    path, pools = SMALL[family]
    first: Any = model.get_submodule(path)
    if max(first.kernel_size) > 3:
        bias = first.bias is not None
        new = nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=bias)
        _replace(model, path, new)
    else:
        first.stride = (1, 1)
    if family == "vgg":
        found = [n for n, module in model.named_modules() if isinstance(module, nn.MaxPool2d)]
        pools = tuple(found[-2:])
    for pool in pools:
        _replace(model, pool, nn.Identity())


def set_channels(model: nn.Module, in_channels: int) -> None:
    """Make the first convolution one of `in_channels` channels."""
    path, first = _first_convolution(model)
    if first.in_channels == in_channels:
        return
    new = nn.Conv2d(
        in_channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        first.dilation,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    _replace(model, path, new)


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return path, module
    raise ValueError(f"{type(model).__name__} has no convolution whose channels could be set.")


def _replace(model: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)


def _head(model: nn.Module) -> str:
    """Name of the last layer with weights."""
    layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    found: str = layers[-1]
    return found


# Weights


def load_weights(model: nn.Module, arch: str, weights: str | PathLike[str]) -> None:
    """Fill in saved weights; the head stays new if it has another size."""
    state = _download(arch) if weights == "DEFAULT" else _read(Path(weights))
    path, first = _first_convolution(model)
    own, name, head = model.state_dict(), f"{path}.weight", _head(model)
    if name in state and state[name].shape != first.weight.shape:
        state[name] = _for_channels(state[name], first.weight)
    left_out = [
        key
        for key, value in state.items()
        if key.startswith(f"{head}.") and own[key].shape != value.shape
    ]
    for key in left_out:
        state[key] = own[key]
    wrong = [k for k, v in state.items() if k in own and own[k].shape != v.shape]
    missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
    if unknown or wrong or missing:
        key = sorted([*unknown, *wrong, *missing])[0]
        reason = (
            f"has {key!r}, which the net lacks"
            if key in unknown
            else f"lacks {key!r}"
            if key in missing
            else f"has {key!r} of shape {tuple(state[key].shape)}, the net {tuple(own[key].shape)}"
        )
        count = len(unknown) + len(wrong) + len(missing)
        raise ValueError(
            f"weights={str(weights)!r} do not fit arch={arch!r}: the file {reason} ({count} such "
            "entries); give weights of this net, or stem='imagenet' if the stem differs."
        )
    model.load_state_dict(state)
    if left_out:
        from lightning.pytorch.utilities import rank_zero_info

        rank_zero_info(f"{arch}: the head ({head}) is new; the other weights are loaded.")


def _for_channels(weight: Tensor, like: Tensor) -> Tensor:
    """Adapt the weights of a first convolution to another number of channels."""
    if weight.shape[0] != like.shape[0] or weight.shape[2:] != like.shape[2:]:
        return weight
    if like.shape[1] == 1:
        return weight.sum(1, keepdim=True)
    count, old = like.shape[1], weight.shape[1]
    return weight.repeat(1, -(-count // old), 1, 1)[:, :count] * (old / count)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"weights={str(path)!r} is not a file, and not 'DEFAULT'.")
    found: Any = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(f"weights={str(path)!r} is not a state dict of tensors.")
    return dict(found)


def _download(arch: str) -> dict[str, Tensor]:
    """Return torchvision's or timm's ImageNet weights, from the cache or the network."""
    try:
        if arch.startswith("timm:"):
            timm = importlib.import_module("timm")
            made = timm.create_model(arch.removeprefix("timm:"), pretrained=True)
            return dict(made.state_dict())
        models = importlib.import_module("torchvision.models")
        found = models.get_model_weights(arch).DEFAULT.get_state_dict(progress=False)
        # GoogLeNet's and Inception's further outputs.
        return {name: v for name, v in found.items() if not name.lower().startswith("aux")}
    except (URLError, OSError, RuntimeError) as error:
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        raise ValueError(
            f"weights='DEFAULT' of arch={arch!r} cannot be downloaded ({error}); give the path of "
            f"a state dict, or put the file into {folder}."
        ) from error


# Sizes

# Nets, by their layers and sizes of parameters, and shapes of images (C, H, W) that fit.
_FITTING: set[tuple[object, ...]] = set()


def _why_not(model: nn.Module, shape: Sequence[int]) -> str | None:
    """Return why a net cannot take images of a shape, with the layer; None if it can.

    It is tried on the meta device, which computes shapes alone.
    """
    entered: list[str] = []
    # A copy that has no weights.
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(x): x.detach().to("meta") for x in tensors}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(memo[id(p)], requires_grad=False)
    tried = copy.deepcopy(model, memo).eval()
    hooks = [
        module.register_forward_pre_hook(lambda _m, _x, name=name: entered.append(name))
        for name, module in tried.named_modules()
        if not list(module.children())
    ]
    try:
        with torch.no_grad():
            tried(torch.empty(2, *shape, device="meta"))
    except Exception as error:  # whatever a net does with images that it cannot take
        first = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else ""
        return f"layer {entered[-1] if entered else 'of the input'!r} fails ({first})"
    finally:
        for hook in hooks:
            hook.remove()
    return None
