"""Generative adversarial networks: steps, gradients, averages, resuming."""

import copy
import math
import os
import signal
import warnings

import forked
import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.nn import functional as F

from dlblocks.callbacks import SAM, ExactResume, WeightPenalty
from dlblocks.data import ArrayDataModule, DigitsDataModule
from dlblocks.models import GAN
from dlblocks.models._adversarial import energy_score, gradient_norm
from dlblocks.models._noise import BatchNoise
from dlblocks.nets import Discriminator, Generator
from dlblocks.tasks import PredictionTable, SampleTask

BOTH = pytest.mark.parametrize("loss", ["non_saturating", "wasserstein"])


def small(**arguments):
    torch.manual_seed(0)
    given = {"levels": 17, "latent_dim": 4, "width": 8, "energy_samples": 3, "lr": 0.01}
    return GAN([1, 8, 8], **{**given, **arguments})


def digits(**arguments):
    return DigitsDataModule(**{"batch_size": 256, "val_fraction": 0.1, **arguments})


class Watch(pl.Callback):
    """Keeps the batches and random states of a fit, and the generator's weights after each."""

    def __init__(self):
        self.batches, self.states, self.weights, self.counts = [], [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batches.append([entry.clone() for entry in batch])
        self.states.append(torch.get_rng_state())

    def on_train_batch_end(self, trainer, module, *_):
        self.weights.append(copy.deepcopy(module.net.state_dict()))
        self.counts.append((trainer.global_step, int(module.ema.steps)))


# Against a plain loop


def penalty_of(model, loss, real, fake, labels, noise):
    if loss == "wasserstein":
        share = noise.uniform()[:, None, None, None]
        points = (share * real + (1 - share) * fake).requires_grad_()
    else:
        points = real.clone().requires_grad_()
    score = model.discriminator(points, labels).sum()
    slope = torch.autograd.grad(score, points, create_graph=True)[0].flatten(1)
    if loss == "wasserstein":
        return model.gradient_penalty * (slope.norm(dim=1) - 1) ** 2
    return model.gradient_penalty / 2 * slope.square().sum(1)


def losses_of(model, loss, images, labels, noise):
    """The discriminator's loss, and the function that gives the generator's afterwards."""
    levels = model.to_levels(images)
    real = (levels + noise.uniform(1, 8, 8)) / model.levels * 2 - 1
    fake = model.net(noise.normal(model.latent_dim), labels)
    penalty = penalty_of(model, loss, real, fake.detach(), labels, noise)
    on_real, on_fake = (model.discriminator(x, labels) for x in (real, fake.detach()))
    if loss == "wasserstein":
        first = on_fake - on_real
        return (first + penalty).mean(), lambda: -model.discriminator(fake, labels).mean()
    ones = torch.ones_like(on_real)
    of_real = F.binary_cross_entropy_with_logits(on_real, ones, reduction="none")
    of_fake = F.binary_cross_entropy_with_logits(on_fake, 0 * ones, reduction="none")
    return (of_real + of_fake + penalty).mean(), lambda: F.binary_cross_entropy_with_logits(
        model.discriminator(fake, labels), ones
    )


@BOTH
def test_a_fit_is_that_of_a_plain_loop(loss, make_trainer):
    """Two optimizers with zero_grad, backward, clipping and schedules written out.

    Gradients that the generator's step left in the discriminator would change it.
    """
    model = small(loss=loss, num_classes=10, discriminator_steps=2, lr_schedule="cosine",
                  discriminator_lr=0.02)  # fmt: skip
    plain, watch = copy.deepcopy(model), Watch()
    make_trainer(gradient_clip_val=0.05, callbacks=[watch]).fit(model, digits())
    assert len(watch.batches) == 6
    generator = torch.optim.Adam(plain.net.parameters(), 0.01, (0.5, 0.99))
    discriminator = torch.optim.Adam(plain.discriminator.parameters(), 0.02, (0.5, 0.99))
    clipped = 0
    for i, (images, labels) in enumerate(watch.batches):
        torch.set_rng_state(watch.states[i])
        first, second = losses_of(plain, loss, images, labels, BatchNoise(len(images)))
        for number, optimizer, net in (
            (1, discriminator, plain.discriminator), (0, generator, plain.net)
        ):  # fmt: skip
            if number == 0 and i % 2 == 0:
                continue
            done, total = (i, 6) if number else (i // 2, 3)
            rate = 0.02 if number else 0.01
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * done / total)) / 2
            optimizer.zero_grad()
            value = first if number else second()
            value.backward()
            clipped += float(nn.utils.clip_grad_norm_(net.parameters(), 0.05)) > 0.05
            optimizer.step()
    assert clipped > 3
    for name, value in plain.net.state_dict().items():
        torch.testing.assert_close(model.net.state_dict()[name], value, msg=name)
    for name, value in plain.discriminator.state_dict().items():
        torch.testing.assert_close(model.discriminator.state_dict()[name], value, msg=name)


