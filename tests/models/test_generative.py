"""What all generative models share: levels, logs, samples, averages, resuming."""

import copy
import json
import os
import signal

import forked
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from few_digits import FewDigits
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

import dlblocks
from dlblocks.callbacks import ExactResume, InputNoise, MixUp
from dlblocks.crossval import cross_validate
from dlblocks.data import ArrayDataModule, DigitsDataModule
from dlblocks.models import (
    GAN,
    VAE,
    Diffusion,
    FlowMatching,
    MLPClassifier,
    PixelAutoregressive,
    load,
)
from dlblocks.models._image_checks import check_values
from dlblocks.models._noise import BatchNoise, Noise
from dlblocks.models.generative import AveragedNet
from dlblocks.runs import fit_and_test

QUIET = {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False}


def vae(**arguments):
    return VAE(
        [1, 8, 8],
        **{"levels": 17, "latent_dim": 2, "hidden": [16], "importance_samples": 3, **arguments},
    )


def flow(**arguments):
    small = {
        "levels": 17,
        "width": 8,
        "depth": 1,
        "likelihood_steps": 1,
        "noise_std": 3.0,
        "steps": 3,
    }
    return FlowMatching([1, 8, 8], **{**small, **arguments})


MODELS = {
    "vae": vae,
    "autoregressive": lambda **arguments: PixelAutoregressive(
        [1, 8, 8], levels=17, width=8, depth=1, heads=2, **arguments
    ),
    "diffusion": lambda **arguments: Diffusion(
        [1, 8, 8], levels=17, width=8, depth=1, timesteps=5, steps=3, num_classes=10, **arguments
    ),
    "flow": lambda **arguments: flow(**{"num_classes": 10, **arguments}),
    "gan": lambda **arguments: GAN(
        [1, 8, 8], levels=17, num_classes=10, latent_dim=4, width=8, energy_samples=3, **arguments
    ),
}


def digits(**arguments):
    return DigitsDataModule(**{"batch_size": 256, "val_fraction": 0.1, **arguments})


@pytest.fixture(scope="module", params=MODELS)
def fitted(request):
    torch.manual_seed(0)
    model, trainer = MODELS[request.param](), pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(model, digits())
    return model, trainer


def test_levels_of_the_digits_are_those_of_the_source():
    from sklearn.datasets import load_digits

    model, data = vae(), digits()
    images = data.source.inputs
    levels = model.to_levels(model.preprocess(images))
    assert (levels[:, 0].numpy() == load_digits().images).all()
    assert (model.to_images(levels) == images).all()
    for dtype in (torch.bfloat16, torch.float16):
        half = copy.deepcopy(model).to(dtype)
        assert (half.to_levels(half.preprocess(images)) == levels).all()
        whole = vae(levels=256).to(dtype)
        every = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
        assert (whole.to_images(whole.to_levels(whole.preprocess(every))) == every).all()


def test_floating_point_images():
    images = torch.randint(0, 17, (40, 1, 8, 8)).float() / 16
    model = vae(max_value=1.0)
    model.check_data(ArrayDataModule(images, torch.arange(40) % 2))
    assert (model.to_levels(model.preprocess(images)) == images * 16).all()
    samples = model.sample(20)
    assert samples.dtype == torch.float32
    assert ((samples * 16) % 1 == 0).all()


def test_logged_names(fitted):
    model, trainer = fitted
    names = {*trainer.callback_metrics}
    assert {"train/loss", "val/loss"} <= names
    assert (f"val/{model.measure}" in names) != model.slow_scores
    assert model.measure == ("energy_score" if isinstance(model, GAN) else "bits_per_dim")
    with_score = trainer.validate(model, digits(batch_size=64), verbose=False)[0]
    assert {"val/loss", f"val/{model.measure}"} <= {*with_score}


def test_evaluation_has_no_chance_in_it(fitted):
    model, trainer = fitted
    found = []
    for batch_size, seed in ((64, 0), (64, 1), (17, 2)):
        torch.manual_seed(seed)
        scores = trainer.validate(model, digits(batch_size=batch_size), verbose=False)[0]
        assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(seed))
        found.append(scores)
    assert found[0] == found[1]
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_predictions_are_the_bits_of_the_test(fitted):
    model, trainer = fitted
    data = digits(batch_size=50)
    scores = trainer.test(model, data, verbose=False)[0]
    parts = trainer.predict(model, data)
    each = torch.cat([part["prediction"] for part in parts])
    assert float(each.mean()) == pytest.approx(scores[f"test/{model.measure}"], rel=1e-5)
    index = torch.cat([part["index"] for part in parts])
    assert (index == data.indices("test")).all()
    images, labels, _ = data.arrays("test")
    bits = model.eval()(images[:7], labels[:7])
    torch.testing.assert_close(bits, each[:7], rtol=1e-4, atol=1e-5)


