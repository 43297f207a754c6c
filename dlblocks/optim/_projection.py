"""Take projected steps, for AdamP and SGDP (Heo et al. 2021).

The scale of a weight before a norm does not matter, so its gradient is at right angles to it. A
momentum step is not: the weight grows, and the effective learning rate falls. The projection
removes the part of the step along the weight. It applies where the angle between weight and
gradient shows that the scale does not matter.

Most weights of nets without norms are not projected. On a CPU, only the others pay for the
projection. A GPU projects all, with factors of 0, because it would have to wait for the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlblocks.optim._base import BaseOptimizer, Columns, Group, descend_

HALF = (torch.float16, torch.bfloat16)
PIECE = 2**17  # values multiplied at once on a CPU: the products stay in its cache
# NumPy multiplies rows without writing the products, in a third of torch's time, but with one
# thread only.
NUMPY_THREADS = 2
SMALL = 2**15  # values of matrices that are copied into one, to save calls


class ProjectedOptimizer(BaseOptimizer):
    """Base of optimizers that project steps of scale-invariant weights.

    Subclasses define `_directions` and perhaps `_decay` and `_step_unprojected`.
    """

    def _directions(self, group: Group, columns: Columns) -> list[Tensor]:
        """Update the states and return the steps, without the rate."""
        raise NotImplementedError

    def _decay(self, group: Group) -> float:
        """Return the decay of weights that are not projected, without the rate."""
        return float(group["weight_decay"])

    def _update(self, group: Group, lr: float | Tensor, columns: Columns) -> None:
        params, grads, *states = columns
        if params[0].dtype in HALF:  # eps, and squares of 5e-3, are 0 in float16
            wide = [[x.float() for x in tensors] for tensors in columns]
            self._update(group, lr, wide)
            for old, new in zip([params, *states], [wide[0], *wide[2:]], strict=True):
                torch._foreach_copy_(old, new)
            return
        projected = [i for i, p in enumerate(params) if p.ndim > 1 and p.numel()]
        if projected:
            weights, their_grads = [params[i] for i in projected], [grads[i] for i in projected]
            found = find_projection(weights, their_grads, delta=group["delta"], eps=group["eps"])
            # A GPU would first have to finish all queued work.
            if params[0].is_cpu and not torch.compiler.is_compiling():
                applies = found.applies.tolist()
                projected = [i for i, yes in zip(projected, applies, strict=True) if yes]
                found = found.where_it_applies()
        others = sorted(set(range(len(params))) - set(projected))
        if others:
            self._step_unprojected(group, lr, [[c[i] for i in others] for c in columns])
        if projected:
            self._step_projected(group, lr, [[c[i] for i in projected] for c in columns], found)

    def _step_unprojected(self, group: Group, lr: float | Tensor, columns: Columns) -> None:
        """Update parameters without a projection, and their states, in place."""
        directions = self._directions(group, columns)
        if group["weight_decay"]:
            torch._foreach_mul_(columns[0], 1 - lr * self._decay(group))
        descend_(columns[0], directions, lr)

    def _step_projected(
        self, group: Group, lr: float | Tensor, columns: Columns, projection: Projection
    ) -> None:
        """Update weights with a projection, and their states, in place."""
        params = columns[0]
        directions = self._directions(group, columns)
        project_(directions, params, projection, eps=group["eps"])
        if group["weight_decay"]:
            decay = lr * self._decay(group)
            saved = projection.applies.to(params[0].dtype) * (decay * (1 - group["wd_ratio"]))
            torch._foreach_mul_(params, list((saved + (1 - decay)).unbind()))
        descend_(params, directions, lr)


class Projection(NamedTuple):
    """Result of the test of T weights, which have R rows together.

    Attributes:
        by_row: True for weights whose rows all look scale-invariant, shape (T,).
        applies: True for weights whose direction is projected, by row or as a whole, shape (T,).
        norms: The norm of each row, or of its whole weight where not `by_row`, shape (R,).
        owner: The number of the weight of each row, shape (R,).
    """

    by_row: Tensor
    applies: Tensor
    norms: Tensor
    owner: Tensor

    def where_it_applies(self) -> Projection:
        """Leave out the weights that are not projected."""
        applies = self.applies
        rows = applies[self.owner]
        numbers = applies.cumsum(0) - 1
        return Projection(
            self.by_row[applies], applies[applies], self.norms[rows], numbers[self.owner[rows]]
        )


def find_projection(
    params: list[Tensor], grads: list[Tensor], *, delta: float, eps: float
) -> Projection:
    """Find the weights that look scale-invariant.

    A weight p with gradient g looks so if |cos(p, g)| < delta / √dim (Heo et al. 2021, eq. 12):
    first for all its rows, the output channels, with dim the values of a row; else for the whole
    weight.

    Args:
        params: T weights p, with two axes or more.
        grads: Their gradients g.
        delta: The threshold.
        eps: The least norm.
    """
    weights, gradients = _matrices(params, grads)
    owner = torch.cat([p.new_full(p.shape[:1], i, dtype=torch.int64) for i, p in enumerate(params)])
    columns = torch.cat([w.new_full(w.shape[:1], w.shape[1]) for w in weights])  # (R,)
    if _is_for_numpy(weights):
        dots, *squares = _by_numpy(
            weights, gradients, [lambda p, g: (p, g), lambda p, g: (p, p), lambda p, g: (g, g)]
        )
        norms = torch.stack(squares).sqrt()
    else:
        dots = _dots(weights, gradients)  # (R,)
        norms = torch.stack([_norms(weights), _norms(gradients)])  # (2, R)

    whole = _totals(norms.square(), owner, len(params)).sqrt()  # (2, T)
    small = dots.abs() < delta * columns.rsqrt() * norms.clamp_min(eps).prod(0)  # (R,)
    by_row = _totals((~small).to(dots.dtype), owner, len(params)) == 0  # (T,)
    limit = delta * _totals(columns, owner, len(params)).rsqrt() * whole.clamp_min(eps).prod(0)
    applies = by_row | (_totals(dots, owner, len(params)).abs() < limit)
    return Projection(by_row, applies, torch.where(by_row[owner], norms[0], whole[0][owner]), owner)


def project_(
    directions: list[Tensor], params: list[Tensor], projection: Projection, *, eps: float
) -> None:
    """Remove from each direction d its part along its weight, in place.

    It becomes d - p̂ (p̂·d) with p̂ = p / (|p| + eps), of each row or of the whole weight. Directions
    of other weights stay.
    """
    by_row, applies, norms, owner = projection
    along = _dots(*_matrices(params, directions))  # (R,)
    along = torch.where(by_row[owner], along, _totals(along, owner, len(params))[owner])
    factors = torch.where(applies[owner], along / (norms + eps).square(), 0.0)
    parts = factors.split([len(p) for p in params])
    shaped = [x.view(-1, *[1] * (p.ndim - 1)) for x, p in zip(parts, params, strict=True)]
    torch._foreach_addcmul_(directions, params, shaped, value=-1)


def _matrices(*lists: list[Tensor]) -> list[list[Tensor]]:
    """Return all rows of each list of tensors, in order.

    Small neighbours of equal shape are one matrix. The lists have the same shapes.
    """
    found: list[list[Tensor]] = [[] for _ in lists]
    shapes = [x.shape for x in lists[0]]
    # A large tensor is a group of its own, by its number.
    keys = [(s[1:], -1 if s.numel() <= SMALL else i) for i, s in enumerate(shapes)]
    start = 0
    for _, group in groupby(keys):
        stop = start + len(list(group))
        for matrices, tensors in zip(found, lists, strict=True):
            some = tensors[start:stop]
            matrices.append((torch.cat(some) if len(some) > 1 else some[0]).flatten(1))
        start = stop
    return found


def _is_for_numpy(matrices: list[Tensor]) -> bool:
    """Return True if NumPy is faster, and can read these tensors."""
    return (
        not torch.compiler.is_compiling()
        and torch.get_num_threads() <= NUMPY_THREADS
        and all(x.is_cpu and type(x) in (Tensor, torch.nn.Parameter) for x in matrices)
    )


def _by_numpy(
    some: list[Tensor],
    others: list[Tensor],
    pairs: list[Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]],
) -> Tensor:
    """Return products of rows of pairs of matrices, shape (P, R).

    Large matrices are read in pieces of rows. So several products of a piece read the memory once.

    Args:
        some: Matrices.
        others: As many of the same shapes.
        pairs: P functions that say which of the two are multiplied.
    """
    found = some[0].new_empty(len(pairs), sum(map(len, some)))
    out, start = found.numpy(), 0
    for one, other in zip(some, others, strict=True):
        a, b = (x.detach().resolve_neg().numpy() for x in (one, other))
        step = max(1, PIECE // max(1, a.shape[1]))
        for row in range(0, len(a), step):
            x, y = a[row : row + step], b[row : row + step]
            for i, pair in enumerate(pairs):
                with np.errstate(all="ignore"):  # as torch does
                    np.vecdot(*pair(x, y), out=out[i, start : start + len(x)])
            start += len(x)
    return found


def _dots(some: list[Tensor], others: list[Tensor]) -> Tensor:
    """Return the products of the rows of pairs of matrices, in order."""
    if _is_for_numpy(some):
        return _by_numpy(some, others, [lambda a, b: (a, b)])[0]
    found = []
    for one, other in zip(some, others, strict=True):
        pairs = [(one, other)]
        if one.numel() > PIECE and one.is_cpu:
            rows = max(1, PIECE // one.shape[1])
            pairs = list(zip(one.split(rows), other.split(rows), strict=True))
        found += [torch.linalg.vecdot(a, b) for a, b in pairs]
    return torch.cat(found)


def _norms(matrices: list[Tensor]) -> Tensor:
    """Return the norms of the rows of matrices, in order."""
    return torch.cat([torch.linalg.vector_norm(x, dim=1) for x in matrices])


def _totals(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """Sum over the rows of each weight, (…, R) → (…, T)."""
    return values.new_zeros(*values.shape[:-1], count).index_add_(-1, owner, values)