def test_max_steps_counts_the_generators(make_trainer):
    """Lightning's count is that of both optimizers, so that half of the steps would be missing."""
    model, watch = small(discriminator_steps=2, lr_schedule="cosine"), Watch()
    trainer = make_trainer(max_epochs=-1, max_steps=7, callbacks=[watch])
    trainer.fit(model, digits())
    assert trainer.global_step == 7
    assert len(watch.batches) == 14
    assert watch.counts == [(i // 2, i // 2) for i in range(1, 15)]
    steps = [next(iter(o.state.values()))["step"].item() for o in trainer.optimizers]
    assert steps == [7, 14]
    # Both schedules are at their end.
    assert [o.param_groups[0]["lr"] for o in trainer.optimizers] == pytest.approx([0, 0], abs=1e-9)


def test_the_average_is_that_of_generator_steps(make_trainer, tmp_path):
    model, watch = small(discriminator_steps=2, ema_decay=0.5), Watch()
    expected = copy.deepcopy(model.net.state_dict())
    trainer = make_trainer(max_epochs=2, callbacks=[watch])
    trainer.fit(model, digits())
    for step, weights in enumerate(watch.weights[1::2], 1):
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in expected.items():
            value.copy_(decay * value + (1 - decay) * weights[name])
    for name, value in expected.items():
        torch.testing.assert_close(model.ema.net.state_dict()[name], value)
    trainer.save_checkpoint(tmp_path / "gan.ckpt")
    saved = torch.load(tmp_path / "gan.ckpt")
    assert not any("ema" in name and "discriminator" in name for name in saved["state_dict"])
    for name, value in watch.weights[-1].items():
        assert torch.equal(saved["state_dict"][f"net.{name}"], value)  # not the averaged ones
    assert saved["state_dict"]["ema.steps"] == 6
    assert saved["global_step"] == 6


def test_a_penalty_of_weights_comes_before_clipping(make_trainer):
    model = small()
    before = copy.deepcopy(model)
    callbacks = [WeightPenalty(l2=1e4)]
    make_trainer(max_epochs=-1, max_steps=1, gradient_clip_val=1e-3, callbacks=callbacks).fit(
        model, digits()
    )
    for part in ("net", "discriminator"):
        norm = nn.utils.get_total_norm(
            [p.grad for p in getattr(model, part).parameters() if p.grad is not None]
        )
        assert float(norm) == pytest.approx(1e-3, rel=1e-3)
        first = next(getattr(before, part).parameters())
        slope = next(getattr(model, part).parameters()).grad
        assert F.cosine_similarity(slope.flatten(), first.flatten(), 0) > 0.99


# The gradient penalty


def test_gradient_penalty_is_that_of_finite_differences():
    """Over the flattened image, not over channels, and with a gradient of its own."""
    torch.manual_seed(0)
    net = Discriminator([3, 2, 2], width=5).double()
    images = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        slopes = torch.zeros(4, 12, dtype=torch.float64)
        for i in range(12):
            step = torch.zeros(12, dtype=torch.float64)
            step[i] = 1e-6
            up, down = (net(images + sign * step.view(3, 2, 2)) for sign in (1, -1))
            slopes[:, i] = (up - down) / 2e-6
    scores, norms = gradient_norm(net, images)
    torch.testing.assert_close(scores, net(images))
    torch.testing.assert_close(norms, slopes.square().sum(1).sqrt(), rtol=1e-6, atol=1e-9)
    weight = net.features[1].weight

    def value():
        return ((gradient_norm(net, images)[1] - 1) ** 2).mean()

    (found,) = torch.autograd.grad(value(), weight)
    for place in ((0, 0), (3, 7)):
        with torch.no_grad():
            weight[place] += 1e-6
        up = value().item()
        with torch.no_grad():
            weight[place] -= 2e-6
        assert (up - value().item()) / 2e-6 == pytest.approx(float(found[place]), rel=1e-4)
        with torch.no_grad():
            weight[place] += 1e-6


def test_batch_norm_in_the_critic_is_refused():
    class Normed(GAN):
        def make_discriminator(self, image_shape, num_classes, **arguments):
            return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 1), nn.Flatten(0))

    with pytest.raises(ValueError, match=r"BatchNorm1d.*gradient penalty is of each image alone"):
        Normed([1, 8, 8], loss="wasserstein")
    Normed([1, 8, 8], gradient_penalty=0.0)


