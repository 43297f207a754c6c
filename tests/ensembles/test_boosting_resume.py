"""Boosting that was killed goes on after its last finished stage, bit for bit."""

import os
import signal
import warnings

import forked
import numpy as np
import pytest
import torch
from boosting_learners import LeastSquares
from torch import nn
from wandb_offline import read_run

from dlblocks._files import read_rows
from dlblocks.data import ArrayDataModule
from dlblocks.ensembles import AdaBoost, GradientBoosting
from dlblocks.models import Classifier, Regressor, load
from dlblocks.nets import MLP
from dlblocks.runs.folder import locked

STAGES, EPOCHS = 5, 2


class Net(nn.Module):
    """With all that has a state or draws: batch norm, dropout, weights of numpy's making.

    Kills its process, or interrupts it, in the second pass of a stage.
    """

    made = 0

    def __init__(self, outputs, break_at, how):
        super().__init__()
        self.net = MLP(5, outputs, hidden=[6], norm="batch", dropout=0.3)
        with torch.no_grad():
            self.net.layers[0].weight *= np.random.rand()
        Net.made += 1
        self._breaks, self._deed, self._calls = Net.made == break_at, how, 0

    def forward(self, inputs):
        self._calls += self.training
        if self._breaks and self._calls == 5:
            if self._deed == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        return self.net(inputs)


def boosting(kind, run_dir, break_at=0, how="kill", **more):
    Net.made = 0
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(80, 5)).astype(np.float32)
    labels = (inputs[:, 0] > 0) + 2 * (inputs[:, 1] * inputs[:, 2] > 0)
    settings = {
        "num_stages": STAGES,
        "trainer": {"accelerator": "cpu", "max_epochs": EPOCHS},
        "progress_bar": False,
        "run_dir": run_dir,
        **more,
    }
    data = ArrayDataModule(inputs, labels.astype(np.int64), batch_size=16)
    if kind == "ada":
        make = lambda: Classifier(Net(4, break_at, how), 4, lr=0.05)  # noqa: E731
        return AdaBoost(make, data, **settings)
    make = lambda: Regressor(Net(4, break_at, how), 4, optimizer="momentum", lr=0.05)  # noqa: E731
    return GradientBoosting(make, data, **{"subsample": 0.7, "shrinkage": 0.5, **settings})


def killed(kind, run_dir, break_at):
    boosting(kind, run_dir, break_at).fit()


def same(one, other):
    assert one.history == other.history
    assert (one.best_stage, one.stopped) == (other.best_stage, other.stopped)
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    inputs = torch.randn(7, 5)
    assert torch.equal(one.model(inputs), other.model(inputs))


@pytest.mark.parametrize("kind", ["gradient", "ada"])
def test_a_killed_fit_goes_on_bit_for_bit(kind, tmp_path):
    whole = boosting(kind, tmp_path / "whole").fit()
    assert len(whole.model.net.members) == STAGES
    for break_at in (3, 5):  # killed twice; the second time while it goes on
        forked.run(killed, kind, tmp_path / "a", break_at, code=-signal.SIGKILL)
        left = sorted(path.name for path in (tmp_path / "a" / "checkpoints").iterdir())
        assert left == [f"stage-{stage}.ckpt" for stage in range(1, break_at)]
    ran = boosting(kind, tmp_path / "a")
    resumed = ran.fit()
    # The finished learners were not trained again, but run on the training and validation part.
    assert [m.net._calls for m in ran.learners] == [
        0,
        0,
        0,
        0,
        EPOCHS * (3 if kind == "gradient" else 4),
    ]
    same(resumed, whole)
    for name in ("history.csv", "metrics.csv"):
        assert read_rows(tmp_path / "a" / name) == read_rows(tmp_path / "whole" / name), name
    members = [type(m)(Net(4, 0, ""), 4) for m in ran.learners]
    loaded = load(resumed.checkpoint, overrides={"members": members})
    inputs = torch.randn(3, 5)
    assert torch.equal(loaded(inputs), whole.model(inputs))


