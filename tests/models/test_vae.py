"""The bounds of a VAE against closed forms."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, MultivariateNormal, Normal, kl_divergence

from dlblocks.models import VAE
from dlblocks.models._likelihood import (
    choose,
    draw_logistic_mixture,
    logistic_mixture,
    mean_logistic_mixture,
    normal_kl,
    normal_log_prob,
)
from dlblocks.models._noise import BatchNoise, Noise

STD = 0.7


class Linear(nn.Module):
    """x = W z + m + noise, whose posterior is known; the encoder is off by `shift`."""

    def __init__(self, shift):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        weight = torch.randn(6, 2, generator=draw)
        weight[:, 1] += 0.4 * weight[:, 0]  # the posterior is correlated, which q is not
        self.weight = nn.Parameter(weight)
        self.mean = nn.Parameter(torch.randn(6, generator=draw))
        precision = torch.eye(2) + self.weight.T @ self.weight / STD**2
        # The best diagonal covariance has the precisions of the posterior.
        self.log_std = -0.5 * precision.diagonal().log().detach()
        self.gain = (torch.linalg.inv(precision) @ self.weight.T / STD**2).detach()
        self.shift = shift

    def encode(self, images, labels=None):
        x = (images.flatten(1) + 1) * 2
        mean = (x - self.mean) @ self.gain.T + self.shift
        return mean, self.log_std.expand(len(mean), 2)

    def decode(self, codes, labels=None):
        return codes @ self.weight.T + self.mean


class LinearGaussian(VAE):
    def __init__(self, shift=0.0):
        self.shift = shift
        super().__init__([1, 2, 3], levels=5, latent_dim=2)

    def __setattr__(self, name, value):
        if name == "shift":
            vars(self)[name] = value
        else:
            super().__setattr__(name, value)

    def make_net(self, image_shape, **arguments):
        return Linear(vars(self)["shift"])

    def log_likelihood(self, levels, params):
        return Normal(params, STD).log_prob(levels.flatten(1)).sum(1)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_linear_gaussian(shift):
    torch.manual_seed(0)
    model = LinearGaussian(shift)
    net, levels = model.net, torch.randint(0, 5, (40, 1, 2, 3))
    covariance = net.weight @ net.weight.T + STD**2 * torch.eye(6)
    with torch.no_grad():
        noise = BatchNoise(40)
        elbo, _, _ = model.bounds(levels, None, noise, 400)
        found = {1: elbo.mean()}
        for count, repeats in ((4, 40), (40, 4), (400, 1)):
            bounds = [model.bounds(levels, None, noise, count)[1].mean() for _ in range(repeats)]
            found[count] = torch.stack(bounds).mean()
        exact = MultivariateNormal(net.mean, covariance).log_prob(levels.flatten(1).float())
    bounds = [float(value) for value in found.values()] + [float(exact.mean())]
    assert bounds[0] < bounds[1] - 0.05 < bounds[-1] - 0.1
    assert bounds[1] < bounds[2] < bounds[-1] + 0.02
    assert bounds[3] == pytest.approx(bounds[-1], abs=0.03)
    # Evidence - bound = KL(q ‖ posterior), which is closed for normal distributions.
    mean, log_std = net.encode(levels.float() / 2 - 1)
    precision = torch.eye(2) + net.weight.T @ net.weight / STD**2
    posterior = MultivariateNormal(mean - shift, precision_matrix=precision)
    q = MultivariateNormal(mean, torch.diag_embed((2 * log_std).exp()))
    gap = kl_divergence(q, posterior)
    torch.testing.assert_close(exact.mean() - elbo.mean(), gap.mean(), atol=0.03, rtol=0.02)


def test_kl_is_that_of_monte_carlo():
    torch.manual_seed(0)
    mean, log_std = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.3, -0.7, 0.0])
    epsilon = torch.randn(200_000, 3)
    z = mean + log_std.exp() * epsilon
    ratio = normal_log_prob(z, mean, log_std) - normal_log_prob(z)
    error = ratio.std(0) / len(z) ** 0.5
    assert ((normal_kl(mean, log_std) - ratio.mean(0)).abs() < 4 * error).all()
    torch.testing.assert_close(
        normal_kl(mean, log_std), kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0))
    )
    torch.testing.assert_close(
        normal_log_prob(z, mean, log_std), Normal(mean, log_std.exp()).log_prob(z)
    )


def test_loss_is_a_sum_of_both_terms_in_the_same_units():
    """A KL averaged over dimensions beside a sum over pixels would be no bound."""
    torch.manual_seed(0)
    model = VAE([1, 2, 3], levels=5, latent_dim=4, hidden=[8], beta=1.0)
    levels = torch.randint(0, 5, (7, 1, 2, 3))
    found = model.losses(levels, None, Noise(0, range(7)))
    elbo, _, kl = model.bounds(levels, None, Noise(0, range(7)), 1)
    torch.testing.assert_close(found["loss"], -elbo / (6 * math.log(2)))
    heavy = VAE([1, 2, 3], levels=5, latent_dim=4, hidden=[8], beta=3.0)
    heavy.load_state_dict(model.state_dict())
    more = heavy.losses(levels, None, Noise(0, range(7)))["loss"]
    torch.testing.assert_close(more - found["loss"], 2 * kl.sum(1) / (6 * math.log(2)))


def test_free_bits_count_in_training_alone():
    torch.manual_seed(0)
    model = VAE([1, 2, 3], levels=5, latent_dim=4, hidden=[8], free_bits=2.0)
    levels = torch.randint(0, 5, (7, 1, 2, 3))
    elbo, _, kl = model.bounds(levels, None, Noise(0, range(7)), 1)
    counted = kl.mean(0).clamp(min=2 * math.log(2)).sum()
    assert (kl.mean(0) < 2 * math.log(2)).any()
    loss = model.losses(levels, None, Noise(0, range(7)))["loss"]
    torch.testing.assert_close(loss * 6 * math.log(2), -(elbo + kl.sum(1)) + counted)
    model.eval()
    model.importance_samples = 1
    loss = model.losses(levels, None, Noise(0, range(7)))["loss"]
    torch.testing.assert_close(loss * 6 * math.log(2), -elbo)


# The likelihood of pixels


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("scale", [-8.0, -2.0, 3.0])
def test_mixture_is_differences_of_distribution_functions(levels, scale):
    torch.manual_seed(0)
    params = torch.randn(5, 3, 3, dtype=torch.float64)
    params[..., 2] = scale
    every = torch.arange(levels).expand(5, -1)
    found = logistic_mixture(every, params[:, None].expand(-1, levels, -1, -1), levels)
    half = (levels - 1) / 2
    mean = (params[..., 1] + 1) * half
    width = max(math.exp(scale), math.exp(-5)) * half
    edges = torch.arange(levels - 1) + 0.5
    below = torch.sigmoid((edges[:, None, None] - mean) / width)  # (L - 1, 5, 3)
    below = torch.cat([torch.zeros(1, 5, 3), below, torch.ones(1, 5, 3)])
    expected = (below.diff(dim=0) * params[..., 0].softmax(-1)).sum(-1).T
    torch.testing.assert_close(found.exp().double(), expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(5), rtol=1e-4, atol=1e-4)


def test_far_levels_have_finite_gradients():
    params = torch.tensor([[[0.0, -1.0, -9.0]]], requires_grad=True)
    value = logistic_mixture(torch.tensor([255]), params, 256)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(params.grad).all()


def test_draws_have_the_probabilities_of_the_mixture():
    torch.manual_seed(0)
    params = torch.tensor([[1.0, -0.8, -2.0], [0.0, 0.7, -1.0]])
    drawn = draw_logistic_mixture(params.expand(50_000, 2, 3), 9, torch.rand(50_000, 2))
    shares = torch.bincount(drawn, minlength=9) / 50_000
    expected = logistic_mixture(torch.arange(9), params.expand(9, 2, 3), 9).exp()
    assert float((shares - expected).abs().max()) < 0.01
    narrow = torch.tensor([[[0.0, 0.5, -5.0]]])
    assert mean_logistic_mixture(narrow, 9).tolist() == [6]


def test_choose_is_categorical():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -1e9, 2.0])
    drawn = choose(logits.expand(50_000, 4), torch.rand(50_000))
    shares = torch.bincount(drawn, minlength=4) / 50_000
    assert float((shares - Categorical(logits=logits).probs).abs().max()) < 0.01
    assert choose(logits, torch.tensor(1 - 1e-9)) == 3


def test_codes_and_reconstructions():
    torch.manual_seed(0)
    model = VAE([1, 8, 8], levels=17, latent_dim=2, hidden=[8], num_classes=3)
    images, labels = model.sample(4, labels=[0, 1, 2, 0]), torch.tensor([0, 1, 2, 0])
    mean, std = model.encode(images, labels)
    assert mean.shape == std.shape == (4, 2)
    assert model.decode(mean, labels).shape == images.shape
    assert model.training
    smooth = model.sample(4, 0, noisy=False)
    assert not torch.equal(smooth, model.sample(4, 0))
    with pytest.raises(TypeError, match="nosy"):
        model.sample(2, nosy=True)
