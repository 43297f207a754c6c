"""Compute a plain chain of layers for M models at once.

`torch.func.vmap` can compute any net, but it copies the values of all models before and after many
layers, and takes batch norm apart. Here every layer is one operation for all models: a linear layer
a batched matrix product, a convolution one with M times as many groups, and a batch norm one with M
times as many channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dlblocks.models.model import Model
from dlblocks.nets import CNN, MLP

# Layers of images. A pooling treats each channel by itself.
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
IMAGES = (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm, nn.Dropout2d, *POOLS)
# Layers of vectors.
VECTORS = (nn.Linear, nn.BatchNorm1d, nn.LayerNorm)
# Each output value of these layers depends on one input value only.
POINTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Identity, nn.Dropout,
)  # fmt: skip
KNOWN = (*IMAGES, *VECTORS, *POINTWISE, nn.Flatten)
_FORWARDS: dict[Any, Any] = {kind: kind.forward for kind in (*KNOWN, nn.Sequential, CNN, MLP)}
# Methods of a model that lead to the outputs of its net.
FORWARD = {"forward", "forward_prepared"}
Tensors = Mapping[str, Tensor]
Layers = list[tuple[str, Any]]


class Chain:
    """Layers that follow each other.

    Layers of images come first, then a flattening, then layers of vectors.

    Args:
        layers: Named layers of one of the models. Their modes are used, their tensors are not.
    """

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        kinds = [type(layer) for _, layer in layers]
        self._of_images = any(kind in IMAGES for kind in kinds)
        self._flattens = nn.Flatten in kinds

    @classmethod
    def of(cls, model: Model) -> Chain | None:
        """Return the chain of a model's `MLP`, `CNN` or `nn.Sequential`.

        None if the model has another net, other layers, hooks, or a `forward` of its own.
        """
        net = model.net
        ours = all(getattr(type(model), name) is getattr(Model, name) for name in FORWARD)
        if not ours or FORWARD & vars(model).keys() or not _is_untouched(model, net):
            return None
        if type(net) is MLP and not net.embeddings:
            layers = [("", nn.Flatten()), *_named("net.layers", net.layers)]
        elif type(net) is CNN:
            layers = [*_named("net.blocks", net.blocks), *_named("net.head", net.head)]
        elif type(net) is nn.Sequential:
            layers = _named("net", net)
        else:
            return None
        return cls(layers) if _fit_together(layers) else None

    def takes(self, inputs: Tensor) -> bool:
        """True if inputs (M, N, ...) have as many axes as expected."""
        if self._of_images:
            return inputs.ndim == 5
        return inputs.ndim == 3 or self._flattens

    def forward(self, inputs: Tensor, tensors: Tensors, gradients: Tensors | None = None) -> Tensor:
        """Compute M nets on their inputs.

        Args:
            inputs: Each net's own inputs, shape (M, N, F) or (M, N, C, H, W).
            tensors: Stacked parameters and buffers by name. Running statistics are updated in
                place.
            gradients: Gradients by name. The backward pass adds the gradients of linear layers to
                them directly; autograd does not handle these parameters.

        Returns:
            Shape (M, N, ...).
        """
        count, x = len(inputs), inputs
        if self._of_images:
            x = inputs.transpose(0, 1).flatten(1, 2)  # (N, M · C, H, W)
            if x.device.type == "cpu":
                x = x.contiguous(memory_format=torch.channels_last)  # the faster order there
        for name, layer in self.layers:
            if isinstance(layer, nn.Flatten):
                x = (_split(x, count) if self._of_images else x).flatten(2)
            elif isinstance(layer, nn.Linear):
                x = _linear_layer(x, name, tensors, gradients or {})
            elif isinstance(layer, nn.Conv2d):
                x = _convolution(x, layer, name, tensors)
            elif isinstance(layer, nn.BatchNorm1d):
                size = x.shape
                x = x.transpose(0, 1).reshape(size[1], -1)  # (N, M · F)
                x = _batch_norm(x, layer, name, tensors)
                x = x.view(size[1], size[0], size[2]).transpose(0, 1)
            elif isinstance(layer, nn.BatchNorm2d):
                x = _batch_norm(x, layer, name, tensors)
            elif isinstance(layer, nn.GroupNorm):
                weight, bias = _joined_pair(name, tensors)
                x = F.group_norm(x, count * layer.num_groups, weight, bias, layer.eps)
            elif isinstance(layer, nn.LayerNorm):
                x = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
                weight, bias = _pair(name, tensors)
                if weight is not None:
                    x = x * weight.unsqueeze(1)
                if bias is not None:
                    x = x + bias.unsqueeze(1)
            else:
                x = layer(x)
        if self._of_images and not self._flattens:
            x = _split(x, count)
        return x


def _named(name: str, layer: nn.Module | None) -> Layers:
    """Return the named layers of a chain and of its inner chains."""
    if type(layer) is not nn.Sequential or not _is_untouched(layer):
        return [(name, layer)]
    # named_children() would leave out a layer that occurs a second time.
    found = [_named(f"{name}.{key}", inner) for key, inner in layer._modules.items()]
    return [pair for part in found for pair in part]


def _fit_together(layers: Layers) -> bool:
    """Check that layers, their settings and their order are known."""
    # Inputs are vectors if nothing takes images or flattens them.
    is_flat = not any(type(layer) in (*IMAGES, nn.Flatten) for _, layer in layers)
    for _, layer in layers:
        kind = type(layer)
        if kind not in KNOWN or not _is_untouched(layer):
            return False
        if isinstance(layer, nn.Flatten):
            if is_flat or (layer.start_dim, layer.end_dim) != (1, -1):
                return False
            is_flat = True
        elif kind in IMAGES + VECTORS and is_flat != (kind in VECTORS):
            return False
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            needed = (layer.running_mean, layer.num_batches_tracked, layer.momentum)
            if any(x is None for x in needed):
                return False
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            return False
        if isinstance(layer, nn.MaxPool2d | nn.AdaptiveMaxPool2d) and layer.return_indices:
            return False
        if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) != 1:
            return False
    return True


def _is_untouched(*modules: nn.Module) -> bool:
    """True if modules have no hooks, and no replaced `forward`."""
    for module in modules:
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks,
                 module._backward_pre_hooks)  # fmt: skip
        kind = type(module)
        is_patched = kind.forward is not _FORWARDS.get(kind, kind.forward)
        if any(hooks) or is_patched or "forward" in vars(module):
            return False
    return True


def _split(x: Tensor, count: int) -> Tensor:
    """View images (N, M · C, H, W) with the models first."""
    size = x.shape
    return x.view(size[0], count, size[1] // count, *size[2:]).transpose(0, 1)


def _pair(name: str, tensors: Tensors) -> tuple[Tensor | None, Tensor | None]:
    return tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")


def _joined_pair(name: str, tensors: Tensors) -> tuple[Tensor | None, Tensor | None]:
    """Return weight and bias with the models' first two axes as one."""
    weight, bias = (None if x is None else x.flatten(0, 1) for x in _pair(name, tensors))
    return weight, bias


