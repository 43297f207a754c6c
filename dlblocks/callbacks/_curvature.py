"""Compute the ε-sharpness of a loss and its largest Hessian eigenvalue.

`Sharpness` is the callback. A loss is a function of no arguments that reads tensors. It is
evaluated with other values in those tensors, which are then restored, bit for bit.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dlblocks._errors import check_range
from dlblocks.callbacks._side_effects import values_kept

# The loss at the present values, or parts whose sum it is.
Loss = Callable[[], "Tensor | Iterable[Tensor]"]
Reduce = Callable[[Tensor], Tensor]


def sharpness(
    loss: Loss,
    params: Sequence[Tensor],
    epsilon: float = 1e-3,
    *,
    directions: int | None = None,
    iterations: int = 10,
    starts: int = 3,
    seed: int = 0,
    reduce: Reduce | None = None,
) -> float:
    """Return the largest rise of a loss in a small box, in percent.

    For the loss f at the point x it is

    ::

        φ = 100 · (max f(x + A z) - f(x)) / (1 + f(x))     over |z_i| ≤ ε (|(A⁺x)_i| + 1)

    Metric 2.1, equations 3 and 4, of Keskar, Mudigere, Nocedal, Smelyanskiy and Tang, "On
    Large-Batch Training for Deep Learning: Generalization Gap and Sharp Minima", 2017. A is the
    identity, for the whole space, or has p random columns, for a random subspace; they used p = 100
    and ε = 1e-3 and 5e-4.

    As in the paper, a few iterations of L-BFGS-B (SciPy's) search for the maximum, so the result is
    a lower bound. They start at random points of the box, because at a minimum the gradient is
    zero. One start may find half of what another finds, so the best of several counts. The corner
    of the box to which the gradient at that point shows counts too: it is the maximum if f is
    linear.

    The columns of A are drawn from a standard normal distribution; the paper does not name one. φ
    of a subspace grows with their scale, so compare only values with the same choice. They take p
    times the memory of the parameters.

    Args:
        loss: Returns f at the present values of `params`, a scalar, without randomness. It may
            also yield parts whose sum is f, so that the graph of all data is never held at once.
        params: Tensors of float32 or float64 that require gradients; x is all of their values.
        epsilon: ε > 0.
        directions: p, at most the number of values; None for the whole space.
        iterations: Iterations of L-BFGS-B from each start.
        starts: Random points of the box to start from.
        seed: Seed of A and of the starts.
        reduce: Sums a tensor over the ranks if each has a part of the loss. All ranks must call
            this function, with the same seed.

    Returns:
        φ ≥ 0; NaN if 1 + f(x) is not positive, or not finite.

    Raises:
        ValueError: A number out of range, no parameters.
        TypeError: Parameters of half precision, in which such small steps are lost.

    Example:
        >>> x = torch.zeros(2, requires_grad=True)
        >>> f = lambda: (x * torch.tensor([3.0, -1.0])).sum()
        >>> round(sharpness(f, [x], epsilon=0.01), 4)  # 100 · (3 + 1) · 0.01
        4.0
    """
    from scipy.optimize import minimize

    check_range("epsilon", epsilon, 0, float("inf"), low_open=True, high_open=True)
    check_range("iterations", iterations, 1)
    check_range("starts", starts, 1)
    count = check_params(params)
    if directions is not None:
        check_range("directions", directions, 1, count)
    generator = torch.Generator().manual_seed(seed)
    with values_kept(params) as point:
        columns = None if directions is None else _columns(params, directions, generator)
        center = _flat(point) if columns is None else _pseudo_inverse(columns, point)
        box = epsilon * (np.abs(center) + 1)

        def at(u: np.ndarray) -> tuple[float, np.ndarray]:
            """Return the loss at z = box · u and its gradient in u."""
            step = torch.from_numpy(box * u)
            moves = _split(step if columns is None else step.to(columns) @ columns, params)
            with torch.no_grad():
                for param, start, move in zip(params, point, moves, strict=True):
                    param.copy_(start + move)
            value, gradients = _gradient(loss, params, reduce)
            slope = _flat(gradients) if columns is None else _projected(columns, gradients)
            return value, box * slope

        base, _ = at(np.zeros_like(box))
        if not (math.isfinite(base) and base > -1):
            return math.nan
        best, best_slope = base, np.zeros_like(box)

        def rise(u: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal best, best_slope
            value, slope = at(u)
            if value >= best:
                best, best_slope = value, slope
            return value - base, slope

        options = {"maxiter": iterations, "maxfun": 4 * iterations, "ftol": 0.0, "gtol": 0.0}
        for _ in range(starts):
            draw = torch.rand(len(box), generator=generator, dtype=torch.float64)
            start = 2 * draw.numpy() - 1
            _, slope = rise(start)
            # To gradients about as large as the box, with which L-BFGS-B's first step crosses it.
            scale = float(np.abs(slope).mean())
            if 0 < scale < math.inf:
                minimize(
                    lambda u, scale=scale: tuple(-v / scale for v in rise(u)),
                    start,
                    jac=True,
                    method="L-BFGS-B",
                    bounds=[(-1.0, 1.0)] * len(box),
                    options=options,
                )
        rise(np.sign(best_slope))
        return 100 * (best - base) / (1 + base)


def top_eigenvalue(
    loss: Loss,
    params: Sequence[Tensor],
    *,
    max_iterations: int = 50,
    tolerance: float = 1e-3,
    seed: int = 0,
    reduce: Reduce | None = None,
) -> float:
    """Return the largest eigenvalue of the Hessian of a loss.

    The method is that of Lanczos (1950) with full orthogonalisation. It needs products of the
    Hessian with vectors only. Unlike power iteration it uses all earlier vectors, so that it needs
    fewer products, and finds the top eigenvalue even if the most negative one is larger in size.
    Each iteration costs about two gradients and keeps a vector as large as the parameters.

    Args:
        loss: As for `sharpness`; twice differentiable.
        params: As for `sharpness`.
        max_iterations: Products of the Hessian with a vector, at most.
        tolerance: The iteration ends when the error is below this share of the value. If
            `max_iterations` ends it earlier, the value is too small.
        seed: Seed of the first vector.
        reduce: As for `sharpness`.

    Returns:
        The eigenvalue; NaN if the Hessian is not finite.

    Raises:
        ValueError: A number out of range, no parameters.
        TypeError: Parameters of half precision.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> round(top_eigenvalue(lambda: 3 * x[0] ** 2 - 5 * x[1] ** 2, [x]), 4)
        6.0
    """
    check_range("max_iterations", max_iterations, 1)
    check_range("tolerance", tolerance, 0)
    count = check_params(params)
    generator = torch.Generator().manual_seed(seed)
    device, dtype = params[0].device, params[0].dtype
    vector = torch.randn(count, generator=generator, dtype=dtype).to(device)
    vectors = [vector / torch.linalg.vector_norm(vector)]
    diagonal: list[float] = []
    beside: list[float] = []
    value = math.nan
    for _ in range(min(max_iterations, count)):
        product = _hessian_product(loss, params, vectors[-1], reduce)
        diagonal.append(float(product @ vectors[-1]))
        if not math.isfinite(diagonal[-1]):
            return math.nan
        for _ in range(2):  # twice, against rounding
            for other in vectors:
                product = product - (product @ other) * other
        matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        values, combinations = np.linalg.eigh(matrix)
        value, rest = float(values[-1]), float(torch.linalg.vector_norm(product))
        if rest * abs(combinations[-1, -1]) <= tolerance * abs(value) or rest == 0:
            break
        beside.append(rest)
        vectors.append(product / rest)
    return value


def check_params(params: Sequence[Tensor]) -> int:
    """Check the tensors and return the number of their values."""
    for param in params:
        if param.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"params has a tensor of {param.dtype}, but small steps need float32 or float64; "
                "convert the module by .float()."
            )
        if not (param.requires_grad and param.is_leaf):
            raise ValueError(
                "params has a tensor that does not require gradients, or is computed from others; "
                "pass parameters that are trained."
            )
    count = sum(param.numel() for param in params)
    if not count:
        raise ValueError("params holds no values; pass parameters that are trained.")
    return count


def _gradient(
    loss: Loss, params: Sequence[Tensor], reduce: Reduce | None
) -> tuple[float, list[Tensor]]:
    """Return the loss and its gradient, over all parts and ranks."""
    total = torch.zeros((), dtype=torch.float64)
    sums = [torch.zeros_like(param) for param in params]
    with torch.enable_grad(), _losses(loss) as parts:
        for part in parts:
            total += part.detach().cpu().double()
            torch._foreach_add_(sums, list(_grad(part, params)))
    if reduce is None:
        return float(total), sums
    # The loss goes with the gradient, in one exchange.
    flat = reduce(_join([total, *sums], like=sums[0]))
    return float(flat[0]), _split(flat[1:], params)


def _hessian_product(
    loss: Loss, params: Sequence[Tensor], vector: Tensor, reduce: Reduce | None
) -> Tensor:
    """Multiply the Hessian by a vector of shape (n,)."""
    # It is the derivative of the product of gradient and vector.
    pieces = _split(vector, params)
    total = torch.zeros_like(vector)
    # The fused kernels of attention have no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _losses(loss) as parts:
        for part in parts:
            gradients = _grad(part, params, create_graph=True)
            dots = [(g * v).sum().to(vector) for g, v in zip(gradients, pieces, strict=True)]
            total += _join(_grad(torch.stack(dots).sum(), params), like=vector)
    return total if reduce is None else reduce(total)


def _columns(params: Sequence[Tensor], number: int, generator: torch.Generator) -> Tensor:
    """Draw Aᵀ, p random directions in all n values, shape (p, n)."""
    sizes = [param.numel() for param in params]
    columns = params[0].new_empty(number, sum(sizes))
    for block, param in zip(columns.split(sizes, dim=1), params, strict=True):
        block.copy_(torch.randn(block.shape, generator=generator, dtype=param.dtype))
    return columns


def _projected(columns: Tensor, tensors: Sequence[Tensor]) -> np.ndarray:
    """Return Aᵀ x."""
    return _flat([columns @ _join(tensors, like=columns)])


def _pseudo_inverse(columns: Tensor, tensors: Sequence[Tensor]) -> np.ndarray:
    """Return A⁺ x = (AᵀA)⁻¹ Aᵀ x."""
    gram = (columns @ columns.T).cpu().double().numpy()
    return np.linalg.solve(gram, _projected(columns, tensors))


@contextlib.contextmanager
def _losses(loss: Loss) -> Iterator[Iterable[Tensor]]:
    """Give the parts of the loss, and close their generator afterwards."""
    found = loss()
    try:
        yield map(_scalar, [found] if isinstance(found, Tensor) else found)
    finally:
        if isinstance(found, Generator):
            found.close()


def _scalar(part: Tensor) -> Tensor:
    if part.ndim:
        shape = tuple(part.shape)
        raise ValueError(f"loss must be a scalar, got shape {shape}; take its mean.")
    return part


def _grad(value: Tensor, params: Sequence[Tensor], create_graph: bool = False) -> Sequence[Tensor]:
    """Return the gradient of a value, zeros where it does not depend."""
    if not value.requires_grad:
        return [torch.zeros_like(param) for param in params]
    return torch.autograd.grad(value, params, create_graph=create_graph, materialize_grads=True)


def _join(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    """Join all values in one vector with the dtype and device of `like`."""
    return torch.cat([tensor.detach().reshape(-1).to(like) for tensor in tensors])


def _split(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    pieces = flat.split([tensor.numel() for tensor in like])
    return [piece.view(t.shape).to(t) for piece, t in zip(pieces, like, strict=True)]


def _flat(tensors: Sequence[Tensor]) -> np.ndarray:
    return _join(tensors, like=torch.empty((), dtype=torch.float64)).numpy()
