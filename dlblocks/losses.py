"""Losses that torch lacks, or has with a gap."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dlblocks._errors import check_range

IGNORED = -100  # the label of ignored samples, as in torch


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORED,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Return a cross-entropy that is equal for classes and one-hot rows.

    With class weights w, smoothing ε, targets y (one-hot or soft rows) and their sums
    m_i = Σ_c y_ic, which are 1 for a sample that counts and 0 for an ignored one::

        y' = (1 - ε) y + ε m / C
        loss = - Σ_i Σ_c w_c y'_ic log softmax(logits_i)_c  /  Σ_i Σ_c w_c y_ic

    For soft targets torch's own loss divides by N, not by their weight, and cannot leave any out.
    So the same batch has another loss after a mixing callback has made its targets soft. A sample
    mixed with an ignored one counts by its own share.

    With weights s of samples, the term of sample i in the numerator is multiplied by s_i. The
    denominator stays: in batches of any size, a sample counts s_i times as much as one of weight 1.

    Args:
        logits: Shape (N, C) or (N, C, d1, ...), floating point.
        targets: Classes, int64 of shape (N,) or (N, d1, ...), or soft targets, floating point of
            the shape of `logits`.
        weight: Weight of each class, shape (C,).
        label_smoothing: ε in [0, 1) (Szegedy et al. 2016).
        ignore_index: The class index that does not count. Soft rows of zeros do not count either.
        sample_weight: Weight of each sample, shape (N,).

    Returns:
        The mean loss, a scalar. NaN, as in torch, if nothing counts.

    Example:
        >>> logits, weight = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([1.0, 3.0])
        >>> hard = cross_entropy(logits, torch.tensor([0, 1]), weight=weight)
        >>> soft = cross_entropy(logits, torch.eye(2), weight=weight)
        >>> torch.allclose(hard, soft)
        True
    """
    if sample_weight is None and not targets.is_floating_point():
        return F.cross_entropy(
            logits,
            targets,
            weight=weight,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
        )
    losses, counted = _cross_entropies(
        logits, targets, weight, label_smoothing, ignore_index, sample_weight
    )
    # Not the sum, which may overflow in float16.
    return losses.mean() * (losses.numel() / counted).to(losses.dtype)


def pixel_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = 255,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Compute `cross_entropy`, but 0 with a gradient of 0 if nothing counts.

    Example:
        >>> pixel_cross_entropy(torch.zeros(1, 2, 1, 1), torch.tensor([[[255]]]))
        tensor(0.)
    """
    losses, counted = _cross_entropies(
        logits, targets, weight, label_smoothing, ignore_index, sample_weight
    )
    return losses.sum() / _or_one(counted)


def _cross_entropies(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    sample_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the terms of `cross_entropy`, (N, ...), and its denominator."""
    if targets.is_floating_point():
        # Sum in float32 at least: in bf16 a sum of 257 ones is 256.
        dtype = torch.promote_types(targets.dtype, torch.float32)
        mass = targets.sum(1, keepdim=True, dtype=dtype)
        counted = mass.sum()
        if weight is not None:
            counted = (targets.sum([0, *range(2, targets.ndim)], dtype=dtype) * weight).sum()
        if label_smoothing:
            share = (label_smoothing / targets.shape[1]) * mass
            targets = targets * (1 - label_smoothing) + share.to(targets.dtype)
        losses = F.cross_entropy(logits, targets, weight=weight, reduction="none")
    else:
        known = targets != ignore_index
        counted = (known if weight is None else weight[targets.where(known, 0)] * known).sum()
        losses = F.cross_entropy(
            logits,
            targets,
            weight=weight,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            reduction="none",
        )
    if sample_weight is not None:
        losses = losses * _like(sample_weight, losses)
    return losses, counted


def _like(sample_weight: Tensor, losses: Tensor) -> Tensor:
    """Weights (N,) in the shape of losses (N, ...), to be broadcast."""
    return sample_weight.reshape(-1, *(1,) * (losses.ndim - 1))


