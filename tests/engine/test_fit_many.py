"""Models fitted together, held against the same models fitted one by one."""

import csv

import lightning.pytorch as pl
import pytest
import torch
from conftest import no_address
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from sklearn.datasets import load_diabetes, load_digits
from torch import nn

from dlblocks.callbacks import (
    Augment,
    CutMix,
    Cutout,
    InputNoise,
    LabelSmoothing,
    MixUp,
    OneOf,
)
from dlblocks.data import ArrayDataModule, DataModule, DigitsDataModule, Source
from dlblocks.engine import Member, NotVectorizable, StackedFit
from dlblocks.engine._chain import Chain
from dlblocks.models import Classifier, CNNClassifier, MLPClassifier, MLPRegressor
from dlblocks.runs._trainer import check_trainer_arguments
from dlblocks.runs.fit import fit

CPU = {"accelerator": "cpu"}


@pytest.fixture(autouse=True)
def double():
    """In float64 what is the same stays the same: rounding is far below what is asked."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Arrays(DataModule):
    """Arrays in float64, which `ArrayDataModule` would round to float32."""

    def __init__(self, inputs, targets, **arguments):
        super().__init__(**arguments)
        self.pair = inputs, targets

    def load(self):
        return Source(*self.pair)


def digits(count=200, **arguments):
    images, targets = load_digits(return_X_y=True)
    inputs = torch.tensor(images[:count]).reshape(-1, 1, 8, 8)
    settings = {"batch_size": 16, "num_folds": 3}
    return Arrays(inputs, torch.tensor(targets[:count]), **{**settings, **arguments})


def diabetes(**arguments):
    inputs, targets = (torch.tensor(x) for x in load_diabetes(return_X_y=True))
    return Arrays(inputs, targets, **{"batch_size": 32, "num_folds": 3, **arguments})


def members(make, data, make_callbacks=list, count=3):
    found = []
    for k in range(count):
        pl.seed_everything(k, verbose=False)
        found.append(Member(f"fold {k}", make(), data.for_fold(k, count), make_callbacks()))
    return found


def both_ways(tmp_path, make, data, make_callbacks=list, monitor="train/loss", count=3, **trainer):
    """The members fitted together, and the `Fit` and model of each fitted by itself."""
    trainer = {**CPU, **trainer}
    together = members(make, data, make_callbacks, count)
    StackedFit(together, trainer=trainer, monitor=monitor, mode="min").fit()
    apart = []
    for k in range(len(together)):
        pl.seed_everything(k, verbose=False)
        model = make()
        done = fit(
            model,
            data.for_fold(k, len(together)),
            tmp_path / str(k),
            callbacks=make_callbacks(),
            trainer=check_trainer_arguments(trainer),
            monitor=monitor,
            mode="min",
            logger=None,
            bar=False,
        )
        apart.append((done, model))
    return together, apart


def assert_same(together, apart, *, atol=1e-6):
    assert len(together) == len(apart)
    for member, (done, model) in zip(together, apart, strict=True):
        assert member.epochs == done.epochs
        assert member.best.epoch + 1 == done.best_epoch
        mine, own = member.model.state_dict(), model.state_dict()
        assert mine.keys() == own.keys()
        for name, value in own.items():
            torch.testing.assert_close(
                mine[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )
        assert member.best.metrics.keys() == done.metrics.keys()
        for name, value in done.metrics.items():
            assert member.best.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
        assert len(member.history.rows) == len(done.history)
        for row, expected in zip(member.history.rows, done.history, strict=True):
            assert row.keys() == expected.keys()
            for name, value in expected.items():
                assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def mlp(**arguments):
    return MLPClassifier(64, 10, hidden=[32, 16], **{"lr": 0.01, **arguments})


def cnn(**arguments):
    return CNNClassifier(1, 10, channels=[4, 8], **{"lr": 0.01, **arguments})


@pytest.mark.parametrize("weights", ["balanced", [1.0, 2.0] * 5])
def test_class_weights_are_each_members_own(tmp_path, weights):
    torch.set_default_dtype(torch.float32)  # as class weights are
    images, targets = load_digits(return_X_y=True)
    data = ArrayDataModule(
        torch.tensor(images[:200], dtype=torch.float32), torch.tensor(targets[:200]), num_folds=3
    )
    together, apart = both_ways(tmp_path, lambda: mlp(class_weights=weights), data, max_epochs=5)
    assert_same(together, apart, atol=1e-5)


def test_balanced_sampling_draws_the_same_rows(tmp_path):
    targets = torch.arange(90).clamp(max=70) // 35  # 35, 35 and 20 of a class
    inputs = torch.rand(90, 64)
    settings = {"batch_size": 16, "num_folds": 3}
    data = Arrays(inputs, targets, balanced_sampling=True, **settings)

    def make():
        return MLPClassifier(64, 3, hidden=[16], lr=0.01)

    together, apart = both_ways(tmp_path, make, data, max_epochs=3)
    assert_same(together, apart)
    plain = members(make, Arrays(inputs, targets, **settings))
    StackedFit(plain, trainer={**CPU, "max_epochs": 3}, monitor="train/loss", mode="min").fit()
    weights = [next(iter(found[0].model.parameters())) for found in (together, plain)]
    assert not torch.allclose(*weights, atol=1e-3)  # the check can fail


# 34 batches an epoch: 102 steps, with few of the epochs, which take the longest. What validation
# says is asked elsewhere.
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw", "radam", "rmsprop"])
@pytest.mark.parametrize("make", [mlp, cnn])
def test_weights_after_100_steps(tmp_path, make, optimizer):
    net = {"norm": "batch"} if make is mlp else {}
    lr = 0.001 if optimizer == "rmsprop" else 0.01
    # A pixel that is always black gives no gradient: RMSprop would send a weight that only decays
    # to and fro about 0, by the sign of what rounding left of it.
    decay = 0.0 if optimizer == "rmsprop" else 0.01

    def new():
        return make(optimizer=optimizer, lr=lr, weight_decay=decay, **net)

    data = digits(268, batch_size=4)
    together, apart = both_ways(tmp_path, new, data, count=2, max_epochs=3, limit_val_batches=2)
    assert_same(together, apart)


@pytest.mark.parametrize(
    "arguments",
    [
        {"label_smoothing": 0.1, "norm": "layer"},
        {"lr_schedule": "one_cycle", "optimizer": "nesterov"},
        {"lr_schedule": "step", "lr_schedule_args": {"step_size": 2}, "warmup_steps": 7},
        {"lr_schedule": "plateau", "lr_schedule_args": {"patience": 0}, "lr": 0.05},
        {"optimizer": "adagrad"},
        {"optimizer": "adadelta"},
    ],
)
def test_arguments_of_the_model(tmp_path, arguments):
    together, apart = both_ways(tmp_path, lambda: mlp(**arguments), digits(), max_epochs=5)
    assert_same(together, apart)


@pytest.mark.parametrize(
    "trainer",
    [
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 2},
        {"limit_train_batches": 3, "limit_val_batches": 2},
        {"limit_train_batches": 0.5},
        {"check_val_every_n_epoch": 2},
        {"deterministic": True, "num_sanity_val_steps": 0},
    ],
)
def test_arguments_of_the_trainer(tmp_path, trainer):
    def new():
        return mlp(optimizer="momentum", lr_schedule="cosine")

    monitor = "val/loss" if "check_val_every_n_epoch" in trainer else "train/loss"
    together, apart = both_ways(tmp_path, new, digits(), monitor=monitor, max_epochs=4, **trainer)
    assert_same(together, apart)


def test_training_that_chooses_weights_of_another_epoch_is_refused():
    settings = {"trainer": {**CPU, "check_val_every_n_epoch": 2}, "mode": "min"}
    with pytest.raises(NotVectorizable, match=r"monitor='train/loss' with check_val_every_n_ep"):
        StackedFit(members(mlp, digits()), monitor="train/loss", **settings)


@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_are_added_to_as_autograd_adds_them(with_bias):
    layers = [("a", nn.Linear(5, 4, bias=with_bias)), ("b", nn.Tanh()), ("c", nn.Linear(4, 3))]
    shapes = {"a.weight": (2, 4, 5), "c.weight": (2, 3, 4), "c.bias": (2, 3)}
    shapes |= {"a.bias": (2, 4)} if with_bias else {}
    tensors = {name: torch.randn(shape, requires_grad=True) for name, shape in shapes.items()}
    before = {name: torch.randn(shape) for name, shape in shapes.items()}
    inputs = torch.randn(2, 7, 5, requires_grad=True)
    for name, p in tensors.items():
        p.grad = before[name].clone()
    Chain(layers).forward(inputs, tensors).square().sum().backward()
    expected = {name: p.grad for name, p in tensors.items()}
    of_inputs, inputs.grad = inputs.grad, None
    sums = {name: value.clone() for name, value in before.items()}
    for p in tensors.values():
        p.grad = None
    Chain(layers).forward(inputs, tensors, sums).square().sum().backward()
    torch.testing.assert_close(sums, expected)
    torch.testing.assert_close(inputs.grad, of_inputs)
    assert all(p.grad is None for p in tensors.values())


# 65 samples are 4 batches, the last sample left out, where 66 are 5; 130 and 131 end in batches of
# 2 and of 3; and every batch is larger than the data.
@pytest.mark.parametrize(("count", "batch_size"), [(98, 16), (196, 16), (100, 200)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_folds_of_unequal_size(tmp_path, count, batch_size, accumulate):
    data = digits(count, batch_size=batch_size, stratify=False)
    together, apart = both_ways(
        tmp_path,
        lambda: mlp(norm="batch", weight_decay=0.1, optimizer="adamw"),
        data,
        max_epochs=6,
        accumulate_grad_batches=accumulate,
    )
    steps = {member.steps for member in together}
    assert len(steps) == (2 if count == 98 and accumulate == 1 else 1) or count == 98
    assert_same(together, apart)


def test_values(tmp_path):
    def new():
        return MLPRegressor(10, hidden=[16], standardize_targets=True, lr=0.01)

    assert_same(*both_ways(tmp_path, new, diabetes(), max_epochs=5))
    # Several targets, and raw ones.
    inputs, targets = torch.randn(90, 3), torch.randn(90, 2) + 5
    data = Arrays(inputs, targets, batch_size=8, num_folds=3)
    together, apart = both_ways(
        tmp_path / "two", lambda: MLPRegressor(3, 2, hidden=[8]), data, max_epochs=3
    )
    assert_same(together, apart)


def test_changes_of_batches_are_those_of_a_fit_of_its_own(tmp_path):
    def callbacks():
        return [Augment(rotation=10), MixUp(0.4, p=0.5), CutMix(p=0.5)]

    together, apart = both_ways(tmp_path, cnn, digits(), callbacks, max_epochs=3)
    assert_same(together, apart)


def test_pairs_are_refused_with_the_cure(tmp_path):
    with pytest.raises(ValueError, match=r"into a MixedTargets.*remove targets='pair'"):
        both_ways(tmp_path, mlp, digits(), lambda: [MixUp(targets="pair")], max_epochs=1)


@pytest.mark.parametrize("arguments", [{}, {"accumulate_grad_batches": 2}], ids=no_address)
def test_every_change_of_batches_at_once(arguments, tmp_path):
    def callbacks():
        return [
            LabelSmoothing(0.1, p=0.5),
            OneOf([MixUp(0.4), CutMix(stop_epoch=-1), Cutout(3)], p=0.7),
            InputNoise(0.1, start_epoch=1),
            InputNoise(kind="salt_and_pepper", amount=0.1),
        ]

    together, apart = both_ways(tmp_path, mlp, digits(), callbacks, max_epochs=3, **arguments)
    assert_same(together, apart)


def test_each_member_stops_early_by_itself(tmp_path):
    def callbacks():
        return [EarlyStopping("val/loss", patience=1)]

    together, apart = both_ways(
        tmp_path, lambda: mlp(lr=0.1), digits(), callbacks, "val/loss", max_epochs=20
    )
    epochs = {member.epochs for member in together}
    assert len(epochs) > 1 and max(epochs) < 20
    assert_same(together, apart)


def test_the_most_steps_are_those_of_a_fit_that_runs_to_its_end():
    found = members(mlp, digits(count=70, batch_size=16), count=3)  # 46 or 47 samples: 3 batches
    settings = {**CPU, "max_epochs": 2}
    together = StackedFit(found, trainer=settings, monitor="val/loss", mode="min")
    expected = together.most_steps
    together.fit()
    assert {member.steps for member in found} == {expected}


def test_a_stopped_member_costs_nothing(tmp_path):
    found = members(mlp, digits(90, stratify=False))
    found[1].callbacks = [EarlyStopping("val/loss", stopping_threshold=100.0)]
    together = StackedFit(found, trainer={**CPU, "max_epochs": 3}, monitor="val/loss", mode="min")
    sizes = []
    run = together.stack.run

    def watched(inputs, *rest):
        if torch.is_grad_enabled():
            sizes.append(len(inputs))
        return run(inputs, *rest)

    together.stack.run = watched
    together.fit()
    assert [member.epochs for member in found] == [3, 1, 3]
    assert sizes[0] == 3 and sizes[-1] == 2 and len(together.stack) == 2


def test_own_learning_rates_and_weight_decays(tmp_path):
    rates = iter([0.1, 0.01, 0.001] * 2)
    decays = iter([0.0, 0.1, 0.2] * 2)

    def new():
        return mlp(lr=next(rates), weight_decay=next(decays), optimizer="momentum")

    together, apart = both_ways(tmp_path, new, digits(), max_epochs=4)
    assert_same(together, apart)


def test_own_statistics_and_normalisation():
    data = digits(90, stratify=False)
    found = members(lambda: cnn(), data)
    StackedFit(found, trainer={**CPU, "max_epochs": 1}, monitor="val/loss", mode="min").fit()
    scales = [member.model.preprocess.scale for member in found]
    means = [
        next(b for name, b in member.model.named_buffers() if name.endswith("running_mean"))
        for member in found
    ]
    assert len({float(s) for s in scales}) == 3
    assert not torch.equal(means[0], means[1])


def test_dropout_draws_for_each_member():
    # The same weights and samples: only dropout can make a difference.
    data = digits(60)
    found = []
    for k in range(2):
        pl.seed_everything(0, verbose=False)
        found.append(Member(str(k), mlp(dropout=0.5), data.for_fold(0, 3)))
    pl.seed_everything(0, verbose=False)
    StackedFit(found, trainer={**CPU, "max_epochs": 1}, monitor="val/loss", mode="min").fit()
    first, second = (member.model.state_dict()["net.layers.0.weight"] for member in found)
    assert not torch.equal(first, second)
    assert found[0].best.metrics != found[1].best.metrics


def test_a_member_without_dropout_would_be_the_same():
    data = digits(60)
    found = []
    for k in range(2):
        pl.seed_everything(0, verbose=False)
        found.append(Member(str(k), mlp(), data.for_fold(0, 3)))
    StackedFit(found, trainer={**CPU, "max_epochs": 1}, monitor="val/loss", mode="min").fit()
    first, second = (member.model.state_dict()["net.layers.0.weight"] for member in found)
    assert torch.equal(first, second)


def test_bf16(tmp_path):
    together, apart = both_ways(tmp_path, mlp, digits(), max_epochs=3, precision="bf16-mixed")
    for member, (done, _) in zip(together, apart, strict=True):
        assert member.best.metrics["val/loss"] == pytest.approx(done.metrics["val/loss"], abs=0.05)


def test_own_metrics_of_a_subclass(tmp_path):
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassRecall

    class Mine(MLPClassifier):
        def make_metrics(self, stage):
            recall = MulticlassRecall(self.num_classes, average="macro", validate_args=False)
            return MetricCollection({"recall": recall})

    def new():
        return Mine(64, 10, hidden=[16], lr=0.01)

    together, apart = both_ways(tmp_path, new, digits(), max_epochs=2)
    assert "val/recall" in together[0].best.metrics
    assert_same(together, apart)


def test_imputed_columns_are_each_folds_own(tmp_path):
    from dlblocks.data import TabularDataModule

    torch.set_default_dtype(torch.float32)  # as tables are
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "label"])
        generator = torch.Generator().manual_seed(0)
        for i in range(90):
            a, b = torch.randn(2, generator=generator).tolist()
            writer.writerow([a if i % 7 else "", b + i % 3, "xyz"[i % 3]])
    data = TabularDataModule(str(path), target="label", missing="impute", batch_size=8)
    together, apart = both_ways(
        tmp_path, lambda: MLPClassifier(2, 3, hidden=[8], lr=0.01), data, max_epochs=3
    )
    assert_same(together, apart, atol=1e-5)


def test_a_loss_that_is_not_finite(tmp_path):
    def exploding():
        found = members(lambda: mlp(optimizer="sgd", lr=0.1), digits())
        found[1].model.lr = 1e30
        return found

    settings = {"trainer": {**CPU, "max_epochs": 3}, "monitor": "val/loss", "mode": "min"}
    with pytest.raises(FloatingPointError, match=r"train/loss is .* at step \d+ .*lower lr"):
        StackedFit(exploding(), **settings).fit()
    with pytest.raises(ValueError, match=r"on_error='go on'"):
        StackedFit(exploding(), **settings, on_error="go on")
    found = exploding()
    StackedFit(found, **settings, on_error="continue").fit()
    assert isinstance(found[1].error, FloatingPointError)
    assert found[0].error is None and found[0].epochs == 3
    # The others are what they are without it.
    pair = [found[0], found[2]]
    alone = [
        m for k, m in enumerate(members(lambda: mlp(optimizer="sgd", lr=0.1), digits())) if k != 1
    ]
    StackedFit(alone, **settings).fit()
    for member, other in zip(pair, alone, strict=True):
        for name, value in other.model.state_dict().items():
            torch.testing.assert_close(member.model.state_dict()[name], value, rtol=0, atol=1e-5)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        y = self.layer(x.flatten(1))
        return y if y.sum() > 0 else 2 * y


class OwnStep(MLPClassifier):
    def training_step(self, batch, batch_idx):
        return 2 * super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("make", "callbacks", "trainer", "message"),
    [
        (lambda: Classifier(Branching(), 10), [], {}, "cannot be computed for several"),
        (lambda: OwnStep(64, 10), [], {}, "overrides training_step"),
        (mlp, [ModelCheckpoint()], {}, "ModelCheckpoint works on a single model"),
        (mlp, [], {"strategy": "ddp"}, "all models share one device"),
        (mlp, [], {"devices": 2}, "all models share one device"),
        (mlp, [], {"precision": "64-true"}, "precision='64-true'"),
        (mlp, [], {"max_epochs": -1}, "max_epochs=-1"),
        (mlp, [], {"max_steps": 5}, "max_steps"),
        (mlp, [], {"fast_dev_run": True}, "fast_dev_run"),
    ],
)
def test_what_cannot_be_fitted_together(make, callbacks, trainer, message):
    with pytest.raises(NotVectorizable, match=message):
        StackedFit(
            members(make, digits(), lambda: callbacks),
            trainer={**CPU, "max_epochs": 1, **trainer},
            monitor="val/loss",
            mode="min",
        )


def test_other_architectures_are_named():
    widths = iter([16, 16, 8])
    found = members(lambda: MLPClassifier(64, 10, hidden=[next(widths)]), digits())
    with pytest.raises(NotVectorizable, match=r"net\.layers\.0\.weight .*\(8, 64\) in model 2"):
        StackedFit(found, trainer={**CPU, "max_epochs": 1}, monitor="val/loss", mode="min")


def test_a_monitor_that_is_never_logged_is_found_after_the_first_epoch():
    found = members(mlp, digits())
    with pytest.raises(ValueError, match=r"monitor='val/los' was not logged.*val/loss"):
        StackedFit(found, trainer={**CPU, "max_epochs": 9}, monitor="val/los", mode="min").fit()
    assert found[0].epochs <= 1


def test_transforms_of_single_samples_are_refused():
    data = DigitsDataModule(train_transform=nn.Identity())
    with pytest.raises(NotVectorizable, match="train_transform"):
        StackedFit(members(mlp, data), trainer=CPU, monitor="val/loss", mode="min")
