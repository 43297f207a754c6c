"""Variational autoencoder.

Kingma and Welling (2014), and Rezende, Mohamed and Wierstra (2014).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlblocks._errors import check_range
from dlblocks._quiet import evaluating
from dlblocks.models._image_checks import check_image_shape
from dlblocks.models._likelihood import (
    bits_per_dim,
    draw_logistic_mixture,
    logistic_mixture,
    mean_logistic_mixture,
    normal_kl,
    normal_log_prob,
)
from dlblocks.models._noise import AnyNoise, Noise
from dlblocks.models.generative import GenerativeModel
from dlblocks.nets.autoencoder import Autoencoder


class VAE(GenerativeModel):
    """A variational autoencoder of images.

    Codes z are standard normal, q(z | x) is normal with diagonal covariance, and p(x | z) is a
    mixture of discretized logistics for each pixel. The loss is, in bits per dimension,

        -E_q[log p(x | z)] + β Σ_j max(λ, KL_j)

    with KL_j the mean over the batch of KL(q(z_j | x) ‖ p(z_j)). With β = 1 and λ = 0 it bounds
    -log p(x) from above. λ > 0 (free bits, Kingma et al. 2016) and β (Higgins et al. 2017) act on
    the training loss; λ = 0 in evaluation.

    Logged: ``loss``, ``kl`` and ``bits_per_dim``. In evaluation ``bits_per_dim`` is the tighter
    importance-weighted bound (Burda, Grosse and Salakhutdinov 2016), -log (1/K) Σ p(x, z_k) /
    q(z_k | x), in training that of K = 1.

    Args:
        image_shape: Channels, height and width.
        latent_dim: Length of a code.
        hidden: Widths of the hidden layers of the encoder; the decoder has them in reverse.
        components: Logistics in the mixture of a pixel.
        dropout: Share of hidden units that are zeroed in training.
        beta: β, the weight of the KL divergence.
        free_bits: λ, in bits for each number of the code.
        importance_samples: K of the bound in evaluation.
        **kwargs: Levels, classes, average and optimization; see `GenerativeModel`.

    Example:
        >>> vae = VAE([1, 8, 8], latent_dim=2, levels=17, hidden=[32])
        >>> vae.sample(3).shape
        torch.Size([3, 1, 8, 8])
    """

    net: Autoencoder

    def __init__(
        self,
        image_shape: Sequence[int] = (1, 8, 8),
        *,
        latent_dim: int = 16,
        hidden: Sequence[int] = (256, 256),
        components: int = 2,
        dropout: float = 0.0,
        beta: float = 1.0,
        free_bits: float = 0.0,
        importance_samples: int = 64,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_image_shape(image_shape)
        check_range("components", components, 1)
        check_range("beta", beta, 0)
        check_range("free_bits", free_bits, 0)
        check_range("importance_samples", importance_samples, 1)
        net = self.make_net(
            image_shape,
            latent_dim=latent_dim,
            num_params=3 * components,
            hidden=hidden,
            dropout=dropout,
            num_classes=num_classes,
        )
        super().__init__(net, image_shape, num_classes=num_classes, **kwargs)
        self.latent_dim, self.components = latent_dim, components
        self.beta, self.free_bits = float(beta), float(free_bits)
        self.importance_samples = importance_samples

    def make_net(self, image_shape: Sequence[int], **arguments: Any) -> nn.Module:
        """Create the net, with the methods ``encode`` and ``decode`` of `Autoencoder`.

        A subclass may create another one.
        """
        return Autoencoder(image_shape, **arguments)

    def log_likelihood(self, levels: Tensor, params: Tensor) -> Tensor:
        """Compute log p(x | z), shape (N,), from the decoder's parameters."""
        params = params.unflatten(-1, (self.components, 3))
        return logistic_mixture(levels, params, self.levels).flatten(1).sum(1)

    def losses(self, levels: Tensor, labels: Tensor | None, noise: AnyNoise) -> dict[str, Tensor]:
        count = 1 if self.training else self.importance_samples
        elbo, tight, kl = self.bounds(levels, labels, noise, count)
        whole = kl.sum(1)
        counted = whole
        if self.training and self.free_bits:
            least = self.free_bits * math.log(2)
            counted = kl.mean(0).clamp(min=least).sum().expand(len(kl))
        loss = -(elbo + whole) + self.beta * counted
        return {
            name: bits_per_dim(nats, self.num_dims)
            for name, nats in {"loss": loss, "bits_per_dim": -tight, "kl": whole}.items()
        }

    def bounds(
        self, levels: Tensor, labels: Tensor | None, noise: AnyNoise, samples: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Bound log p(x) from below, in nats.

        Args:
            levels: Images, int64 of shape (N, C, H, W).
            labels: Classes (N,), or None.
            noise: The noise of the codes.
            samples: K.

        Returns:
            The evidence lower bound E[log p(x | z)] - KL, by K codes, shape (N,); the
            importance-weighted bound (N,), which is higher; and the KL of each number of the code,
            (N, Z).
        """
        net: Any = self.used_net
        images = levels.float() * (2 / (self.levels - 1)) - 1
        mean, log_std = net.encode(images, labels)
        kl = normal_kl(mean, log_std)
        mean_likelihood = torch.zeros_like(mean[:, 0])
        ratios = []
        for _ in range(samples):
            epsilon = noise.normal(mean.shape[1])
            codes = mean + log_std.exp() * epsilon
            likelihood = self.log_likelihood(levels, net.decode(codes, labels))
            mean_likelihood = mean_likelihood + likelihood / samples
            prior, posterior = normal_log_prob(codes), normal_log_prob(epsilon) - log_std
            ratios.append(likelihood + (prior - posterior).sum(1))
        tight = torch.logsumexp(torch.stack(ratios), 0) - math.log(samples)
        return mean_likelihood - kl.sum(1), tight, kl

    def draw(
        self,
        noise: Noise,
        labels: Tensor | None,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        noisy: bool = True,
    ) -> Tensor:
        """Make images of levels.

        Args:
            noise: All random numbers.
            labels: Classes (N,), or None.
            steps: Not used.
            guidance: Not used.
            noisy: Draw each pixel; False for the mean of its mixture, which is smoother.
        """
        codes = noise.normal(self.latent_dim)
        params = self.used_net.decode(codes, labels)  # type: ignore[operator]
        params = params.unflatten(-1, (self.components, 3))
        if not noisy:
            return mean_logistic_mixture(params, self.levels)
        uniform = noise.uniform(*self.image_shape, 2)
        return draw_logistic_mixture(params, self.levels, uniform)

    @torch.no_grad()
    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return means and standard deviations (N, Z) of images' codes."""
        with evaluating(self):
            mean, log_std = self.used_net.encode(  # type: ignore[operator]
                self.preprocess(images.to(self.device)), labels
            )
        return mean, log_std.exp()

    @torch.no_grad()
    def decode(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the raw images (N, C, H, W) of codes (N, Z).

        Each pixel is the mean of its mixture.
        """
        with evaluating(self):
            params = self.used_net.decode(codes.to(self.device), labels)  # type: ignore[operator]
        levels = mean_logistic_mixture(params.unflatten(-1, (self.components, 3)), self.levels)
        return self.to_images(levels)
