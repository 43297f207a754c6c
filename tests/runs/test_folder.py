"""Two processes that want one run folder, and workers that outlive their call."""

import errno
import fcntl
import os
import signal
import time
from pathlib import Path

import forked
import joblib
import lightning.pytorch as pl
import numpy as np
import pytest
from same_runs import assert_same

from dlblocks.callbacks import ExactResume
from dlblocks.crossval import cross_validate
from dlblocks.crossval._fold_config import FoldConfig, FoldSpec
from dlblocks.data import DigitsDataModule
from dlblocks.models import MLPClassifier
from dlblocks.runs._parallel import _Task, _work
from dlblocks.runs._plan import run_id_of
from dlblocks.runs.folder import holds_something, locked


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that has ended and was not waited for, where nobody takes in orphans, counts as ended.
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


class Hold(pl.Callback):
    """A fold waits in its third epoch as long as the file ``hold`` is there.

    Where ``orphan`` is, a fold in a worker kills the call that has started it, and goes on.
    """

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch != 2:
            return
        Path(f"at-{trainer.datamodule.fold}.txt").write_text(str(os.getpid()))
        while Path("hold").exists():
            time.sleep(0.05)
        if Path("orphan").exists():
            wait_for(lambda: all(Path(f"at-{fold}.txt").exists() for fold in range(2)))
            if trainer.datamodule.fold == 0:
                os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)  # in the midst of training


