"""One rule for inputs: every model takes them in the units of the source."""

import copy
from pathlib import Path

import forked
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dlblocks.callbacks import ExactResume, MixUp
from dlblocks.crossval import cross_validate
from dlblocks.data import ArrayDataModule, DigitsDataModule, FoldedDataModule
from dlblocks.ensembles import AdaBoost, Bagging, GradientBoosting, Voting
from dlblocks.models import (
    Classifier,
    CNNClassifier,
    MLPClassifier,
    MLPRegressor,
    Model,
    VotingEnsemble,
    load,
)
from dlblocks.nets import CNN, MLP, Preprocess

rng = np.random.default_rng(0)
# Far from 0 and wide: a net that gets these as they are learns nothing.
X = (1000 + 50 * rng.normal(size=(240, 6))).astype(np.float32)
Y = (X[:, 0] > X[:, 1]).astype(np.int64)
RUN = {"progress_bar": False, "figures": False}
CPU = {"accelerator": "cpu", "max_epochs": 3}


def data(**arguments):
    return ArrayDataModule(X, Y, **{"batch_size": 16, "test_fraction": 0.25, **arguments})


def mlp():
    return MLPClassifier(6, 2, hidden=[16], lr=0.02)


def fitted(model, trainer, source=None):
    source = source or data()
    trainer.fit(model, datamodule=source)
    return model.eval(), source


def by_hand(model, source, inputs):
    """The net on inputs that are normalised by NumPy."""
    train = X[source.indices("train")].astype(np.float64)
    made = (np.asarray(inputs, dtype=np.float64) - train.mean(0)) / train.std(0)
    with torch.no_grad():
        return model.net(torch.from_numpy(made).float())


def accuracy(model, source, part="test"):
    inputs, targets, _ = source.arrays(part)
    with torch.no_grad():
        return float((model(inputs).argmax(1) == targets).float().mean())


def score(model, source, make_trainer):
    (scores,) = make_trainer().test(model, datamodule=source, verbose=False)
    return scores["test/accuracy"]


def test_raw_inputs_outside_a_trainer(make_trainer):
    model, source = fitted(mlp(), make_trainer(max_epochs=5))
    inputs = source.arrays("test")[0]
    with torch.no_grad():
        torch.testing.assert_close(
            model(inputs), by_hand(model, source, inputs), rtol=1e-4, atol=1e-4
        )
    predicted = make_trainer().predict(model, datamodule=source)
    inside = torch.cat([batch["prediction"] for batch in predicted])
    with torch.no_grad():
        each = torch.cat([model(part) for part in inputs.split(16)])
    assert torch.equal(inside, each.softmax(1))  # to the bit
    assert accuracy(model, source) == pytest.approx(score(model, source, make_trainer))
    assert accuracy(model, source) > 0.8


def test_plain_loaders_of_raw_inputs(make_trainer):
    model, source = fitted(mlp(), make_trainer())
    inputs, targets, _ = source.arrays("test")
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=16)
    (scores,) = make_trainer().test(model, dataloaders=loader, verbose=False)
    assert scores["test/accuracy"] == pytest.approx(score(model, source, make_trainer))
    assert "on_after_batch_transfer" not in vars(model)  # nothing is left behind
    bare = make_trainer().predict(model, dataloaders=DataLoader(inputs, batch_size=16))
    with torch.no_grad():
        expected = model(inputs).softmax(1)
    torch.testing.assert_close(torch.cat([batch["prediction"] for batch in bare]), expected)


def test_plain_loaders_after_a_datamodule_in_the_same_trainer(make_trainer):
    trainer = make_trainer(max_epochs=3)
    model, source = fitted(mlp(), trainer)
    inputs, targets, _ = source.arrays("test")
    expected = score(model, source, make_trainer)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=16)
    # Lightning leaves `trainer.datamodule` as it was.
    (scores,) = trainer.test(model, dataloaders=loader, verbose=False)
    assert scores["test/accuracy"] == pytest.approx(expected)
    assert expected > 0.7
    assert score(model, source, lambda: trainer) == pytest.approx(expected)


