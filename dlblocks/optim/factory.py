"""Optimizers by their textbook names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dlblocks.errors import check_choice, check_range, did_you_mean
from dlblocks.optim.param_groups import param_groups


@dataclass(frozen=True)
class OptimizerSpec:
    """What a name stands for.

    Attributes:
        cls: The class.
        lr: Default learning rate: the paper's where it gives one, else torch's.
        paper: Where it comes from.
        args: Arguments that the name implies.
    """

    cls: type[Optimizer]
    lr: float
    paper: str
    args: Mapping[str, Any] = field(default_factory=dict)


OPTIMIZERS: dict[str, OptimizerSpec] = {
    "sgd": OptimizerSpec(torch.optim.SGD, 0.01, "Robbins and Monro 1951"),
    "momentum": OptimizerSpec(torch.optim.SGD, 0.01, "Polyak 1964", {"momentum": 0.9}),
    "nesterov": OptimizerSpec(
        torch.optim.SGD, 0.01, "Nesterov 1983", {"momentum": 0.9, "nesterov": True}
    ),
    "adagrad": OptimizerSpec(torch.optim.Adagrad, 0.01, "Duchi, Hazan and Singer 2011"),
    "adadelta": OptimizerSpec(torch.optim.Adadelta, 1.0, "Zeiler 2012", {"rho": 0.95}),
    "rmsprop": OptimizerSpec(torch.optim.RMSprop, 0.001, "Hinton 2012", {"alpha": 0.9}),
    "adam": OptimizerSpec(torch.optim.Adam, 0.001, "Kingma and Ba 2015"),
    "adamw": OptimizerSpec(torch.optim.AdamW, 0.001, "Loshchilov and Hutter 2019"),
    "radam": OptimizerSpec(torch.optim.RAdam, 0.001, "Liu et al. 2020"),
}


def check_optimizer(name: str, args: Mapping[str, Any] | None = None) -> None:
    """Raises a `ValueError` if there is no such optimizer, or it has no such argument.

    >>> check_optimizer("adam", {"momentum": 0.9})
    Traceback (most recent call last):
    ValueError: optimizer_args has 'momentum', which adam does not take; it takes amsgrad, betas, \
capturable, decoupled_weight_decay, differentiable, eps, foreach, fused, maximize.
    """
    check_choice("optimizer", name, OPTIMIZERS)
    parameters = inspect.signature(OPTIMIZERS[name].cls).parameters
    own = {"params": "the model's", "lr": "lr=", "weight_decay": "weight_decay="}
    known = sorted(parameters.keys() - own.keys())
    for key in args or {}:
        if key in own:
            raise ValueError(f"optimizer_args has {key!r}; give it as {own[key]} instead.")
        if key not in known:
            hint = did_you_mean(key, known) or f"; it takes {', '.join(known)}."
            raise ValueError(f"optimizer_args has {key!r}, which {name} does not take{hint}")


def make_optimizer(
    name: str,
    module: nn.Module,
    *,
    lr: float | None = None,
    weight_decay: float = 0.0,
    args: Mapping[str, Any] | None = None,
) -> Optimizer:
    """Makes an optimizer of the trainable parameters of `module`.

    ========  ==========================  =======  ============================
    name      class of `torch.optim`      lr       paper
    ========  ==========================  =======  ============================
    sgd       SGD                         0.01     Robbins and Monro 1951
    momentum  SGD, momentum 0.9           0.01     Polyak 1964
    nesterov  SGD, Nesterov momentum 0.9  0.01     Nesterov 1983
    adagrad   Adagrad                     0.01     Duchi, Hazan and Singer 2011
    adadelta  Adadelta, rho 0.95          1.0      Zeiler 2012
    rmsprop   RMSprop, alpha 0.9          0.001    Hinton 2012 (lecture 6e)
    adam      Adam                        0.001    Kingma and Ba 2015
    adamw     AdamW                       0.001    Loshchilov and Hutter 2019
    radam     RAdam                       0.001    Liu et al. 2020
    ========  ==========================  =======  ============================

    Weight decay is what the class makes of it: added to the gradient, as an L2 penalty, in all but
    ``adamw``, where it is decoupled. Norms and biases do not decay.

    Args:
        name: A name of the table.
        module: What is trained.
        lr: Learning rate; None for the table's.
        weight_decay: Decay of the weights.
        args: Further arguments of the class, in place of the table's.

    Raises:
        ValueError: Unknown name or argument, negative rate, or nothing to train.

    Example:
        >>> type(make_optimizer("nesterov", nn.Linear(2, 2), lr=0.1)).__name__
        'SGD'
    """
    check_optimizer(name, args)
    spec = OPTIMIZERS[name]
    lr = spec.lr if lr is None else lr
    check_range("lr", lr, 0)
    groups = param_groups(module, weight_decay)
    arguments = {**spec.args, **(args or {})}
    if isinstance(arguments.get("betas"), list):  # as YAML and checkpoints have it
        arguments["betas"] = tuple(arguments["betas"])
    return spec.cls(groups, lr=lr, **arguments)  # type: ignore[call-arg]
