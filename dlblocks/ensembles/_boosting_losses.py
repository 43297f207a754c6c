"""The losses of gradient boosting, with start, gradient and step.

Each has targets `y` as `encode` makes them and predictions `f`, both float64 of shape (N, W).
Formulas are those of Friedman, "Greedy Function Approximation: A Gradient Boosting Machine" (2001).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# The farthest that one stage may move the logits, root mean square. Where a learner separates the
# classes the loss falls for ever, and the best step is infinite.
MAX_LOGIT_MOVE = 16.0


class Loss:
    """A loss that is a mean over samples and outputs.

    `name` is that of the argument `loss`. Before each stage `begin` sees the sample that the stage
    is fitted to.
    """

    name = ""

    def encode(self, targets: Tensor) -> Tensor:
        """The targets as float64, shape (N, W)."""
        return (targets[:, None] if targets.ndim == 1 else targets).double()

    def initial(self, y: Tensor) -> Tensor:
        """The constant of least loss, shape (W,)."""
        raise NotImplementedError

    def begin(self, y: Tensor, f: Tensor) -> None:
        """Sets what depends on the predictions so far."""

    def residuals(self, y: Tensor, f: Tensor) -> Tensor:
        """Return the negative gradient of each sample's loss, shape (N, W)."""
        raise NotImplementedError

    def value(self, y: Tensor, f: Tensor) -> float:
        """The mean loss."""
        raise NotImplementedError

    def line_search(self, y: Tensor, f: Tensor, h: Tensor) -> Tensor:
        """Return the factors ρ (W,) of least loss of f + ρ h.

        They are 0 where h is 0.
        """
        raise NotImplementedError


class SquaredLoss(Loss):
    """The squared error (y - f)².

    Its gradient is taken without the factor 2, as is usual.
    """

    name = "mse"

    def initial(self, y: Tensor) -> Tensor:
        return y.mean(0)

    def residuals(self, y: Tensor, f: Tensor) -> Tensor:
        return y - f

    def value(self, y: Tensor, f: Tensor) -> float:
        return (y - f).square().mean().item()

    def line_search(self, y: Tensor, f: Tensor, h: Tensor) -> Tensor:
        square = h.square().sum(0)
        return torch.where(square > 0, ((y - f) * h).sum(0) / square, 0.0)


class AbsoluteLoss(Loss):
    """|y - f|."""

    name = "mae"

    def initial(self, y: Tensor) -> Tensor:
        return _quantile(y, 0.5)

    def residuals(self, y: Tensor, f: Tensor) -> Tensor:
        return (y - f).sign()

    def value(self, y: Tensor, f: Tensor) -> float:
        return (y - f).abs().mean().item()

    def line_search(self, y: Tensor, f: Tensor, h: Tensor) -> Tensor:
        """Return the weighted median of r/h.

        It minimises Σ |r - ρ h| = Σ |h| |r/h - ρ|.
        """
        ratios = torch.where(h != 0, (y - f) / h, 0.0)
        order = ratios.argsort(0)
        weights = h.abs().gather(0, order).cumsum(0)
        middle = (weights < weights[-1] / 2).sum(0, keepdim=True)
        return ratios.gather(0, order).gather(0, middle.clamp(max=len(h) - 1))[0]


class HuberLoss(Loss):
    """The Huber loss.

    ½ r² where |r| = |y - f| <= δ, and δ (|r| - δ/2) beyond.

    δ is the `quantile` of |r|, anew at each stage (Friedman's M-TreeBoost). The losses that are
    reported keep the δ of the beginning: with a yardstick that shrinks, they would fall by
    themselves, and early stopping would never see an end.
    """

    name = "huber"

    def __init__(self, quantile: float) -> None:
        self.quantile = quantile
        self.delta = torch.ones(1)
        self.reported_delta: float | None = None

    def initial(self, y: Tensor) -> Tensor:
        return _quantile(y, 0.5)

    def begin(self, y: Tensor, f: Tensor) -> None:
        # One for all outputs. Not 0, where most residuals are: the loss would be 0.
        self.delta = _quantile((y - f).abs().reshape(-1, 1), self.quantile).clamp(min=1e-12)
        if self.reported_delta is None:
            self.reported_delta = self.delta.item()

    def residuals(self, y: Tensor, f: Tensor) -> Tensor:
        return (y - f).clamp(-self.delta, self.delta)

    def value(self, y: Tensor, f: Tensor) -> float:
        return F.huber_loss(f, y, delta=self.reported_delta or 1.0).item()

    def line_search(self, y: Tensor, f: Tensor, h: Tensor) -> Tensor:
        start = (y - f).square().mean(0).sqrt() / _rms(h)
        return _minimise(lambda rho: -(self.residuals(y, f + rho * h) * h).sum(0), start)