class Scaled(pl.LightningDataModule):
    """Somebody else's, with a hook of its own."""

    def __init__(self, inputs, targets):
        super().__init__()
        self.arrays = TensorDataset(inputs / 10, targets)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] * 10, batch[1]]

    def train_dataloader(self):
        return DataLoader(self.arrays, batch_size=16)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def test_somebody_elses_hook_is_called_first(make_trainer):
    model, source = fitted(mlp(), make_trainer())
    inputs, targets, _ = source.arrays("test")
    theirs = Scaled(inputs, targets)
    assert score(model, theirs, make_trainer) == pytest.approx(accuracy(model, source))
    assert "on_after_batch_transfer" not in vars(theirs)
    folded = FoldedDataModule(Scaled(torch.from_numpy(X), torch.from_numpy(Y)))
    trainer = make_trainer(max_epochs=1)
    model.train()
    trainer.fit(model, datamodule=folded)  # further, with the statistics that it has
    train = X[source.indices("train")]
    np.testing.assert_allclose(-model.preprocess.shift / model.preprocess.scale,
                               train.mean(0), rtol=1e-4)  # fmt: skip


def test_an_untrained_model_changes_nothing(make_trainer):
    model = mlp().eval()
    inputs = torch.from_numpy(X[:5])
    assert torch.equal(model(inputs), model.net(inputs))
    assert model(inputs.double().float()).dtype == torch.float32
    # In a Trainer, a datamodule of ours normalises for it, as for other people's modules.
    source = data()
    make_trainer().validate(model, datamodule=source, verbose=False)
    make_trainer().predict(model, datamodule=source)
    assert not model.preprocess.is_set


def test_models_learn_from_somebody_elses_data_as_it_is(make_trainer):
    model = mlp()
    loader = DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=16)
    make_trainer(limit_val_batches=0).fit(model, loader, loader)
    assert not model.preprocess.is_set
    inputs = torch.from_numpy(X[:5])
    assert torch.equal(model(inputs), model.net(inputs))


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_fold_averages(engine, make_trainer, tmp_path):
    source = data()
    result = cross_validate(mlp, source, num_folds=3, trainer=CPU, engine=engine,
                            run_dir=tmp_path / engine, **RUN)  # fmt: skip
    together = result.ensemble()
    inputs = source.arrays("test")[0]
    each = []
    for fold, member in enumerate(together.net.members):
        part = source.for_fold(fold, 3).with_selection(0.15)
        each.append(by_hand(member, part, inputs).softmax(1))
        rows = torch.from_numpy(result.oof.index[result.oof.fold == fold])
        alone = load(result.run_dir / result.folds[fold]["checkpoint"])
        with torch.no_grad():
            found = alone(source.source.inputs[rows]).softmax(1).numpy()
        expected = result.oof.prediction[result.oof.fold == fold]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    with torch.no_grad():
        found = together(inputs).softmax(1)
    torch.testing.assert_close(found, sum(each) / 3, rtol=1e-4, atol=1e-5)
    assert accuracy(together, source) == pytest.approx(score(together, source, make_trainer))
    together.save(tmp_path / "average.ckpt")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "average.ckpt")(inputs).softmax(1), found)
    # Other data, of other units: the members keep their own statistics.
    other = ArrayDataModule(10 * X, Y, test_fraction=0.25)
    (scores,) = make_trainer().test(together, datamodule=other, verbose=False)
    raw, targets, _ = other.arrays("test")
    with torch.no_grad():
        expected = float((together(raw).argmax(1) == targets).float().mean())
    assert scores["test/accuracy"] == pytest.approx(expected)


def test_votes_bags_and_sums(make_trainer):
    source = data()
    one, _ = fitted(mlp(), make_trainer(), data(split_seed=0))
    two, _ = fitted(mlp(), make_trainer(), data(split_seed=0, normalize=False))
    vote = Voting([one, two])
    inputs = source.arrays("test")[0]
    with torch.no_grad():
        expected = (one(inputs).softmax(1) + two(inputs).softmax(1)) / 2
        torch.testing.assert_close(vote(inputs).softmax(1), expected)
    models = {
        "vote": vote,
        "bag": Bagging(mlp, source, num_members=2, trainer=CPU, **RUN).fit().model,
        "ada": AdaBoost(mlp, source, num_stages=2, trainer=CPU, progress_bar=False).fit().model,
        "sum": GradientBoosting(lambda: MLPRegressor(6, 2, hidden=[8]), source, num_stages=2,
                                trainer=CPU, progress_bar=False).fit().model,
    }  # fmt: skip
    for name, model in models.items():
        found = accuracy(model, source)
        assert found == pytest.approx(score(model, source, make_trainer)), name
        model.save(f"{name}.ckpt")
        again = load(f"{name}.ckpt")
        with torch.no_grad():
            assert torch.equal(again(inputs), model(inputs)), name
    assert accuracy(models["bag"], source) > 0.8
    for name in ("ada", "sum"):
        *_, last = models[name].staged_predict(inputs)
        with torch.no_grad():
            torch.testing.assert_close(last, models[name](inputs).softmax(1))


