"""Which parameters decay, and which learn at a rate of their own."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dlblocks._errors import check_range, did_you_mean

# Arguments of `param_groups` that may stand among those of the optimizer.
GROUP_ARGS = ("layer_decay", "lr_groups", "skip_norm_bias")


def check_group_args(args: Mapping[str, Any]) -> None:
    """Raises a `ValueError` or `TypeError` if an argument of the groups is out of its range."""
    if not isinstance(args.get("skip_norm_bias", True), bool):
        raise TypeError(f"skip_norm_bias={args['skip_norm_bias']!r} must be True or False.")
    check_range("layer_decay", args.get("layer_decay", 1.0), 0, low_open=True)
    factors = args.get("lr_groups") or {}
    if not isinstance(factors, Mapping):
        raise TypeError(
            f"lr_groups={factors!r} must map names of parameters to factors of lr, as "
            "{'net.head': 10.0} does."
        )
    for pattern, factor in factors.items():
        check_range(f"lr_groups[{pattern!r}]", factor, 0)


def param_groups(
    module: nn.Module,
    weight_decay: float,
    *,
    skip_norm_bias: bool = True,
    lr: float | None = None,
    layer_decay: float = 1.0,
    lr_groups: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups the trainable parameters of `module` by their decay and learning rate.

    Decay shrinks what multiplies the input. Norms and biases (every parameter with at most one
    axis) shift and scale; decaying them only hurts the fit (He et al. 2019, "Bag of Tricks").

    Layer-wise decay of the learning rate (Howard and Ruder 2018): the last of L layers learns at
    `lr`, layer l = 1 … L at ``lr · layer_decay ** (L - l)``. A layer begins with each module that
    has a weight of two axes or more; the norms after it belong to it. Layers are in the order in
    which `module` holds them.

    Args:
        module: Its parameters with ``requires_grad`` are grouped; a shared one counts once.
        weight_decay: Decay of the weights, >= 0.
        skip_norm_bias: Leave norms and biases without decay.
        lr: Learning rate; needed where rates differ.
        layer_decay: Factor of the rate from one layer to the one before it, > 0.
        lr_groups: Factors of the rate by name: of a module or parameter, ``{"net.head": 10.0}``, or
            a pattern, ``{"net.*.bias": 2.0}``. Of several that fit, the last counts. They come on
            top of `layer_decay`.

    Returns:
        Groups ``{"params": [...], "weight_decay": ...}``, with ``"lr"`` where rates differ; none
        of them empty, in the order of the first parameter, those that decay first.

    Raises:
        ValueError: A negative number; a name that fits nothing; `module` has nothing to train.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> groups = param_groups(net, 0.1, lr=0.01, lr_groups={"1": 10.0})
        >>> [(g["weight_decay"], g["lr"]) for g in groups]
        [(0.1, 0.01), (0.1, 0.1), (0.0, 0.01), (0.0, 0.1)]
    """
    check_range("weight_decay", weight_decay, 0)
    check_group_args({"layer_decay": layer_decay, "lr_groups": lr_groups})
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError(f"{type(module).__name__} has no parameter with requires_grad to train.")
    factors = dict.fromkeys((name for name, _ in named), 1.0)
    if layer_decay != 1:
        layers = _layers(module)
        last = max(layers[name] for name in factors)
        factors = {name: layer_decay ** (last - layers[name]) for name in factors}
    for name, factor in _named_factors(module, lr_groups or {}).items():
        if name in factors:
            factors[name] *= factor
    if lr is None and set(factors.values()) != {1.0}:
        raise ValueError("layer_decay and lr_groups are factors of lr; give lr.")

    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, p in named:
        decay = weight_decay if p.ndim > 1 or not skip_norm_bias else 0.0
        group = groups.setdefault((decay, factors[name]), {"params": [], "weight_decay": decay})
        if lr is not None and set(factors.values()) != {1.0}:
            group["lr"] = lr * factors[name]
        group["params"].append(p)
    return sorted(groups.values(), key=lambda group: group["weight_decay"] == 0)


def _layers(module: nn.Module) -> dict[str, int]:
    """The layer of each parameter, by its name."""
    found: dict[str, int] = {}
    layer = 0
    for prefix, part in module.named_modules():
        own = list(part.named_parameters(recurse=False))
        layer += any(p.ndim > 1 for _, p in own)
        found.update((f"{prefix}.{name}" if prefix else name, max(1, layer)) for name, _ in own)
    return found


def _named_factors(module: nn.Module, lr_groups: Mapping[str, float]) -> dict[str, float]:
    every = dict(module.named_parameters(remove_duplicate=False))
    # A shared parameter goes by its first name.
    first = {id(p): name for name, p in reversed(list(module.named_parameters()))}
    found: dict[str, float] = {}
    for pattern, factor in lr_groups.items():
        fits = [n for n in every if n.startswith(f"{pattern}.") or fnmatchcase(n, pattern)]
        if not fits:
            known = [*every, *(name for name, _ in module.named_modules() if name)]
            hint = (
                did_you_mean(pattern, known)
                or f"; the parameters are {', '.join(list(every)[:8])}, …"
            )
            raise ValueError(
                f"lr_groups has {pattern!r}, the name of no parameter of "
                f"{type(module).__name__}{hint}"
            )
        found.update((first[id(every[name])], float(factor)) for name in fits)
    return found


def describe(module: nn.Module, optimizer: Optimizer | None = None) -> str:
    """A table of the groups of parameters: learning rate, weight decay, and who is in each.

    Args:
        module: A model of this package, or any module.
        optimizer: Its optimizer; None for the one that a model of this package will train with.

    Raises:
        TypeError: `module` is no model of this package and `optimizer` is missing.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        >>> optimizer = make_optimizer("adamw", net, weight_decay=0.1)  # doctest: +SKIP
        >>> print(describe(net, optimizer))  # doctest: +SKIP
        AdamW
        group     lr  weight_decay  tensors  values  parameters
        0      0.001           0.1        2      48  0.weight, 1.weight
        1      0.001             0        2      10  0.bias, 1.bias
    """
    if optimizer is None:
        make = getattr(module, "make_optimizer", None)
        if not callable(make):
            raise TypeError(
                f"{type(module).__name__} does not say how it is trained; give its optimizer, "
                "describe(module, optimizer)."
            )
        optimizer = make()
        assert isinstance(optimizer, Optimizer)  # for the type checker
    names = {id(p): name for name, p in reversed(list(module.named_parameters()))}
    rows = [["group", "lr", "weight_decay", "tensors", "values", "parameters"]]
    for i, group in enumerate(optimizer.param_groups):
        params = group["params"]
        shown = [names.get(id(p), "?") for p in params]
        if len(shown) > 4:
            shown = [*shown[:2], "…", shown[-1]]
        decay = float(group.get("weight_decay", 0))
        counts = [str(len(params)), str(sum(p.numel() for p in params))]
        rows.append(
            [str(i), f"{float(group['lr']):.4g}", f"{decay:.4g}", *counts, ", ".join(shown)]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [type(optimizer).__name__]
    for first, *numbers, last in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells, last]))
    return "\n".join(lines)