@BOTH
def test_a_discriminator_without_slope_has_finite_gradients(loss, make_trainer):
    model = small(loss=loss)
    with torch.no_grad():
        for p in model.discriminator.parameters():
            p.zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all have the same score
        make_trainer(max_epochs=-1, max_steps=2).fit(model, digits())
    assert all(torch.isfinite(p).all() for p in model.parameters())


# The discriminator fails


def test_a_collapsed_discriminator_is_reported(make_trainer):
    dead = small(discriminator_lr=0.0)
    with torch.no_grad():
        for p in dead.discriminator.parameters():
            p.zero_()
    with pytest.warns(UserWarning, match="epoch 0: the discriminator gives all .* the same score"):
        make_trainer().fit(dead, digits())
    strong = small(lr=0.0, discriminator_lr=0.05, gradient_penalty=0.0, width=64)
    with pytest.warns(UserWarning, match="has told all samples from images for 5 epochs") as said:
        make_trainer(max_epochs=10).fit(strong, digits())
    assert sum("has told all" in str(each.message) for each in said) == 1


# Processes


class Kill(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)


def fit_in(folder, kill, seed):
    model = small(num_classes=10, discriminator_steps=2, ema_decay=0.9, lr_schedule="cosine")
    pl.seed_everything(seed, verbose=False)
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ExactResume(folder, every_n_train_steps=1), *([Kill()] if kill else [])],
    )  # fmt: skip
    trainer.fit(model, digits(batch_size=400), ckpt_path="last")
    states = [optimizer.state_dict() for optimizer in trainer.optimizers]
    torch.save([model.state_dict(), states, trainer.global_step], f"{folder}/end.pt")


def test_a_killed_fit_resumes_bit_for_bit(tmp_path):
    forked.run(fit_in, "whole", False, 0)
    forked.run(fit_in, "killed", True, 0, code=-signal.SIGKILL)
    forked.run(fit_in, "killed", False, 1)
    a, b = (torch.load(tmp_path / run / "end.pt") for run in ("whole", "killed"))
    assert a[2] == b[2] == 6 == int(a[0]["ema.steps"])
    assert all(torch.equal(a[0][key], b[0][key]) for key in a[0])
    for one, other in zip(a[1], b[1], strict=True):
        assert one["param_groups"] == other["param_groups"]
        for key, state in one["state"].items():
            assert all(torch.equal(state[name], other["state"][key][name]) for name in state)


def train_two(folder):
    model, watch = small(num_classes=10, ema_decay=0.9), Watch()
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        callbacks=[watch], gradient_clip_val=0.1, max_steps=3,
    )  # fmt: skip
    trainer.fit(model, digits(batch_size=64))
    (scores,) = trainer.validate(model, digits(), verbose=False)
    found = [watch.batches, watch.states, model.state_dict(), scores]
    torch.save(found, f"{folder}/{trainer.global_rank}.pt")