def test_trained_learners_are_refused(make_trainer):
    trained, _ = fitted(MLPRegressor(6, 2), make_trainer(max_epochs=1), ArrayDataModule(
        X, np.eye(2, dtype=np.float32)[Y]))  # fmt: skip
    with pytest.raises(ValueError, match=r"with statistics of its inputs.*Make a new one"):
        GradientBoosting(lambda: trained, data(), trainer=CPU, progress_bar=False).fit()


@pytest.mark.parametrize(
    "make", [lambda: EMAWeightAveraging(decay=0.9), lambda: StochasticWeightAveraging(
        swa_lrs=0.01, swa_epoch_start=1)], ids=["EMA", "SWA"],
)  # fmt: skip
def test_weight_averaging_leaves_statistics_alone(make, make_trainer):
    model, source = fitted(mlp(), make_trainer(max_epochs=4, callbacks=[make()]))
    expected = source.preprocess
    assert torch.equal(model.preprocess.scale, expected.scale)
    model.trainer.save_checkpoint("a.ckpt")
    again = load("a.ckpt")
    assert torch.equal(again.preprocess.shift, expected.shift)
    inputs = source.arrays("test")[0]
    with torch.no_grad():
        torch.testing.assert_close(again(inputs), by_hand(again, source, inputs),
                                   rtol=1e-4, atol=1e-4)  # fmt: skip
    assert accuracy(again, source) > 0.75


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_statistics_keep_their_precision(precision, make_trainer):
    trainer = make_trainer(max_epochs=4, precision=precision)
    with trainer.init_module():
        model = mlp()
    model, source = fitted(model, trainer)
    assert model.preprocess.scale.dtype == torch.float32
    assert torch.equal(model.preprocess.scale, source.preprocess.scale)
    half = precision == "bf16-true"
    wanted = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    inputs = source.arrays("test")[0]
    assert model.preprocess(inputs).dtype == wanted
    assert accuracy(model, source) > (0.75 if half else 0.8)
    if half:
        assert accuracy(model, source) == pytest.approx(score(model, source, lambda: make_trainer(
            precision=precision)))  # fmt: skip


@pytest.mark.parametrize("source", [np.float32, np.float64])
def test_half_precision_rounds_after_it_has_normalised(source, make_trainer):
    """Of 10,000 ± 1, bfloat16 keeps nothing, and float32 loses much of 10⁸ ± 1."""
    far = 1e4 if source is np.float32 else 1e8
    values = rng.normal(size=(240, 6))
    labels = (values[:, 0] > values[:, 1]).astype(np.int64)
    parts = ArrayDataModule((far + values).astype(source), labels, test_fraction=0.25)

    def trainer(**arguments):
        return make_trainer(precision="bf16-true", **arguments)

    with (first := trainer(max_epochs=15)).init_module():
        model = mlp()
    fitted(model, first, parts)
    assert "convert_input" not in vars(first.precision_plugin)  # nothing is left behind
    inside = score(model, parts, trainer)
    assert inside == pytest.approx(accuracy(model, parts), abs=0.02)
    assert inside > 0.85
    loader = DataLoader(TensorDataset(*parts.arrays("test")[:2]), batch_size=16)
    (scores,) = trainer().test(model, dataloaders=loader, verbose=False)
    assert scores["test/accuracy"] == pytest.approx(inside)


