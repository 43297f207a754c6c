"""Flow matching, with exact likelihood.

Lipman et al. (2023), and Liu, Gong and Liu (2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from dlblocks._errors import check_choice, check_range
from dlblocks.models._image_checks import check_image_shape
from dlblocks.models._level_model import LevelModel
from dlblocks.models._likelihood import bits_per_dim, decode_levels, normal_log_prob, posterior_mean
from dlblocks.models._noise import AnyNoise, Noise
from dlblocks.nets.conditional import ConditionalNet

Velocity = Callable[[Tensor, Tensor], Tensor]
METHODS = ("euler", "midpoint", "rk4")
MOST_LEVELS = 32  # of which logits are given
LEAST_STEPS = 0.35  # of the likelihood, times the least σ / s; measured
POWER = 2.0  # of the steps of the likelihood: near t = 1 the flow bends most
JACOBIAN_ROWS = 2**15  # rows of Jacobians at a time
JACOBIAN_VALUES = 2**26  # values of the rows' gradients by all levels at a time


class FlowMatching(LevelModel):
    """A flow from noise to images, along dx/dt = v(x, t, class).

    With noise x_0, image x_1 and x_t = (1 - t) x_0 + t x_1, the loss is the mean of
    (v(x_t, t) - (x_1 - x_0))². An image of levels k is made continuous by y = k + σ ε, with ε
    standard normal, and x_1 = (y - m) / s, with the mean m and standard deviation s of each pixel
    over the training part. Levels come back by p(k | y) ∝ π(k) exp(-(y - k)² / 2σ²), with the share
    π(k) of each level at each pixel of the training part.

    The net only learns what independent pixels do not explain. With few levels it gives logits
    l_k, and the expected image is

        e(x, t) = Σ_k p_k μ_k,   p_k ∝ π(k) exp(l_k - (x - t μ_k)² / 2u),   μ_k = (k - m) / s,

    with u = (1 - t)² + t² σ² / s². Then v = ((1 - t) e + (t σ² / s² - 1 + t) x) / u. With l = 0 it
    is exact for independent pixels. With many levels the net does without logits:
    v(x, t) = a x + net(x / √r) / √r, r = (1 - t)² + t² and a = (2t - 1) / r, of which a x is exact
    for independent normal pixels (Karras et al. 2022, who do so for diffusion).

    ``bits_per_dim`` is -log2 of p(y) p(k | y) / q(y | k), with one ε per image. Its mean bounds
    -log2 p(k) from above (Ho et al. 2019). p(y) is the exact density of the flow, by the trace of
    the full Jacobian (Chen et al. 2018). A Jacobian takes as long as C · H · W samples, so it is
    for small images, and it is computed by ``Trainer.validate`` and ``Trainer.test`` only.
    Normal noise suits a flow from normal noise: of uniform noise it would have to learn the edges.

    Args:
        image_shape: Channels, height and width.
        arch: ``"mlp"`` or ``"cnn"``; see `dlblocks.nets.ConditionalNet`.
        width: Hidden units, or channels, of the net.
        depth: Number of blocks of the net.
        dropout: Share of hidden units that are zeroed in training.
        steps: Steps of the sampler.
        method: ``"euler"``, ``"midpoint"`` (two evaluations of the net a step), or ``"rk4"``
            (four).
        likelihood_steps: Steps of the likelihood, by ``"rk4"``. With too few, bits are too low: for
            digits of 17 levels and independent pixels by less than 0.001 with a noise of 0.3, but
            by 0.03 with one of 0.1, for which 48 steps suffice.
        noise_std: σ, in levels.
        predict_levels: Whether the net gives logits of the levels; None for yes with at most
            32, since time and memory grow with their number.
        label_dropout: Share of training labels that are hidden, for guidance (Ho and Salimans
            2022).
        num_classes: Number of classes of a conditional model, or None.
        ema_decay: Decay of the averaged net, or None.
        **kwargs: Levels and optimization; see `GenerativeModel`.

    Example:
        >>> model = FlowMatching([1, 8, 8], levels=17, num_classes=10, width=16, depth=1)
        >>> model.sample(3, labels=[0, 1, 2], steps=2).shape
        torch.Size([3, 1, 8, 8])
    """

    slow_scores = has_steps = True
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        image_shape: Sequence[int] = (1, 8, 8),
        *,
        arch: Literal["mlp", "cnn"] = "mlp",
        width: int = 256,
        depth: int = 4,
        dropout: float = 0.0,
        steps: int = 20,
        method: Literal["euler", "midpoint", "rk4"] = "midpoint",
        likelihood_steps: int = 12,
        noise_std: float = 0.5,
        predict_levels: bool | None = None,
        label_dropout: float = 0.1,
        levels: int = 256,
        num_classes: int | None = None,
        ema_decay: float | None = 0.998,
        **kwargs: Any,
    ) -> None:
        check_image_shape(image_shape)
        check_range("levels", levels, 2)
        check_range("steps", steps, 1)
        check_choice("method", method, METHODS)
        check_range("likelihood_steps", likelihood_steps, 1)
        check_range("noise_std", noise_std, 0, low_open=True)
        check_range("label_dropout", label_dropout, 0, 1, high_open=True)
        if predict_levels is None:
            predict_levels = levels <= MOST_LEVELS
        net = self.make_net(
            image_shape, num_classes, arch=arch, width=width, depth=depth, dropout=dropout,
            outputs=levels if predict_levels else None,
        )  # fmt: skip
        super().__init__(
            net, image_shape, levels=levels, num_classes=num_classes, ema_decay=ema_decay, **kwargs
        )
        self.steps, self.method = steps, method
        self.likelihood_steps, self.noise_std = likelihood_steps, float(noise_std)
        self.label_dropout, self.predict_levels = label_dropout, predict_levels
        # Until a fit: the statistics of equally likely levels.
        shape, count = self.image_shape, self.levels
        self.register_buffer("pixel_mean", torch.full(shape, (count - 1) / 2))
        std = math.sqrt((count**2 - 1) / 12 + self.noise_std**2)
        self.register_buffer("pixel_std", torch.full(shape, std))

    def make_net(
        self, image_shape: Sequence[int], num_classes: int | None, **arguments: Any
    ) -> nn.Module:
        """Create the net, called with (images, times, labels) as a `ConditionalNet`.

        A subclass may create another one. It also gets the arguments of a `ConditionalNet`. If it
        returns (N, C, H, W, levels), these are logits.
        """
        return ConditionalNet(image_shape, num_classes, **arguments)

    def learn_levels(self, levels: Tensor) -> None:
        super().learn_levels(levels)
        wide = levels.double()
        self.pixel_mean.copy_(wide.mean(0))
        self.pixel_std.copy_((wide.var(0, unbiased=False) + self.noise_std**2).sqrt())

    def losses(self, levels: Tensor, labels: Tensor | None, noise: AnyNoise) -> dict[str, Tensor]:
        end = self._standardized(levels + self.noise_std * noise.normal(*self.image_shape))
        start, times = noise.normal(*self.image_shape), noise.uniform()
        if self.training:
            labels = self.with_hidden(labels, noise)
        t = times[:, None, None, None]
        velocity = self._velocity(self.used_net, (1 - t) * start + t * end, times, labels)
        return {"loss": (velocity - (end - start)).square().flatten(1).mean(1)}

    @torch.no_grad()
    def scores(self, levels: Tensor, labels: Tensor | None, noise: AnyNoise) -> Tensor:
        self._check_steps_of_likelihood()
        net, dims = self.used_net, self.num_dims
        values = dims**2 * (self.levels if self.predict_levels else 1)  # of an image
        count = max(1, min(JACOBIAN_ROWS // dims, JACOBIAN_VALUES // values))
        epsilon = noise.normal(*self.image_shape)
        y = levels + self.noise_std * epsilon
        x, log_probs = self._standardized(y), []
        for start in range(0, len(x), count):
            given = None if labels is None else labels[start : start + count]
            part = x[start : start + count]
            log_probs.append(
                flow_log_prob(
                    partial(self._velocity, net, labels=given), part, self.likelihood_steps
                )
            )
        of_flow = torch.cat(log_probs) - self.pixel_std.log().sum()
        decoded = decode_levels(y, self.log_prior, self.noise_std)
        decoded = decoded.gather(-1, levels.unsqueeze(-1)).flatten(1).sum(1)
        of_noise = (normal_log_prob(epsilon) - math.log(self.noise_std)).flatten(1).sum(1)
        return bits_per_dim(of_noise - of_flow - decoded, self.num_dims)

    def _check_steps_of_likelihood(self) -> None:
        """Warn if steps are too long near t = 1.

        The flow bends there, and bits come out too low.
        """
        least = float((self.noise_std / self.pixel_std).min())
        if self.predict_levels and self.likelihood_steps * least < LEAST_STEPS:
            rank_zero_warn(
                f"likelihood_steps={self.likelihood_steps} may be too few for "
                f"noise_std={self.noise_std:g}, so that bits_per_dim is too low; set "
                f"likelihood_steps={math.ceil(LEAST_STEPS / least)}, or a larger noise_std."
            )

    def _standardized(self, y: Tensor) -> Tensor:
        return (y - self.pixel_mean) / self.pixel_std

    def _output(self, net: nn.Module, x: Tensor, times: Tensor, labels: Tensor | None) -> Tensor:
        found: Tensor = net(x, times, labels)
        # Other shapes may broadcast in silence.
        if found.shape not in (x.shape, (*x.shape, self.levels)):
            raise ValueError(
                f"the net returned shape {tuple(found.shape)} for images {tuple(x.shape)}; it must "
                f"return that of the images, or logits {(*x.shape, self.levels)}."
            )
        return found.float()

    def _velocity(self, net: nn.Module, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        times = t.expand(len(x))
        t = times[:, None, None, None]
        size = ((1 - t) ** 2 + t**2).rsqrt()
        found = self._output(net, x * size, times, labels)
        if found.ndim == x.ndim:
            return (2 * t - 1) * size**2 * x + found * size
        every = torch.arange(self.levels, device=x.device)
        means = (every - self.pixel_mean[..., None]) / self.pixel_std[..., None]
        end_variance = (self.noise_std / self.pixel_std) ** 2
        variance = (1 - t) ** 2 + t**2 * end_variance
        end = posterior_mean(means, self.log_prior + found, x, t, variance)
        return ((1 - t) * end + (t * end_variance - 1 + t) * x) / variance

    def with_hidden(self, labels: Tensor | None, noise: AnyNoise) -> Tensor | None:
        """Replace a share `label_dropout` of the labels by the unknown class."""
        if labels is None or not self.label_dropout:
            return labels
        return torch.where(noise.uniform() < self.label_dropout, self.num_classes or 0, labels)

    def draw(
        self,
        noise: Noise,
        labels: Tensor | None,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        method: str | None = None,
    ) -> Tensor:
        """Make images of levels.

        Args:
            noise: All random numbers.
            labels: Classes (N,), or None.
            steps: Steps; None for those of the model.
            guidance: w; see `sample`.
            method: The integrator; None for that of the model.
        """
        method = method or self.method
        check_choice("method", method, METHODS)
        net = self.used_net

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return guided(partial(self._velocity, net, x, t), labels, guidance, self.num_classes)

        x = integrate(velocity, noise.normal(*self.image_shape), steps or self.steps, method)
        y = x * self.pixel_std + self.pixel_mean
        return decode_levels(y, self.log_prior, self.noise_std).argmax(-1)


def guided(
    predict: Callable[[Tensor | None], Tensor],
    labels: Tensor | None,
    guidance: float | None,
    num_classes: int | None,
) -> Tensor:
    """Apply classifier-free guidance, u + w (c - u).

    Ho and Salimans (2022), "Classifier-free diffusion guidance".

    Args:
        predict: The net as a function of labels.
        labels: Classes (N,), or None.
        guidance: w. With 1 or None only c is computed, with 0 only u.
        num_classes: C; the label C stands for an unknown class, with which u is computed.
    """
    if labels is None or guidance is None or guidance == 1:
        return predict(labels)
    unknown = predict(torch.full_like(labels, num_classes or 0))
    if guidance == 0:
        return unknown
    return torch.lerp(unknown, predict(labels), guidance)


def integrate(
    velocity: Velocity, x: Tensor, steps: int, method: str = "euler", *, reverse: bool = False,
    power: float = 1.0,
) -> Tensor:  # fmt: skip
    """Solve dx/dt = v(x, t).

    The solution goes from t = 0 to 1, or back, over t_i = 1 - (1 - i / steps)^power.

    Args:
        velocity: v(x, t), with x of shape (N, ...) and t a scalar.
        x: Where the solution starts, shape (N, ...).
        steps: Number of steps.
        method: ``"euler"``, ``"midpoint"`` or ``"rk4"`` (Runge and Kutta, of fourth order).
        reverse: From t = 1 to 0.
        power: 1 for equal steps. With more, they become shorter towards t = 1.

    Example:
        >>> x = integrate(lambda x, t: x, torch.ones(1, 1), 10, "rk4")
        >>> round(float(x), 4)
        2.7183
    """
    times = [1 - (1 - i / steps) ** power for i in range(steps + 1)]
    for start, end in pairwise(times[::-1] if reverse else times):
        t, step = torch.tensor(start, device=x.device), end - start
        first = velocity(x, t)
        if method == "euler":
            x = x + step * first
            continue
        second = velocity(x + step / 2 * first, t + step / 2)
        if method == "midpoint":
            x = x + step * second
            continue
        third = velocity(x + step / 2 * second, t + step / 2)
        fourth = velocity(x + step * third, t + step)
        x = x + step / 6 * (first + 2 * second + 2 * third + fourth)
    return x


def flow_log_prob(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Compute log-densities of a flow, with the exact trace.

    The flow starts from standard normal noise.

    d log p / dt = -tr(∂v/∂x) along the flow (Chen et al. 2018, "Neural Ordinary Differential
    Equations"). Both are solved together from t = 1 to 0, by Runge and Kutta's method of fourth
    order.

    Args:
        velocity: v(x, t) for a batch; row i of its result must depend on row i of x alone.
        x: Points, shape (N, ...).
        steps: Number of steps.

    Returns:
        log p(x), shape (N,), float32.
    """
    shape, dims = x.shape, x[0].numel()
    rows = torch.eye(dims, device=x.device).reshape(dims, 1, *shape[1:])

    def joint(state: Tensor, t: Tensor) -> Tensor:
        points = state[:, :-1].reshape(shape)
        value, pull_back, *_ = torch.func.vjp(lambda y: velocity(y, t), points)

        def of_row(row: Tensor) -> Tensor:
            change: Tensor = pull_back(row.expand(shape))[0]
            return (change * row).flatten(1).sum(1)

        diagonal = torch.vmap(of_row)(rows)  # (D, N)
        return torch.cat([value.flatten(1), diagonal.sum(0)[:, None]], 1)

    with torch.no_grad():
        state = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1)
        state = integrate(joint, state, steps, "rk4", reverse=True, power=POWER)
        # From 1 to 0 the integral of the trace has the opposite sign.
        return normal_log_prob(state[:, :-1]).sum(1) + state[:, -1]
