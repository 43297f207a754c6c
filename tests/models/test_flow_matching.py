"""Flows: likelihood of known densities, integrators, guidance."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dlblocks.data import DigitsDataModule
from dlblocks.models import FlowMatching
from dlblocks.models._noise import Noise
from dlblocks.models.flow_matching import flow_log_prob, guided, integrate

# A mixture of two normal distributions on the line.
WEIGHT, MEAN, STD = torch.tensor([0.3, 0.7]), torch.tensor([-2.0, 1.0]), torch.tensor([0.5, 0.3])


def exact_velocity(x, t):
    """E[x1 - x0 | x_t] for x_t = (1 - t) x0 + t x1, by conditioning on the component."""
    var = (1 - t) ** 2 + (t * STD) ** 2
    centred = x - t * MEAN  # (N, 2)
    log_weight = WEIGHT.log() - 0.5 * centred**2 / var - 0.5 * var.log()
    slope = (t * STD**2 - (1 - t)) / var
    return (log_weight.softmax(1) * (MEAN + slope * centred)).sum(1, keepdim=True)


def exact_log_prob(x):
    density = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(WEIGHT), torch.distributions.Normal(MEAN, STD)
    )
    return density.log_prob(x[:, 0])


def test_likelihood_of_a_known_mixture():
    """The flow's exact velocity gives the mixture's own density."""
    torch.manual_seed(0)
    which = torch.multinomial(WEIGHT, 500, replacement=True)
    x = (MEAN[which] + STD[which] * torch.randn(500))[:, None]
    found = flow_log_prob(exact_velocity, x, steps=40)
    assert float((found - exact_log_prob(x)).abs().mean()) < 0.02
    assert abs(float((found - exact_log_prob(x)).mean())) < 0.002


def test_a_trained_flow_has_the_likelihood_of_its_data():
    """A small net that has learned the mixture, within 0.02 nats of its entropy."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(),
        torch.nn.Linear(64, 1))  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 700)

    def velocity(x, t):
        return net(torch.cat([x, torch.broadcast_to(t.reshape(-1, 1), x.shape)], 1))

    for _ in range(700):
        which = torch.multinomial(WEIGHT, 1024, replacement=True)
        end = (MEAN[which] + STD[which] * torch.randn(1024))[:, None]
        start, t = torch.randn_like(end), torch.rand(1024, 1)
        loss = (velocity((1 - t) * start + t * end, t) - (end - start)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    which = torch.multinomial(WEIGHT, 4000, replacement=True)
    x = (MEAN[which] + STD[which] * torch.randn(4000))[:, None]
    found = flow_log_prob(velocity, x, steps=20)
    assert abs(float((found - exact_log_prob(x)).mean())) < 0.02
    grid = torch.linspace(-5, 4, 400)[:, None]
    mass = torch.trapezoid(flow_log_prob(velocity, grid, steps=20).exp(), grid[:, 0])
    assert float(mass) == pytest.approx(1, abs=0.01)


def test_likelihood_of_a_linear_flow_is_the_matrix_exponentials():
    """dx/dt = A x takes N(0, I) to N(0, e^A e^Aᵀ)."""
    torch.manual_seed(0)
    matrix = torch.randn(6, 6) * 0.5
    forward = torch.linalg.matrix_exp(matrix)
    normal = torch.distributions.MultivariateNormal(torch.zeros(6), forward @ forward.T)
    x = torch.randn(5, 1, 2, 3)
    found = flow_log_prob(lambda y, t: (y.flatten(1) @ matrix.T).reshape(y.shape), x, 20)
    torch.testing.assert_close(found, normal.log_prob(x.flatten(1)), rtol=1e-4, atol=1e-4)


def test_orders_of_the_integrators():
    errors = {}
    for method in ("euler", "midpoint", "rk4"):
        found = [
            integrate(lambda x, t: x * (1 + t), torch.ones(1, dtype=torch.float64), n, method)
            for n in (16, 32)
        ]
        e = [abs(float(x) - math.exp(1.5)) for x in found]
        errors[method] = math.log2(e[0] / e[1])
    assert errors["euler"] == pytest.approx(1, abs=0.2)
    assert errors["midpoint"] == pytest.approx(2, abs=0.2)
    assert errors["rk4"] == pytest.approx(4, abs=0.4)
    there = integrate(lambda x, t: x * t.cos(), torch.ones(1), 50, "rk4")
    back = integrate(lambda x, t: x * t.cos(), there, 50, "rk4", reverse=True)
    torch.testing.assert_close(back, torch.ones(1))


def test_bits_of_one_normal_distribution_for_each_pixel():
    """A velocity of 0. The mean over the noise is above the exact code length, and near it."""
    model = FlowMatching([1, 1, 2], levels=5, width=4, depth=1, likelihood_steps=1, noise_std=0.4,
                         predict_levels=False)  # fmt: skip
    for p in model.parameters():
        p.data.zero_()
    mean, std = torch.tensor([1.0, 2.5]), torch.tensor([0.8, 1.1])
    model.eval().pixel_mean.copy_(mean.view(1, 1, 2))
    model.pixel_std.copy_(std.view(1, 1, 2))
    shares = torch.tensor([0.1, 0.3, 0.3, 0.2, 0.1])
    model.log_prior.copy_(shares.log())
    levels = torch.tensor([[0, 2], [1, 1], [4, 3]]).view(3, 1, 1, 2)
    count = 4000
    many = levels.repeat_interleave(count, 0)
    found = model.scores(many, None, Noise(0, range(3 * count))).view(3, count).double()
    # p(k) = ∫ p(y) p(k | y) dy, on a grid.
    y = torch.linspace(-9, 14, 20_001, dtype=torch.float64)
    weight = shares.double() * (-0.5 * ((y[:, None] - torch.arange(5)) / 0.4) ** 2).exp()
    decoded = weight / weight.sum(1, keepdim=True)
    density = torch.distributions.Normal(mean.double(), std.double()).log_prob(y[:, None]).exp()
    mass = torch.trapezoid(density[:, :, None] * decoded[:, None], y, dim=0)  # (2, 5)
    torch.testing.assert_close(mass.sum(1), torch.ones(2, dtype=torch.float64))
    exact = -sum(mass[i, levels[:, 0, 0, i]].log2() for i in range(2)) / 2
    # Importance weights are unbiased: the mean of p(y) p(k | y) / q(y | k) is p(k).
    unbiased = -(2.0 ** (-found * 2)).mean(1).log2() / 2
    torch.testing.assert_close(unbiased, exact, atol=0.02, rtol=0)
    assert (found.mean(1) > exact).all()


def test_statistics_of_pixels_are_those_of_the_training_part(make_trainer):
    data = DigitsDataModule(batch_size=512)
    # Also without an average, which would know that there was a training.
    model = FlowMatching([1, 8, 8], levels=17, width=4, depth=1, noise_std=0.3, ema_decay=None)
    make_trainer(limit_train_batches=1, limit_val_batches=0).fit(model, data)
    pixels = (data.arrays("train")[0].double() * 16 / 255).round()
    expected = (pixels.var(0, unbiased=False) + 0.09).sqrt().float()
    torch.testing.assert_close(model.pixel_std, expected)
    torch.testing.assert_close(model.pixel_mean, pixels.mean(0).float())
    counts = np.bincount(pixels[:, 0, 3, 4].long(), minlength=17) + 1 / 17
    shares = model.log_prior[0, 3, 4].exp()
    np.testing.assert_allclose(shares, counts / counts.sum(), rtol=1e-5)
    # A model that was trained before keeps its own.
    other = DigitsDataModule(batch_size=512, val_fraction=0.5)
    make_trainer(limit_train_batches=1, limit_val_batches=0).fit(model, other)
    torch.testing.assert_close(model.pixel_std, expected)


def test_loaders_leave_the_statistics_unknown(make_trainer):
    images = DigitsDataModule().source.inputs[:16]
    model = FlowMatching([1, 8, 8], levels=17, width=4, depth=1)
    loader = DataLoader(images, batch_size=8)
    with pytest.warns(UserWarning, match="got loaders instead of a datamodule"):
        make_trainer(limit_val_batches=0).fit(model, loader, loader)
    assert not model.is_fitted


def test_a_net_of_zeros_is_exact_for_normal_pixels():
    """E[x_1 - x_0 | x_t] by regression on many pairs."""
    torch.manual_seed(0)
    model = FlowMatching([1, 1, 1], width=4, depth=1)
    start, end = torch.randn(2, 100_000, 1, 1, 1)
    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        x = (1 - t) * start + t * end
        slope = float((x * (end - start)).mean() / (x * x).mean())
        times = torch.tensor(t)
        found = model._velocity(lambda x, *_: 0 * x, x, times, None)
        torch.testing.assert_close(found, slope * x, atol=0.08, rtol=0)
        left = model._velocity(lambda x, *_: torch.ones_like(x), x, times, None) - found
        assert float(left.mean()) ** 2 == pytest.approx(
            float((end - start - found).var()), rel=0.02
        )
        seen = []
        model._velocity(lambda x, *_, seen=seen: seen.append(x) or x, x, times, None)
        assert float(seen[0].var()) == pytest.approx(1, rel=0.02)


SHARES = torch.tensor([0.1, 0.2, 0.2, 0.4, 0.1])


def of_levels(**arguments):
    """Create a flow whose net gives nothing beyond the shares of five levels."""
    model = FlowMatching([1, 1, 2], **{"levels": 5, "width": 4, "depth": 1, "noise_std": 0.4,
                                       **arguments}).eval()  # fmt: skip
    values = torch.arange(5.0)
    mean = (SHARES * values).sum()
    model.pixel_mean.fill_(mean)
    model.pixel_std.fill_(((SHARES * (values - mean) ** 2).sum() + 0.4**2).sqrt())
    model.log_prior.copy_(SHARES.log())
    return model


def test_a_net_of_zeros_is_exact_for_independent_levels():
    """E[x_1 - x_0 | x_t] by means over narrow bins of x_t."""
    torch.manual_seed(0)
    model = of_levels()
    levels = torch.multinomial(SHARES, 600_000, replacement=True).view(-1, 1, 1, 2)
    end = model._standardized(levels + 0.4 * torch.randn(300_000, 1, 1, 2))
    start = torch.randn_like(end)
    with torch.no_grad():
        for t in (0.0, 0.3, 0.7, 1.0):
            x = (1 - t) * start + t * end
            found = model._velocity(model.net, x, torch.tensor(t), None)
            bins = (x * 20).round().long() + 40
            for i in range(10, 71, 10):
                inside = bins == i
                expected = (end - start)[inside]
                error = float(expected.std()) / len(expected) ** 0.5
                difference = float(found[inside].mean() - expected.mean())
                assert abs(difference) < 4 * error + 1e-4


def test_bits_of_independent_levels_are_those_of_their_shares():
    """The bound is then exact: p(y) p(k | y) / q(y | k) is the share of k, whatever the noise."""
    model = of_levels(likelihood_steps=60)
    levels = torch.tensor([[0, 2], [1, 1], [4, 3]]).view(3, 1, 1, 2)
    found = model.scores(levels, None, Noise(3, range(3)))
    expected = -SHARES[levels].log2().flatten(1).mean(1)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_few_steps_for_little_noise_are_told():
    levels = torch.zeros(1, 1, 1, 2, dtype=torch.int64)
    model = of_levels(noise_std=0.05, likelihood_steps=6)
    with pytest.warns(
        UserWarning, match=r"likelihood_steps=6 may be too few .* set likelihood_steps=9,"
    ):
        model.scores(levels, None, Noise(0, range(1)))


def test_logits_that_know_the_level_leave_nothing_to_chance():
    model = of_levels(steps=30, noise_std=0.15)
    model.net.last.bias.data.view(2, 5)[0, 3] = 60.0
    model.net.last.bias.data.view(2, 5)[1, 1] = 60.0
    model.ema.net.last.bias.data.copy_(model.net.last.bias.data)
    drawn = model.to_levels(model.preprocess(model.sample(200)))
    assert (drawn[:, 0, 0] == torch.tensor([3, 1])).float().mean() > 0.95


def test_logits_are_for_few_levels():
    assert FlowMatching([1, 2, 2], levels=32, width=4, depth=1).net.outputs == 32
    assert FlowMatching([1, 2, 2], levels=33, width=4, depth=1).net.outputs is None
    chosen = FlowMatching([1, 2, 2], levels=33, width=4, depth=1, predict_levels=True)
    assert chosen.net.outputs == 33


@pytest.mark.parametrize("shape", [(3, 5, 2, 2), (3, 1, 2, 2, 1), (3, 4)])
def test_outputs_of_other_shapes_are_refused(shape):
    model = FlowMatching([1, 2, 2], levels=5, width=4, depth=1)
    with pytest.raises(ValueError, match=r"net returned shape .* for images \(3, 1, 2, 2\)"):
        model._velocity(
            lambda *_: torch.zeros(shape), torch.zeros(3, 1, 2, 2), torch.tensor(0.5), None
        )


def test_parts_of_a_batch_have_the_scores_of_the_whole(monkeypatch):
    model = FlowMatching([1, 2, 2], levels=5, width=4, depth=1, likelihood_steps=2).eval()
    levels = torch.randint(0, 5, (7, 1, 2, 2))
    whole = model.scores(levels, None, Noise(0, range(7)))
    sizes = []
    velocity = model._velocity
    model._velocity = lambda net, x, t, labels: sizes.append(len(x)) or velocity(net, x, t, labels)
    monkeypatch.setattr(f"{flow_log_prob.__module__}.JACOBIAN_VALUES", 3 * 4**2 * 5)
    torch.testing.assert_close(model.scores(levels, None, Noise(0, range(7))), whole)
    assert sorted(set(sizes)) == [1, 3]


# Guidance


def test_guidance_of_0_and_1_is_exact():
    labels, asked = torch.tensor([0, 1]), []

    def predict(given):
        asked.append(given.tolist())
        return given[:, None].float() * 0.1

    assert torch.equal(guided(predict, labels, 1.0, 10), predict(labels))
    assert torch.equal(guided(predict, labels, 0.0, 10), torch.full((2, 1), 1.0))
    assert asked == [[0, 1], [0, 1], [10, 10]]
    two = guided(predict, labels, 2.0, 10)
    torch.testing.assert_close(two, torch.tensor([[-1.0], [-0.8]]))


def test_labels_are_hidden_one_by_one():
    torch.manual_seed(0)
    model = FlowMatching([1, 2, 2], num_classes=4, width=4, depth=1, label_dropout=0.25)

    class Fixed:
        def uniform(self, *shape):
            return torch.linspace(0, 0.999, 1000)

    hidden = model.with_hidden(torch.arange(1000) % 4, Fixed())
    assert int((hidden == 4).sum()) == 250
    kept = hidden != 4
    assert torch.equal(hidden[kept], (torch.arange(1000) % 4)[kept])


def test_conditional_samples_use_their_labels():
    torch.manual_seed(0)
    model = FlowMatching([1, 2, 2], levels=9, num_classes=2, width=8, depth=1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    zero, one = (model.sample(20, label, steps=3) for label in (0, 1))
    assert not torch.equal(zero, one)
    assert torch.equal(model.sample(20, 1, steps=3, guidance=1.0), one)
    unknown = model.sample(20, 1, steps=3, guidance=0.0)
    assert torch.equal(unknown, model.sample(20, 0, steps=3, guidance=0.0))


@pytest.mark.parametrize("arch", ["mlp", "cnn"])
@pytest.mark.parametrize("size", [(1, 8, 8), (3, 5, 7)])
@pytest.mark.parametrize("levels", [9, 40])
def test_nets_make_images_of_any_size(arch, size, levels):
    model = FlowMatching(size, levels=levels, width=8, depth=1, arch=arch, likelihood_steps=3)
    assert model.sample(2, steps=1).shape == (2, *size)
    assert model(model.sample(2, steps=1)).shape == (2,)
