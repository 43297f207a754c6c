"""W&B that is lost: real wandb, a server that can be killed, and wandb's own process killed."""

import gc
import os
import signal
import time
from pathlib import Path

import pytest
import wandb
from lightning.pytorch.callbacks import Callback
from wandb_offline import read_run
from wandb_server import Server

from dlblocks.crossval import cross_validate
from dlblocks.data import DigitsDataModule
from dlblocks.models import MLPClassifier
from dlblocks.tracking import _wandb as wandb_log
from dlblocks.tracking import finish_logger, make_logger

EPOCHS = 3
# wandb forgets the process that was killed, without waiting for it.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    wandb_log._said.clear()
    wandb_log._drop_service()  # an earlier test's: wandb reads the environment only as it starts
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield
    wandb_log._drop_service()
    gc.collect()


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a server, and sets the environment so that wandb takes it for its own."""
    servers = []

    def start(kind=""):
        servers.append(Server(tmp_path, kind))
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", servers[-1].url)
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


class After(Callback):
    """Does something once, after the first epoch of the first fold."""

    def __init__(self, deed):
        self.deed = deed

    def on_train_epoch_end(self, trainer, pl_module):
        deed = self.deed.pop() if self.deed else None
        if deed is not None:
            deed()


def folds(run_dir, deed):
    deeds = [deed]
    result = cross_validate(
        lambda: MLPClassifier(64, 10, hidden=[16]), DigitsDataModule(batch_size=300), num_folds=2,
        trainer={"max_epochs": EPOCHS, "accelerator": "cpu"}, logger="wandb", figures=False,
        make_callbacks=lambda: [After(deeds)], progress_bar=False, run_dir=run_dir,
    )  # fmt: skip
    assert not deeds
    assert [row["epochs"] for row in result.folds] == [EPOCHS, EPOCHS]
    for fold in (0, 1):
        assert len((run_dir / f"fold-{fold}" / "history.csv").read_text().split()) == EPOCHS + 1
    assert (run_dir / "summary.json").is_file()
    return result


def logged(folder: Path, kind: str = "offline-run"):
    """The one run of a folder; wandb's process may write its end a little after `finish`."""
    (path,) = folder.glob(f"wandb/{kind}-*/*.wandb")
    late = time.monotonic() + 5
    while not (run := read_run(path))["finished"] and time.monotonic() < late:
        time.sleep(0.1)
    return run


def losses(run):
    return [row["selection/loss"] for row in run["history"] if "selection/loss" in row]


def test_online(tmp_path, start, capfd):
    server = start()
    result = folds(tmp_path / "cv", lambda: None)
    begun = [variables for name, variables in server.got() if name == "UpsertBucket"]
    begun = [one for one in begun if one.get("groupName")]  # the others are updates
    assert {one["groupName"] for one in begun} == {"cv"}
    assert {one["jobType"] for one in begun} == {"fold", "summary"}
    assert len({one["name"] for one in begun}) == 3
    sent = str([body for path, body in server.got() if path.endswith("/file_stream")])
    for row in result.folds:
        assert f"{row['val/loss']}"[:6] in sent
    said = capfd.readouterr().err
    assert "lost" not in said
    assert "has not uploaded all" not in said


def test_a_server_that_is_lost_in_mid_run(tmp_path, start, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
    server = start()
    started = time.monotonic()
    result = folds(tmp_path / "cv", server.kill)
    assert time.monotonic() - started < 30
    assert any(name == "UpsertBucket" for name, _ in server.got())  # it had begun online
    first = logged(tmp_path / "cv" / "fold-0", "run")
    second = logged(tmp_path / "cv" / "fold-1")
    assert len(losses(first)) == len(losses(second)) == EPOCHS  # on disk, for wandb sync
    assert first["summary"]["val/loss"] == pytest.approx(result.folds[0]["val/loss"])
    said = capfd.readouterr().err
    assert said.count("has not uploaded all of a run within 1 seconds: wandb sync") == 1
    assert str(tmp_path / "cv" / "fold-0") in said
    assert said.count("does not answer") == 1  # the second fold is offline


def kill_service():
    """kill -9 of wandb-core, the child process to which every call of wandb goes."""
    killed = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, _, rest = stat.read_text().partition(" (wandb-core) ")
        except OSError:  # ended meanwhile
            continue
        state, parent, *_ = rest.split() or ["Z", 0]
        if state != "Z" and int(parent) == os.getpid():
            os.kill(int(pid), signal.SIGKILL)
            killed += 1
    assert killed == 1


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds the process in /proc")
def test_the_process_of_wandb_killed_in_mid_run(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folds(tmp_path / "cv", kill_service)
    said = capfd.readouterr().err
    assert said.count("W&B is lost in mid-run") == said.count("W&B") == 1
    assert "fold-0/wandb/offline-run-" in said
    assert wandb.run is None
    # The next fold, and the summary, have runs of their own again.
    assert len(losses(logged(tmp_path / "cv" / "fold-1"))) == EPOCHS
    assert logged(tmp_path / "cv" / "fold-1")["finished"]
    assert "val/loss/mean" in logged(tmp_path / "cv")["summary"]


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds the process in /proc")
def test_the_process_of_wandb_killed_between_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    first = make_logger("wandb", tmp_path / "a", config={"a": 1})
    kill_service()
    finish_logger(first)
    second = make_logger("wandb", tmp_path / "b")
    second.log_metrics({"selection/loss": 1.0})
    kill_service()
    third = make_logger("wandb", tmp_path / "c", config={"c": 1})
    finish_logger(third)
    finish_logger(second)
    assert logged(tmp_path / "c")["finished"]
    assert wandb.run is None
    assert capfd.readouterr().err.count("lost in mid-run") == 2


@pytest.mark.parametrize("kind", ["hang", "refuse"])
def test_a_run_that_cannot_begin_online_is_offline(tmp_path, start, monkeypatch, capfd, kind):
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    start(kind)
    started = time.monotonic()
    for name in ("a", "b"):
        logger = make_logger("wandb", tmp_path / name, config={"a": 1})
        logger.log_metrics({"selection/loss": 1.0})
        finish_logger(logger)
        assert losses(logged(tmp_path / name)) == [1.0]
    assert time.monotonic() - started < 20
    assert capfd.readouterr().err.count("it is logged offline") == 1


def test_what_cannot_be_logged_is_left_out(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = make_logger("wandb", tmp_path)
    for step, loss in enumerate([2.0, 1.0]):
        logger.log_metrics({"selection/loss": loss}, step)
        logger.log_metrics({7: loss}, step)
    finish_logger(logger)
    assert losses(logged(tmp_path)) == [2.0, 1.0]
    assert capfd.readouterr().err.count("cannot log a value") == 1
