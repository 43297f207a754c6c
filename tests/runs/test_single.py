"""One fit and its test, with modules and data of somebody else."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from conftest import Plain
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dlblocks.crossval import HeldOutScores
from dlblocks.data import ArrayDataModule, FoldedDataModule
from dlblocks.models import MLPClassifier
from dlblocks.runs import fit_and_test

INPUTS = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS.sum(1) > 0).long()
QUIET = {"trainer": {"max_epochs": 1, "accelerator": "cpu"}, "progress_bar": False}


class Module(Plain):
    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        right = self.net(batch[0]).argmax(1) == batch[1]
        self.log("test/accuracy", right.float().mean())


class TwoTests(pl.LightningDataModule):
    def _loader(self, rows):
        return DataLoader(TensorDataset(INPUTS[rows], LABELS[rows]), 30)

    def train_dataloader(self):
        return self._loader(slice(60))

    def val_dataloader(self):
        return self._loader(slice(60, 90))

    def test_dataloader(self):
        return [self._loader(slice(60, 75)), self._loader(slice(75, 90))]


def test_several_test_loaders():
    found = fit_and_test(Module(), FoldedDataModule(TwoTests()), logger="none", **QUIET)
    names = [f"test/accuracy/dataloader_idx_{i}" for i in range(2)]
    assert {*names, "val/loss"} == {*found}
    assert all(np.isnan(found.interval(name)).all() for name in found)
    assert "no predictions of these test samples" in str(found)


def test_a_datamodule_of_lightning_is_refused_at_once(tmp_path):
    with pytest.raises(TypeError, match=r"is a TwoTests; .*FoldedDataModule"):
        fit_and_test(Module(), TwoTests(), run_dir=tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("own", [True, False])
def test_a_missing_test_set_is_said_before_the_training(tmp_path, own):
    class NoTest(TwoTests):
        test_dataloader = pl.LightningDataModule.test_dataloader

    data = ArrayDataModule(INPUTS, LABELS) if own else FoldedDataModule(NoTest())
    module = Module()
    with pytest.raises(ValueError, match=r"has no test set.*test_fraction=0\.2"):
        fit_and_test(module, data, run_dir=tmp_path / "run", logger="none", **QUIET)
    assert not module.seen and not (tmp_path / "run").exists()


class LateTest(ArrayDataModule):
    """Its test set comes with ``setup("test")``, as in Lightning's examples."""

    def setup(self, stage=None):
        super().setup(stage)
        if stage == "test":
            self.late = TensorDataset(INPUTS[:15], LABELS[:15])

    def test_dataloader(self):
        return DataLoader(self.late, 15)


def test_a_test_set_of_the_user_is_set_up_for_the_test():
    found = fit_and_test(Module(), LateTest(INPUTS, LABELS), logger="none", **QUIET)
    assert "test/accuracy" in found


def test_the_data_of_others_are_set_up_for_the_test_after_the_training():
    stages = []

    class Staged(TwoTests):
        def setup(self, stage):
            self.stage = stage

        def on_after_batch_transfer(self, batch, dataloader_idx):
            stages.append((self.trainer.training, self.stage))
            return batch

    fit_and_test(Module(), FoldedDataModule(Staged()), logger="none", **QUIET)
    assert {stage for training, stage in stages if training} == {"fit"}


def test_accuracy_without_predictions_has_an_interval():
    data = ArrayDataModule(INPUTS, LABELS, test_fraction=0.2)
    found = fit_and_test(Module(), data, logger="none", **QUIET)
    share = HeldOutScores({"accuracy": found["test/accuracy"]}, num_samples=18)
    assert found.interval("test/accuracy") == share.interval("accuracy")
    assert "from 18 samples, by Wilson" in str(found)


def test_a_test_set_of_its_own_has_no_groups():
    # The validation part has the first rows, which have the numbers of the test samples.
    settings = {"groups": np.arange(90) // 10, "val_fraction": 0.3}
    test = {"test_inputs": INPUTS[:20] + 0.1, "test_targets": LABELS[:20]}
    for seed in range(50):
        data = ArrayDataModule(INPUTS, LABELS, **settings, **test, split_seed=seed)
        if {*range(20)} <= {*data.indices("val").tolist()}:
            break
    found = fit_and_test(MLPClassifier(4, 2, hidden=[4]), data, logger="none", **QUIET)
    assert {*range(20)} <= {*data.indices("val").tolist()}
    assert "from 20 samples" in str(found)