def test_half_precision_by_hand(make_trainer):
    model, source = fitted(mlp(), make_trainer(max_epochs=4))
    before = accuracy(model, source)
    model.half()
    assert model.preprocess.scale.dtype == torch.float32
    assert model.preprocess(torch.from_numpy(X[:2])).dtype == torch.float16
    assert accuracy(model, source) == pytest.approx(before, abs=0.05)
    assert torch.equal(model.preprocess.shift, source.preprocess.shift)


class Own(Classifier):
    """A net with two outputs; its own forward and step are written for prepared inputs."""

    def __init__(self):
        super().__init__(MLP(6, 4, hidden=[16]), 2, lr=0.02)
        self.seen = []

    def forward(self, inputs):
        self.seen.append(float(inputs.abs().max()))
        return self.net(inputs)[:, :2]


class OwnStep(Own):
    def forward(self, inputs):
        return super().forward(inputs) * 2

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # of a step that logs nothing
@pytest.mark.parametrize("kind", [Own, OwnStep])
def test_subclasses_with_a_forward_of_their_own(kind, make_trainer):
    model, source = fitted(kind(), make_trainer(max_epochs=4))
    inputs = source.arrays("test")[0]
    with torch.no_grad():
        factor = 2 if kind is OwnStep else 1
        expected = factor * by_hand(model, source, inputs)[:, :2]
        torch.testing.assert_close(model(inputs), expected, rtol=1e-4, atol=1e-4)
    assert accuracy(model, source) == pytest.approx(score(model, source, make_trainer))
    assert accuracy(model, source) > 0.75
    assert 0 < max(model.seen) < 10  # prepared once: not 1000, not 0
    assert kind.forward.__name__ == "forward"


class StepMixin:
    """Steps and a forward for prepared inputs, in a class that is not a Model."""

    def forward(self, inputs):
        self.seen.append(float(inputs.abs().max()))
        return self.net(inputs)[:, :2]

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])


class Mixed(StepMixin, Classifier):
    def __init__(self):
        super().__init__(MLP(6, 4, hidden=[16]), 2, lr=0.02)
        self.seen = []

    def setup(self, stage):
        """Without that of the base class."""

    def on_test_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):
        with torch.no_grad():
            self(batch[0])


class OfMixed(Mixed):
    pass


@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # of a step that logs nothing
@pytest.mark.parametrize("kind", [Mixed, OfMixed])
def test_mixins_and_hooks_take_prepared_inputs(kind, make_trainer):
    model, source = fitted(kind(), make_trainer(max_epochs=4))
    inputs, targets, _ = source.arrays("test")
    with torch.no_grad():
        expected = by_hand(model, source, inputs)[:, :2]
        torch.testing.assert_close(model(inputs), expected, rtol=1e-4, atol=1e-4)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=16)
    (scores,) = make_trainer().test(model, dataloaders=loader, verbose=False)
    assert scores["test/accuracy"] == pytest.approx(accuracy(model, source))
    # Prepared once: neither 1000, nor nearly the same for all.
    assert 1 < min(model.seen) < max(model.seen) < 10


class Named(Classifier):
    """Of batches that are dictionaries, whose inputs nobody knows."""

    def __init__(self):
        super().__init__(MLP(6, 2, hidden=[16]), 2, lr=0.02)
        self.preprocess = Preprocess(X.mean(0).tolist(), X.std(0).tolist())

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch["x"]), batch["y"])

    def test_step(self, batch, batch_idx):
        return super().test_step([batch["x"], batch["y"]], batch_idx)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # of a step that logs nothing
def test_dictionaries_stay_raw(make_trainer):
    samples = [{"x": x, "y": y} for x, y in zip(torch.from_numpy(X), Y, strict=True)]
    loader = DataLoader(samples, batch_size=16)
    model = Named()
    seen = []
    model.net.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].abs().max())))
    make_trainer(max_epochs=1, limit_val_batches=0).fit(model, loader, loader)
    make_trainer().test(model, dataloaders=loader, verbose=False)
    assert 1 < min(seen) < max(seen) < 10


class TheirOwn(pl.LightningModule):
    """Somebody else's, which applies a Preprocess itself."""

    def __init__(self):
        super().__init__()
        self.preprocess = Preprocess(X.mean(0).tolist(), X.std(0).tolist())
        self.net, self.seen = nn.Linear(6, 2), []

    def forward(self, inputs):
        inputs = self.preprocess(inputs)
        self.seen.append(float(inputs.abs().max()))
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_other_modules_apply_a_preprocess_of_their_own(make_trainer):
    model = TheirOwn()
    make_trainer(max_epochs=1, limit_val_batches=0).fit(model, datamodule=data(normalize=False))
    assert 1 < min(model.seen) < max(model.seen) < 10