def test_two_processes_train_as_one(tmp_path, make_trainer):
    """The usual way fails: DDP waits for gradients of both nets in each backward pass."""
    forked.run(train_two, str(tmp_path), environments=forked.ranks(2))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    weights = ranks[0][2]
    assert all(torch.equal(weights[name], ranks[1][2][name]) for name in weights)
    plain = small(num_classes=10)
    start = copy.deepcopy(plain.net.state_dict())
    optimizers = [
        torch.optim.Adam(net.parameters(), 0.01, (0.5, 0.99))
        for net in (plain.net, plain.discriminator)
    ]
    for step in range(3):
        pairs = []
        for rank, (batches, states, *_) in enumerate(ranks):
            torch.set_rng_state(states[step])
            images, labels = batches[step]
            noise = BatchNoise(len(images), rank=rank)
            pairs.append(losses_of(plain, "non_saturating", images, labels, noise))
        for number, net in ((1, plain.discriminator), (0, plain.net)):
            optimizers[number].zero_grad()
            values = [first if number else second() for first, second in pairs]
            (sum(values) / 2).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            optimizers[number].step()
    for part in ("net", "discriminator"):
        for name, value in getattr(plain, part).state_dict().items():
            torch.testing.assert_close(weights[f"{part}.{name}"], value, rtol=1e-3, atol=1e-5)
    assert not torch.equal(start["last.weight"], plain.net.last.weight)
    model = small(num_classes=10, ema_decay=0.9)
    model.load_state_dict(weights)
    (alone,) = make_trainer().validate(model, digits(), verbose=False)
    assert alone == pytest.approx(ranks[0][3], rel=1e-5)


# Scores and samples


def test_energy_score_by_a_loop():
    torch.manual_seed(0)
    samples, images = torch.randn(7, 5), torch.randn(4, 5)

    def apart(x, y):
        return float(((x - y) ** 2).mean().sqrt())

    pairs = [apart(x, y) for i, x in enumerate(samples) for j, y in enumerate(samples) if i != j]
    expected = [sum(apart(x, y) for x in samples) / 7 - sum(pairs) / len(pairs) / 2 for y in images]
    torch.testing.assert_close(energy_score(samples, images), torch.tensor(expected))


def test_energy_score_is_lowest_for_the_true_distribution():
    torch.manual_seed(0)
    images, true = torch.randn(2, 3000, 3)
    scores = [
        float(energy_score(samples, images).mean())
        for samples in (true, true + 0.5, true * 0.5, true * 2)
    ]
    assert min(scores[1:]) > scores[0] + 0.01


def test_scores_are_of_samples_of_the_same_class():
    model = small(num_classes=3, energy_samples=5).eval()
    levels = torch.randint(0, 17, (6, 1, 8, 8))
    labels = torch.tensor([2, 0, 2, 1, 0, 2])
    found = model.scores(levels, labels, None)
    for i, label in enumerate(labels.tolist()):
        samples = model.to_levels(model.preprocess(model.sample(5, label))).flatten(1) / 16
        expected = energy_score(samples, levels[i : i + 1].flatten(1) / 16)
        torch.testing.assert_close(found[i : i + 1], expected)


def test_levels_and_noise_are_inverse():
    class Given(nn.Module):
        def forward(self, codes, labels):
            return self.images

    model = small(ema_decay=None).eval()
    levels = torch.arange(17).repeat(64)[: 17 * 64].reshape(17, 1, 8, 8)
    model.net = Given()
    for noise in (0.001, 0.5, 0.999):
        model.net.images = (levels + noise) * (2 / 17) - 1
        assert torch.equal(model._made(torch.zeros(17, 4), None), levels)


