"""Arguments of the Trainer that leave nothing to train, to validate or to score."""

import json
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dlblocks.crossval import cross_validate, nested_cross_validate
from dlblocks.crossval._fold_config import _count_scored
from dlblocks.data import ArrayDataModule, FoldedDataModule
from dlblocks.models import MLPClassifier
from dlblocks.runs._trainer import check_trainer_arguments

N = 150
X = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


def model(lr=0.05):
    return MLPClassifier(4, 2, hidden=[4], lr=lr)


def run(make=model, data=None, **arguments):
    trainer = {"max_epochs": 2, "accelerator": "cpu", **arguments.pop("trainer", {})}
    settings = {"num_folds": 3, "progress_bar": False, "figures": False, "run_dir": "run"}
    data = data or ArrayDataModule(X, Y, batch_size=16)
    return cross_validate(make, data, trainer=trainer, **{**settings, **arguments})


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"max_epochs": 0}, "'max_epochs': 0} trains nothing"),
        ({"max_epochs": -2}, "'max_epochs': -2} must be a whole number of at least -1"),
        ({"max_steps": 0}, "'max_steps': 0} trains nothing"),
        ({"limit_train_batches": 0}, "'limit_train_batches': 0} leaves no batch"),
        ({"limit_val_batches": 0.0}, "'limit_val_batches': 0.0} leaves no batch"),
        ({"limit_val_batches": -1}, "'limit_val_batches': -1} leaves no batch"),
        ({"limit_test_batches": 0}, "'limit_test_batches': 0} leaves no batch"),
        ({"check_val_every_n_epoch": 0}, "'check_val_every_n_epoch': 0} must be a whole"),
        ({"check_val_every_n_epoch": 3}, "'max_epochs': 2} never validates"),
        ({"val_check_interval": 0}, "'val_check_interval': 0} must be a positive"),
        ({"accumulate_grad_batches": -1}, "'accumulate_grad_batches': -1} must be a whole"),
        ({"accumulate_grad_batches": 1.5}, "'accumulate_grad_batches': 1.5} must be a whole"),
        ({"gradient_clip_val": -1.0}, "'gradient_clip_val': -1.0} must be a positive"),
        ({"gradient_clip_val": float("nan")}, "'gradient_clip_val': nan} must be a positive"),
        ({"overfit_batches": 1}, "'overfit_batches': 1} validates on training samples"),
    ],
)
def test_amounts_that_leave_nothing(engine, trainer, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(engine=engine, trainer=trainer)
    assert not (tmp_path / "run" / "fold-0").exists()


def test_amounts_that_mean_something():
    for trainer in (
        {"max_epochs": -1, "max_steps": 4}, {"gradient_clip_val": 0}, {"overfit_batches": 0.0},
        {"check_val_every_n_epoch": None, "val_check_interval": 3}, {"max_time": "00:01:00:00"},
        {"max_epochs": 1, "check_val_every_n_epoch": 2, "fast_dev_run": True},
    ):  # fmt: skip
        assert trainer.items() <= check_trainer_arguments(trainer, "val/loss").items()
    rarely = {"max_epochs": 1, "check_val_every_n_epoch": 2}
    check_trainer_arguments(rarely, "train/loss")
    check_trainer_arguments(rarely)
    assert len(run(trainer={"fast_dev_run": True}).folds) == 3


class Theirs(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:Total length of", "ignore:.*could not find the monitored key")
@pytest.mark.parametrize(
    ("batch_size", "trainer"),
    [
        (16, {"check_val_every_n_epoch": None, "val_check_interval": 1000}),
        (16, {"max_steps": 3, "max_epochs": -1}),  # the first epoch does not end
        (128, {}),  # drop_last leaves no batch
    ],
)
def test_a_validation_that_never_came(batch_size, trainer):
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    data = FoldedDataModule(DataLoader(data, batch_size, drop_last=True))
    with pytest.raises(ValueError, match=r"the fit ended after .* logs monitor='val/loss'"):
        run(Theirs, data, trainer=trainer)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize(("limit", "scored"), [(2, 32), (0.5, 32), (1.0, 50), (9, 50), (None, 50)])
def test_scores_of_a_part_of_the_fold(engine, limit, scored):
    trainer = {} if limit is None else {"limit_val_batches": limit}
    result = run(engine=engine, trainer=trainer, selection_fraction=0.3)  # two batches of it
    for row in result.folds:
        assert row["num_val"] == scored
        here = np.flatnonzero(result.oof.fold == row["fold"])
        assert len(here) == 50  # predictions are of all
        right = result.oof.prediction[here].argmax(1) == result.oof.target[here]
        assert row["val/accuracy"] == pytest.approx(right[:scored].mean(), abs=1e-6)
    notes = json.loads((result.run_dir / "summary.json").read_text())["notes"]
    said = [note for note in notes if "limits validation" in note]
    assert len(said) == (scored < 50)
    if said:
        assert f"{3 * scored} of 150 samples" in said[0]


def test_nested_scores_of_a_part_of_the_fold():
    result = nested_cross_validate(
        model, ArrayDataModule(X, Y, batch_size=16), {"lr": [0.01, 0.1]}, num_folds=3,
        inner_folds=2, progress_bar=False, figures=False, run_dir="nested",
        trainer={"max_epochs": 1, "accelerator": "cpu", "limit_val_batches": 1},
    )  # fmt: skip
    assert [row["num_val"] for row in result.folds] == [16] * 3
    assert any("48 of 150 samples" in note for note in result.info["notes"])


@pytest.mark.parametrize("limit", [1, 3, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_scored_samples_of_several_ranks(limit, ranks):
    """Against batches that are counted one by one."""
    data = ArrayDataModule(X, Y, batch_size=7, num_folds=3)
    data.setup()
    data.trainer = SimpleNamespace(world_size=ranks)
    expected = 0
    for rank in range(ranks):
        rows = data.indices("val")[rank::ranks]
        batches = [len(part) for part in rows.split(7)]
        allowed = limit if isinstance(limit, int) else int(len(batches) * limit)
        expected += sum(batches[:allowed])
    assert _count_scored(data, {"limit_val_batches": limit}) == expected