def dice_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | None = None,
    smooth: float = 1.0,
    ignore_index: int = IGNORED,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Soft Dice loss of each sample, averaged over its classes (Milletari et al. 2016).

    With probabilities p, one-hot or soft targets y, and sums over the pixels that count::

        dice_c = (2 Σ p_c y_c + smooth) / (Σ p_c + Σ y_c + smooth)
        loss = Σ_c w_c (1 - dice_c) / Σ_c w_c

    A class that a sample lacks counts, too: what is predicted of it costs. Samples are averaged by
    how many of their pixels count, so that those without any have no part in it.

    Args:
        logits: Shape (N, C, d1, ...), floating point.
        targets: Classes, integers of shape (N, d1, ...), or soft, of the shape of `logits`.
        weight: Weight w of each class, shape (C,).
        smooth: Keeps small objects from jumping, and classes that are nowhere at a loss of 0.
        ignore_index: The class index that does not count. Among soft targets, rows of zeros do not.
        sample_weight: Factor of each sample's loss, shape (N,).

    Returns:
        The mean loss, a scalar; 0 if nothing counts.

    Example:
        >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])  # one sample, two classes, two pixels
        >>> dice_loss(logits, torch.tensor([[0, 0]]))  # 1 - 3 / 4 and 1 - 1 / 2, on average
        tensor(0.3750)
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    rows = targets
    if not targets.is_floating_point():
        classes = torch.arange(logits.shape[1], device=logits.device)
        labels = targets.where(targets != ignore_index, -1).unsqueeze(1)
        rows = labels == classes.view(-1, *(1,) * (logits.ndim - 2))
    rows = rows.to(logits.dtype)
    known = rows.sum(1, keepdim=True)  # (N, 1, ...), 1 where a pixel counts
    probabilities = logits.softmax(1) * known
    overlap = (probabilities * rows).flatten(2).sum(2)  # (N, C)
    both = (probabilities + rows).flatten(2).sum(2)
    losses = 1 - (2 * overlap + smooth) / (both + smooth)
    losses = losses.mean(1) if weight is None else (losses * weight).sum(1) / weight.sum()
    counts = known.flatten(1).sum(1)
    mass = counts if sample_weight is None else counts * sample_weight
    return (losses * mass).sum() / _or_one(counts.sum())


def focal_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: int = IGNORED,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy that counts easy samples, or pixels, for less (Lin et al. 2017).

    With probabilities p, and one-hot or soft targets y::

        loss = - Σ_i Σ_c w_c y_ic (1 - p_ic)^γ log p_ic  /  Σ_i Σ_c w_c y_ic

    With γ = 0 it is the cross-entropy.

    Args:
        logits: Shape (N, C) or (N, C, d1, ...), floating point.
        targets: As for `cross_entropy`.
        gamma: γ >= 0.
        weight: Weight w of each class, shape (C,), the α of the paper.
        ignore_index: The class index that does not count. Among soft targets, rows of zeros do not.
        sample_weight: Factor of each sample's terms in the sum, shape (N,).

    Returns:
        The mean loss, a scalar; 0 if nothing counts.

    Example:
        >>> logits, target = torch.zeros(1, 2), torch.tensor([1])
        >>> focal_loss(logits, target, gamma=0.0), focal_loss(logits, target)
        (tensor(0.6931), tensor(0.1733))
    """
    check_range("gamma", gamma, 0)
    logs = logits.log_softmax(1, torch.promote_types(logits.dtype, torch.float32))
    if targets.is_floating_point():
        shares = targets.to(logs.dtype)
        if weight is not None:
            shares = shares * weight.view(-1, *(1,) * (logits.ndim - 2))
        losses = (shares * _focal(logs, gamma)).sum(1)
        mass = shares.sum(1)
    else:
        known = targets != ignore_index
        labels = targets.where(known, 0)
        own = logs.gather(1, labels.unsqueeze(1).long()).squeeze(1)
        mass = known.to(logs.dtype) if weight is None else weight[labels] * known
        losses = mass * _focal(own, gamma)
    if sample_weight is not None:
        losses = losses * _like(sample_weight, losses)
    return losses.sum() / _or_one(mass.sum())


def _focal(logs: Tensor, gamma: float) -> Tensor:
    """``-(1 - p)^γ log p`` of log p; the power of γ < 1 has no gradient at p = 1."""
    return -((-logs.expm1()).clamp(min=torch.finfo(logs.dtype).tiny) ** gamma) * logs


def _or_one(count: Tensor) -> Tensor:
    """What a sum is divided by: 1 where nothing counts, so that loss and gradient are 0."""
    return torch.where(count > 0, count, torch.ones_like(count))


def binary_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Return the binary cross-entropy of labels, smoothed or partly unknown.

    With smoothing ε, labels y in [0, 1] and the weight p of the positive side::

        y' = (1 - ε) y + ε / 2
        loss = - mean [ p y' log σ(logit) + (1 - y') log (1 - σ(logit)) ]

    Args:
        logits: Any shape, floating point.
        targets: Labels in [0, 1] of the same shape, floating point, integers or bool.
        pos_weight: p of each label, broadcast against `logits`.
        label_smoothing: ε in [0, 1).
        ignore_index: The value of unknown labels, which do not count, such as -1.
        sample_weight: Factor of each sample's terms in the sum, shape (N,). The denominator stays.

    Returns:
        The mean over all labels that count, a scalar; NaN if none does.

    Raises:
        ValueError: `targets` and `logits` differ in shape, or ε lies outside [0, 1).

    Example:
        >>> logits = torch.tensor([[0.0, 0.0]])
        >>> binary_cross_entropy(logits, torch.tensor([[1, -1]]), ignore_index=-1)
        tensor(0.6931)
    """
    check_range("label_smoothing", label_smoothing, 0, 1, high_open=True)
    if targets.shape != logits.shape:
        raise ValueError(
            f"binary_cross_entropy expects targets of the logits' shape {tuple(logits.shape)}, got "
            f"{tuple(targets.shape)}; for class indices use cross_entropy."
        )
    smooth = targets.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    if ignore_index is None and sample_weight is None:
        return F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=pos_weight)
    loss = F.binary_cross_entropy_with_logits(
        logits, smooth, pos_weight=pos_weight, reduction="none"
    )
    if sample_weight is not None:
        loss = loss * _like(sample_weight, loss)
    if ignore_index is None:
        return loss.mean()
    known = targets != ignore_index
    return loss.where(known, 0).sum() / known.sum()