class LogLoss(Loss):
    """The cross-entropy -log p_y with p = softmax(f).

    For two classes and a single f, p_1 = 1 / (1 + e^-f).

    Args:
        num_classes: Number of classes C.
        width: Values a sample: C, or 1 for two classes.
    """

    name = "log_loss"

    def __init__(self, num_classes: int, width: int) -> None:
        self.num_classes, self.width = num_classes, width

    def encode(self, targets: Tensor) -> Tensor:
        if self.width == 1:
            return targets.double()[:, None]
        return F.one_hot(targets.long(), self.num_classes).double()

    def initial(self, y: Tensor) -> Tensor:
        # A class without a sample gets half of one: a finite logit.
        few = 0.5 / len(y)
        p = y.mean(0).clamp(few, 1 - few)
        return p.logit() if self.width == 1 else p.log()

    def residuals(self, y: Tensor, f: Tensor) -> Tensor:
        return y - (f.sigmoid() if self.width == 1 else f.softmax(1))

    def value(self, y: Tensor, f: Tensor) -> float:
        if self.width == 1:
            return F.binary_cross_entropy_with_logits(f, y).item()
        return F.cross_entropy(f, y).item()

    def line_search(self, y: Tensor, f: Tensor, h: Tensor) -> Tensor:
        """One ρ for all outputs, which the softmax ties together."""
        rms = _rms(h, all_outputs=True)
        rho = _minimise(
            lambda rho: -(self.residuals(y, f + rho * h) * h).sum()[None],
            1 / rms,
            most=MAX_LOGIT_MOVE / rms,
        )
        return rho.expand(h.shape[1])


def make_loss(name: str, *, num_classes: int | None, width: int, quantile: float) -> Loss:
    """The loss called `name`."""
    if name == "log_loss":
        return LogLoss(num_classes or width, width)
    if name == "huber":
        return HuberLoss(quantile)
    return SquaredLoss() if name == "mse" else AbsoluteLoss()


def _quantile(values: Tensor, q: float) -> Tensor:
    # Not torch's, which refuses more than 16 million values.
    return torch.from_numpy(np.quantile(values.numpy(), q, axis=0))


def _rms(h: Tensor, *, all_outputs: bool = False) -> Tensor:
    """Return the root mean square of each output.

    It is infinite where it would be 0, so that dividing by it gives 0.
    """
    found = h.square().mean()[None].sqrt() if all_outputs else h.square().mean(0).sqrt()
    return torch.where(found > 0, found, torch.inf)


def _minimise(
    slope: Callable[[Tensor], Tensor], start: Tensor, most: Tensor | None = None
) -> Tensor:
    """Find the minima of convex functions by the signs of their slopes.

    Doubles an interval from 0 until it holds the minimum, then halves it down to rounding.

    Args:
        slope: The slopes at some points, both of shape (W,).
        start: How far to look first, >= 0.
        most: How far to look at most, in either direction.
    """
    sign = -slope(torch.zeros_like(start)).sign()
    low, high = torch.zeros_like(start), start
    for _ in range(60):
        farther = sign * slope(sign * high) < 0
        if most is not None:
            farther &= high < most
        if not farther.any():
            break
        low = torch.where(farther, high, low)
        high = torch.where(farther, high * 2, high)
        if most is not None:
            high = torch.minimum(high, most)
    for _ in range(60):
        middle = (low + high) / 2
        before = sign * slope(sign * middle) < 0
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    return sign * (low + high) / 2