def test_a_trained_model_is_not_a_net(make_trainer):
    model, _ = fitted(mlp(), make_trainer(max_epochs=1))
    with pytest.raises(ValueError, match=r"would be normalised twice.*Classifier\(model\.net\)"):
        Classifier(model, 2)
    Classifier(model.net, 2)
    Classifier(mlp(), 2)  # has no statistics


def test_the_meta_device(make_trainer):
    model, source = fitted(mlp(), make_trainer(max_epochs=1))
    inputs, state = source.arrays("test")[0], model.state_dict()
    with torch.device("meta"):
        fresh = mlp()
    fresh.load_state_dict(state, assign=True)
    emptied = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    emptied.load_state_dict(state)
    with torch.no_grad():
        for made in (fresh, emptied):
            assert torch.equal(made.eval()(inputs), model(inputs))


def test_compiled_models(make_trainer):
    model, source = mlp(), data()
    make_trainer().fit(model, datamodule=source)
    model.eval()
    inputs = source.arrays("test")[0]
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        expected = by_hand(model, source, inputs)
        torch.testing.assert_close(compiled(inputs), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(inputs), expected, rtol=1e-4, atol=1e-4)


def test_exported_models_take_raw_inputs(make_trainer):
    source = DigitsDataModule(test_fraction=0.2)
    model, _ = fitted(CNNClassifier(1, 10, channels=[4]), make_trainer(), source)
    images = source.arrays("test")[0][:8]
    assert images.dtype == torch.uint8
    with torch.no_grad():
        expected = model(images)
        exported = torch.export.export(model, (images,)).module()
        torch.testing.assert_close(exported(images), expected)


def test_a_checkpoint_without_a_datamodule(make_trainer):
    model, source = fitted(mlp(), make_trainer())
    model.save("a.ckpt")
    again = load("a.ckpt")
    inputs = source.arrays("test")[0]
    with torch.no_grad():
        assert torch.equal(again(inputs), model(inputs))
    state = model.state_dict()
    fresh = mlp().eval()
    fresh.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(fresh(inputs), model(inputs))
    del state["preprocess.scale"]
    with pytest.raises(RuntimeError, match=r"preprocess\.scale"):
        mlp().load_state_dict(state)


def test_transfer_to_other_data_keeps_the_statistics(make_trainer):
    model, source = fitted(mlp(), make_trainer())
    model.save("a.ckpt")
    again = load("a.ckpt").train()
    other = ArrayDataModule(X / 2 + 7, Y, batch_size=16)
    make_trainer().fit(again, datamodule=other)
    assert torch.equal(again.preprocess.scale, source.preprocess.scale)
    assert not torch.equal(other.preprocess.scale, source.preprocess.scale)


def test_statistics_of_ones_own(make_trainer):
    """As those of ImageNet, in the units of uint8 images."""
    images = rng.integers(0, 256, (60, 3, 8, 8)).astype(np.uint8)
    source = ArrayDataModule(images, np.arange(60) % 2)
    mean, std = np.array([123.7, 116.3, 103.5]), np.array([58.4, 57.1, 57.4])
    model = Classifier(CNN(3, 2, channels=[4]), 2)
    model.preprocess = Preprocess(mean, std)
    seen = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            seen.append(batch[0])

    trainer = make_trainer(limit_train_batches=1, callbacks=[Look(), MixUp(p=0.0)])
    trainer.fit(model, datamodule=source)
    made = model.preprocess(torch.from_numpy(images))
    expected = (images - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)
    assert all(any(np.allclose(one, row, atol=1e-4) for row in expected) for one in seen[0][:5])
    assert source.as_images(seen[0]).dtype == torch.uint8  # undone by the model's statistics
    raw = {image.tobytes() for image in images}
    assert all(image.numpy().tobytes() in raw for image in source.as_images(seen[0]))
    with pytest.raises(ValueError, match="a number for each channel"):
        Preprocess([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="both or neither"):
        Preprocess([1.0])


def test_exact_resume_restores_the_statistics(make_trainer):
    def trainer(epochs):
        return make_trainer(
            max_epochs=epochs, callbacks=[ExactResume("kept")], enable_checkpointing=True
        )

    model, _ = fitted(mlp(), trainer(2))
    (path,) = Path("kept").rglob("*.ckpt")
    again = mlp()
    other = ArrayDataModule(X + 1, Y, batch_size=16, test_fraction=0.25)  # whose are not the saved
    trainer(3).fit(again, datamodule=other, ckpt_path=path, weights_only=True)
    assert torch.equal(again.preprocess.shift, model.preprocess.shift)
    assert not torch.equal(other.preprocess.shift, model.preprocess.shift)


def one_rank():
    """One of two ranks."""
    pl.seed_everything(0)
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=2,
                         logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False)  # fmt: skip
    model = mlp()
    source = data()
    trainer.fit(model, datamodule=source)
    (scores,) = trainer.test(model, datamodule=source, verbose=False)
    if trainer.is_global_zero:
        model.eval().save("ddp.ckpt")
    assert abs(accuracy(model, source) - scores["test/accuracy"]) < 1e-6


