"""Optimizers by their textbook names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dlblocks._errors import check_range, did_you_mean, plain_numbers
from dlblocks.optim.adamp import AdamP
from dlblocks.optim.lion import Lion
from dlblocks.optim.param_groups import GROUP_ARGS, check_group_args, param_groups
from dlblocks.optim.sgdp import SGDP


@dataclass(frozen=True)
class OptimizerSpec:
    """Meaning of a name.

    Attributes:
        cls: The class.
        lr: Default learning rate: the paper's where it gives one, else torch's.
        paper: Source.
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
    "nadam": OptimizerSpec(torch.optim.NAdam, 0.002, "Dozat 2016"),
    "radam": OptimizerSpec(torch.optim.RAdam, 0.001, "Liu et al. 2020"),
    "adamp": OptimizerSpec(AdamP, 0.001, "Heo et al. 2021"),
    "sgdp": OptimizerSpec(SGDP, 0.1, "Heo et al. 2021", {"momentum": 0.9, "nesterov": True}),
    "lion": OptimizerSpec(Lion, 1e-4, "Chen et al. 2023"),
    "lbfgs": OptimizerSpec(
        torch.optim.LBFGS, 1.0, "Liu and Nocedal 1989", {"line_search_fn": "strong_wolfe"}
    ),
}
# Modules that a class path may name. A checkpoint names its optimizer, and may import no other.
HOMES: dict[str, Mapping[str, Any]] = {
    "torch.optim": vars(torch.optim),
    "dlblocks.optim": {"AdamP": AdamP, "SGDP": SGDP, "Lion": Lion},
}


def optimizer_spec(name: str) -> OptimizerSpec:
    """Return the meaning of a name of `OPTIMIZERS`, or of a class path.

    Raises:
        ValueError: The name is not known.

    >>> optimizer_spec("torch.optim.Adamax").lr
    0.002
    """
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    home, _, attribute = str(name).rpartition(".")
    found = {key: cls for key, cls in HOMES.get(home, {}).items() if _is_optimizer(cls)}
    if attribute in found:
        lr = inspect.signature(found[attribute]).parameters["lr"].default
        return OptimizerSpec(found[attribute], float(lr), "")
    known = [f"{home}.{key}" for key in found] or [*OPTIMIZERS, "torch.optim.<class>"]
    hint = did_you_mean(name, known) or "."
    raise ValueError(f"optimizer={name!r} is not known{hint} Choose from: {', '.join(known)}.")


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer


def check_optimizer(
    name: str, args: Mapping[str, Any] | None = None, *, weight_decay: float = 0.0
) -> None:
    """Raise a `ValueError` if an optimizer or its arguments are not known.

    >>> check_optimizer("adam", {"momentum": 0.9})
    Traceback (most recent call last):
    ValueError: optimizer_args has 'momentum', which adam does not take; it takes amsgrad, betas, \
capturable, decoupled_weight_decay, differentiable, eps, foreach, fused, layer_blocks, \
layer_decay, lr_groups, maximize, skip_norm_bias.
    """
    spec = optimizer_spec(name)
    args = dict(args or {})
    parameters = inspect.signature(spec.cls).parameters
    own = {"params": "the model's", "lr": "lr=", "weight_decay": "weight_decay="}
    known = sorted({*parameters, *_group_args(spec)} - own.keys())
    for key in args:
        if key in own:
            raise ValueError(f"optimizer_args has {key!r}; give it as {own[key]} instead.")
        if key not in known:
            hint = did_you_mean(key, known) or f"; it takes {', '.join(known)}."
            raise ValueError(f"optimizer_args has {key!r}, which {name} does not take{hint}")
    if weight_decay and "weight_decay" not in parameters:
        raise ValueError(
            f"weight_decay={weight_decay}, but {name} has none; use weight_decay=0"
            + (", or callbacks.WeightPenalty." if name == "lbfgs" else ".")
        )
    check_group_args(args)
    if args:  # let the class check their values, on a weight of one number
        weight = nn.Parameter(torch.zeros(1, 1))
        arguments = _class_args(spec, args)
        try:
            spec.cls([weight], lr=1e-3, **arguments)  # type: ignore[call-arg]
        except (TypeError, ValueError, RuntimeError) as error:
            raise type(error)(f"optimizer_args={args}, which {name} refuses: {error}") from error


