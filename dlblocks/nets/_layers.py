"""Activations by name, and initial weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

from dlblocks._errors import check_choice

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}
Init = Literal["kaiming", "xavier"]


def make_activation(name: str) -> nn.Module:
    """Return a new activation by its name in `ACTIVATIONS`."""
    check_choice("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def init_weights(module: nn.Module, init: Init | None, activation: str) -> None:
    """Initialize all linear and convolutional layers in place.

    ``"kaiming"``: normal with standard deviation gain / √fan_in (He et al. 2015), with the gain of
    `activation` (√2 for ReLU and its smooth relatives). ``"xavier"``: uniform in ±
    gain · √(6 / (fan_in + fan_out)) (Glorot and Bengio 2010). The last linear layer has no
    activation after it, and gain 1. Biases become 0. None leaves torch's default.
    """
    if init is None:
        return
    check_choice("init", init, ["kaiming", "xavier"])
    layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    for layer in layers:
        gain = 1.0 if layer is layers[-1] else _gain(activation)
        if init == "kaiming":
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=gain / fan_in**0.5)
        else:
            nn.init.xavier_uniform_(layer.weight, gain=gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _gain(activation: str) -> float:
    if activation in ("tanh", "sigmoid", "selu"):
        return nn.init.calculate_gain(activation)  # type: ignore[arg-type]
    if activation == "leaky_relu":
        return nn.init.calculate_gain("leaky_relu", 0.01)
    return 1.0 if activation == "identity" else nn.init.calculate_gain("relu")
