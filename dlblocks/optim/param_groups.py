"""Group parameters by weight decay and learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dlblocks._errors import check_range, did_you_mean

# Arguments of `param_groups` that `optimizer_args` may contain.
GROUP_ARGS = ("layer_blocks", "layer_decay", "lr_groups", "skip_norm_bias")

STACKS = (nn.Sequential, nn.ModuleList)
TABLES = (nn.Embedding, nn.EmbeddingBag)
# A parameter with one of these words in its name is added to its input, whatever its axes.
NO_WEIGHTS = {"bias", "pos", "position", "positional", "token", "tokens"}


def check_group_args(args: Mapping[str, Any]) -> None:
    """Raise an error if an argument of the groups is out of its range."""
    if not isinstance(args.get("skip_norm_bias", True), bool):
        raise TypeError(f"skip_norm_bias={args['skip_norm_bias']!r} must be True or False.")
    check_range("layer_decay", args.get("layer_decay", 1.0), 0, low_open=True)
    blocks = args.get("layer_blocks") or ()
    if isinstance(blocks, str) or not all(isinstance(pattern, str) for pattern in blocks):
        raise TypeError(
            f"layer_blocks={blocks!r} must be a list of names of modules, such as "
            "['net.layers.*', 'net.head']."
        )
    factors = args.get("lr_groups") or {}
    if not isinstance(factors, Mapping):
        raise TypeError(
            f"lr_groups={factors!r} must map names of parameters to factors of lr, such "
            "as {'net.head': 10.0}."
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
    layer_blocks: Sequence[str] | None = None,
    lr_groups: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups the trainable parameters of `module` by their decay and learning rate.

    Weight decay shrinks weights that multiply an input. Norms and biases only shift and scale, and
    their decay hurts the fit (He et al. 2019, "Bag of Tricks"). These are the parameters with at
    most one axis, those of layer norms, and those with one of the words bias, token, pos, position
    or positional in their own name: ``cls_token``, ``pos_embedding``,
    ``relative_position_bias_table``. The tables of `nn.Embedding` decay, as in BERT.

    `layer_decay` makes earlier blocks learn more slowly (Clark et al. 2020, ELECTRA; Bao et al.
    2022, BEiT). Block i = 0 … L learns at ``lr · layer_decay ** (L - i)``, so block L, the head,
    learns at `lr`. Blocks are numbered in the order of the modules:

    - Each entry of an `nn.Sequential` or `nn.ModuleList` is a block, such as an encoder layer of a
      transformer or a residual block of a ResNet. A stack inside a stack is split; a stack inside a
      block is not.
    - Each other module without a stack is a block: a patch embedding, a stem, a head.
    - Parameters of modules without weights, such as norms, belong to the block before. Class
      tokens, position embeddings and tables of `nn.Embedding` before the first block belong to
      block 0. After a table, the first block is block 1.

    In an MLP or CNN of this package, each linear layer or convolution is a block.

    Args:
        module: Its parameters with ``requires_grad`` are grouped; a shared one counts once.
        weight_decay: Decay of the weights, >= 0.
        skip_norm_bias: Leave norms and biases without decay.
        lr: Learning rate; needed where rates differ.
        layer_decay: Factor of the rate from one block to the one before it, > 0.
        layer_blocks: Names or patterns of the modules that start a block, instead of the rule
            above: ``["net.stages.*.blocks.*", "net.head"]``. A block ends where the next one
            starts. Modules inside a matching module do not count.
        lr_groups: Factors of the rate by name of a module or parameter, ``{"net.head": 10.0}``, or
            by pattern, ``{"net.*.bias": 2.0}``. If several match, the last counts. They multiply
            the factor of `layer_decay`.

    Returns:
        Groups ``{"params": [...], "weight_decay": ...}``, also with ``"lr"`` if rates differ, and
        the number ``"block"`` with `layer_decay`. No group is empty. Groups that decay come first,
        then the order is that of the first parameter.

    Raises:
        ValueError: A negative number, a name that matches nothing, or nothing to train.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> groups = param_groups(net, 0.1, lr=0.01, lr_groups={"1": 10.0})
        >>> [(g["weight_decay"], g["lr"]) for g in groups]
        [(0.1, 0.01), (0.1, 0.1), (0.0, 0.01), (0.0, 0.1)]
    """
    check_range("weight_decay", weight_decay, 0)
    check_group_args(
        {"layer_decay": layer_decay, "layer_blocks": layer_blocks, "lr_groups": lr_groups}
    )
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError(f"{type(module).__name__} has no parameter with requires_grad to train.")
    weights = _weights(module)
    factors = dict.fromkeys((name for name, _ in named), 1.0)
    blocks: dict[str, int] = {}
    if layer_decay != 1:
        blocks = _number_blocks(module, weights, layer_blocks)
        last = max(blocks[name] for name in factors)
        factors = {name: layer_decay ** (last - blocks[name]) for name in factors}
    for name, factor in _named_factors(module, lr_groups or {}).items():
        if name in factors:
            factors[name] *= factor
    if lr is None and set(factors.values()) != {1.0}:
        raise ValueError("layer_decay and lr_groups are factors of lr; give lr.")

    groups: dict[tuple[float, float, int | None], dict[str, Any]] = {}
    for name, p in named:
        decay = weight_decay if name in weights or not skip_norm_bias else 0.0
        key = (decay, factors[name], blocks.get(name))
        group = groups.setdefault(key, {"params": [], "weight_decay": decay})
        if lr is not None and set(factors.values()) != {1.0}:
            group["lr"] = lr * factors[name]
        if blocks:
            group["block"] = blocks[name]
        group["params"].append(p)
    return sorted(groups.values(), key=lambda group: group["weight_decay"] == 0)