def test_an_interrupted_fit_goes_on_and_its_log_is_whole(tmp_path):
    whole = boosting("gradient", tmp_path / "whole", logger="none").fit()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        boosting("gradient", tmp_path / "a", break_at=4, how="interrupt", logger="wandb").fit()
    (tmp_path / "a" / "checkpoints" / "stage-2.ckpt").write_bytes(b"")  # the disk lost it
    same(boosting("gradient", tmp_path / "a", logger="wandb").fit(), whole)
    runs = [read_run(path) for path in sorted((tmp_path / "a").rglob("*.wandb"))]
    logged = [row["val/loss"] for run in runs for row in run["history"]]
    assert logged == [row["val/loss"] for row in whole.history]
    assert len(runs) == 2 and len({run["id"] for run in runs}) == 1


def test_early_stopping_and_true_precision_go_on(tmp_path):
    more = {"patience": 2, "num_stages": 30, "shrinkage": 1.0, "logger": None}
    more["trainer"] = {"accelerator": "cpu", "max_epochs": EPOCHS, "precision": "64-true"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*has not improved")
        whole = boosting("gradient", tmp_path / "whole", **more).fit()
        at = len(whole.history) - 1  # in the stage after which it stops
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            boosting("gradient", tmp_path / "a", break_at=at, how="interrupt", **more).fit()
        same(boosting("gradient", tmp_path / "a", **more).fit(), whole)
    assert 0 < whole.best_stage == at - 2


def test_learners_that_fit_themselves_are_fitted_again(tmp_path):
    class Breaking(LeastSquares):
        fits, at = 0, 3

        def fit_samples(self, *given):
            Breaking.fits += 1
            if Breaking.fits == Breaking.at:
                raise KeyboardInterrupt
            super().fit_samples(*given)

    def run(name):
        data = boosting("gradient", "unused").datamodule
        make = lambda: Regressor(Breaking(5, 4), 4)  # noqa: E731
        return GradientBoosting(
            make, data, num_stages=4, progress_bar=False, run_dir=tmp_path / name, subsample=0.5,
            trainer={"accelerator": "cpu"},
        ).fit()  # fmt: skip

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run("a")
    same(run("a"), run("b"))


def test_what_cannot_be_gone_on_with_is_refused(tmp_path):
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        boosting("gradient", tmp_path / "a", break_at=2, how="interrupt").fit()
    for said, more in {
        "seed was 0 and is 1": {"seed": 1},
        "shrinkage was 0.5 and is 0.4": {"shrinkage": 0.4},
        "num_stages was 5 and is 6": {"num_stages": 6},
        "trainer.max_epochs was 2 and is 3": {"trainer": {"accelerator": "cpu", "max_epochs": 3}},
        "already holds a run": {"resume": False},
    }.items():
        with pytest.raises(FileExistsError, match=said):
            boosting("gradient", tmp_path / "a", **more).fit()
    changed = boosting("gradient", tmp_path / "a")
    changed.datamodule.source.targets[0] += 1
    with pytest.raises(FileExistsError, match="fingerprint differs"):
        changed.fit()
    with pytest.raises(FileExistsError, match="class was 'GradientBoosting' and is 'AdaBoost'"):
        boosting("ada", tmp_path / "a").fit()
    with (
        locked(tmp_path / "a"),
        pytest.raises(BlockingIOError, match="in use by process"),
    ):
        boosting("gradient", tmp_path / "a").fit()


@pytest.mark.parametrize("kind", ["gradient", "ada"])
def test_a_fit_that_has_ended_is_read_back(tmp_path, kind):
    first = boosting(kind, tmp_path / "a").fit()
    written = (tmp_path / "a" / "metrics.csv").read_text()
    again = boosting(kind, tmp_path / "a", break_at=1, how="interrupt").fit()  # trains nothing
    same(first, again)
    assert again.seconds == first.seconds
    assert (tmp_path / "a" / "metrics.csv").read_text() == written
    with pytest.raises(FileExistsError, match="seed was 0 and is 1"):
        boosting(kind, tmp_path / "a", seed=1).fit()


def test_without_resume_nothing_is_kept_on_the_way(tmp_path):
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        boosting("ada", tmp_path / "a", break_at=3, how="interrupt", resume=False).fit()
    assert not list((tmp_path / "a").rglob("*.ckpt"))