def test_samples_depend_on_seed_and_number_alone(fitted):
    model, _ = fitted
    model.train()
    modes = [part.training for part in model.modules()]
    torch.manual_seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    seven = model.sample(7, seed=3)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert modes == [part.training for part in model.modules()]
    torch.manual_seed(6)
    assert torch.equal(model.eval().sample(7, seed=3, batch_size=2), seven)
    labels = None if model.num_classes is None else torch.arange(30) % 10
    assert torch.equal(model.sample(30, labels, seed=3)[:7], seven)
    assert not torch.equal(model.sample(7, seed=4), seven)
    assert seven.shape == (7, 1, 8, 8)
    assert seven.dtype == torch.uint8


def test_a_loaded_model_makes_the_same_samples(fitted, tmp_path):
    model, _ = fitted
    model.save(tmp_path / "model.ckpt")
    assert torch.equal(load(tmp_path / "model.ckpt").sample(5), model.sample(5))


def test_ranks_train_with_noise_of_their_own():
    """Their global generators may be alike, as `seed_everything` makes them."""
    drawn = []
    for rank in (0, 1, 0):
        torch.manual_seed(0)
        noise = BatchNoise(5, rank=rank)
        drawn.append((noise.normal(3), noise.uniform(), torch.get_rng_state()))
    assert not torch.equal(drawn[0][0], drawn[1][0])
    assert not torch.equal(drawn[0][1], drawn[1][1])
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True))
    assert torch.equal(drawn[0][2], drawn[1][2])  # the generators stay alike


def test_noise_of_each_sample_is_a_stream_of_its_own():
    many = Noise(0, range(2000)).normal(16).double()
    assert abs(float(many.mean())) < 4 / (2000 * 16) ** 0.5
    assert float(many.var()) == pytest.approx(1, abs=0.03)
    rows = torch.corrcoef(many[:200])
    assert float(rows.triu(1).abs().max()) < 1 - 1e-3
    columns = torch.corrcoef(many.T)
    assert float(columns.fill_diagonal_(0).abs().max()) < 0.12
    assert not torch.equal(Noise(1, range(5)).normal(3), Noise(0, range(1, 6)).normal(3))


# The average


def test_the_average_counts_steps_and_is_never_swapped(make_trainer, tmp_path):
    """Peers update it once a micro-batch, lose it on resume, or save it as the net."""
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            steps = int(module.ema.steps)
            assert steps == trainer.global_step
            if steps and (not seen or seen[-1][0] < steps):
                seen.append((steps, copy.deepcopy(module.net.state_dict())))

    torch.manual_seed(0)
    model = vae(ema_decay=0.5, hidden=[8])
    expected = copy.deepcopy(model.net)
    trainer = make_trainer(max_epochs=2, accumulate_grad_batches=3, callbacks=[Watch()])
    trainer.fit(model, digits())
    for step, weights in seen:
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in expected.state_dict().items():
            value.copy_(decay * value + (1 - decay) * weights[name])
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.ema.net.state_dict()[name], value)
    assert [step for step, _ in seen] == [1, 2, 3, 4]
    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path)["state_dict"]
    assert torch.equal(saved["ema.steps"], torch.tensor(4))
    for name, value in model.net.state_dict().items():
        assert torch.equal(saved[f"net.{name}"], value)
    # Sampling and validation use the average.
    model.eval()
    before = model.sample(4)
    with torch.no_grad():
        for p in model.net.parameters():
            p.zero_()
    assert torch.equal(model.sample(4), before)


def test_an_average_of_buffers_is_a_copy():
    net = torch.nn.BatchNorm1d(2)
    average = AveragedNet(net, 0.9)
    net.running_mean += 5
    average.update(net)
    assert torch.equal(average.net.running_mean, net.running_mean)


