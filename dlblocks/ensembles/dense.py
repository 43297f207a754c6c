"""K perceptrons at once by batched matrix products, written out.

`torch.func.vmap` computes the same. Written out, a step of a small perceptron takes a quarter less:
bias and product are one operation, and the loss needs no rule that is interpreted in Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dlblocks.models.base import Model
from dlblocks.models.classification import Classifier
from dlblocks.models.regression import Regressor
from dlblocks.nets import MLP

# What these do to a value depends on that value alone.
POINTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Identity,
)  # fmt: skip
Tensors = Mapping[str, Tensor]
IGNORED = -100  # the default of dlblocks.losses.cross_entropy


def dense_layers(model: Model) -> list[tuple[str, nn.Module]] | None:
    """The layers of a model's perceptron with their names, or None if it has no plain one."""
    net = model.net
    if (
        type(net) is not MLP
        or net.embeddings
        or type(model).forward not in (Model.forward, Regressor.forward)
    ):
        return None
    known = (nn.Linear, nn.BatchNorm1d, nn.LayerNorm, nn.Dropout, *POINTWISE)
    layers = [(f"net.layers.{name}", layer) for name, layer in net.layers.named_children()]
    if any(type(layer) not in known or _has_hooks(layer) for _, layer in layers):
        return None
    if any(isinstance(x, nn.BatchNorm1d) and not _is_plain(x) for _, x in layers):
        return None
    return layers


def dense_forward(
    layers: list[tuple[str, nn.Module]],
    inputs: Tensor,
    tensors: Tensors,
    gradients: Tensors | None = None,
) -> Tensor:
    """Outputs (M, N, D) of M perceptrons for inputs (M, N, ...), each for its own.

    Args:
        layers: Those of one of them, in the mode to be used.
        inputs: The inputs.
        tensors: Parameters and buffers by name, stacked; running statistics are written into.
        gradients: Gradients by name: the backward pass adds those of linear layers to them, and
            autograd has nothing to do with these parameters.
    """
    gradients = gradients or {}
    x = inputs.flatten(2)  # (M, N, F)
    for name, layer in layers:
        weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
        if isinstance(layer, nn.Linear):
            assert weight is not None  # for the type checker
            sums = [gradients.get(f"{name}.{leaf}") for leaf in ("weight", "bias")]
            if sums[0] is None or (bias is not None and sums[1] is None):
                x = _linear(x, weight, bias)
            else:
                x = _Linear.apply(x, weight, bias, *sums)
        elif isinstance(layer, nn.BatchNorm1d):
            # The features of all models side by side are the channels of one batch norm.
            size = x.shape
            x = x.transpose(0, 1).reshape(size[1], -1)  # (N, M · F)
            mean, var = (tensors[f"{name}.running_{kind}"].view(-1) for kind in ("mean", "var"))
            weight, bias = _flat(weight), _flat(bias)
            momentum = layer.momentum or 0.0
            x = F.batch_norm(x, mean, var, weight, bias, layer.training, momentum, layer.eps)
            x = x.view(size[1], size[0], size[2]).transpose(0, 1)
            if layer.training:
                tensors[f"{name}.num_batches_tracked"].add_(1)
        elif isinstance(layer, nn.LayerNorm):
            x = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
            if weight is not None:
                x = x * weight.unsqueeze(1)
            if bias is not None:
                x = x + bias.unsqueeze(1)
        else:
            x = layer(x)
    return x


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = weight.transpose(1, 2)
    return x @ product if bias is None else torch.baddbmm(bias.unsqueeze(1), x, product)


class _Linear(torch.autograd.Function):
    """`_linear` whose backward pass adds to given gradients, within the matrix product itself.

    Autograd would make the products first, transposed, and add them then: for twenty perceptrons
    that takes a quarter of a step.
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


def dense_loss(model: Model, outputs: Tensor, targets: Tensor) -> Tensor | None:
    """Losses (M,) of outputs (M, N, C) and targets (M, N), or None where it is no plain one."""
    if type(model).loss is not Classifier.loss or model.class_weight is not None:
        return None
    assert isinstance(model, Classifier)  # for the type checker
    if targets.is_floating_point() or targets.ndim != 2:
        return None
    smoothing = model.label_smoothing if model.training else 0.0
    losses = F.cross_entropy(
        outputs.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=smoothing
    )
    counted = (targets != IGNORED).sum(1)
    return losses.view(targets.shape).sum(1) / counted


def _flat(stacked: Tensor | None) -> Tensor | None:
    return None if stacked is None else stacked.reshape(-1)


def _is_plain(layer: nn.BatchNorm1d) -> bool:
    return layer.track_running_stats and layer.momentum is not None


def _has_hooks(layer: nn.Module) -> bool:
    return any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks,
                layer._backward_pre_hooks))  # fmt: skip
