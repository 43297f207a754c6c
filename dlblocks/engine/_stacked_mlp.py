"""Compute many perceptrons by batched matrix products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dlblocks.models.model import Model
from dlblocks.nets import MLP

# Each output value of these layers depends on one input value only.
POINTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Identity,
)  # fmt: skip


Tensors = Mapping[str, Tensor]


def dense_layers(model: Model) -> list[tuple[str, nn.Module]] | None:
    """Return the named layers of a model's plain `MLP`.

    None if the model has another net, embeddings, hooks, or a `forward` of its own.
    """
    net = model.net
    if type(net) is not MLP or net.embeddings or type(model).forward is not Model.forward:
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
    """Compute M perceptrons on their inputs (M, N, ...).

    Args:
        layers: Layers of one of them, in the mode to be used.
        inputs: Each perceptron's own inputs.
        tensors: Stacked parameters and buffers by name. Running statistics are updated in place.
        gradients: Gradients by name. The backward pass adds the gradients of linear layers to
            them directly; autograd does not handle these parameters.
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
            # One batch norm whose channels are the features of all models.
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


def _flat(stacked: Tensor | None) -> Tensor | None:
    return None if stacked is None else stacked.reshape(-1)


def _is_plain(layer: nn.BatchNorm1d) -> bool:
    return layer.track_running_stats and layer.momentum is not None


def _has_hooks(layer: nn.Module) -> bool:
    return any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks,
                layer._backward_pre_hooks))  # fmt: skip
