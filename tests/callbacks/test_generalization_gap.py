"""The gap against a loop over the same samples, and training against training without it."""

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate
from torchvision.transforms import v2

from dlblocks.callbacks import Augment, GeneralizationGap, MixUp
from dlblocks.crossval import cross_validate
from dlblocks.data import DigitsDataModule, FoldedDataModule
from dlblocks.models import MLPClassifier

X = torch.randn(50, 5, generator=torch.Generator().manual_seed(1))
Y = torch.arange(50) % 3
VAL_X, VAL_Y = X[38:], Y[38:]
X, Y = X[:38], Y[:38]


class Foreign(pl.LightningModule):
    """Batch norm, dropout, logs of every kind, and lists that grow in steps."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)
        )
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.scores = torchmetrics.MetricCollection(
            {
                "val_recall": torchmetrics.Recall("multiclass", num_classes=3, average="macro"),
                "val_precision": torchmetrics.Precision("multiclass", num_classes=3),
            }
        )
        self.seen = []

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        assert not self.training
        logits = self.net(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.accuracy(logits, batch[1])
        self.scores(logits.softmax(1), batch[1])
        self.log("val_loss", loss)
        self.log("val_accuracy", self.accuracy)
        self.log_dict(self.scores)
        self.log("val_worst", loss, reduce_fx="max")
        self.log("val_step", loss, on_step=True, on_epoch=False)
        self.seen.append(batch[0])

    def on_validation_epoch_start(self):
        self.seen.clear()

    def on_validation_epoch_end(self):
        self.log("val_samples", float(sum(map(len, self.seen))))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def loaders(batch_size=4, **arguments):
    return (
        DataLoader(TensorDataset(X, Y), batch_size, shuffle=True, **arguments),
        DataLoader(TensorDataset(VAL_X, VAL_Y), 5),
    )


def by_hand(module, x, y, batch_size=4):
    module.eval()
    with torch.no_grad():
        logits = module.net(x)
    module.train()
    losses = [
        float(F.cross_entropy(a, b))
        for a, b in zip(logits.split(batch_size), y.split(batch_size), strict=True)
    ]
    right = logits.argmax(1) == y
    recalls = [float(right[y == c].float().mean()) for c in range(3)]
    return {
        "loss": float(F.cross_entropy(logits, y)),
        "accuracy": float(right.float().mean()),
        "recall": sum(recalls) / 3,
        "worst": max(losses),
        "samples": float(len(x)),
    }


@pytest.mark.filterwarnings("ignore:You called .self.log.'val_samples'")
def test_both_sides_are_those_of_a_loop(make_trainer):
    module = Foreign()
    trainer = make_trainer(max_epochs=3, callbacks=[GeneralizationGap(), MixUp(0.4, num_classes=3)])
    trainer.fit(module, *loaders())
    train, val = by_hand(module, X, Y), by_hand(module, VAL_X, VAL_Y, 5)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for name in train:
        assert logged[f"val_{name}"] == pytest.approx(val[name], rel=1e-5), name
        assert logged[f"train_eval/{name}"] == pytest.approx(train[name], rel=1e-5), name
        assert logged[f"gap/{name}"] == pytest.approx(val[name] - train[name], abs=1e-5), name
    assert "gap/step" not in logged and "gap/precision" in logged
    assert "log" not in vars(module)


@pytest.mark.filterwarnings("ignore:You called .self.log.'val_samples'")
@pytest.mark.parametrize("settings", [{}, {"val_check_interval": 0.5}])
def test_training_does_not_notice(settings, make_trainer):
    ends = []
    for callbacks in ([], [GeneralizationGap()]):
        torch.manual_seed(0)
        module = Foreign()
        trainer = make_trainer(
            max_epochs=3, callbacks=[MixUp(0.4, num_classes=3), *callbacks], **settings
        )
        trainer.fit(module, *loaders(num_workers=0))
        logged = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("val")}
        ends.append((module.state_dict(), torch.rand(()), logged))
    (plain, after, logged), (gap, after_gap, logged_gap) = ends
    assert all(torch.equal(a, b) for a, b in zip(plain.values(), gap.values(), strict=True))
    assert after == after_gap
    assert logged == logged_gap and len(logged) == 6


def ours():
    pl.seed_everything(0, verbose=False)
    model = MLPClassifier(64, 10, hidden=[16], dropout=0.3, norm="batch", lr=0.01)
    return model, DigitsDataModule(batch_size=128, train_transform=v2.RandomCrop(8, padding=2))


def test_our_datamodule_is_measured_without_augmentation(make_trainer):
    model, data = ours()
    trainer = make_trainer(max_epochs=2, callbacks=[GeneralizationGap(), Augment(rotation=20)])
    trainer.fit(model, datamodule=data)
    x, y, _ = data.arrays("train")
    model.eval()
    with torch.no_grad():
        logits = model(x)
    logged = trainer.callback_metrics
    assert float(logged["train_eval/loss"]) == pytest.approx(float(F.cross_entropy(logits, y)))
    accuracy = float((logits.argmax(1) == y).float().mean())
    assert float(logged["train_eval/accuracy"]) == pytest.approx(accuracy)
    assert float(logged["gap/accuracy"]) == pytest.approx(
        float(logged["val/accuracy"]) - accuracy, abs=1e-6
    )
    assert {"gap/f1", "gap/calibration_error"} <= logged.keys()
    assert data.predict_on == "test"


def test_our_training_does_not_notice(make_trainer):
    ends = []
    for callbacks in ([], [GeneralizationGap(limit_batches=2)]):
        model, data = ours()
        trainer = make_trainer(max_epochs=2, callbacks=callbacks)
        trainer.fit(model, datamodule=data)
        ends.append((model.state_dict(), dict(trainer.callback_metrics)))
    (plain, logged), (gap, logged_gap) = ends
    assert all(torch.equal(a, b) for a, b in zip(plain.values(), gap.values(), strict=True))
    assert all(torch.equal(logged[name], logged_gap[name]) for name in logged)


class Counts(BoringModel):
    """Logs how many samples there were, and which."""

    def __init__(self):
        super().__init__()
        self.sums = []

    def training_step(self, batch, batch_idx):
        return self.layer.weight.sum()

    def validation_step(self, batch, batch_idx):
        x = batch[0] if isinstance(batch, (list, tuple)) else batch
        self.log("val_count", float(len(x)), reduce_fx="sum", batch_size=len(x))
        self.sums.append(float(x.sum()))


@pytest.mark.parametrize(
    ("limit", "samples"), [(None, 38), (3, 12), (0.5, 19), (1.0, 38), (1000, 38)]
)
def test_limits_are_a_random_choice(limit, samples, make_trainer):
    chosen = []
    for _ in range(2):
        module = Counts()
        trainer = make_trainer(callbacks=[GeneralizationGap(limit_batches=limit)])
        trainer.fit(module, *loaders())
        assert float(trainer.callback_metrics["train_eval/count"]) == samples
        chosen.append(sum(module.sums))
    assert chosen[0] == chosen[1]
    assert samples < 38 or chosen[0] != pytest.approx(0)


def test_a_fast_run_is_fast(make_trainer):
    trainer = make_trainer(callbacks=[GeneralizationGap()], fast_dev_run=True)
    trainer.fit(Counts(), *loaders())
    assert float(trainer.callback_metrics["train_eval/count"]) == 4


def test_every_n_epochs(make_trainer):
    epochs = []

    class Notes(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            if "gap/count" in trainer.callback_metrics:
                epochs.append(trainer.current_epoch)

    gap = GeneralizationGap(every_n_epochs=2)
    trainer = make_trainer(max_epochs=4, callbacks=[gap, Notes()])
    trainer.fit(Counts(), *loaders())
    assert epochs[0] == 1
    trainer.validate(Counts(), loaders()[1], verbose=False)  # outside of a fit it does nothing


def test_a_loader_of_ones_own(make_trainer):
    def clean():
        return [[X[:10], Y[:10]], [X[10:], Y[10:]]]

    trainer = make_trainer(callbacks=[GeneralizationGap(dataloader=clean)])
    trainer.fit(Counts(), *loaders())
    assert float(trainer.callback_metrics["train_eval/count"]) == 38
    trainer = make_trainer(callbacks=[GeneralizationGap(dataloader=clean, limit_batches=1)])
    trainer.fit(Counts(), *loaders())
    assert float(trainer.callback_metrics["train_eval/count"]) == 10


def test_loaders_with_batches_ready_or_a_sampler_of_batches(make_trainer):
    ready = DataLoader([[X[i : i + 2], Y[i : i + 2]] for i in range(0, 38, 2)], batch_size=None)
    sampled = DataLoader(TensorDataset(X, Y), batch_sampler=[[0, 1], [2, 3, 4]])
    for loader in (ready, sampled):
        trainer = make_trainer(callbacks=[GeneralizationGap()])
        trainer.fit(Counts(), loader, loaders()[1])
        assert float(trainer.callback_metrics["train_eval/count"]) == 38


def test_averaged_weights_are_measured_on_both_sides(make_trainer):
    """And a monitor of the gap works."""

    class Same(Foreign):
        def validation_step(self, batch, batch_idx):
            self.log("val_weights", self.net[0].weight.sum())

    for callbacks in (
        [GeneralizationGap(), EMAWeightAveraging(decay=0.9)],
        [EMAWeightAveraging(decay=0.9), GeneralizationGap()],
    ):
        # Means over other numbers of batches may differ in the last digit.
        stop = EarlyStopping(
            "gap/weights", patience=0, min_delta=1e-5, check_on_train_epoch_end=True
        )
        trainer = make_trainer(max_epochs=5, callbacks=[*callbacks, stop])
        trainer.fit(Same(), *loaders())
        assert float(trainer.callback_metrics["gap/weights"]) == pytest.approx(0.0, abs=1e-6)
        assert trainer.current_epoch == 2  # the gap did not get smaller than 0


def test_somebody_elses_module_and_data(make_trainer):
    class Logs(BoringModel):
        def validation_step(self, batch, batch_idx):
            output = super().validation_step(batch, batch_idx)
            self.log("loss", output["x"])
            return output

    trainer = make_trainer(callbacks=[GeneralizationGap()])
    trainer.fit(Logs(), datamodule=BoringDataModule())
    assert {"train_eval/loss", "gap/loss"} <= trainer.callback_metrics.keys()


def test_in_cross_validation_of_anybodys_data(tmp_path):
    result = cross_validate(
        lambda: MLPClassifier(5, 3, hidden=[4], lr=0.01),
        FoldedDataModule(DataLoader(TensorDataset(X, Y), 8, collate_fn=default_collate)),
        num_folds=2,
        make_callbacks=lambda: [GeneralizationGap(["val/loss"])],
        trainer={"max_epochs": 2, "accelerator": "cpu"},
        run_dir=tmp_path / "cv",
        progress_bar=False,
        figures=False,
    )
    history = (tmp_path / "cv" / "fold-0" / "history.csv").read_text().splitlines()
    assert "gap/loss" in history[0] and "train_eval/loss" in history[0]
    assert "gap/accuracy" not in history[0]
    assert result.mean("val/loss") > 0


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


@pytest.mark.parametrize(
    ("arguments", "data", "message"),
    [
        ({"every_n_epochs": 0}, None, "every_n_epochs=0"),
        ({"limit_batches": 0}, None, "limit_batches=0"),
        ({"limit_batches": 1.5}, None, "limit_batches=1.5"),
        ({"metrics": []}, None, "metrics is empty"),
        ({"metrics": ["val_cuont"]}, None, "did you mean 'val_count'"),
        ({}, (DataLoader(Stream(), 4), loaders()[1]), "give dataloader="),
        ({}, ({"a": loaders()[0]}, loaders()[1]), "and got dict"),
        ({}, (loaders()[0], [loaders()[1]] * 2), "there are 2; use one"),
    ],
)
def test_bad_input(arguments, data, message, make_trainer):
    class Any(Counts):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("val_count", 1.0, batch_size=1)

    with pytest.raises(ValueError, match=message):
        make_trainer(callbacks=[GeneralizationGap(**arguments)]).fit(Any(), *(data or loaders()))


def test_a_name_alone_is_no_list():
    with pytest.raises(TypeError, match="must be a list"):
        GeneralizationGap("val/loss")


def test_the_best_checkpoint_by_gap(make_trainer, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="gap/count", save_on_train_epoch_end=True)
    trainer = make_trainer(enable_checkpointing=True, callbacks=[GeneralizationGap(), checkpoint])
    trainer.fit(Counts(), *loaders())
    assert checkpoint.best_model_path
