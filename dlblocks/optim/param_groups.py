"""Which parameters decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from dlblocks.errors import check_range


def param_groups(
    module: nn.Module, weight_decay: float, *, skip_norm_bias: bool = True
) -> list[dict[str, Any]]:
    """Groups the trainable parameters of `module`: those that decay, and norms and biases.

    Decay shrinks what multiplies the input. Norms and biases (every parameter with at most one
    axis) shift and scale; decaying them only hurts the fit (He et al. 2019, "Bag of Tricks").

    Args:
        module: Its parameters with ``requires_grad`` are grouped; a shared one counts once.
        weight_decay: Decay of the first group, >= 0.
        skip_norm_bias: Leave norms and biases without decay.

    Returns:
        One or two groups ``{"params": [...], "weight_decay": ...}``, none of them empty.

    Raises:
        ValueError: `weight_decay` is negative, or `module` has nothing to train.

    Example:
        >>> [g["weight_decay"] for g in param_groups(nn.Linear(2, 2), 0.1)]
        [0.1, 0.0]
    """
    check_range("weight_decay", weight_decay, 0)
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(f"{type(module).__name__} has no parameter with requires_grad to train.")
    if not skip_norm_bias or weight_decay == 0:
        return [{"params": trainable, "weight_decay": weight_decay}]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
