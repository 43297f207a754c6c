"""Worker processes of `n_jobs` that die, or whose driver dies: with real kills."""

import json
import os
import signal
import time
from pathlib import Path

import forked
import lightning.pytorch as pl
import pytest
from conftest import no_address
from same_runs import assert_same

from dlblocks.callbacks import ExactResume
from dlblocks.crossval import cross_validate, nested_cross_validate
from dlblocks.data import DigitsDataModule
from dlblocks.models import MLPClassifier


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Kill(pl.Callback):
    """In the third epoch of fold 1, kill this worker: always, or while a file exists."""

    def __init__(self, who):
        self._moment = who

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch != 2 or self._moment is None:
            return
        if self._moment == "hold":
            Path(f"pid-{trainer.datamodule.fold}").write_text(str(os.getpid()))
            time.sleep(600)
        if trainer.datamodule.fold == 1:
            if isinstance(self._moment, Path):
                if not self._moment.exists():
                    return
                self._moment.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder, kill=None, n_jobs=2, **arguments):
    return cross_validate(
        lambda: MLPClassifier(64, 10, hidden=[8], dropout=0.1), DigitsDataModule(batch_size=300),
        num_folds=3, n_jobs=n_jobs, trainer={"max_epochs": 3, "accelerator": "cpu"},
        run_dir=folder, figures=False, progress_bar=False,
        make_callbacks=lambda: [Kill(kill), ExactResume()], **arguments,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder, n_jobs=1)
    return folder


def test_workers_end_with_their_driver_and_do_not_write_into_the_next_run(tmp_path, whole):
    driver = forked.start(train, "run", "hold")
    try:
        wait_for(lambda: all((tmp_path / f"pid-{fold}").exists() for fold in range(2)))
        time.sleep(0.1)
        workers = [int((tmp_path / f"pid-{fold}").read_text()) for fold in range(2)]
        assert all(map(alive, workers))
        driver.kill()
        wait_for(lambda: not any(map(alive, workers)), seconds=10)
    finally:
        driver.kill()
    (tmp_path / "run").rename(tmp_path / "old")
    train(tmp_path / "run", n_jobs=1)
    assert_same(tmp_path / "run", whole)


def test_a_worker_that_starts_when_its_driver_has_ended_ends_at_once(tmp_path):
    """As long as it takes to import Lightning, the driver may be gone."""
    process = forked.start(_work_for_another)
    process.join(60)
    assert process.exitcode == 1


def _work_for_another():
    from dlblocks.runs._parallel import _end_with

    _end_with(2**22 + 1, is_child=True)  # no process has this number
    time.sleep(600)


def test_a_worker_that_always_dies_is_a_fold_that_failed(tmp_path, whole):
    result = train(tmp_path / "run", "always", on_error="continue")
    assert [row["fold"] for row in result.folds] == [0, 2]
    (failed,) = json.loads((tmp_path / "run" / "summary.json").read_text())["failed"]
    assert failed["fold"] == 1
    assert "a worker process died" in failed["error"]
    train(tmp_path / "run", None, n_jobs=1)  # later it does not die
    assert_same(tmp_path / "run", whole)


def test_a_worker_that_was_killed_once_costs_no_fold(tmp_path, whole):
    once = tmp_path / "once"
    once.touch()
    result = train(tmp_path / "run", once, on_error="continue")
    assert not once.exists()
    assert "failed" not in result.info
    assert_same(tmp_path / "run", whole)


def test_without_continue_the_error_names_the_folds_and_the_cure(tmp_path):
    message = r"a worker process died, which ran one of: fold .*use fewer n_jobs"
    with pytest.raises(RuntimeError, match=message):
        train(tmp_path / "run", "always")


@pytest.mark.parametrize(
    "trainer",
    [{"devices": 2}, {"devices": "0,1"}, {"devices": [0, 1]}, {"devices": 1, "num_nodes": 2}],
    ids=no_address,
)
@pytest.mark.parametrize("nested", [False, True])
def test_to_continue_with_several_ranks_is_refused(tmp_path, trainer, nested):
    arguments = {
        "trainer": {**trainer, "strategy": "ddp", "accelerator": "cpu"},
        "on_error": "continue",
        "run_dir": tmp_path / "run",
    }
    with pytest.raises(ValueError, match="on_error='continue' cannot be used with 2 devices"):
        if nested:
            nested_cross_validate(
                lambda lr: MLPClassifier(64, 10, lr=lr), DigitsDataModule(), {"lr": [0.1]},
                **arguments,
            )  # fmt: skip
        else:
            cross_validate(lambda: MLPClassifier(64, 10), DigitsDataModule(), **arguments)
    assert not (tmp_path / "run").exists()