def _batch_norm(
    x: Tensor, layer: nn.BatchNorm1d | nn.BatchNorm2d, name: str, tensors: Tensors
) -> Tensor:
    """One batch norm whose channels (second axis) are those of all models."""
    mean, var = (tensors[f"{name}.running_{kind}"].view(-1) for kind in ("mean", "var"))
    if layer.training:
        tensors[f"{name}.num_batches_tracked"].add_(1)
    momentum = layer.momentum or 0.0
    weight, bias = _joined_pair(name, tensors)
    return F.batch_norm(x, mean, var, weight, bias, layer.training, momentum, layer.eps)


def _convolution(x: Tensor, layer: nn.Conv2d, name: str, tensors: Tensors) -> Tensor:
    """One convolution whose groups are those of all models."""
    weight, bias = _joined_pair(name, tensors)
    assert weight is not None  # for the type checker
    groups = len(tensors[f"{name}.weight"]) * layer.groups
    padding: Any = layer.padding  # a word or numbers
    return F.conv2d(x, weight, bias, layer.stride, padding, layer.dilation, groups)


def _linear_layer(x: Tensor, name: str, tensors: Tensors, gradients: Tensors) -> Tensor:
    weight, bias = _pair(name, tensors)
    assert weight is not None  # for the type checker
    of_weight, of_bias = _pair(name, gradients)
    if of_weight is None or (bias is not None and of_bias is None):
        return _linear(x, weight, bias)
    found: Tensor = _Linear.apply(x, weight, bias, of_weight, of_bias)
    return found


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = weight.transpose(1, 2)
    return x @ product if bias is None else torch.baddbmm(bias.unsqueeze(1), x, product)


class _Linear(torch.autograd.Function):
    """Linear layer whose backward pass adds to given gradients.

    One matrix product computes and adds. Autograd would compute the transposed products first and
    then add them, which takes a quarter of a step of twenty perceptrons.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        of_weight: Tensor,
        of_bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sums = of_weight, of_bias
        return _linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients  # (M, N, D)
        x, weight = ctx.saved_tensors
        of_weight, of_bias = ctx.sums
        of_weight.baddbmm_(g.transpose(1, 2), x)
        if of_bias is not None:
            of_bias += g.sum(1)
        return (g @ weight if ctx.needs_input_grad[0] else None), None, None, None, None
