"""The prediction table: columns, files, and what a task or a module keeps."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from dlblocks import _npz
from dlblocks._npz import Ragged
from dlblocks.crossval import CrossValidationResult, cross_validate
from dlblocks.data import ArrayDataModule, FoldedDataModule
from dlblocks.models import Model
from dlblocks.tasks import PredictionTable, Task

N = 30
X = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
RUN = {
    "num_folds": 3, "progress_bar": False, "figures": False, "logger": None,
    "trainer": {"accelerator": "cpu", "max_epochs": 1},
}  # fmt: skip


@pytest.mark.parametrize("limit", [2**26, 0])  # in memory, and on disk
def test_a_table_is_read_back_as_it_was(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(_npz, "IN_MEMORY", limit)
    rows = [np.arange(i % 4) for i in range(N)]
    table = PredictionTable({"index": np.arange(N), "x": X, "boxes": Ragged.of(rows)})
    table.write(tmp_path / "a.npz")
    again = PredictionTable.read(tmp_path / "a.npz", "no cure")
    assert isinstance(again.x, np.memmap) == (limit == 0)
    np.testing.assert_array_equal(again.x, X)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as plain:
        np.testing.assert_array_equal(plain["x"], X)
    order = np.random.default_rng(1).permutation(N)
    mixed = again[order]
    back = PredictionTable.concatenate([mixed[:7], mixed[7:]], sort_by=["index"], folder=tmp_path)
    np.testing.assert_array_equal(back.x, X)
    for i in range(N):
        np.testing.assert_array_equal(back.boxes[i], rows[i])
        np.testing.assert_array_equal(mixed.boxes[i], rows[order[i]])


class ErrorTask(Task):
    """Keeps the error of each sample instead of its map."""

    name = "map_error"

    def loss(self, outputs, targets):
        return (outputs - targets).square().mean()

    def keep(self, prediction, target):
        return {"error": (prediction - target).square().flatten(1).mean(1)}

    @classmethod
    def score(cls, table):
        return {"mse": float(table["error"].mean())}


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_a_task_may_keep_a_score_instead_of_maps(tmp_path, engine):
    result = cross_validate(
        lambda: Model(nn.Linear(3, 3), ErrorTask()), ArrayDataModule(X, X, batch_size=4),
        engine=engine, run_dir=tmp_path / "run", **RUN,
    )  # fmt: skip
    assert {*result.oof.columns} == {"index", "fold", "repeat", "error"}
    # The loss of a fold is a mean over the same errors.
    for row in result.folds:
        mine = result.oof["error"][result.oof.fold == row["fold"]]
        assert row["val/loss"] == pytest.approx(mine.mean(), rel=1e-4)
    assert result.pooled() == {"mse": pytest.approx(result.oof["error"].mean())}
    assert CrossValidationResult.load(tmp_path / "run").pooled() == result.pooled()


class Dictionaries(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.layer(batch["x"]), batch["label"])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def predict_step(self, batch, batch_idx):
        return {
            "prediction": self.layer(batch["x"]),
            "sum": batch["x"].sum(1),
            "tokens": [x[: int(n) + 1] for x, n in zip(batch["x"], batch["label"], strict=True)],
            "file": ["a"] * len(batch["x"]),
        }

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_further_entries_of_predict_step_are_columns(tmp_path):
    samples = [{"x": torch.from_numpy(x), "label": i % 2} for i, x in enumerate(X)]
    data = FoldedDataModule(DataLoader(samples, 4), targets=np.arange(N) % 2)
    cross_validate(Dictionaries, data, monitor="val_loss", run_dir=tmp_path / "run", **RUN)
    oof = CrossValidationResult.load(tmp_path / "run").oof
    assert {*oof.columns} == {"index", "fold", "repeat", "target", "prediction", "sum", "tokens"}
    np.testing.assert_allclose(oof["sum"], X.sum(1), atol=1e-5)
    for i in range(N):
        np.testing.assert_array_equal(oof["tokens"][i], X[i, : i % 2 + 1])
