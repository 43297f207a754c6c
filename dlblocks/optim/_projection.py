"""The projection of AdamP and SGDP (Heo et al. 2021), and the step that both share.

The scale of a weight before a norm does not count, so its gradient is at right angles to it. A
momentum step is not: it makes the weight grow, and so the effective learning rate fall. The
projection removes the part of the step along the weight where the angle between weight and
gradient shows that the scale does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dlblocks.optim._base import BaseOptimizer, Columns, Group, descend_

HALF = (torch.float16, torch.bfloat16)
# Values updated together, and values of a temporary product: new memory is slow on a CPU.
BLOCK = 2**20
TEMPORARY = 2**17


class ProjectedOptimizer(BaseOptimizer):
    """A step along a direction that is projected where the weight is scale-invariant.

    Subclasses define `_directions` and perhaps `_decay`.
    """

    def _directions(self, group: Group, columns: Columns) -> list[Tensor]:
        """Updates the states in place and returns what is to be subtracted, without the rate."""
        raise NotImplementedError

    def _decay(self, group: Group) -> float:
        """Weight decay of a weight that is not projected, without the rate."""
        return float(group["weight_decay"])

    def _update(self, group: Group, lr: float | Tensor, columns: Columns) -> None:
        for block in _blocks(columns):
            self._update_block(group, lr, block)

    def _update_block(self, group: Group, lr: float | Tensor, columns: Columns) -> None:
        params, grads, *states = columns
        if params[0].dtype in HALF:  # eps, and squares of 5e-3, are 0 in float16
            wide = [[x.float() for x in tensors] for tensors in columns]
            self._update_block(group, lr, wide)
            for old, new in zip([params, *states], [wide[0], *wide[2:]], strict=True):
                torch._foreach_copy_(old, new)
            return
        directions = self._directions(group, columns)
        decay = lr * self._decay(group)
        rows = list(zip(directions, params, grads, strict=True))
        matrices = [row for row in rows if row[1].ndim > 1 and row[1].numel()]
        if matrices:
            directed, weights, their_grads = map(list, zip(*matrices, strict=True))
            delta, eps = group["delta"], group["eps"]
            projected = project_(directed, weights, their_grads, delta=delta, eps=eps)
        if matrices and group["weight_decay"]:
            share = 1 + (group["wd_ratio"] - 1) * projected.to(weights[0].dtype)
            torch._foreach_mul_(weights, list((1 - decay * share).unbind()))
        flat = [p for p in params if p.ndim < 2 and p.numel()]
        if flat and group["weight_decay"]:
            torch._foreach_mul_(flat, 1 - decay)
        descend_(params, directions, lr)


def project_(
    directions: list[Tensor],
    params: list[Tensor],
    grads: list[Tensor],
    *,
    delta: float,
    eps: float,
) -> Tensor:
    """Removes from each direction its part along a weight that looks scale-invariant, in place.

    It looks so if |cos(p, g)| < delta / √dim (Heo et al. 2021, eq. 12): first for all its rows, the
    output channels, with dim the values of a row; else for the whole weight. The direction d
    becomes d - p̂ (p̂·d) with p̂ = p / (|p| + eps), of each row or of the whole.

    Args:
        directions: The T directions d, with two axes or more.
        params: The weights p, of the same shapes.
        grads: Their gradients g, likewise.
        delta: The threshold.
        eps: The least norm.

    Returns:
        Which directions were projected, shape (T,).
    """
    # One value for each of the R rows of all weights, and the number of its weight.
    dots = _row_dots(params, grads)  # (R,)
    norms, grad_norms = _row_norms(params), _row_norms(grads)  # (R,)
    columns = torch.cat([p.new_full((len(p),), p[0].numel()) for p in params])  # (R,)
    owner = torch.cat(
        [torch.full((len(p),), i, device=p.device) for i, p in enumerate(params)]
    )  # (R,)

    def total(values: Tensor) -> Tensor:
        """Sums over the rows of each weight, (T,)."""
        return values.new_zeros(len(params)).index_add_(0, owner, values)

    whole = total(norms.square()).sqrt()  # (T,)
    whole_grad = total(grad_norms.square()).sqrt()
    cosines = dots.abs() / (norms.clamp_min(eps) * grad_norms.clamp_min(eps))  # (R,)
    whole_cosine = total(dots).abs() / (whole.clamp_min(eps) * whole_grad.clamp_min(eps))  # (T,)
    by_row = total((cosines >= delta / columns.sqrt()).to(dots.dtype)) == 0
    projected = by_row | (whole_cosine < delta / total(columns).sqrt())
    skip = projected.is_cpu and not torch.compiler.is_compiling()  # a GPU would have to wait
    if skip and not projected.any():
        return projected

    along = _row_dots(params, directions)
    along = torch.where(by_row[owner], along, total(along)[owner])
    norms = torch.where(by_row[owner], norms, whole[owner])
    radial = torch.where(projected[owner], along / (norms + eps).square(), 0.0)
    factors = radial.split([len(p) for p in params])
    shaped = [x.view(-1, *[1] * (p.ndim - 1)) for x, p in zip(factors, params, strict=True)]
    torch._foreach_addcmul_(directions, params, shaped, value=-1)
    return projected


def _row_dots(some: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Products of the rows of pairs of tensors, one after the other."""
    found = []
    for one, other in zip(some, others, strict=True):
        parts = [(one, other)]
        if one.numel() > TEMPORARY:
            rows = max(1, TEMPORARY // one[0].numel())
            parts = list(zip(one.split(rows), other.split(rows), strict=True))
        found += [(a * b).flatten(1).sum(1) for a, b in parts]
    return torch.cat(found)


def _row_norms(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim))) for x in tensors])


def _blocks(columns: Columns) -> Iterator[Columns]:
    """Splits equally long lists of tensors before `BLOCK` values are exceeded."""
    first = count = 0
    for i, p in enumerate(columns[0]):
        count += p.numel()
        if count > BLOCK and i > first:
            yield [column[first:i] for column in columns]
            first, count = i, p.numel()
    yield [column[first:] for column in columns]
