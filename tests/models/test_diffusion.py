"""Diffusion against closed forms."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from dlblocks.models import Diffusion
from dlblocks.models._noise import Noise
from dlblocks.models.diffusion import cosine_schedule, denoise, posterior_variance, predicted


def small(**arguments):
    return Diffusion([1, 2, 2], **{"levels": 5, "width": 8, "depth": 1, "timesteps": 12, "steps": 4,
                                   **arguments})  # fmt: skip


def test_posterior_is_that_of_bayes_rule():
    """q(x_s | x_t, x) ∝ q(x_s | x) q(x_t | x_s): products of normal densities on a grid."""
    bars = cosine_schedule(10, 0.999).double()
    for t, s in ((7, 6), (7, 3), (10, 1), (2, 1)):
        image, x_t = torch.tensor(0.4).double(), torch.tensor(-0.3).double()
        epsilon = (x_t - bars[t].sqrt() * image) / (1 - bars[t]).sqrt()
        grid = torch.linspace(-6, 6, 60_001, dtype=torch.float64)
        step = bars[t] / bars[s]
        log = Normal(bars[s].sqrt() * image, (1 - bars[s]).sqrt()).log_prob(grid)
        log = log + Normal(step.sqrt() * grid, (1 - step).sqrt()).log_prob(x_t)
        weight = log.softmax(0)
        mean = (weight * grid).sum()
        variance = (weight * (grid - mean) ** 2).sum()
        torch.testing.assert_close(posterior_variance(bars[t], bars[s]), variance)
        found = denoise(x_t, epsilon, bars[t], bars[s], 1.0, torch.zeros(()).double())
        torch.testing.assert_close(found, mean)


def test_ddim_with_eta_1_and_all_steps_is_ddpm():
    """DDPM as in the paper: x_{t-1} = (x_t - β_t / √(1 - ᾱ_t) ε) / √α_t + √β̃_t z."""
    torch.manual_seed(0)
    bars = cosine_schedule(50, 0.999).double()
    for t in range(2, 51):
        alpha, beta = bars[t] / bars[t - 1], 1 - bars[t] / bars[t - 1]
        x = 0.2 * torch.randn(5, 3).double()
        image = 0.5 * torch.rand(5, 3).double()
        epsilon = (x - bars[t].sqrt() * image) / (1 - bars[t]).sqrt()
        z = torch.randn(5, 3).double()
        variance = beta * (1 - bars[t - 1]) / (1 - bars[t])
        expected = (x - beta / (1 - bars[t]).sqrt() * epsilon) / alpha.sqrt() + variance.sqrt() * z
        found = denoise(x, epsilon, bars[t], bars[t - 1], 1.0, z)
        torch.testing.assert_close(found, expected)
    model = small()
    assert torch.equal(model.sample(20, method="ddpm"), model.sample(20, steps=12, eta=1.0))
    assert not torch.equal(model.sample(20, method="ddpm"), model.sample(20, steps=12, eta=0.0))


def test_every_step_keeps_the_marginal_distribution():
    """With the true image known, x_s has variance 1 - ᾱ_s about √ᾱ_s x, for any η and stride."""
    torch.manual_seed(0)
    bars, image = cosine_schedule(20, 0.999), torch.full((200_000,), 0.5)
    for t, s, eta in ((20, 10, 0.0), (15, 14, 1.0), (15, 3, 1.0), (9, 4, 0.5)):
        epsilon = torch.randn(200_000)
        x_t = bars[t].sqrt() * image + (1 - bars[t]).sqrt() * epsilon
        x_s = denoise(x_t, epsilon, bars[t], bars[s], eta, torch.randn(200_000))
        assert float(x_s.mean()) == pytest.approx(float(bars[s].sqrt() * 0.5), abs=0.01)
        assert float(x_s.var()) == pytest.approx(float(1 - bars[s]), rel=0.02)


def test_noise_is_computed_again_after_clipping():
    at = torch.tensor(0.5)
    x = torch.tensor([3.0, 0.1])
    image, epsilon = predicted(x, torch.zeros(2), at)
    assert image.tolist() == pytest.approx([1.0, 0.1 * math.sqrt(2)])
    torch.testing.assert_close(at.sqrt() * image + (1 - at).sqrt() * epsilon, x)


@pytest.mark.parametrize(("timesteps", "first"), [(2, 0.9), (200, 0.9994), (1000, 0.99999)])
def test_schedule(timesteps, first):
    bars = cosine_schedule(timesteps, first)
    assert bars.shape == (timesteps + 1,)
    assert (bars.diff() < 0).all()
    assert bars[0] == 1
    assert float(bars[1]) == pytest.approx(first)
    assert 0 < float(bars[-1]) < 1e-4


def test_a_term_of_the_bound_is_the_kl_of_two_normals():
    """(SNR_s - SNR_t) / 2 ‖x - x̂‖² = KL(q(x_s | x_t, x) ‖ q(x_s | x_t, x̂))."""
    bars = cosine_schedule(10, 0.99).double()
    x_t, image, guess = (torch.tensor(v).double() for v in (0.2, 0.5, -0.1))
    for t in range(2, 11):
        s = t - 1
        std = posterior_variance(bars[t], bars[s]).sqrt()

        def mean(of, t=t, s=s):
            epsilon = (x_t - bars[t].sqrt() * of) / (1 - bars[t]).sqrt()
            return denoise(x_t, epsilon, bars[t], bars[s], 1.0, torch.zeros(()).double())

        expected = kl_divergence(Normal(mean(image), std), Normal(mean(guess), std))
        snr = bars / (1 - bars)
        torch.testing.assert_close((snr[s] - snr[t]) / 2 * (image - guess) ** 2, expected)


class TheOnly(Diffusion):
    """Data of a single image, which is known."""

    def _epsilon(self, net, x, steps, labels):
        bar = self.alpha_bar[steps][:, None, None, None]
        return (x - bar.sqrt() * torch.tensor([[[-1.0, 0.0], [0.5, 1.0]]])) / (1 - bar).sqrt()


def test_a_net_of_zeros_is_exact_for_independent_normal_pixels():
    """E[ε | x_t] by Bayes' rule, and the error that is left is the scale of the net's output."""
    torch.manual_seed(0)
    model = small(predict_levels=False)
    for p in model.parameters():
        p.data.zero_()
    mean, std = torch.tensor([0.3, -0.5]), torch.tensor([0.4, 0.1])
    model.pixel_mean.copy_(((mean + 1) * 2).repeat(2, 1))
    model.pixel_std.copy_((std * 2).repeat(2, 1))
    images = mean + std * torch.randn(40_000, 1, 2, 2)
    for t in (1, 5, 12):
        steps, epsilon = torch.full((40_000,), t), torch.randn_like(images)
        bar = model.alpha_bar[t]
        x = bar.sqrt() * images + (1 - bar).sqrt() * epsilon
        joint = Normal(bar.sqrt() * mean, (bar * std**2 + 1 - bar).sqrt())
        expected = (1 - bar).sqrt() * (x - joint.mean) / joint.variance
        found = model._epsilon(model.net, x, steps, None)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        left = (epsilon - found).var((0, 1, 2))
        torch.testing.assert_close(left, bar * std**2 / joint.variance, rtol=0.05, atol=1e-5)
        model.net.last.bias.data.fill_(1.0)
        added = model._epsilon(model.net, x, steps, None) - found
        torch.testing.assert_close(added.var((0, 1, 2)), torch.zeros(2), atol=1e-6, rtol=0)
        torch.testing.assert_close(
            added[0, 0, 0] ** 2, bar * std**2 / joint.variance, rtol=1e-3, atol=1e-6
        )
        model.net.last.bias.data.zero_()


def test_the_bound_of_independent_levels_is_near_the_code_length_of_their_shares():
    """A net of zeros is exact for them, and many steps make the bound tight."""
    shares = torch.tensor([0.1, 0.2, 0.2, 0.4, 0.1])
    levels = torch.multinomial(
        shares, 4000, replacement=True, generator=torch.Generator().manual_seed(0)
    ).view(1000, 1, 2, 2)
    exact = float(-shares[levels].log2().mean())
    found = {}
    for timesteps in (12, 60, 300):
        model = small(timesteps=timesteps).eval()
        model.log_prior.copy_(shares.log())
        found[timesteps] = float(model.scores(levels, None, Noise(0, range(1000))).mean())
    gaps = [found[timesteps] - exact for timesteps in (12, 60, 300)]
    assert 0 < gaps[2] < 0.02
    assert gaps[2] < gaps[1] / 2 < gaps[0] / 4


def test_bound_and_samples_of_a_single_image():
    model = TheOnly([1, 2, 2], levels=5, timesteps=12, steps=4, ema_decay=None, noise_std=0.15)
    levels = torch.tensor([[[[0, 2], [3, 4]]]]).expand(50, 1, 2, 2)
    bits = model.eval().scores(levels, None, Noise(0, range(50)))
    # Only the prior's KL and the levels' rounding are left.
    assert 0 < float(bits.mean()) < 0.05
    other = torch.tensor([[[[0, 2], [3, 3]]]]).expand(50, 1, 2, 2)
    assert float(model.scores(other, None, Noise(0, range(50))).min()) > 1
    for options in ({"steps": 1}, {"steps": 5}, {"method": "ddpm"}):
        found = model.sample(3, **options)
        assert torch.equal(model.to_levels(model.preprocess(found)), levels[:3])


def test_arguments():
    with pytest.raises(ValueError, match="steps=13 is more than timesteps=12"):
        small().sample(2, steps=13)
    with pytest.raises(ValueError, match="steps=20 is more than timesteps=12"):
        Diffusion([1, 2, 2], timesteps=12)
    with pytest.raises(ValueError, match="eta=2"):
        small(eta=2.0)
    with pytest.raises(ValueError, match="timesteps=1"):
        small(timesteps=1)


@pytest.mark.parametrize(("levels", "noise_std"), [(2, 0.5), (17, 8.0), (256, 0.01), (17, 0.001)])
def test_a_first_step_without_noise_or_without_image_is_refused(levels, noise_std):
    with pytest.raises(ValueError, match=f"noise_std={noise_std:g} must be at least .* less than"):
        small(levels=levels, noise_std=noise_std)
    assert small(levels=2, noise_std=0.2)(torch.zeros(1, 1, 2, 2)).isfinite()


def test_half_precision_keeps_statistics_and_schedule():
    model = small().to(torch.bfloat16)
    assert model.net.last.weight.dtype == torch.bfloat16
    for name in ("alpha_bar", "log_prior", "pixel_mean", "pixel_std"):
        assert torch.equal(getattr(model, name), getattr(small(), name))
