"""Models of others whose weights or predictions are NaN, or no probabilities."""

import numpy as np
import pytest
import torch
from conftest import Plain
from torch.utils.data import TensorDataset

from dlblocks.crossval import cross_validate
from dlblocks.data import FoldedDataModule
from dlblocks.tasks import MulticlassTask

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()


class Scored(Plain):
    def validation_step(self, batch, batch_idx):
        self.log("val/loss", super().training_step(batch, batch_idx))

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0]).softmax(1)


class Diverges(Scored):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * float("nan")


class Forgets(Scored):
    """Has no prediction for samples with a large first value."""

    def predict_step(self, batch, batch_idx):
        found = super().predict_step(batch, batch_idx)
        return found.masked_fill(batch[0][:, :1] > 1, float("nan"))


def run(make_model, run_dir="run"):
    return cross_validate(
        make_model, FoldedDataModule(TensorDataset(X, Y), targets=Y), num_folds=2, logger=None,
        trainer={"accelerator": "cpu", "max_epochs": 1}, progress_bar=False, run_dir=run_dir,
    )  # fmt: skip


def test_weights_of_a_diverged_fit_are_no_result(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FloatingPointError, match=r"Diverges has NaN in net\..*learning rate"):
        run(Diverges)
    assert not [*tmp_path.glob("run/**/fold.json")]


def test_a_prediction_that_is_nan_is_no_class(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = run(Forgets).to_pandas("oof").sort_values("index")
    missing = X[:, 0].numpy() > 1
    assert 0 < missing.sum() < 60
    np.testing.assert_array_equal(np.isnan(frame["prediction"]), missing)
    shares = frame[[f"probability_{i}" for i in range(3)]].to_numpy()
    likeliest = frame["prediction"][~missing]
    np.testing.assert_array_equal(likeliest, shares[~missing].argmax(1))


class Logits(Scored):
    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])


def test_logits_are_not_called_probabilities(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(Logits)
    assert "score_0" in result.to_pandas("oof") and "log_loss" not in result.pooled()
    [note] = result.notes
    assert "no probabilities" in note and note in result.table()
    usual = run(Scored, run_dir=tmp_path / "usual")
    assert "probability_0" in usual.to_pandas("oof") and not usual.notes


def test_the_name_of_a_class_that_is_not_known():
    shares = np.array([[0.1, 0.9], [np.nan, np.nan], [0.8, 0.2]])
    found = MulticlassTask.answers(shares, ["cat", "dog"])["prediction"]
    assert found.tolist() == ["dog", None, "cat"]