def _weights(module: nn.Module) -> set[str]:
    """Return the names of the parameters that multiply an input."""
    found = set()
    for name, p in module.named_parameters():
        owner, _, own = name.rpartition(".")
        is_norm = isinstance(module.get_submodule(owner), (nn.LayerNorm, nn.RMSNorm))
        if p.ndim > 1 and not is_norm and NO_WEIGHTS.isdisjoint(own.split("_")):
            found.add(name)
    return found


def _number_blocks(
    module: nn.Module, weights: set[str], patterns: Sequence[str] | None
) -> dict[str, int]:
    """Return the number of the block of each parameter, by name."""
    starts = _named_blocks(module, patterns) if patterns else _blocks(module)
    tables = {n for n, m in module.named_modules() if isinstance(m, TABLES)}
    layers = [name for name in weights if name.rpartition(".")[0] not in tables]
    blocks = [s for s in starts if any(name.startswith(f"{s}.") for name in layers)]
    found: dict[str, int] = {}
    number, current, has_weights = 0, "", False
    # Parameters of a module are in sequence. A shared one has its first name.
    for name, _ in module.named_parameters():
        block = next((b for b in blocks if name.startswith(f"{b}.")), current)
        if block != current:
            number, current = number + has_weights, block
        found[name] = number
        has_weights |= name in weights
    return found


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yield the names of the modules that `param_groups` counts, in order."""
    children = [(name, part) for name, part in module.named_children() if _has_parameters(part)]
    for name, part in children:
        # An only child is the net of a model, or the original of a compiled net.
        is_wrapper = len(children) == 1 and any(map(_has_parameters, part.children()))
        is_wrapper |= any(map(_is_stack, part.modules()))
        if _is_stack(part) or (is_wrapper and not _is_stack(module)):
            yield from _blocks(part, f"{prefix}{name}.")
        else:
            yield prefix + name


def _named_blocks(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the names of the outermost modules that match a pattern."""
    names = [name for name, _ in module.named_modules() if name]
    found: list[str] = []
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = did_you_mean(pattern, names) or f"; the modules are {', '.join(names[:8])}, …"
            raise ValueError(
                f"layer_blocks has {pattern!r}, which matches no module of "
                f"{type(module).__name__}{hint}"
            )
    for name in names:
        is_inside = any(name.startswith(f"{block}.") for block in found)
        if not is_inside and any(fnmatchcase(name, pattern) for pattern in patterns):
            found.append(name)
    return found


def _is_stack(module: nn.Module) -> bool:
    # torch.nn.utils.parametrize keeps lists whose entries may have no parameters.
    return isinstance(module, STACKS) and any(map(_has_parameters, module.children()))


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _named_factors(module: nn.Module, lr_groups: Mapping[str, float]) -> dict[str, float]:
    every = dict(module.named_parameters(remove_duplicate=False))
    # A shared parameter has its first name.
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
                f"lr_groups has {pattern!r}, which matches no parameter of "
                f"{type(module).__name__}{hint}"
            )
        found.update((first[id(every[name])], float(factor)) for name in fits)
    return found


def describe(module: nn.Module, optimizer: Optimizer | None = None) -> str:
    """Return a table of the parameter groups.

    It shows learning rate, weight decay and parameters of each group, and with `layer_decay` the
    number of the block. The last block is the head.

    Args:
        module: A model of this package, or any module.
        optimizer: Its optimizer; None for the one that a model of this package will train with.

    Raises:
        TypeError: `module` is not a model of this package, and `optimizer` is missing.

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
                f"{type(module).__name__} does not create its optimizer; pass one, "
                "describe(module, optimizer)."
            )
        optimizer = make()
        assert isinstance(optimizer, Optimizer)  # for the type checker
    names = {id(p): name for name, p in reversed(list(module.named_parameters()))}
    has_blocks = any("block" in group for group in optimizer.param_groups)
    block = ["block"] if has_blocks else []
    rows = [["group", "lr", "weight_decay", *block, "tensors", "values", "parameters"]]
    for i, group in enumerate(optimizer.param_groups):
        params = group["params"]
        shown = [names.get(id(p), "?") for p in params]
        if len(shown) > 4:
            shown = [*shown[:2], "…", shown[-1]]
        decay = float(group.get("weight_decay", 0))
        counts = [str(len(params)), str(sum(p.numel() for p in params))]
        if has_blocks:
            counts.insert(0, str(group.get("block", "-")))
        rows.append(
            [str(i), f"{float(group['lr']):.4g}", f"{decay:.4g}", *counts, ", ".join(shown)]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = [type(optimizer).__name__]
    for first, *numbers, last in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells, last]))
    return "\n".join(lines)
