"""Checkpoints of finished folds and members hold weights, and nothing that only training needs."""

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging

from dlblocks.crossval import cross_validate
from dlblocks.data import DigitsDataModule
from dlblocks.ensembles import Bagging
from dlblocks.models import MLPClassifier, load
from dlblocks.runs.fit import drop_training_state

CPU = {"max_epochs": 2, "accelerator": "cpu"}
QUIET = {"progress_bar": False, "figures": False}
OF_TRAINING = {"optimizer_states", "lr_schedulers", "loops", "averaging_state",
               "current_model_state"}  # fmt: skip


def model():
    return MLPClassifier(64, 10, hidden=[32], optimizer="adam")


class Killed(BaseException):
    """Not an error that a prediction may raise."""


class Saves(Callback):
    """Keeps the best checkpoint as it was during the fit, and the module's weights at its end."""

    before, weights = {}, {}

    def __init__(self, fails=False):
        self._ends_badly = fails

    def on_validation_epoch_end(self, trainer, pl_module):
        path = trainer.checkpoint_callback.best_model_path
        if path and trainer.state.fn == "validate":
            Saves.before[path] = torch.load(path, weights_only=True)

    def on_predict_end(self, trainer, pl_module):
        if self._ends_badly and len(Saves.before) == 2:
            raise Killed("killed")


@pytest.fixture(autouse=True)
def _fresh():
    Saves.before = {}


def check(folder, count):
    assert len(Saves.before) == count
    for path, before in Saves.before.items():
        after = torch.load(path, weights_only=True)
        assert before["optimizer_states"]
        assert not after.keys() & OF_TRAINING
        assert after.keys() >= {"state_dict", "epoch", "global_step", "pytorch-lightning_version"}
        assert before["state_dict"].keys() == after["state_dict"].keys()
        for name, value in after["state_dict"].items():
            assert torch.equal(value, before["state_dict"][name])
        assert load(path).hparams["hidden"] == [32]
    assert not list(folder.rglob("*.ckpt.*"))


@pytest.mark.parametrize("averaged", [False, True], ids=["plain", "averaged"])
def test_folds(averaged, tmp_path):
    more = [EMAWeightAveraging] if averaged else []
    result = cross_validate(
        model, DigitsDataModule(batch_size=100), num_folds=2, trainer=CPU, run_dir=tmp_path / "cv",
        make_callbacks=lambda: [*(make() for make in more), Saves()], **QUIET,
    )  # fmt: skip
    check(tmp_path, 2)
    assert all(("averaging_state" in before) == averaged for before in Saves.before.values())
    # The predictions that were scored are those of what is left in the file.
    data = DigitsDataModule().for_fold(1, 2)
    data.prepare_data()
    data.setup("fit")
    restored = load(result.run_dir / result.folds[1]["checkpoint"])
    mine = result.oof.fold == 1
    rows = torch.from_numpy(result.oof.index[mine])
    with torch.no_grad():
        found = restored(data.raw_inputs("train")[rows]).softmax(1)
    np.testing.assert_allclose(result.oof.prediction[mine], found.numpy(), atol=1e-5)
    # What Lightning makes of them, too.
    result.test(result.ensemble(), trainer={"accelerator": "cpu"})


def test_a_fit_without_a_selection(tmp_path):
    result = cross_validate(
        model, DigitsDataModule(batch_size=100), num_folds=2, trainer=CPU, select="last",
        run_dir=tmp_path, **QUIET,
    )  # fmt: skip
    saved = torch.load(tmp_path / result.folds[0]["checkpoint"], weights_only=True)
    assert not saved.keys() & OF_TRAINING
    result.refit()
    saved = torch.load(tmp_path / "refit" / "model.ckpt", weights_only=True)
    assert not saved.keys() & OF_TRAINING
    assert load(tmp_path / "refit" / "model.ckpt").hparams["hidden"] == [32]


def test_members(tmp_path):
    Bagging(
        model, DigitsDataModule(batch_size=100), num_members=2, trainer=CPU, run_dir=tmp_path,
        make_callbacks=lambda: [Saves()], **QUIET,
    ).fit()  # fmt: skip
    check(tmp_path, 2)


def test_a_fold_that_is_not_finished_keeps_its_state(tmp_path):
    """Killed before its predictions were written, it is resumed and scored as before."""

    def run(folder, *, fails):
        return cross_validate(
            model, DigitsDataModule(batch_size=100), num_folds=2, trainer=CPU,
            run_dir=tmp_path / folder, make_callbacks=lambda: [Saves(fails)], **QUIET,
        )  # fmt: skip

    with pytest.raises(Killed, match="killed"):
        run("a", fails=True)
    kept = torch.load(tmp_path / "a" / "fold-1" / "checkpoints" / "best.ckpt", weights_only=True)
    assert kept["optimizer_states"]
    first, second = run("b", fails=False), run("a", fails=False)
    np.testing.assert_array_equal(first.oof.prediction, second.oof.prediction)


class Odd:
    """A value that is more than a plain one."""


def test_what_is_more_than_weights_stays_as_it_is(tmp_path):
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": {}, "optimizer_states": [1], "odd": Odd()}, path)
    before = path.read_bytes()
    drop_training_state(path)
    assert path.read_bytes() == before
    drop_training_state(None)  # of fast_dev_run
    drop_training_state(tmp_path)  # a sharded checkpoint is a folder