class Kill(pl.Callback):
    def __init__(self, at):
        self.at = at

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def fit_in(folder, name, kill, seed):
    pl.seed_everything(seed, verbose=False)
    model = MODELS[name](ema_decay=0.9)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ExactResume(folder, every_n_train_steps=1), *([Kill(kill)] if kill else [])],
    )  # fmt: skip
    trainer.fit(model, digits(), ckpt_path="last")
    torch.save(model.state_dict(), f"{folder}/weights.pt")


@pytest.mark.parametrize("name", ["flow"])
def test_a_killed_fit_resumes_bit_for_bit(name, tmp_path):
    forked.run(fit_in, "whole", name, None, 0)
    forked.run(fit_in, "killed", name, 8, 0, code=-signal.SIGKILL)
    forked.run(fit_in, "killed", name, None, 1)
    a, b = (torch.load(tmp_path / run / "weights.pt") for run in ("whole", "killed"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert int(a["ema.steps"]) == 12


# Runs


@pytest.mark.parametrize(("name", "measure"), [("flow", "bits_per_dim"), ("gan", "energy_score")])
def test_cross_validation_scores_images(name, measure, tmp_path):
    result = cross_validate(
        MODELS[name], FewDigits(batch_size=64), num_folds=2, trainer=QUIET,
        run_dir=tmp_path / "run", progress_bar=False,
    )  # fmt: skip
    for row in result.folds:
        mine = result.oof[result.oof.fold == row["fold"]]
        assert row[f"val/{measure}"] == pytest.approx(mine.prediction.mean(), rel=1e-5)
    assert result.pooled()[measure] == pytest.approx(result.oof.prediction.mean())
    assert (result.run_dir / "figures" / "least_likely.png").is_file()
    with pytest.raises(ValueError, match="generative models have no average"):
        result.test(result.ensemble())


def test_a_fit_leaves_bits_and_figures(tmp_path):
    metrics = fit_and_test(
        vae(), digits(), trainer=QUIET, run_dir=tmp_path / "run", progress_bar=False
    )
    assert {"val/bits_per_dim", "test/bits_per_dim", "test/kl"} <= {*metrics}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["metrics"]["test/bits_per_dim"]["mean"] == metrics["test/bits_per_dim"]
    assert (tmp_path / "run" / "figures" / "least_likely.png").is_file()


@pytest.mark.parametrize("name", MODELS)
def test_bf16(name, make_trainer):
    for precision in ("bf16-mixed", "bf16-true"):
        model = MODELS[name]()
        trainer = make_trainer(precision=precision)
        trainer.fit(model, digits(batch_size=512))
        assert torch.isfinite(trainer.callback_metrics["val/loss"])
        assert model.sample(2).dtype == torch.uint8


def test_plain_loaders_and_batches_of_images_alone(make_trainer):
    images = digits().source.inputs[:64]
    for dataset in (images, [(image,) for image in images], [(image, 1) for image in images]):
        loader = DataLoader(dataset, batch_size=16)
        trainer = make_trainer()
        trainer.fit(vae(), loader, loader)
        assert torch.isfinite(trainer.callback_metrics["val/loss"])


def test_values_outside_the_levels_in_a_later_batch(make_trainer):
    images = digits().source.inputs[:48].clone()
    images[40, 0, 3, 3] = 7
    loader = DataLoader(images, batch_size=16)
    with pytest.raises(ValueError, match=r"image 8 has the value 7"):
        make_trainer(limit_val_batches=0).fit(vae(), loader, loader)


def test_images_from_0_to_1_need_their_max_value(make_trainer):
    """Rounded to levels of 0 … 255 they would be black and white."""
    model = VAE([1, 2, 2], latent_dim=1, hidden=[4])
    loader = DataLoader(torch.rand(8, 1, 2, 2), batch_size=4)
    with pytest.raises(ValueError, match=r"from 0 to 0\.\d+, but max_value=255; set max_value=1"):
        make_trainer(limit_val_batches=0).fit(model, loader, loader)
    ones = model.preprocess(torch.ones(2, 1, 2, 2))  # whole numbers of 0 … 255
    check_values(ones, model.levels, model.max_value)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_the_mean_over_samples_also_of_unequal_batches(weighted, make_trainer):
    """A flow logs nothing beside its loss in a fit."""
    images = (torch.arange(110 * 64) % 17 * 15).reshape(110, 1, 8, 8).float()
    losses = torch.arange(110.0)

    class Known(FlowMatching):
        def losses(self, levels, labels, noise):
            first = self.given.to(levels.device)[: len(levels)]
            self.given = self.given[len(levels) :]
            return {"loss": first + 0 * self.net.last.bias.sum()}

    model = Known([1, 8, 8], levels=18, width=8, depth=1, ema_decay=None)
    weights = torch.linspace(0.5, 1.5, 110) if weighted else None
    data = ArrayDataModule(
        images, torch.arange(110) % 2, batch_size=48, val_fraction=0.1, test_fraction=0.0,
        weights=weights,
    )  # fmt: skip
    trainer = make_trainer(limit_val_batches=0)
    model.given = losses
    trainer.fit(model, data)
    num = len(data.arrays("train")[0])
    assert num % 48
    if not weighted:
        expected = losses[:num].mean()
        assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(float(expected))
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


def test_whole_numbers_of_numpy():
    model = vae()
    assert torch.equal(model.sample(np.int64(2), seed=np.int32(3)), model.sample(2, seed=3))


def test_dictionaries_are_refused_with_a_cure(make_trainer):
    loader = DataLoader([{"x": image} for image in digits().source.inputs[:8]])
    with pytest.raises(ValueError, match=r"a dict with 'x'; give your DataLoader a collate_fn"):
        make_trainer().fit(vae(), loader, loader)


class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images, times, labels):
        return images * self.scale


class OwnFlow(FlowMatching):
    def make_net(self, image_shape, num_classes, **arguments):
        return Own()


def test_a_net_of_ones_own(make_trainer, tmp_path):
    model = OwnFlow([1, 8, 8], levels=17, likelihood_steps=1, noise_std=3.0)
    trainer = make_trainer()
    trainer.fit(model, digits())
    assert isinstance(model.ema.net, Own)
    model.save(tmp_path / "own.ckpt")
    again = load(tmp_path / "own.ckpt", classes=[OwnFlow])
    assert torch.equal(again.sample(2), model.sample(2))


def test_a_net_is_given_by_a_method(make_trainer):
    for leaf in (GAN, VAE, FlowMatching, PixelAutoregressive):
        with pytest.raises(
            TypeError, match=rf"{leaf.__name__} has no argument 'net'.*override make_net"
        ):
            leaf(net=Own())
    with pytest.raises(
        TypeError, match=r"MLPClassifier has no argument 'net'.*Classifier takes one"
    ):
        MLPClassifier(4, 3, net=Own())
    with pytest.raises(TypeError, match=r"GAN has no argument 'netz'\.$"):
        GAN(netz=Own())


@pytest.mark.filterwarnings("ignore:Total length of `list`")
@pytest.mark.parametrize(
    ("name", "monitor", "arguments", "says"),
    [
        (
            "gan",
            "val/bits_per_dim",
            {},
            "GAN has no such score; monitor 'val/energy_score' or 'val",
        ),
        ("flow", "val/bits_per_dim", {}, "FlowMatching takes too long .* monitor 'val/loss'"),
        ("vae", "val/loss", {"limit_val_batches": 0}, "no validation; set val_fraction"),
        ("vae", "val/loss", {"val_fraction": 0.0}, "no validation; set val_fraction"),
    ],
)
def test_scores_that_a_fit_does_not_log(name, monitor, arguments, says, make_trainer):
    """Lightning says so after an epoch, or without validation writes no checkpoint."""
    data = digits(**{k: v for k, v in arguments.items() if k == "val_fraction"})
    limit = {k: v for k, v in arguments.items() if k != "val_fraction"}
    for callback in (ModelCheckpoint(monitor=monitor), EarlyStopping(monitor)):
        trainer = make_trainer(
            callbacks=[callback],
            enable_checkpointing=isinstance(callback, ModelCheckpoint),
            **limit,
        )
        with pytest.raises(ValueError, match=says):
            trainer.fit(MODELS[name](), data)
        assert trainer.global_step == 0


def test_scores_of_later_epochs_and_of_callbacks_may_be_monitored(make_trainer, tmp_path):
    class LogsItself(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.log("val/mine", 1.0)

    cases = [
        ("val/loss", {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2, "max_epochs": 2}),
        ("val/mine", {"limit_val_batches": 0}),
    ]
    for monitor, arguments in cases:
        folder = tmp_path / monitor.replace("/", "-")
        callbacks = [LogsItself(), ModelCheckpoint(folder, monitor=monitor)]
        trainer = make_trainer(callbacks=callbacks, enable_checkpointing=True, **arguments)
        trainer.fit(vae(), digits())
        assert callbacks[1].best_model_path


def test_an_opened_run_samples(tmp_path):
    model = vae()
    model.save(tmp_path / "vae.ckpt")
    predictor = dlblocks.load(tmp_path / "vae.ckpt")
    assert torch.equal(predictor.sample(3, seed=5), model.sample(3, seed=5))
    with pytest.raises(TypeError, match="MLPClassifier makes no images; use predict"):
        dlblocks.load(MLPClassifier(4, 3)).sample(3)


def test_export_is_refused_with_its_reason(tmp_path):
    vae().save(tmp_path / "vae.ckpt")
    with pytest.raises(ValueError, match="VAE cannot be exported: it draws noise for each image"):
        dlblocks.load(tmp_path / "vae.ckpt").export(tmp_path / "vae.pt2")
    assert not (tmp_path / "vae.pt2").exists()


def train_two(folder):
    pl.seed_everything(0, verbose=False)
    model = vae(ema_decay=0.9)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", logger=False,
                         enable_progress_bar=False, enable_model_summary=False,
                         enable_checkpointing=False)  # fmt: skip
    trainer.fit(model, digits())
    (scores,) = trainer.validate(model, digits(), verbose=False)
    if trainer.is_global_zero:
        torch.save([model.state_dict(), scores], f"{folder}/two.pt")


def test_two_processes_validate_as_one(tmp_path, make_trainer):
    forked.run(train_two, str(tmp_path), environments=forked.ranks(2))
    weights, scores = torch.load(tmp_path / "two.pt")
    model = vae(ema_decay=0.9)
    model.load_state_dict(weights)
    (alone,) = make_trainer().validate(model, digits(), verbose=False)
    assert alone == pytest.approx(scores, rel=1e-5)


# Bad input


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: VAE([8, 8]), r"image_shape=\[8, 8\].*channels, height and width"),
        (lambda: vae(levels=1), "levels=1"),
        (lambda: vae(ema_decay=1.0), r"ema_decay=1.0 is outside \[0, 1\)"),
        (lambda: vae(beta=-1), "beta=-1"),
        (lambda: flow(steps=0), "steps=0"),
        (lambda: flow(method="rk5"), "method='rk5' is not known"),
        (lambda: flow(arch="unet"), "arch"),
        (lambda: vae().sample(0), "n=0"),
        (lambda: vae().sample(2, seed=1.5), "seed=1.5 is not a whole number"),
        (lambda: vae().sample(2, steps=3), "samples without steps"),
        (lambda: vae().sample(2, labels=3), "trained without classes"),
        (lambda: flow().sample(2, steps=0), "steps=0"),
        (lambda: flow().sample(2, guidance=2.0), "num_classes=None"),
        (lambda: flow(num_classes=3, label_dropout=0.0).sample(2, guidance=2.0), "label_dropout"),
        (lambda: flow(num_classes=3).sample(2, labels=[0, 3]), "label 3 is outside.*0 … 2"),
        (lambda: flow(num_classes=3).sample(2, labels=[0]), "1 entries for n=2"),
        (lambda: flow(num_classes=3)(torch.zeros(1, 1, 8, 8)), r"model\(images, labels\)"),
        (lambda: vae()(torch.zeros(1, 1, 9, 8)), r"set image_shape=\[1, 9, 8\]"),
    ],
)
def test_arguments(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_data_that_does_not_fit(make_trainer):
    data = digits()
    for model, says in (
        (vae(levels=16), "has the value .* levels=16"),
        (flow(num_classes=9), "num_classes=9, but DigitsDataModule has 10"),
        (VAE([3, 8, 8], levels=17), r"set image_shape=\[1, 8, 8\]"),
    ):
        with pytest.raises(ValueError, match=says):
            make_trainer().fit(model, data)
    for callback, says in ((InputNoise(0.5), "leave out callbacks"), (MixUp(1.0), "MixUp")):
        with pytest.raises(ValueError, match=says):
            make_trainer(callbacks=[callback]).fit(flow(num_classes=10), data)
