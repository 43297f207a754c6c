"""Losses that torch does not have, or has with a gap."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy whose value is the same for hard targets and for their one-hot rows.

    With class weights w, smoothing ε and targets y (one-hot, or soft rows that sum to 1)::

        y' = (1 - ε) y + ε / C
        loss = - Σ_i Σ_c w_c y'_ic log softmax(logits_i)_c  /  Σ_i Σ_c w_c y_ic

    torch's own divides by N for soft targets, not by their weight, so that the same batch has
    another loss once a mixing callback has made its targets soft. Without weights the two agree.

    Args:
        logits: Shape (N, C), floating point.
        targets: Classes, int64 of shape (N,), or soft targets, floating point of shape (N, C).
        weight: Weight of each class, shape (C,).
        label_smoothing: ε in [0, 1) (Szegedy et al. 2016).

    Returns:
        The mean loss, a scalar.

    Example:
        >>> import torch
        >>> logits, weight = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([1.0, 3.0])
        >>> hard = cross_entropy(logits, torch.tensor([0, 1]), weight=weight)
        >>> soft = cross_entropy(logits, torch.eye(2), weight=weight)
        >>> torch.allclose(hard, soft)
        True
    """
    loss = F.cross_entropy(logits, targets, weight=weight, label_smoothing=label_smoothing)
    if weight is None or not targets.is_floating_point():
        return loss
    # torch has divided the right sum by N; give it its own denominator.
    return loss * (len(targets) / (targets * weight).sum())
