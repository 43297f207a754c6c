"""Two nodes on one machine, started as torchrun, srun or a hand start them, against one process."""

import json
import os
import signal
from pathlib import Path

import forked
import lightning.pytorch as pl
import numpy as np
import pytest

from dlblocks.crossval import cross_validate
from dlblocks.data import ArrayDataModule
from dlblocks.models import MLPClassifier


class Requeue(pl.Callback):
    """The signal that SLURM sends before it ends a job, and the end."""

    def on_train_epoch_start(self, trainer, module):
        if Path("requeue").exists() and trainer.datamodule.fold == 1:
            if trainer.current_epoch == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            elif trainer.current_epoch == 2:
                os.kill(os.getpid(), signal.SIGKILL)


def train(nodes):
    """One batch an epoch, halved between nodes: the mean gradient is that of the whole batch."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(160, 5)).astype("float32")
    targets = (inputs[:, 0] + inputs[:, 1] > 0).astype("int64")
    settings = {"num_nodes": 2, "strategy": "ddp"} if nodes == 2 else {}
    cross_validate(
        lambda: MLPClassifier(5, 2, hidden=[8], optimizer="sgd", lr=0.5),
        ArrayDataModule(inputs, targets, batch_size=80 // nodes, test_fraction=0.0),
        num_folds=2,
        make_callbacks=lambda: [Requeue()],
        trainer={"max_epochs": 5, "accelerator": "cpu", "devices": 1, **settings},
        run_dir="run", figures=False, progress_bar=False,
    )  # fmt: skip


def srun(rank, port, nodes=2):
    slurm = {"PROCID": rank, "NODEID": rank, "LOCALID": 0, "NTASKS": nodes, "NTASKS_PER_NODE": 1,
             "NNODES": nodes, "JOB_ID": 7, "NODELIST": "127.0.0.1", "JOB_NAME": "cv"}  # fmt: skip
    variables = {f"SLURM_{name}": str(value) for name, value in slurm.items()}
    return {**variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def by_hand(rank, port):
    return {"NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        train(1)
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["torchrun", srun, by_hand])
def test_two_nodes_find_what_one_process_finds(tmp_path, one, launch):
    if launch == "torchrun":
        forked.torchrun(train, 2, nodes=2, processes=1)
    else:
        port = forked.free_port()
        forked.run(train, 2, environments=[launch(rank, port) for rank in range(2)])
    two = tmp_path / "run"
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, two)]
    first, second = (summary["metrics"] for summary in summaries)
    assert first.keys() == second.keys()
    assert first["val/accuracy"]["mean"] > 0.7
    for name in first:
        assert second[name]["folds"] == pytest.approx(first[name]["folds"], rel=1e-4), name
    with np.load(one / "oof.npz") as mine, np.load(two / "oof.npz") as theirs:
        for name in ("index", "target", "fold"):
            np.testing.assert_array_equal(mine[name], theirs[name])
        np.testing.assert_allclose(mine["prediction"], theirs["prediction"], atol=1e-5)
    history = [(run / "fold-1" / "metrics.csv").read_text().count("\n") for run in (one, two)]
    assert history[0] == history[1]
    assert not list(two.rglob(".*"))


def test_a_job_that_slurm_requeues_goes_on(tmp_path, one):
    """Lightning's checkpoint for SLURM is no weights to predict with."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho $@ > requeued\n")
    (tmp_path / "scontrol").chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environments = [{**srun(0, forked.free_port(), nodes=1), **path}]
    (tmp_path / "requeue").touch()
    forked.run(train, 1, environments=environments, code=-signal.SIGKILL)
    run = tmp_path / "run"
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert list(run.glob("fold-1/hpc_ckpt_*.ckpt"))
    (tmp_path / "requeue").unlink()
    forked.run(train, 1, environments=environments)
    with np.load(one / "oof.npz") as mine, np.load(run / "oof.npz") as theirs:
        np.testing.assert_array_equal(mine["prediction"], theirs["prediction"])
    assert not list(run.rglob("hpc_ckpt*"))
