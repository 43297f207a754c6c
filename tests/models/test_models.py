import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss, r2_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric

from dlblocks.callbacks import CutMix, MixUp
from dlblocks.data import ArrayDataModule, CurveDataModule, DigitsDataModule, TabularDataModule
from dlblocks.models import Classifier, CNNClassifier, MLPClassifier, MLPRegressor, Regressor


def logged(trainer):
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def fit(model, data, make_trainer, **arguments):
    trainer = make_trainer(**arguments)
    trainer.fit(model, datamodule=data)
    return trainer


def test_metrics_are_those_of_all_predictions(make_trainer):
    model, data = MLPClassifier(64, 10, hidden=[32]), DigitsDataModule(batch_size=50)
    trainer = fit(model, data, make_trainer, max_epochs=2)
    for part, run in (("val", trainer.validate), ("test", trainer.test)):
        (found,) = run(model, datamodule=data, verbose=False)
        inputs, targets, _ = data.arrays(part)
        with torch.no_grad():
            probability = model.eval()(inputs).double().softmax(1).numpy()
        predicted = probability.argmax(1)
        assert found[f"{part}/accuracy"] == pytest.approx(
            accuracy_score(targets.numpy(), predicted)
        )
        assert found[f"{part}/f1"] == pytest.approx(
            f1_score(targets.numpy(), predicted, average="macro")
        )
        assert found[f"{part}/loss"] == pytest.approx(
            log_loss(targets.numpy(), probability), rel=1e-4
        )
        assert 0 <= found[f"{part}/calibration_error"] <= 1


def test_metrics_are_made_when_they_are_needed():
    model = MLPClassifier(64, 10)
    assert not any(isinstance(part, Metric) for part in model.modules())
    before = model.state_dict().keys()
    model.reset_metrics("val")
    assert {name.split(".")[1] for name, part in model.named_modules()
            if isinstance(part, Metric)} == {"val_metrics"}  # fmt: skip
    assert model.state_dict().keys() == before

    class Mine(MLPClassifier):
        def make_metrics(self, stage):
            metrics = super().make_metrics(stage)
            metrics["accuracy"].persistent(True)
            return metrics

    # What a checkpoint may hold is there from the beginning.
    assert any("val_metrics" in name for name in Mine(64, 10).state_dict())