class MixedTargets(NamedTuple):
    """Targets of a mixed batch, for losses that take hard targets.

    Attributes:
        first: Targets of the samples themselves, shape (N, ...), as they were.
        second: Targets of their partners, of the same shape.
        lam: Share of the samples themselves, floating point, shape (N,).
    """

    first: Tensor
    second: Tensor
    lam: Tensor


def mixed_loss(
    loss_fn: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor | MixedTargets
) -> Tensor:
    """Return the mean loss of a batch with mixed or other targets.

    ``MixUp(targets="pair")`` makes `MixedTargets`. For these it is the mean of
    ``lam * loss_fn(outputs, first) + (1 - lam) * loss_fn(outputs, second)``, for other targets the
    mean of ``loss_fn(outputs, targets)``. So one line serves training and validation.

    Args:
        loss_fn: Returns a loss for each sample, shape (N,) or (N, d1, ...): ``reduction="none"``.
        outputs: The net's outputs, shape (N, ...).
        targets: Targets of any kind that `loss_fn` takes, or `MixedTargets`.

    Raises:
        ValueError: `loss_fn` returns one number for a mixed batch, but each sample has a share.

    Example:
        >>> def loss_fn(outputs, targets):
        ...     return torch.nn.functional.nll_loss(outputs, targets, reduction="none")
        >>> log_p = torch.tensor([[-1.0, -3.0]])
        >>> mixed = MixedTargets(torch.tensor([0]), torch.tensor([1]), torch.tensor([0.75]))
        >>> mixed_loss(loss_fn, log_p, mixed), mixed_loss(loss_fn, log_p, torch.tensor([1]))
        (tensor(1.5000), tensor(3.))
    """
    if not isinstance(targets, MixedTargets):
        return loss_fn(outputs, targets).mean()
    first, second = loss_fn(outputs, targets.first), loss_fn(outputs, targets.second)
    if first.ndim == 0 or len(first) != len(targets.lam):
        raise ValueError(
            f"mixed_loss needs one loss for each sample, shape ({len(targets.lam)}, ...), but "
            f"loss_fn gave shape {tuple(first.shape)}; set reduction='none' in it."
        )
    lam = targets.lam.to(first.dtype).reshape(-1, *(1,) * (first.ndim - 1))
    return torch.lerp(second, first, lam).mean()
