"""Probabilities of discrete pixels, and closed forms of Gaussians."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_LOG_SCALE = -5.0  # in units of half the range; narrower is one level alone
MAX_LOG_SCALE = 5.0  # wider is the same to every level but the first and last


def logistic_mixture(levels: Tensor, params: Tensor, num_levels: int) -> Tensor:
    """Compute log-probabilities of levels under mixtures of discretized logistics.

    Component k puts the mass of a logistic distribution on each level: that of the interval
    ±1/2 around it, and of everything beyond on the first and last (Salimans et al. 2017,
    "PixelCNN++"). All levels together have mass 1.

    Args:
        levels: 0 … L-1, int64 of any shape (...).
        params: Logit of the weight, mean (-1 and 1 are the first and last level) and log scale of
            each component, shape (..., K, 3).
        num_levels: L.

    Returns:
        Shape (...), float32.

    Example:
        >>> every = logistic_mixture(torch.arange(17), torch.randn(1, 3, 3).expand(17, 3, 3), 17)
        >>> round(float(every.exp().sum()), 5)
        1.0
    """
    params = params.float()
    logits, mean, log_scale = params.unbind(-1)
    half = (num_levels - 1) / 2
    value = levels.unsqueeze(-1).float()
    scale = log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE).exp() * half
    centred = value - (mean + 1) * half
    above, below = (centred + 0.5) / scale, (centred - 0.5) / scale
    # σ(b) - σ(a) = σ(b) σ(-a) (1 - exp(a - b)), which loses no digits.
    up = torch.where(value == num_levels - 1, 0.0, F.logsigmoid(above))
    down = torch.where(value == 0, 0.0, F.logsigmoid(-below))
    inner = (value > 0) & (value < num_levels - 1)
    between = torch.where(inner, torch.log(-torch.expm1(-1 / scale)), 0.0)
    return torch.logsumexp(logits.log_softmax(-1) + up + down + between, -1)


def draw_logistic_mixture(params: Tensor, num_levels: int, uniform: Tensor) -> Tensor:
    """Draw levels from `logistic_mixture` by inverting its distribution functions.

    Args:
        params: As there, shape (..., K, 3).
        num_levels: L.
        uniform: Numbers from [0, 1), shape (..., 2).
    """
    logits, mean, log_scale = params.float().unbind(-1)
    half = (num_levels - 1) / 2
    which = choose(logits, uniform[..., 0]).unsqueeze(-1)
    mean, log_scale = (x.gather(-1, which).squeeze(-1) for x in (mean, log_scale))
    inside = uniform[..., 1].clamp(1e-6, 1 - 1e-6)
    value = (mean + 1) * half + log_scale.clamp(
        MIN_LOG_SCALE, MAX_LOG_SCALE
    ).exp() * half * inside.logit()
    return value.round().clamp(0, num_levels - 1).long()


def mean_logistic_mixture(params: Tensor, num_levels: int) -> Tensor:
    """Return the level nearest to the mean of the components' means."""
    logits, mean, _ = params.float().unbind(-1)
    value = (logits.softmax(-1) * mean.clamp(-1, 1)).sum(-1)
    return ((value + 1) * (num_levels - 1) / 2).round().long()


def decode_levels(y: Tensor, log_prior: Tensor, std: float) -> Tensor:
    """Compute log p(k | y) by Bayes' rule, for levels k and y = k + std · ε.

    Args:
        y: Shape (N, ...).
        log_prior: Log-probability of each level at each place, shape (..., L).
        std: Standard deviation of the noise.

    Returns:
        Shape (N, ..., L).

    Example:
        >>> prior = torch.tensor([0.5, 0.5]).log()
        >>> decode_levels(torch.tensor([0.5, 0.0]), prior, 0.5).exp()
        tensor([[0.5000, 0.5000],
                [0.8808, 0.1192]])
    """
    every = torch.arange(log_prior.shape[-1], device=y.device)
    return (log_prior - 0.5 * ((y.unsqueeze(-1) - every) / std).square()).log_softmax(-1)


def posterior_mean(
    values: Tensor, logits: Tensor, x: Tensor, scale: Tensor, variance: Tensor
) -> Tensor:
    """Compute E[value | x] by Bayes' rule.

    x is scale · value + normal noise.

    Args:
        values: Possible values at each place, shape (..., L).
        logits: Their log-probabilities without x but for a constant, shape (N, ..., L).
        x: Shape (N, ...).
        scale: Factor of the values, broadcastable to `x`.
        variance: That of the noise, broadcastable to `x`.

    Example:
        >>> values, x = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 1.0])
        >>> posterior_mean(values, torch.zeros(2, 2), x, torch.tensor(1.0), torch.tensor(0.25))
        tensor([0.5000, 0.8808])
    """
    error = x.unsqueeze(-1) - scale.unsqueeze(-1) * values
    logits = logits - error.square() / (2 * variance.unsqueeze(-1))
    return (logits.softmax(-1) * values).sum(-1)


def choose(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw classes by numbers from [0, 1).

    Args:
        logits: Shape (..., C).
        uniform: Shape (...).
    """
    total = logits.float().softmax(-1).cumsum(-1)
    return (total < uniform.unsqueeze(-1) * total[..., -1:]).sum(-1)


def normal_log_prob(x: Tensor, mean: Tensor | float = 0.0, log_std: Tensor | float = 0.0) -> Tensor:
    """Compute the log-density of x under independent normals, elementwise."""
    log_std = torch.as_tensor(log_std, device=x.device)
    return (
        -0.5 * ((x - mean) * torch.exp(-log_std)).square() - log_std - 0.5 * math.log(2 * math.pi)
    )


def normal_kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """Compute KL(N(mean, std²) ‖ N(0, 1)) elementwise, in nats.

    Example:
        >>> normal_kl(torch.tensor(1.0), torch.tensor(0.0))
        tensor(0.5000)
    """
    return 0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std


def bits_per_dim(nats: Tensor, num_dims: int) -> Tensor:
    """Turn negative log-likelihoods in nats into bits per dimension.

    Example:
        >>> bits_per_dim(torch.tensor([64 * math.log(17)]), 64)
        tensor([4.0875])
    """
    return nats / (num_dims * math.log(2))
