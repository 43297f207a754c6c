"""What users bring of their own: modules, batches and hyperparameters of any kind."""

import warnings
from collections import namedtuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from dlblocks.crossval import CrossValidationResult, cross_validate
from dlblocks.crossval.fold import _TryPrediction
from dlblocks.data import FoldedDataModule

N = 60
Y = np.arange(N) % 3
X = (np.random.default_rng(0).normal(size=(N, 4)) + 2 * Y[:, None]).astype(np.float32)
Pair = namedtuple("Pair", ["label", "image"])  # the target comes first


class Samples(Dataset):
    """Samples as a dictionary or a namedtuple; no attribute holds the targets."""

    def __init__(self, kind=dict):
        self.kind = kind

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.kind(image=torch.from_numpy(X[i]), label=int(Y[i]))


def entry(batch, name):
    return batch[name] if isinstance(batch, dict) else getattr(batch, name)


class Net(pl.LightningModule):
    """As in a tutorial: it knows the names in its batches; dropout draws random numbers."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)
        )

    def forward(self, x):
        return self.net(x)

    def loss(self, batch):
        return F.cross_entropy(self(entry(batch, "image")), entry(batch, "label"))

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Predicts(Net):
    def predict_step(self, batch, batch_idx):
        return self(entry(batch, "image")).softmax(1)


class TakesDict(Net):
    def forward(self, batch):
        return self.net(entry(batch, "image"))

    def loss(self, batch):
        return F.cross_entropy(self(batch), batch["label"])


class FailsLater(Predicts):
    def predict_step(self, batch, batch_idx):
        if batch_idx:
            raise RuntimeError("no second batch")
        return super().predict_step(batch, batch_idx)


def run(make_model, data=None, **arguments):
    settings = {
        "trainer": {"accelerator": "cpu", "max_epochs": 2}, "num_folds": 3, "logger": None,
        "progress_bar": False, "figures": False, "run_dir": "run",
    }  # fmt: skip
    if data is None:
        data = FoldedDataModule(Samples(), targets=Y)
    return cross_validate(make_model, data, **{**settings, **arguments})


def without_warnings(make_model, data=None, **arguments):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "result.oof will be None")
        return run(make_model, data, **arguments)


# Predictions


def test_a_prediction_that_fails_is_said_once_and_the_folds_run():
    began = []

    class Started(Net):
        def training_step(self, batch, batch_idx):
            began.append(batch_idx)
            return super().training_step(batch, batch_idx)

    before = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", ".*LeafSpec|.*workers|.*logging interval")
        # Before anything is trained.
        warnings.showwarning = lambda *args, **kwargs: caught.append((args[0], len(began)))
        result = run(Started)
    ((message, steps),) = caught
    assert steps == 0
    said = str(message)
    assert "forward fails with a dictionary with 'image', 'label': TypeError" in said
    assert "def predict_step(self, batch, batch_idx): return self(batch['image'])" in said
    assert torch.equal(before, torch.get_rng_state())
    assert result.oof is None
    assert len(result.values("val/loss")) == 3
    (note,) = result.notes
    assert note.startswith("no out-of-fold predictions: Started has no predict_step")
    for again in (run(Started), CrossValidationResult.load("run")):
        assert again.notes == [note]  # read back, and nothing is warned of again
        assert again.values("val/loss") == result.values("val/loss")
    with pytest.raises(ValueError, match=r"batch\['image'\]"):
        result.pooled()


@pytest.mark.parametrize("make", [Net, Predicts])
def test_the_trial_leaves_the_fold_as_it_would_have_been(make, monkeypatch):
    tried = without_warnings(make)
    monkeypatch.setattr(_TryPrediction, "on_train_start", lambda *args: None)
    untried = without_warnings(make, run_dir="untried")
    assert tried.histories == untried.histories
    assert tried.values("val/loss") == untried.values("val/loss")


def test_a_later_failure_ends_no_run():
    data = FoldedDataModule(torch.utils.data.DataLoader(Samples(), batch_size=8), targets=Y)
    with pytest.warns(UserWarning, match="RuntimeError: no second batch") as caught:
        result = run(FailsLater, data)
    assert len([w for w in caught if "result.oof" in str(w.message)]) == 1
    assert result.oof is None
    assert "no second batch" in result.notes[0]
    assert len(result.folds) == 3


@pytest.mark.parametrize("kind", [dict, Pair])
@pytest.mark.parametrize("make", [Predicts, TakesDict])
def test_targets_are_found_by_their_names(kind, make):
    if make is TakesDict and kind is Pair:
        pytest.skip("its first entry is the label")
    result = run(make, FoldedDataModule(Samples(kind)))
    np.testing.assert_array_equal(result.oof.target, Y)
    assert result.oof.prediction.shape == (N, 3)
    assert "give targets=, one a sample" in result.notes[0]  # folds are not stratified


def test_a_dictionary_of_outputs_is_refused_by_name():
    class Dictionary(Net):
        def predict_step(self, batch, batch_idx):
            return {"logits": self(batch["image"])}

    result = run(Dictionary)
    assert result.oof is None
    assert "Dictionary.predict_step returns a dictionary with 'logits'" in result.notes[0]
    assert "as 'prediction'" in result.notes[0]


def test_labels_in_a_column_stratify():
    labels = np.r_[np.zeros(40), np.ones(14), np.full(6, 2)].astype(np.int64)
    counts = []
    for targets in (labels, labels[:, None], np.array(["a", "b", "c"])[labels][:, None]):
        data = FoldedDataModule(TensorDataset(torch.from_numpy(X)), targets=targets)
        assert data.is_classification
        counts.append([np.bincount(labels[fold["val"]]).tolist() for fold in data.splits(2)])
        assert data.notes() == []
    assert counts == [[[20, 7, 3], [20, 7, 3]]] * 3
