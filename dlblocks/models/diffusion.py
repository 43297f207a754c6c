"""Diffusion models.

DDPM is by Ho, Jain and Abbeel (2020), DDIM by Song, Meng and Ermon (2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dlblocks._errors import check_choice, check_range
from dlblocks.models._likelihood import bits_per_dim, decode_levels, normal_kl, posterior_mean
from dlblocks.models._noise import AnyNoise, Noise
from dlblocks.models.flow_matching import FlowMatching, guided

OFFSET = 0.008  # of the cosine schedule
LEAST = 1e-5  # share of the image that the last step keeps
LEAST_NOISE = 2.0**-22  # 1 - ᾱ_1; less is lost beside 1 in float32


class Diffusion(FlowMatching):
    """Make images from noise by a net that removes noise.

    With images x in [-1, 1], x_t = √ᾱ_t x + √(1 - ᾱ_t) ε for t = 1 … T, with the cosine schedule
    of Nichol and Dhariwal (2021), and the loss is the mean of (ε(x_t, t) - ε)². The net is that of
    `FlowMatching`, with t / T as its time. It only learns what independent pixels do not explain,
    as there: with the mean m and variance s² of each pixel over the training part,
    v = ᾱ_t s² + 1 - ᾱ_t and z = (x_t - √ᾱ_t m) / √v, it gives with few levels of values x_k logits
    l_k(z, t), and

        ε(x_t, t) = (x_t - √ᾱ_t Σ_k p_k x_k) / √(1 - ᾱ_t),
        p_k ∝ π(k) exp(l_k - (x_t - √ᾱ_t x_k)² / (2 - 2 ᾱ_t)),

    and with many levels

        ε(x_t, t) = √((1 - ᾱ_t) / v) z + √(ᾱ_t s² / v) net(z, t)

    A step of the sampler goes from t to any s < t. The net's ε gives x; x is clipped to [-1, 1],
    and ε is computed again from it. Then x_s = √ᾱ_s x + √(1 - ᾱ_s - σ²) ε + σ · noise, with

        σ² = η² (1 - ᾱ_s) / (1 - ᾱ_t) (1 - ᾱ_t / ᾱ_s)

    η = 0 is DDIM, in few steps. η = 1 with all T steps is DDPM.

    ``bits_per_dim`` is the variational bound of DDPM: the sum over all t of
    KL(q(x_{t-1} | x_t, x) ‖ p(x_{t-1} | x_t)) = (SNR_{t-1} - SNR_t) / 2 · ‖x - x(x_t, t)‖², with
    one ε for each image and t, the KL of x_T, and -log p(levels | x_1) by Bayes' rule (Kingma et
    al. 2021). It takes T evaluations of the net, and is computed by ``Trainer.validate`` and
    ``Trainer.test`` only.

    Args:
        image_shape: Channels, height and width.
        timesteps: T.
        steps: Steps of the sampler, at most T.
        eta: η of the sampler; DDPM has 1.
        noise_std: Standard deviation of the noise at t = 1, √(1 - ᾱ_1), in levels; less than half
            of L - 1.
        **kwargs: Net, levels, classes, average and optimization; see `FlowMatching`.

    Example:
        >>> model = Diffusion([1, 8, 8], levels=17, num_classes=10, width=16, depth=1)
        >>> model.sample(3, labels=[0, 1, 2], steps=2).shape
        torch.Size([3, 1, 8, 8])
    """

    alpha_bar: Tensor

    def __init__(
        self,
        image_shape: Sequence[int] = (1, 8, 8),
        *,
        timesteps: int = 200,
        steps: int = 20,
        eta: float = 0.0,
        noise_std: float = 0.5,
        levels: int = 256,
        **kwargs: Any,
    ) -> None:
        check_range("timesteps", timesteps, 2)
        check_range("eta", eta, 0, 1)
        _check_steps(steps, timesteps)
        first = _first(noise_std, levels)
        super().__init__(image_shape, steps=steps, noise_std=noise_std, levels=levels, **kwargs)
        self.timesteps, self.eta = timesteps, float(eta)
        self.register_buffer("alpha_bar", cosine_schedule(timesteps, first), persistent=False)

    def losses(self, levels: Tensor, labels: Tensor | None, noise: AnyNoise) -> dict[str, Tensor]:
        images = levels.float() * (2 / (self.levels - 1)) - 1
        epsilon = noise.normal(*self.image_shape)
        steps = (noise.uniform() * self.timesteps).long() + 1
        if self.training:
            labels = self.with_hidden(labels, noise)
        found = self._epsilon(self.used_net, self._noised(images, epsilon, steps), steps, labels)
        return {"loss": (found - epsilon).square().flatten(1).mean(1)}

    @torch.no_grad()
    def scores(self, levels: Tensor, labels: Tensor | None, noise: AnyNoise) -> Tensor:
        net, scale = self.used_net, 2 / (self.levels - 1)
        images = levels.float() * scale - 1
        last = self.alpha_bar[-1]
        kept, lost = last.sqrt() * images, (1 - last).log() / 2
        nats = normal_kl(kept, lost.expand_as(kept)).flatten(1).sum(1)
        snr = self.alpha_bar / (1 - self.alpha_bar)  # snr[t], and infinite at 0
        for t in range(2, self.timesteps + 1):
            steps = torch.full_like(levels[:, 0, 0, 0], t)
            x_t = self._noised(images, noise.normal(*self.image_shape), steps)
            found = predicted(x_t, self._epsilon(net, x_t, steps, labels), self.alpha_bar[t])[0]
            error = (images - found).square().flatten(1).sum(1)
            nats = nats + (snr[t - 1] - snr[t]) / 2 * error
        steps = torch.ones_like(levels[:, 0, 0, 0])
        x_1 = self._noised(images, noise.normal(*self.image_shape), steps)
        y = (x_1 / self.alpha_bar[1].sqrt() + 1) / scale
        std = float((1 / self.alpha_bar[1] - 1).sqrt()) / scale
        decoded = decode_levels(y, self.log_prior, std).gather(-1, levels.unsqueeze(-1))
        return bits_per_dim(nats - decoded.flatten(1).sum(1), self.num_dims)

    def _noised(self, images: Tensor, epsilon: Tensor, steps: Tensor) -> Tensor:
        share = self.alpha_bar[steps][:, None, None, None]
        return share.sqrt() * images + (1 - share).sqrt() * epsilon

    def _epsilon(self, net: nn.Module, x: Tensor, steps: Tensor, labels: Tensor | None) -> Tensor:
        scale, share = 2 / (self.levels - 1), self.alpha_bar[steps][:, None, None, None]
        mean, spread = self.pixel_mean * scale - 1, (self.pixel_std * scale).square() * share
        variance = spread + 1 - share
        z = (x - share.sqrt() * mean) * variance.rsqrt()
        found = self._output(net, z, steps.float() / self.timesteps, labels)
        if found.ndim == x.ndim:
            return ((1 - share) / variance).sqrt() * z + (spread / variance).sqrt() * found
        values = torch.arange(self.levels, device=x.device) * scale - 1
        image = posterior_mean(values, self.log_prior + found, x, share.sqrt(), 1 - share)
        return (x - share.sqrt() * image) / (1 - share).sqrt()

    def draw(
        self,
        noise: Noise,
        labels: Tensor | None,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        method: str | None = None,
        eta: float | None = None,
    ) -> Tensor:
        """Make images of levels.

        Args:
            noise: All random numbers.
            labels: Classes (N,), or None.
            steps: Steps, at most T; None for those of the model.
            guidance: w; see `sample`.
            method: ``"ddpm"`` for all T steps and η = 1; None or ``"ddim"`` for the others.
            eta: η; None for that of the model.
        """
        steps, eta = steps or self.steps, self.eta if eta is None else eta
        if method is not None:
            check_choice("method", method, ["ddim", "ddpm"])
        if method == "ddpm":
            steps, eta = self.timesteps, 1.0
        _check_steps(steps, self.timesteps)
        check_range("eta", eta, 0, 1)
        places = torch.linspace(self.timesteps, 0, steps + 1).round().long().tolist()
        x = noise.normal(*self.image_shape)
        for t, s in pairwise(places):
            at = torch.full((len(x),), t, device=x.device)
            epsilon = guided(
                partial(self._epsilon, self.used_net, x, at), labels, guidance, self.num_classes
            )
            fresh = noise.normal(*self.image_shape) if eta and s else torch.zeros_like(x)
            x = denoise(x, epsilon, self.alpha_bar[t], self.alpha_bar[s], eta, fresh)
        return ((x + 1) * ((self.levels - 1) / 2)).round().long().clamp(0, self.levels - 1)


def _check_steps(steps: int, timesteps: int) -> None:
    if steps > timesteps:
        raise ValueError(f"steps={steps} is more than timesteps={timesteps}; give at most as many.")


def _first(noise_std: float, levels: int) -> float:
    """Return ᾱ_1.

    There the noise has the standard deviation `noise_std` in levels.
    """
    check_range("levels", levels, 2)
    check_range("noise_std", noise_std, 0, low_open=True)
    half = (levels - 1) / 2
    first = 1 - (noise_std / half) ** 2
    if not LEAST < first <= 1 - LEAST_NOISE:
        raise ValueError(
            f"noise_std={noise_std:g} must be at least {half * LEAST_NOISE**0.5:.2g} and less than "
            f"{half:g} with levels={levels}, which is the noise of the first step and of the last."
        )
    return first


def cosine_schedule(timesteps: int, first: float) -> Tensor:
    """Compute ᾱ_0 … ᾱ_T along a squared cosine.

    ᾱ_0 is 1, and ᾱ_1 is `first`.

    Args:
        timesteps: T.
        first: ᾱ_1.

    Returns:
        float32 of shape (T + 1,), strictly decreasing.

    Example:
        >>> cosine_schedule(4, 0.999).diff().max() < 0
        tensor(True)
    """
    t = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    angle = (t + OFFSET) / (1 + OFFSET) * math.pi / 2
    found = (angle.cos() / angle[0].cos()) ** 2
    # From `first` at t = 1 to LEAST at t = T, of the same shape.
    inner = found[1:]
    scaled = (inner - inner[-1]) / (inner[0] - inner[-1])
    found[1:] = LEAST + scaled * (first - LEAST)
    found[0] = 1
    return found.float()


def predicted(x_t: Tensor, epsilon: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """Return the clipped image in x_t, and the noise that remains."""
    image = ((x_t - (1 - alpha_bar).sqrt() * epsilon) / alpha_bar.sqrt()).clamp(-1, 1)
    return image, (x_t - alpha_bar.sqrt() * image) / (1 - alpha_bar).sqrt()


def denoise(
    x_t: Tensor, epsilon: Tensor, at_t: Tensor, at_s: Tensor, eta: float, noise: Tensor
) -> Tensor:
    """Step from t to s < t, as `Diffusion` describes.

    Args:
        x_t: Shape (N, ...).
        epsilon: The net's noise, of the same shape.
        at_t: ᾱ_t.
        at_s: ᾱ_s.
        eta: η.
        noise: Standard normal noise of the shape of `x_t`.
    """
    image, epsilon = predicted(x_t, epsilon, at_t)
    variance = eta**2 * posterior_variance(at_t, at_s)
    towards = (1 - at_s - variance).clamp(min=0).sqrt()
    return at_s.sqrt() * image + towards * epsilon + variance.sqrt() * noise


def posterior_variance(at_t: Tensor, at_s: Tensor) -> Tensor:
    """Compute the variance of q(x_s | x_t, x).

    It is (1 - ᾱ_s) / (1 - ᾱ_t) · (1 - ᾱ_t / ᾱ_s).
    """
    return (1 - at_s) / (1 - at_t) * (1 - at_t / at_s)