def test_two_processes():
    forked.run(one_rank, environments=forked.ranks(2))
    model, source = load("ddp.ckpt"), data()
    source.setup()
    assert torch.equal(model.preprocess.scale, source.preprocess.scale)
    inputs = source.arrays("test")[0]
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), by_hand(model, source, inputs),
                                   rtol=1e-4, atol=1e-4)  # fmt: skip


def test_members_need_statistics_all_or_none(make_trainer):
    trained, _ = fitted(mlp(), make_trainer(max_epochs=1))
    with pytest.raises(ValueError, match="member 1 has no statistics"):
        VotingEnsemble([trained, mlp()])
    bare = VotingEnsemble([mlp(), mlp()]).eval()
    assert not bare.preprocess.is_set
    inputs = torch.from_numpy(X[:4])
    with torch.no_grad():
        shares = [member.net(inputs).softmax(1) for member in bare.net.members]
        torch.testing.assert_close(bare(inputs).softmax(1), sum(shares) / 2)


def test_a_model_that_has_been_left_by_an_error_leaves_others_alone(make_trainer):
    class Fails(Model):
        def __init__(self):
            super().__init__(nn.Linear(6, 2))

        def loss(self, outputs, targets):
            raise RuntimeError("stop")

    theirs = Scaled(torch.from_numpy(X), torch.from_numpy(Y))
    with pytest.raises(RuntimeError, match="stop"):
        make_trainer(limit_val_batches=0, num_sanity_val_steps=0).fit(Fails(), datamodule=theirs)
    model, _ = fitted(mlp(), make_trainer())
    plain = Scaled(torch.from_numpy(X), torch.from_numpy(Y))
    assert score(model, theirs, make_trainer) == score(model, plain, make_trainer)


class Adapter(Classifier):
    """Saves only what it trains, as Lightning's documentation shows it."""

    def __init__(self, lr=0.1):
        super().__init__(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), 3, lr=lr)
        self.strict_loading = False

    def state_dict(self, *args, **kwargs):
        found = super().state_dict(*args, **kwargs)
        return {name: value for name, value in found.items() if name.startswith("net.1")}


class Unprepared(MLPClassifier):
    """Has a module of another kind where ours have statistics."""

    def __init__(self, lr=0.1):
        super().__init__(4, 3, hidden=[3], lr=lr)
        self.preprocess = nn.Identity()


@pytest.mark.parametrize("kind", [Adapter, Unprepared])
def test_checkpoints_of_today_without_statistics_load(kind, tmp_path):
    model = kind()
    model.save(tmp_path / "own.ckpt")
    found = load(tmp_path / "own.ckpt", classes=[kind], strict=kind is Unprepared)
    for name, value in model.state_dict().items():
        assert found.state_dict()[name].equal(value)


def test_statistics_are_given_to_checkpoints_of_before_only(tmp_path):
    MLPClassifier(4, 3, hidden=[3]).save(tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match=r"preprocess= is for checkpoints of version 0\.1"):
        load(tmp_path / "own.ckpt", preprocess=Preprocess([0.0], [1.0]))