def test_learns_an_image_for_each_class(make_trainer):
    images = torch.zeros(256, 1, 2, 2)
    labels = torch.arange(256) % 2
    images[labels == 0, 0, 0] = 8.0
    images[labels == 1, 0, :, 1] = 4.0
    torch.manual_seed(0)
    model = GAN([1, 2, 2], levels=9, max_value=8.0, num_classes=2, width=32, latent_dim=4,
                lr=3e-3, ema_decay=0.9)  # fmt: skip
    data = ArrayDataModule(images, labels, batch_size=64, val_fraction=0.1, test_fraction=0.0)
    make_trainer(max_epochs=-1, max_steps=200, limit_val_batches=0).fit(model, data)
    samples = model.sample(40, torch.arange(40) % 2)
    assert float((samples - images[:40]).abs().mean()) < 0.6


@pytest.mark.parametrize("arch", ["mlp", "cnn"])
@pytest.mark.parametrize("size", [(1, 8, 8), (3, 5, 7), (2, 1, 1)])
def test_nets_make_images_of_any_size(arch, size):
    generator = Generator(size, 4, 3, arch=arch, width=6)
    images = generator(torch.randn(2, 4), torch.tensor([0, 2])).detach()
    assert images.shape == (2, *size)
    assert float(images.abs().max()) < 1
    discriminator = Discriminator(size, 3, arch=arch, width=6)
    scores = discriminator(images, torch.tensor([0, 2]))
    assert scores.shape == (2,)
    assert not torch.equal(scores, discriminator(images, torch.tensor([1, 1])))
    assert torch.allclose(discriminator(images[1:], torch.tensor([2])), scores[1:])


def test_task():
    table = PredictionTable({"index": torch.arange(2).numpy(), "target": torch.zeros(2).numpy(),
                             "prediction": torch.tensor([0.1, 0.3]).numpy()})  # fmt: skip
    assert SampleTask.score(table) == {"energy_score": pytest.approx(0.2)}


# Bad input


class Flat(GAN):
    def make_discriminator(self, image_shape, num_classes, **arguments):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 1))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: small(loss="hinge"), "loss='hinge'"),
        (lambda: small(gradient_penalty=-1.0), "gradient_penalty=-1"),
        (lambda: small(discriminator_steps=0), "discriminator_steps=0"),
        (lambda: small(energy_samples=1), "energy_samples=1"),
        (lambda: small(latent_dim=0), "latent_dim=0"),
        (lambda: small(arch="unet"), "arch"),
        (lambda: small(dropout=1.0), "dropout=1"),
        (lambda: small(optimizer="lbfgs"), "two losses of a GAN change each other"),
        (lambda: small(lr_schedule="plateau"), "waits for a loss that falls"),
        (lambda: small(optimizer_args={"layer_decay": 0.9}), "use discriminator_lr"),
        (lambda: small().sample(2, steps=3), "samples without steps"),
        (lambda: small(num_classes=3).sample(2, guidance=2.0), "guidance=2"),
        (lambda: small(num_classes=3).sample(2, labels=3), "label 3 is outside"),
    ],
)
def test_arguments(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    ("arguments", "trainer", "says"),
    [
        ({}, {"accumulate_grad_batches": 2}, "accumulate_grad_batches=2.*larger batch_size"),
        ({}, {"precision": "16-true"}, "'bf16-mixed' or '32-true'"),
        ({}, {"callbacks": [EMAWeightAveraging()]}, "average the discriminator, too.*ema_decay"),
        ({}, {"callbacks": [SAM()]}, "SAM needs Lightning to step the optimizers"),
        ({"discriminator_steps": 7}, {}, "the fit has 6 batches"),
    ],
)
def test_fits_that_do_not_fit(arguments, trainer, says, make_trainer):
    with pytest.raises(ValueError, match=says):
        make_trainer(**trainer).fit(small(**arguments), digits())


def test_a_discriminator_of_ones_own_returns_a_score_each(make_trainer):
    model = Flat([1, 8, 8], levels=17)
    model.discriminator.forward = lambda images, labels: torch.zeros(len(images), 1)
    with pytest.raises(ValueError, match=r"shape \(256, 1\) for 256 images"):
        make_trainer().fit(model, digits())
