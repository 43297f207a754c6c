"""The projection of AdamP and SGDP (Heo et al. 2021), and the step that both share.

The gradient of a weight that only counts up to its scale, as before a batch norm, is at right
angles to it. A momentum step is not: it makes the weight grow, and so the effective learning rate
fall. The projection takes out of the step the part along the weight where the angle between weight
and gradient says that the weight is such a one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlblocks.optim._base import BaseOptimizer, by_device_and_dtype, rate

# Small tensors of one shape are stacked, as the calls cost more than the numbers; larger ones are
# taken alone, a part of their rows at a time, so that what one pass reads is in the cache for the
# next. Measured on a CPU; in values.
STACK_UP_TO = 2**15
STACK_IN_ALL = {"cpu": 2**17, "cuda": 2**21}
CHUNK = 2**19
HALF = (torch.float16, torch.bfloat16)


class Decision(NamedTuple):
    """What the test of one or more tensors of n rows found.

    Attributes:
        projected: Whether the step of the tensor is projected, (T,).
        channel: Whether it is so row by row, (T,).
        norm: The norm to project with: of the row, or of the tensor, (T, n).
    """

    projected: Tensor
    channel: Tensor
    norm: Tensor


def decide(
    dot: Tensor, norm: Tensor, grad_norm: Tensor, columns: int, *, delta: float, eps: float
) -> Decision:
    """Whether weights look scale-invariant: |cos(p, g)| < delta / √dim (Heo et al. 2021, eq. 12).

    First for all rows, the output channels, of a tensor, dim being the columns; else for the whole.

    Args:
        dot: Product of weight and gradient in each row, (T, n).
        norm: Norm of the weight in each row, (T, n).
        grad_norm: Norm of the gradient in each row, (T, n).
        columns: Values in a row.
        delta: The threshold.
        eps: The least norm.
    """
    cosine = dot.abs() / (norm.clamp_min(eps) * grad_norm.clamp_min(eps))
    channel = cosine.amax(1) < delta / math.sqrt(columns)
    whole = torch.linalg.vector_norm(norm, dim=1)
    whole_grad = torch.linalg.vector_norm(grad_norm, dim=1)
    cosine = dot.sum(1).abs() / (whole.clamp_min(eps) * whole_grad.clamp_min(eps))
    layer = cosine < delta / math.sqrt(dot.shape[1] * columns)
    return Decision(channel | layer, channel, torch.where(channel[:, None], norm, whole[:, None]))


def factors(
    found: Decision, dot: Tensor, *, decay: float | Tensor, wd_ratio: float, eps: float
) -> Tensor:
    """By what each row of the weight is multiplied before the perturbation is added, (T, n).

    A perturbation u becomes u - p̂ (p̂·u) with p̂ = p / (|p| + eps); both terms along p are one
    factor of p: ``1 - decay · wd_ratio - (p·u) / (|p| + eps)²``.

    Args:
        found: What `decide` found.
        dot: Product p·u of weight and perturbation in each row, (T, n).
        decay: What the weight loses to weight decay where it is not projected: lr · weight_decay.
        wd_ratio: The share of it where it is.
        eps: Added to the norm.
    """
    radial = torch.where(found.channel[:, None], dot, dot.sum(1, keepdim=True))
    projected = 1 - decay * wd_ratio - radial / (found.norm + eps).square()
    return torch.where(found.projected[:, None], projected, 1 - decay)


class ProjectedOptimizer(BaseOptimizer):
    """A step by a perturbation that is projected where the weight is scale-invariant.

    Subclasses define `_descend` (for lists of tensors), `_perturbation` (for one tensor), and
    `_decay`.
    """

    def _descend(
        self,
        outs: list[Tensor],
        grads: list[Tensor],
        states: Sequence[list[Tensor]],
        group: dict[str, Any],
        lr: Any,
        decay: Any,
    ) -> None:
        """Updates `states`, and ``out ← out · (1 - decay) + perturbation``, in place.

        Tensors are of one device and one dtype; `decay` is 0 or that of `_decay`.
        """
        raise NotImplementedError

    def _perturbation(
        self, grad: Tensor, states: Sequence[Tensor], group: dict[str, Any], lr: float | Tensor
    ) -> Tensor:
        """Updates `states`; returns the perturbation of one tensor, without a branch on values."""
        raise NotImplementedError

    def _decay(self, group: dict[str, Any], lr: Any) -> Any:
        """Share of a weight that decays when it is not projected."""
        return lr * group["weight_decay"]

    def _projects_state(self, group: dict[str, Any]) -> bool:
        """Whether the first state is projected too, after it is updated."""
        return False

    def _one_by_one(self, group: dict[str, Any], lr: Any, device: torch.device) -> bool:
        """Whether tensors are taken one by one: asked for, or because the step is traced."""
        if torch.compiler.is_compiling() or group["foreach"] is False:
            return True
        return isinstance(lr, Tensor) or (group["capturable"] and device.type == "cpu")

    def _update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        states: Sequence[list[Tensor]],
    ) -> None:
        lr = rate(group)
        traced = torch.compiler.is_compiling()
        is_cpu = isinstance(lr, Tensor) and lr.device.type == "cpu"
        if is_cpu and not traced and not group["capturable"]:
            lr = float(lr)
        if traced or self._one_by_one(group, lr, params[0].device):
            for p, grad, *state in zip(params, grads, *states, strict=True):
                self._update_one(p, grad, state, group, lr)
            return
        for part in by_device_and_dtype(params, grads, states):
            self._update_many(part[0], part[1], part[2:], group, lr)

    def _update_one(
        self, p: Tensor, grad: Tensor, states: Sequence[Tensor], group: dict[str, Any], lr: Any
    ) -> None:
        if group["maximize"]:
            grad = -grad
        perturbation = self._perturbation(grad, states, group, lr)
        decay = self._decay(group, lr)
        if p.ndim < 2 or p.numel() == 0:
            p.mul_(1 - decay).add_(perturbation)
            return
        axes = tuple(range(1, p.ndim))
        wide = torch.promote_types(p.dtype, torch.float32)
        weight, wide_grad = p.to(wide), grad.to(wide)
        found = decide(
            (weight * wide_grad).sum(axes)[None],
            torch.linalg.vector_norm(weight, dim=axes)[None],
            torch.linalg.vector_norm(wide_grad, dim=axes)[None],
            p[0].numel(),
            delta=group["delta"],
            eps=group["eps"],
        )
        dot = (weight * perturbation).sum(axes)[None]
        factor = factors(found, dot, decay=decay, wd_ratio=group["wd_ratio"], eps=group["eps"])
        ones = [1] * (p.ndim - 1)
        if self._projects_state(group):
            dot = (weight * states[0]).sum(axes)[None]
            radial = 1 - factors(found, dot, decay=0.0, wd_ratio=0.0, eps=group["eps"])
            states[0].sub_(weight * radial.view(-1, *ones))
        p.copy_(weight * factor.view(-1, *ones) + perturbation)

    def _update_many(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        states: Sequence[list[Tensor]],
        group: dict[str, Any],
        lr: Any,
    ) -> None:
        plain: list[list[Tensor]] = [[] for _ in range(2 + len(states))]
        buckets: dict[Any, list[tuple[Tensor, ...]]] = {}
        number = len(self.state_names) + 2
        for i, row in enumerate(zip(params, grads, *states, strict=True)):
            strides = row[0].stride()
            if any(x.stride() != strides for x in row[1:number]):
                row = (*_alike(row[:number]), *row[number:])
            p = row[0]
            strides = p.stride()
            if not _is_dense(p) or any(x.stride() != strides for x in row[1:number]):
                self._update_one(p, row[1], row[2:], group, lr)
            elif p.ndim < 2 or p.numel() == 0:
                _append(plain, row)
            else:
                alone = p.numel() > STACK_UP_TO or not p.is_contiguous()
                buckets.setdefault(i if alone else p.shape, []).append(row)
        for bucket in buckets.values():
            if len(bucket) == 1:
                self._update_large(bucket[0], group, lr, plain)
                continue
            p = bucket[0][0]
            count = max(1, STACK_IN_ALL.get(p.device.type, 2**21) // p.numel())
            for first in range(0, len(bucket), count):
                self._update_stacked(bucket[first : first + count], group, lr, plain)
        if plain[0]:
            decay = self._decay(group, lr)
            self._descend(plain[0], plain[1], plain[2:], group, lr, decay)

    def _update_large(
        self, row: tuple[Tensor, ...], group: dict[str, Any], lr: Any, plain: list[list[Tensor]]
    ) -> None:
        """Steps one matrix, or leaves it to `plain` if it is not projected."""
        shaped = [_rows(x) for x in row[: len(self.state_names) + 2]]
        p, grad, rest = shaped[0], shaped[1], row[len(shaped) :]
        on_cpu, eps = p.device.type == "cpu", group["eps"]
        size = max(1, CHUNK // p.shape[1]) if on_cpu else len(p)
        out, products = torch.empty_like(p[:size]), torch.empty_like(p[:size])
        parts = zip(p.split(size), grad.split(size), strict=True)
        sums = zip(*(_sums(a, b, products) for a, b in parts), strict=True)
        dots, norms, grad_norms = (torch.cat(values)[None] for values in sums)
        found = decide(dots, norms, grad_norms, p.shape[1], delta=group["delta"], eps=eps)
        if on_cpu:
            if not found.projected.item():
                _append(plain, row)
                return
            if size < len(p) and not found.channel.item():  # the factor depends on all rows
                size = len(p)
                out, products = torch.empty_like(p), torch.empty_like(p)
        decay = self._decay(group, lr)
        first = 0
        for part in zip(*(x.split(size) for x in shaped), strict=True):
            rows = part[0]
            last = first + len(rows)
            u = out[: len(rows)].zero_()
            self._descend([u], [part[1]], [[x] for x in (*part[2:], *rest)], group, lr, 0.0)
            here = found._replace(norm=found.norm[:, first:last])
            dot = _dot(rows, u, products)[None]
            factor = factors(here, dot, decay=decay, wd_ratio=group["wd_ratio"], eps=eps)
            if self._projects_state(group):
                _project_(part[2][None], rows[None], here, eps)
            _combine(rows, factor[0, :, None], u)
            first = last

    def _update_stacked(
        self,
        bucket: list[tuple[Tensor, ...]],
        group: dict[str, Any],
        lr: Any,
        plain: list[list[Tensor]],
    ) -> None:
        """Steps matrices of one shape, or leaves them to `plain` if none is projected."""
        columns = [list(column) for column in zip(*bucket, strict=True)]
        shape = bucket[0][0].shape
        p = torch.stack(columns[0]).view(len(bucket), shape[0], -1)
        grad = torch.stack(columns[1]).view_as(p)
        delta, eps = group["delta"], group["eps"]
        dot, norm, grad_norm = _sums(p, grad)
        found = decide(dot, norm, grad_norm, p.shape[2], delta=delta, eps=eps)
        if p.device.type == "cpu":
            projected = found.projected.tolist()
            if not all(projected):  # the few or the many that are not take the short way
                for row, is_projected in zip(bucket, projected, strict=True):
                    if not is_projected:
                        _append(plain, row)
                if not any(projected):
                    return
                keep = [i for i, is_projected in enumerate(projected) if is_projected]
                index = torch.tensor(keep)
                found = Decision(*(x[index] for x in found))
                columns = [[column[i] for i in keep] for column in columns]
                p = p[index]
        out = torch.zeros_like(p)
        shaped = list(out.view(-1, *shape).unbind(0))
        self._descend(shaped, columns[1], columns[2:], group, lr, 0.0)
        dot = _dot(p, out)
        decay = self._decay(group, lr)
        factor = factors(found, dot, decay=decay, wd_ratio=group["wd_ratio"], eps=eps)
        if self._projects_state(group):
            state = torch.stack(columns[2]).view_as(p)
            _project_(state, p, found, eps)
            torch._foreach_copy_(columns[2], list(state.view(-1, *shape).unbind(0)))
        _combine(p, factor[..., None], out)
        torch._foreach_copy_(columns[0], list(p.view(-1, *shape).unbind(0)))


def _append(lists: list[list[Tensor]], row: Sequence[Tensor]) -> None:
    for values, value in zip(lists, row, strict=True):
        values.append(value)


def _alike(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """With equal strides, if they differ along axes of one value alone, as gradients of vmap do."""
    if not all(x.is_contiguous() for x in tensors):
        return tensors
    return [x.view(-1).view(x.shape) for x in tensors]


def _order(x: Tensor) -> list[int]:
    """The axes of `x`, the first first, the others as they lie in memory."""
    return [0, *sorted(range(1, x.ndim), key=lambda axis: -x.stride()[axis])]


def _is_dense(x: Tensor) -> bool:
    """Whether `x` lies in memory row by row and without gaps."""
    return x.is_contiguous() or (x.ndim > 2 and x.permute(_order(x)).is_contiguous())


def _rows(x: Tensor) -> Tensor:
    """A dense tensor as matrix (n, D), which shares its memory."""
    if not x.is_contiguous():
        x = x.permute(_order(x))
    return x.view(len(x), -1)


def _dot(a: Tensor, b: Tensor, products: Tensor | None = None) -> Tensor:
    """a·b of every row, in at least float32; `products` is memory to write to."""
    if a.dtype in HALF:
        return (a.float() * b.float()).sum(-1)
    return torch.mul(a, b, out=None if products is None else products[: len(a)]).sum(-1)


def _sums(p: Tensor, grad: Tensor, products: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """p·g, |p| and |g| of every row, in at least float32."""
    wide = torch.float32 if p.dtype in HALF else None
    return (
        _dot(p, grad, products),
        torch.linalg.vector_norm(p, dim=-1, dtype=wide),
        torch.linalg.vector_norm(grad, dim=-1, dtype=wide),
    )


def _project_(x: Tensor, p: Tensor, found: Decision, eps: float) -> None:
    """``x ← x - p̂ (p̂·x)`` where `found` says so, in place; (T, n, D)."""
    radial = 1 - factors(found, _dot(p, x), decay=0.0, wd_ratio=0.0, eps=eps)
    x.sub_(p * radial[..., None])


def _combine(p: Tensor, factor: Tensor, out: Tensor) -> None:
    """``p ← p · factor + out``, in place."""
    if p.dtype in HALF:
        p.copy_(p * factor + out)
    else:
        torch.addcmul(out, p, factor, out=p)
