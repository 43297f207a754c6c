"""The multi-layer perceptron (Rumelhart, Hinton and Williams 1986)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dlblocks.errors import check_choice, check_range
from dlblocks.nets.layers import Init, init_weights, make_activation


class MLP(nn.Module):
    """Layers of linear – norm – activation – dropout, then a linear layer.

    Args:
        in_features: Values in one input; everything after the first axis is flattened.
        out_features: Values in one output.
        hidden: Widths of the hidden layers; empty for a linear model.
        activation: Name of the activation; see `dlblocks.nets.layers.ACTIVATIONS`.
        norm: ``"batch"`` (Ioffe and Szegedy 2015), ``"layer"`` (Ba et al. 2016) or None.
        dropout: Probability in [0, 1) with which a hidden unit is zeroed in training
            (Srivastava et al. 2014).
        init: ``"kaiming"``, ``"xavier"`` or None; see `dlblocks.nets.layers.init_weights`.

    Shape:
        Input (N, ...) with `in_features` values after the first axis; output (N, out_features).

    Raises:
        ValueError: An argument is out of range, or an input has another number of values.

    Example:
        >>> import torch
        >>> MLP(64, 10, hidden=[128, 128])(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: Sequence[int] = (256,),
        activation: str = "relu",
        norm: Literal["batch", "layer"] | None = None,
        dropout: float = 0.0,
        init: Init | None = "kaiming",
    ) -> None:
        super().__init__()
        check_range("in_features", in_features, 1)
        check_range("out_features", out_features, 1)
        check_range("dropout", dropout, 0, 1, high_open=True)
        if norm is not None:
            check_choice("norm", norm, ["batch", "layer"])
        if isinstance(hidden, int):
            raise TypeError(f"hidden={hidden} must be a list of widths, such as [{hidden}].")
        for width in hidden:
            check_range("hidden", width, 1)
        self.in_features = in_features
        widths = [in_features, *hidden]
        layers: list[nn.Module] = []
        for fan_in, width in itertools.pairwise(widths):
            # Batch norm subtracts the mean, and with it any bias before it.
            layers.append(nn.Linear(fan_in, width, bias=norm != "batch"))
            if norm is not None:
                layers.append(nn.BatchNorm1d(width) if norm == "batch" else nn.LayerNorm(width))
            layers.append(make_activation(activation))
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(widths[-1], out_features))
        self.layers = nn.Sequential(*layers)
        init_weights(self, init, activation)

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs.flatten(1)  # (N, in_features)
        if not torch.jit.is_scripting() and x.shape[1] != self.in_features:
            self.check_input(tuple(inputs.shape[1:]))
        return self.layers(x)  # (N, out_features)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raises a `ValueError` unless an input of `shape`, without the batch axis, fits."""
        found = math.prod(shape)
        if found != self.in_features:
            raise ValueError(
                f"in_features={self.in_features}, but one input has shape {shape}, that is "
                f"{found} values; set in_features={found}."
            )
