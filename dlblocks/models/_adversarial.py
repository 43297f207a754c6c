"""Losses of generative adversarial networks, and the energy score."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def discriminator_loss(of_real: Tensor, of_fake: Tensor, kind: str) -> Tensor:
    """Return the loss of each pair of an image and a sample.

    Args:
        of_real: Scores of images, shape (N,).
        of_fake: Scores of samples, shape (N,).
        kind: ``"non_saturating"`` (Goodfellow et al. 2014) or ``"wasserstein"`` (Arjovsky et al.
            2017).

    Example:
        >>> discriminator_loss(torch.tensor([2.0]), torch.tensor([0.5]), "wasserstein")
        tensor([-1.5000])
    """
    if kind == "wasserstein":
        return of_fake - of_real
    return F.softplus(-of_real) + F.softplus(of_fake)


def generator_loss(of_fake: Tensor, kind: str) -> Tensor:
    """Return the generator's loss of each sample, by its score."""
    return -of_fake if kind == "wasserstein" else F.softplus(-of_fake)


def energy_score(samples: Tensor, images: Tensor) -> Tensor:
    """Compute the energy score of images.

    It is E ‖X - y‖ - E ‖X - X'‖ / 2 for images y, and the norm is the root mean square. X and X'
    are different samples (Gneiting and Raftery 2007, "Strictly proper scoring rules").

    Args:
        samples: X, shape (M, D).
        images: y, shape (N, D).

    Returns:
        Shape (N,).

    Example:
        >>> energy_score(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]]))
        tensor([0., 1.])
    """
    count, scale = len(samples), samples.shape[1] ** 0.5
    # By differences: by products, equal points would have a distance.
    exact = "donot_use_mm_for_euclid_dist"
    apart = torch.cdist(samples, samples, compute_mode=exact).sum() / (count * (count - 1))
    near: Tensor = torch.cdist(images, samples, compute_mode=exact).mean(1)
    return (near - apart / 2) / scale


def gradient_norm(score: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute scores and the norms of their gradients, which can be trained.

    Args:
        score: Scores (N,) of images, each of its image alone.
        images: Shape (N, ...).

    Returns:
        Scores (N,), and √ Σ (∂ score / ∂ image)² over all of an image, shape (N,).

    Example:
        >>> images = torch.tensor([[[3.0, 4.0]]])
        >>> _, norm = gradient_norm(lambda x: (x**2).flatten(1).sum(1), images)
        >>> norm.tolist()
        [10.0]
    """
    images = images.detach().requires_grad_()
    scores = score(images)
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    # It has the slope 0 at 0, where a root has none.
    return scores, torch.linalg.vector_norm(gradient.flatten(1), dim=1)