def _group_args(spec: OptimizerSpec) -> tuple[str, ...]:
    return () if spec.cls is torch.optim.LBFGS else GROUP_ARGS  # it has one group


def _class_args(spec: OptimizerSpec, args: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {key: plain_numbers(v) for key, v in args.items() if key not in GROUP_ARGS}
    if isinstance(arguments.get("betas"), list):  # from YAML or a checkpoint
        arguments["betas"] = tuple(arguments["betas"])
    return {**spec.args, **arguments}


def make_optimizer(
    name: str,
    module: nn.Module,
    *,
    lr: float | None = None,
    weight_decay: float = 0.0,
    args: Mapping[str, Any] | None = None,
) -> Optimizer:
    """Create an optimizer of the trainable parameters of `module`.

    ========  =======================================  ======  ============================
    name      class, and what the name implies         lr      paper
    ========  =======================================  ======  ============================
    sgd       SGD                                      0.01    Robbins and Monro 1951
    momentum  SGD, momentum 0.9                        0.01    Polyak 1964
    nesterov  SGD, Nesterov momentum 0.9               0.01    Nesterov 1983
    adagrad   Adagrad                                  0.01    Duchi, Hazan and Singer 2011
    adadelta  Adadelta, rho 0.95                       1.0     Zeiler 2012
    rmsprop   RMSprop, alpha 0.9                       0.001   Hinton 2012 (lecture 6e)
    adam      Adam, betas (0.9, 0.999)                 0.001   Kingma and Ba 2015
    adamw     AdamW, betas (0.9, 0.999)                0.001   Loshchilov and Hutter 2019
    nadam     NAdam, betas (0.9, 0.999)                0.002   Dozat 2016
    radam     RAdam, betas (0.9, 0.999)                0.001   Liu et al. 2020
    adamp     AdamP, betas (0.9, 0.999), delta 0.1     0.001   Heo et al. 2021
    sgdp      SGDP, Nesterov momentum 0.9, delta 0.1   0.1     Heo et al. 2021
    lion      Lion, betas (0.9, 0.99)                  0.0001  Chen et al. 2023
    lbfgs     LBFGS, strong Wolfe line search          1.0     Liu and Nocedal 1989
    ========  =======================================  ======  ============================

    AdamP, SGDP and Lion are from `dlblocks.optim`, the others from `torch.optim`. Other classes of
    torch are available by their path, such as ``"torch.optim.Adamax"``, with their own defaults.

    Weight decay is decoupled in ``adamw``, ``adamp``, ``sgdp`` and ``lion``. The other classes add
    it to the gradient, as an L2 penalty. Norms, biases, class tokens and position embeddings do not
    decay. ``lbfgs`` has neither decay nor groups, and computes the loss several times a step.

    Args:
        name: A name of the table, or a class path.
        module: Module to train.
        lr: Learning rate; None for that of the table.
        weight_decay: Decay of the weights.
        args: Further arguments of the class, which replace those of the table. ``lr_groups``,
            ``layer_decay``, ``layer_blocks`` and ``skip_norm_bias`` go to `param_groups`.

    Raises:
        ValueError: Unknown name or argument, negative rate, or nothing to train.

    Example:
        >>> type(make_optimizer("nesterov", nn.Linear(2, 2), lr=0.1)).__name__
        'SGD'
    """
    args = dict(args or {})
    check_optimizer(name, args, weight_decay=weight_decay)
    spec = optimizer_spec(name)
    lr = spec.lr if lr is None else lr
    check_range("lr", lr, 0)
    groups = param_groups(
        module,
        weight_decay,
        lr=lr,
        **{key: value for key, value in args.items() if key in GROUP_ARGS},
    )
    arguments = _class_args(spec, args)
    if spec.cls is torch.optim.LBFGS:
        params = [p for group in groups for p in group["params"]]
        return spec.cls(params, lr=lr, **arguments)
    if "weight_decay" not in inspect.signature(spec.cls).parameters:
        for group in groups:
            del group["weight_decay"]
    return spec.cls(groups, lr=lr, **arguments)  # type: ignore[call-arg]
