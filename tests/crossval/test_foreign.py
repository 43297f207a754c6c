"""Any LightningModule and any datamodule: cross-validation of what others have written."""

import json
import sys

import forked
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dlblocks.cli import main
from dlblocks.crossval import cross_validate
from dlblocks.data import ArrayDataModule, FoldedDataModule, SplitDataModule
from dlblocks.models import MLPClassifier, MLPRegressor

N = 90
RNG = np.random.default_rng(0)
Y = np.arange(N) % 3
X = (RNG.normal(size=(N, 4)) + 2 * Y[:, None]).astype(np.float32)


class TheirModule(pl.LightningModule):
    """As in a tutorial: batches are unpacked into two, and logits are predicted."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Predicts(TheirModule):
    def predict_step(self, batch):  # Lightning lets the number of the batch be left out
        x, _ = batch
        return self(x)


class Dictionary(TheirModule):
    def predict_step(self, batch, number, dataloader_idx=0):
        return {"prediction": self(batch[0]).to(torch.bfloat16), "file": ["a"] * len(batch[0])}


class TheirData(pl.LightningDataModule):
    def __init__(self, batch_size: int = 16):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.train_data = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
            self.val_data = TensorDataset(torch.full((5, 4), torch.nan), torch.zeros(5).long())

    def train_dataloader(self):
        return DataLoader(self.train_data, self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val_data, self.hparams.batch_size)


def run(make_model, data, **arguments):
    settings = {
        "trainer": {"accelerator": "cpu", "max_epochs": 2}, "num_folds": 3, "monitor": "val_loss",
        "progress_bar": False, "run_dir": "run", "figures": False,
    }  # fmt: skip
    return cross_validate(make_model, data, **{**settings, **arguments})


def figures_of(result):
    return {path.stem for path in (result.run_dir / "figures").iterdir()}


@pytest.mark.parametrize("make", [TheirModule, Predicts, Dictionary])
@pytest.mark.parametrize("ours", [False, True])
def test_their_predictions_are_matched_to_samples(make, ours):
    models = []

    def make_model():
        models.append(make())
        return models[-1]

    data = ArrayDataModule(X, Y, normalize=False) if ours else FoldedDataModule(TheirData())
    result = run(make_model, data, figures=make is TheirModule)
    oof = result.oof
    np.testing.assert_array_equal(oof.index, np.arange(N))
    np.testing.assert_array_equal(oof.target, Y)
    for fold, model in enumerate(models):
        here = oof.fold == fold
        with torch.no_grad():
            expected = model.eval()(torch.from_numpy(X[oof.index[here]]))
        tolerance = 0.05 if make is Dictionary else 1e-6  # half precision
        np.testing.assert_allclose(oof.prediction[here], expected, atol=tolerance)  # logits
        assert "predict_step" not in vars(model)
    for name in ("summary.json", "folds.csv", "oof.npz", "folds.json"):
        assert (result.run_dir / name).exists()
    if make is TheirModule:  # whose logits say which class is meant, and not how likely
        assert figures_of(result) == {"learning_curves", "scores", "confusion_matrix"}
    config = json.loads((result.run_dir / "summary.json").read_text())["config"]
    assert config["model"]["class"] == make.__name__
    assert "num_folds" not in config["data"]


def test_our_models_on_their_data():
    plain = ArrayDataModule(X, Y, normalize=False, batch_size=16)
    theirs = FoldedDataModule(TheirData())

    def model():
        return MLPClassifier(4, 3, hidden=[8], class_weights="balanced")

    results = [
        run(model, data, monitor="val/loss", run_dir=type(data).__name__, figures=data is theirs)
        for data in (plain, theirs)
    ]
    # The same folds, order of samples, seeds and so numbers, whoever holds the data.
    np.testing.assert_array_equal(results[0].oof.prediction, results[1].oof.prediction)
    assert results[0].values("val/accuracy") == results[1].values("val/accuracy")
    drawn = figures_of(results[1])
    assert drawn == {"learning_curves", "scores", "confusion_matrix", "reliability"}
    values = TensorDataset(torch.from_numpy(X), torch.from_numpy(X @ np.ones(4, np.float32)))
    result = run(
        lambda: MLPRegressor(4, hidden=[8]), FoldedDataModule(values), monitor="val/loss",
        run_dir="values", figures=True,
    )  # fmt: skip
    assert result.oof.prediction.shape == (N,)
    assert figures_of(result) == {"learning_curves", "scores", "predicted_vs_true"}


class Logs(BoringModel):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.step(batch))


def test_lightnings_demo_classes():
    """Their batches are inputs alone: folds and scores, but nothing to compare predictions with."""
    result = run(Logs, FoldedDataModule(BoringDataModule()), num_folds=4, figures=True)
    assert [row["num_val"] for row in result.folds] == [16] * 4
    assert len(result.values("val_loss")) == 4
    assert result.oof is None
    assert figures_of(result) == {"learning_curves", "scores"}
    targets = np.arange(64) % 2
    result = run(Logs, FoldedDataModule(BoringDataModule(), targets=targets), run_dir="given")
    np.testing.assert_array_equal(result.oof.target, targets)
    assert result.oof.prediction.shape == (64, 2)


def test_what_is_no_prediction_a_sample_makes_no_table():
    class TwoInputs(TheirModule):
        def forward(self, x, mask):
            return self.layers(x * mask)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0], 1.0), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", F.cross_entropy(self(batch[0], 1.0), batch[1]))

    class Mean(TheirModule):
        def predict_step(self, batch, batch_idx):
            return self(batch[0]).mean(0)

    class Ragged(TheirModule):
        def predict_step(self, batch, batch_idx):
            return torch.zeros(len(batch[0]), batch_idx + 1)

    for i, make in enumerate((TwoInputs, Mean, Ragged)):
        result = run(make, FoldedDataModule(TheirData()), run_dir=str(i))
        assert result.oof is None
        assert result.metrics == ["val_loss"]


def test_callbacks_that_write_predictions_get_them_as_they_are():
    written = []

    class Writer(BasePredictionWriter):
        def write_on_batch_end(self, trainer, module, prediction, *_):
            written.append(prediction)

    run(Predicts, FoldedDataModule(TheirData()), make_callbacks=lambda: [Writer("batch")])
    assert sum(map(len, written)) == N
    assert all(prediction.shape[1:] == (3,) for prediction in written)


def test_their_datamodule_must_be_wrapped():
    with pytest.raises(TypeError, match=r"got TheirData; .* FoldedDataModule of your"):
        run(TheirModule, TheirData())
    assert issubclass(FoldedDataModule, SplitDataModule)


def test_the_command_line_takes_their_datamodule(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text("from tests_of_foreign import TheirData, TheirModule\n")
    monkeypatch.setitem(sys.modules, "tests_of_foreign", sys.modules[__name__])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("dlblocks.crossval._outcome.save_figures", lambda *args: None)
    main([
        "cross-validate", "--model=theirs.TheirModule", "--data=dlblocks.data.FoldedDataModule",
        "--data.data=theirs.TheirData", "--data.data.batch_size=45", "--monitor=val_loss",
        "--data.split=time_series", "--num_folds=2", "--trainer.max_epochs=1", "--run_dir=cli",
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    ])  # fmt: skip
    written = json.loads((tmp_path / "cli" / "folds.json").read_text())
    assert (written["split"], len(written["folds"])) == ("time_series", 2)
    summary = json.loads((tmp_path / "cli" / "summary.json").read_text())
    assert len(summary["metrics"]["val_loss"]["folds"]) == 2


class Seen(MLPClassifier):
    def training_step(self, batch, batch_idx):
        devices = self.trainer.world_size
        with open(f"seen-{devices}-{self.trainer.datamodule.fold}-{self.global_rank}", "a") as file:
            file.writelines(f"{int(i)}\n" for i in batch[0][:, 0])
        return super().training_step(batch, batch_idx)


def see(devices):
    x = torch.arange(75.0)[:, None].repeat(1, 4)
    settings = {"strategy": "ddp"} if devices > 1 else {}
    cross_validate(
        lambda: Seen(4, 3, hidden=[8], optimizer="sgd", lr=0.0),
        FoldedDataModule(DataLoader(TensorDataset(x, torch.arange(75) % 3), 10)),
        num_folds=3, progress_bar=False, run_dir=f"cv-{devices}", figures=False,
        trainer={"max_epochs": 1, "accelerator": "cpu", "devices": devices, **settings},
        selection_fraction=0.2,
    )  # fmt: skip


def test_two_processes_share_the_samples(tmp_path):
    see(1)
    forked.torchrun(see, 2)
    one, two = (np.load(tmp_path / f"cv-{devices}" / "oof.npz") for devices in (1, 2))
    for name in ("index", "target", "fold"):
        np.testing.assert_array_equal(one[name], two[name])
    np.testing.assert_allclose(one["prediction"], two["prediction"], atol=1e-6)
    for fold in range(3):
        (whole,), ranks = (
            [(tmp_path / f"seen-{d}-{fold}-{r}").read_text().split() for r in range(d)]
            for d in (1, 2)
        )
        assert len(ranks[0]) == len(ranks[1]) == 20  # half of 50 - 10, which select the epoch
        assert not set(ranks[0]) & set(ranks[1])
        # The order of one process, dealt out to two.
        dealt = [i for pair in zip(*ranks, strict=True) for i in pair]
        assert set(dealt) >= set(whole)
        assert dealt[: len(whole)] == whole