def train(run_dir, n_jobs=1):
    # As on a Ray or Dask cluster that srun has started: its workers have a number each.
    variables = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1",
                 "SLURM_NNODES": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1",
                 "SLURM_JOB_ID": "7"}  # fmt: skip
    if n_jobs > 1:
        os.environ.update(variables)
    cross_validate(
        lambda: MLPClassifier(64, 10, hidden=[16], dropout=0.2, lr=0.01),
        DigitsDataModule(batch_size=300), num_folds=2, n_jobs=n_jobs,
        trainer={"max_epochs": 4, "accelerator": "cpu"}, run_dir=run_dir, figures=False,
        make_callbacks=lambda: [Hold(), ExactResume()], progress_bar=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_second_process_is_told_and_workers_end_with_their_call(tmp_path):
    (tmp_path / "hold").touch()
    first = forked.start(train, "run", 2)
    workers = []
    try:
        at = [tmp_path / f"at-{fold}.txt" for fold in range(2)]
        wait_for(lambda: all(file.exists() and file.read_text() for file in at))
        workers = [int(file.read_text()) for file in at]
        expected = rf"run_dir='run' is in use by process {first.pid} on .*choose another run_dir"
        with pytest.raises(BlockingIOError, match=expected):
            train("run")
        # Such a worker is no rank of what has started it: other ranks log nothing.
        for fold in range(2):
            rows = (tmp_path / "run" / f"fold-{fold}" / "metrics.csv").read_text().splitlines()
            assert len(rows) > 1
        (tmp_path / "orphan").touch()
        (tmp_path / "hold").unlink()  # the first goes on, and is killed by its worker
        first.join(120)
        assert first.exitcode == -signal.SIGKILL
        (tmp_path / "orphan").unlink()
        train("run")  # at once
        assert not any(map(alive, workers))
    finally:
        first.kill()
        for worker in filter(alive, workers):
            os.kill(worker, signal.SIGKILL)
    train("whole")
    assert_same(tmp_path / "run", tmp_path / "whole", num_folds=2)
    assert not list((tmp_path / "run").rglob(".*"))


def hold_and_fork():
    with locked(Path("folder")):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.write(writer, b"!")  # by now it has let go of the lock
            time.sleep(60)
            os._exit(0)
        os.read(reader, 1)
        Path("child.part").write_text(str(child))
        Path("child.part").rename("child")
        time.sleep(60)


def test_kill_9_ends_a_lock_and_forked_processes_do_not_share_it(tmp_path):
    process = forked.start(hold_and_fork)
    wait_for(Path("child").exists)
    child = int(Path("child").read_text())
    try:
        expected = pytest.raises(BlockingIOError, match=f"in use by process {process.pid} on")
        with expected, locked(tmp_path / "folder"):
            pass
        process.kill()
        process.join()
        assert (tmp_path / "folder" / ".lock").exists()
        assert not holds_something(tmp_path / "folder")
        with locked(tmp_path / "folder"):
            assert alive(child)
    finally:
        os.kill(child, signal.SIGKILL)
        process.kill()
        process.join()
    assert not list((tmp_path / "folder").iterdir())


def count_up():
    count = Path("count.txt")
    for _ in range(200):
        with locked(Path("folder"), waiting=""):
            count.write_text(str(int(count.read_text()) + 1))


def test_one_at_a_time_although_the_file_comes_and_goes(tmp_path):
    (tmp_path / "count.txt").write_text("0")
    (tmp_path / "folder").mkdir()
    forked.run(count_up, environments=({},) * 3)
    assert (tmp_path / "count.txt").read_text() == "600"


def test_a_folder_of_which_nothing_came_is_removed(tmp_path):
    with locked(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    with locked(tmp_path / "new"):
        (tmp_path / "new" / "file.txt").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.txt"]


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    expected = pytest.warns(UserWarning, match=r"has no locks .*no other process works there")
    with expected, locked(tmp_path):
        assert not list(tmp_path.iterdir())


def run(folder, **arguments):
    return cross_validate(
        lambda: MLPClassifier(64, 10, hidden=[4]),
        DigitsDataModule(batch_size=300),
        num_folds=2,
        trainer={"max_epochs": 1, "accelerator": "cpu"},
        run_dir=folder,
        progress_bar=False,
        figures=False,
        **arguments,
    )


def hold_for_a_second():
    with locked(Path("run/fold-1")):
        Path("there").touch()
        time.sleep(1)
        Path("gone").touch()


def test_a_worker_on_a_cluster_that_a_killed_call_has_left_is_waited_for(tmp_path, capfd):
    process = forked.start(hold_for_a_second)
    wait_for(Path("there").exists)
    # A fold that somebody works on was begun by a run that has a plan.
    with pytest.raises(FileExistsError, match="already holds a run"):
        run(tmp_path / "run")
    assert (tmp_path / "gone").exists()
    process.join()
    assert "Waiting for a process that still runs fold 1." in capfd.readouterr().err


def test_a_fold_that_another_worker_has_ended_is_not_run_again(tmp_path):
    result = run(tmp_path / "run")

    def make_model():
        raise AssertionError("run again")

    config = FoldConfig(
        make_model, list, {"accelerator": "cpu"}, "val/loss", "min", None, tmp_path / "run", 0, True
    )
    config.run_id = run_id_of(tmp_path / "run")
    spec, fold = _work(_Task(config, DigitsDataModule(), FoldSpec(1, 0, 1), 1, tmp_path / "no", 0))
    assert spec.fold == 1
    assert fold.row == result.folds[1]


def test_a_folder_that_is_not_shared_is_said(tmp_path):
    config = FoldConfig(list, list, {}, "val/loss", "min", None, tmp_path / "run", 0, True)
    _, error = _work(_Task(config, DigitsDataModule(), FoldSpec(1, 0, 1), 1, tmp_path / "no", 0))
    assert isinstance(error, FileNotFoundError)
    assert "is not the same folder on" in str(error)


def test_folds_in_threads_of_one_process_do_not_share_its_random_state(tmp_path):
    """As with Dask workers that have several threads: one after another, but right."""
    with joblib.parallel_config("threading"):
        threads = run(tmp_path / "threads", n_jobs=2)
    alone = run(tmp_path / "alone")
    assert threads.values("val/loss") == alone.values("val/loss")
    np.testing.assert_array_equal(threads.oof.prediction, alone.oof.prediction)