def test_training_metrics_are_means_over_samples(make_trainer):
    """Learning rate 0: the epoch's numbers must be those of the unchanged model."""
    torch.manual_seed(0)
    x, y = torch.randn(70, 4), torch.randint(3, (70,))  # a last batch of 6
    model = Classifier(nn.Linear(4, 3), 3, optimizer="sgd", lr=0.0)
    trainer = make_trainer()
    trainer.fit(model, DataLoader(TensorDataset(x, y), 16), DataLoader(TensorDataset(x, y), 16))
    found = logged(trainer)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(x), y).item()
        accuracy = (model(x).argmax(1) == y).float().mean().item()
    assert found["train/loss"] == pytest.approx(expected, rel=1e-5)
    assert found["train/accuracy"] == pytest.approx(accuracy)
    assert found["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_many_batches_are_all_counted(make_trainer):
    x, y = torch.randn(100, 4), torch.arange(100) % 3
    model = Classifier(nn.Linear(4, 3), 3, optimizer="sgd", lr=0.0)
    trainer = make_trainer()
    loader = DataLoader(TensorDataset(x, y), 1)
    trainer.fit(model, loader, loader)
    expected = nn.functional.cross_entropy(model(x), y).item()
    assert logged(trainer)["train/loss"] == pytest.approx(expected, rel=1e-5)
    assert logged(trainer)["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_regression_metrics_in_the_units_of_the_target(make_trainer):
    data = TabularDataModule("diabetes", val_fraction=0.3)
    model = MLPRegressor(10, hidden=[16], standardize_targets=True, lr=0.01)
    trainer = fit(model, data, make_trainer, max_epochs=30)
    (found,) = trainer.validate(model, datamodule=data, verbose=False)
    inputs, targets, _ = data.arrays("val")
    with torch.no_grad():
        guess = model(inputs)[:, 0]
    assert found["val/rmse"] == pytest.approx(float((guess - targets).square().mean().sqrt()))
    assert found["val/mae"] == pytest.approx(float((guess - targets).abs().mean()), rel=1e-5)
    assert found["val/r2"] == pytest.approx(r2_score(targets.numpy(), guess.numpy()), rel=1e-4)
    assert found["val/r2"] > 0.2
    train = data.train_targets().numpy()
    assert float(model.task.target_mean) == pytest.approx(train.mean(), rel=1e-5)
    assert float(model.task.target_std) == pytest.approx(train.std(), rel=1e-5)
    loss = float(((guess - targets) / train.std()).square().mean())
    assert found["val/loss"] == pytest.approx(loss, rel=1e-4)
    predictions = trainer.predict(model, datamodule=data)
    assert predictions[0]["prediction"].shape == predictions[0]["target"].shape


def test_values_of_shape_n_and_n_1_train_alike(make_trainer):
    x = torch.randn(40, 3)
    y = x.sum(1)
    weights = []
    for targets in (y, y[:, None]):
        torch.manual_seed(0)
        model = Regressor(nn.Linear(3, 1), lr=0.1)
        fit(model, ArrayDataModule(x, targets), make_trainer, max_epochs=3)
        weights.append(model.net.weight.detach().clone())
    assert torch.equal(*weights)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_curve_is_fitted(loss, make_trainer):
    data = CurveDataModule(num_samples=400, noise=0.0, low=-0.3, high=0.3, batch_size=100)
    model = MLPRegressor(1, hidden=[32], activation="tanh", loss=loss, lr=0.02)
    found = logged(fit(model, data, make_trainer, max_epochs=60))
    assert found["val/r2"] > 0.97


def test_label_smoothing_and_weights_act_in_training_only(make_trainer):
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    plain = Classifier(nn.Linear(4, 3), 3, optimizer="sgd", lr=0.0)
    other = Classifier(
        plain.net, 3, optimizer="sgd", lr=0.0, label_smoothing=0.3, class_weights=[1, 2, 3]
    )
    found = []
    for model in (plain, other):
        trainer = make_trainer()
        loader = DataLoader(TensorDataset(x, y), 60)
        trainer.fit(model, loader, loader)
        found.append(logged(trainer))
    assert found[0]["val/loss"] == pytest.approx(found[1]["val/loss"])
    expected = nn.functional.cross_entropy(
        plain.net(x), y, weight=torch.tensor([1.0, 2, 3]), label_smoothing=0.3
    )
    assert found[1]["train/loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_balanced_weights_are_scikit_learns(make_trainer):
    from sklearn.utils.class_weight import compute_class_weight

    y = np.array([0] * 50 + [1] * 30 + [2] * 20)
    data = ArrayDataModule(np.random.default_rng(0).random((100, 4)), y)
    model = MLPClassifier(4, 3, class_weights="balanced")
    fit(model, data, make_trainer)
    train = data.train_targets().numpy()
    expected = compute_class_weight("balanced", classes=np.arange(3), y=train)
    np.testing.assert_allclose(model.task.class_weight, expected, rtol=1e-6)


@pytest.mark.parametrize("mixer", [MixUp, CutMix])
def test_soft_targets_are_welcome(mixer, make_trainer):
    data = DigitsDataModule(batch_size=64)
    model = CNNClassifier(1, 10, channels=[8, 16], lr=0.01)
    found = logged(fit(model, data, make_trainer, max_epochs=4, callbacks=[mixer(0.3)]))
    assert 0.3 < found["train/accuracy"] <= 1  # agreement with the dominant class
    assert found["val/accuracy"] > 0.8


@pytest.mark.parametrize(
    "model",
    [
        MLPClassifier(64, 10, hidden=[64], lr=0.01),
        CNNClassifier(1, 10, channels=[16, 32], lr=0.01),
    ],
)
def test_models_overfit_one_batch(model, make_trainer):
    digits = DigitsDataModule().source
    batch = digits.inputs[:64].float() / 16, digits.targets[:64]
    trainer = make_trainer(max_epochs=60, limit_val_batches=0)
    trainer.fit(model, DataLoader(TensorDataset(*batch), 64), [])
    assert logged(trainer)["train/accuracy"] > 0.98


def test_bf16_mixed(make_trainer):
    model = CNNClassifier(1, 10, channels=[8, 16], lr=0.01)
    trainer = fit(model, DigitsDataModule(), make_trainer, max_epochs=3, precision="bf16-mixed")
    assert logged(trainer)["val/accuracy"] > 0.7
    predictions = trainer.predict(model, datamodule=trainer.datamodule)
    assert predictions[0]["prediction"].dtype == torch.float32
    torch.testing.assert_close(
        predictions[0]["prediction"].sum(1), torch.ones(len(predictions[0]["prediction"]))
    )


def test_schedules_end_where_training_ends(make_trainer):
    for name, accumulate in (("cosine", 1), ("cosine", 2), ("one_cycle", 1)):
        model = MLPClassifier(64, 10, optimizer="sgd", lr=0.1, lr_schedule=name)
        trainer = fit(
            model, DigitsDataModule(), make_trainer, max_epochs=2,
            accumulate_grad_batches=accumulate,
        )  # fmt: skip
        assert trainer.optimizers[0].param_groups[0]["lr"] < 1e-3


def test_step_schedule_counts_epochs_under_accumulation(make_trainer):
    model = MLPClassifier(
        64, 10, lr=0.1, lr_schedule="step", lr_schedule_args={"step_size": 1, "gamma": 0.5}
    )
    trainer = fit(model, DigitsDataModule(), make_trainer, max_epochs=3, accumulate_grad_batches=4)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3)


def test_a_loss_that_is_not_finite_stops_the_fit_at_its_step(make_trainer):
    class Poison(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 7:
                pl_module.net.layers[0].weight.data.fill_(math.inf)

    model = MLPClassifier(64, 10)
    with pytest.raises(FloatingPointError, match=r"train/loss is nan at step 7 \(epoch 0\); lower"):
        fit(model, DigitsDataModule(), make_trainer, callbacks=[Poison()])


def test_a_loss_that_is_not_finite_is_found_in_the_buffer():
    """On an accelerator many losses are looked at together; the step is named all the same."""
    model = MLPClassifier(4, 2)
    buffer = model._buffers_of["train"]
    kept = torch.zeros(1), torch.zeros(1)
    for step in range(10):
        loss = torch.tensor(math.nan if step >= 6 else 1.0)
        buffer.add(loss, kept, step=100 + step)
    model._first_batch = False
    with pytest.raises(FloatingPointError, match="at step 106"):
        buffer.check_finite(model)


DIGITS = DigitsDataModule()
X, Y = torch.randn(20, 4), torch.arange(20) % 2


@pytest.mark.parametrize(
    ("make", "data", "message"),
    [
        (lambda: MLPClassifier(63, 10), DIGITS, "set in_features=64"),
        (lambda: MLPClassifier(64, 9), DIGITS, "set num_classes=10"),
        (lambda: CNNClassifier(3, 10), DIGITS, "set in_channels=1"),
        (lambda: CNNClassifier(1, 10, channels=[4] * 5), DIGITS, "too small for 4 poolings"),
        (lambda: MLPRegressor(64), DIGITS, "use a Classifier"),
        (lambda: MLPClassifier(1, 10), CurveDataModule(), "use a Regressor"),
        (lambda: MLPRegressor(1, 2), CurveDataModule(), "set out_features=1"),
        (lambda: CNNClassifier(1, 10), TabularDataModule("wine"), "use MLP"),
    ],
)
def test_a_model_that_does_not_fit_the_data(make, data, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        fit(make(), data, make_trainer)


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (Classifier(nn.Linear(4, 3), 2), (X, Y), "net puts out shape"),
        (
            Classifier(nn.Linear(4, 2), 2),
            (X, Y + 1),
            r"labels 1, 2, but num_classes=2 .* 0 … 1\. Classes count",
        ),
        (Classifier(nn.Linear(4, 2), 2), (X, Y - 1), "labels -1, 0, but num_classes=2"),
        (Classifier(nn.Linear(4, 2), 2), (X, torch.arange(20) % 3), "set num_classes=3"),
        (Classifier(nn.Linear(4, 2), 2), (X, Y[:, None]), r"shape \(20, 1\); .* one number"),
        (Classifier(nn.Linear(4, 2), 2), (X, torch.rand(20)), "soft targets"),
        (Regressor(nn.Linear(4, 2), 1), (X, torch.rand(20)), "out_features=1"),
        (MLPClassifier(4, 2), (X,), "expects batches"),
        (MLPClassifier(4, 2), (X.double(), Y), r"inputs of torch.float64, .*\.to\(torch.float32\)"),
        (MLPClassifier(4, 2), (X.long(), Y), r"inputs of torch.int64, .*\.to\(torch.float32\)"),
        (CNNClassifier(1, 2), (torch.ones(20, 1, 8, 8).double(), Y), r"inputs of torch.float64, "),
    ],
)
def test_loaders_that_do_not_fit_the_model(model, batch, message, make_trainer):
    loader = DataLoader(TensorDataset(*batch), 20)
    with pytest.raises(ValueError, match=message):
        make_trainer().fit(model, loader, loader)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "adan"}, "did you mean 'adam'"),
        ({"optimizer_args": {"beta": 1}}, "did you mean 'betas'"),
        ({"lr_schedule": "cosin"}, "did you mean 'cosine'"),
        ({"activation": "rleu"}, "did you mean 'relu'"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"class_weights": "balance"}, "did you mean 'balanced'"),
        ({"class_weights": [1.0]}, "must be 2 numbers"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLPClassifier(4, 2, **arguments)


def test_a_typo_is_an_error():
    with pytest.raises(TypeError, match="hiden"):
        MLPClassifier(4, 2, hiden=[3])
    with pytest.raises(ValueError, match="num_classes=1"):
        MLPClassifier(4, 1)
    with pytest.raises(ValueError, match="did you mean 'mse'"):
        MLPRegressor(4, loss="mes")
