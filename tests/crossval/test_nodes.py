"""Two nodes on one machine, started as torchrun, srun or a hand start them, against one process."""

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

# One batch an epoch, halved between the nodes: the mean gradient is that of the whole batch.
SCRIPT = """
import os, signal, sys
from pathlib import Path
import numpy as np
import lightning.pytorch as pl
import torch
torch.set_num_threads(1)
from dlblocks.crossval import cross_validate
from dlblocks.data import ArrayDataModule
from dlblocks.files import next_run_dir
from dlblocks.models import MLPClassifier

nodes = int(sys.argv[1])


class Requeue(pl.Callback):
    \"\"\"The signal that SLURM sends before it ends a job, and the end.\"\"\"

    def on_train_epoch_start(self, trainer, module):
        if Path("requeue").exists() and trainer.datamodule.fold == 1:
            if trainer.current_epoch == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            elif trainer.current_epoch == 2:
                os.kill(os.getpid(), signal.SIGKILL)


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
    run_dir=next_run_dir("run", resume=True), figures=False, progress_bar=False,
)
"""


def torchrun(rank, port):
    command = ["-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank)]
    return [*command, "--master-addr", "127.0.0.1", "--master-port", str(port)], {}


def srun(rank, port, nodes=2):
    slurm = {"PROCID": rank, "NODEID": rank, "LOCALID": 0, "NTASKS": nodes, "NTASKS_PER_NODE": 1,
             "NNODES": nodes, "JOB_ID": 7, "NODELIST": "127.0.0.1", "JOB_NAME": "cv"}  # fmt: skip
    variables = {f"SLURM_{name}": str(value) for name, value in slurm.items()}
    return [], {**variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def by_hand(rank, port):
    return [], {"NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def start(folder, nodes, launch=None, code=0):
    (folder / "script.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(nodes):
        before, variables = launch(rank, port) if launch else ([], {})
        processes.append(
            subprocess.Popen(
                [sys.executable, *before, "script.py", str(nodes)],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [code] * nodes, "\n".join(said)
    assert [path.name for path in folder.glob("run*")] == ["run"]
    return folder / "run"


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return start(tmp_path_factory.mktemp("one"), 1)


@pytest.mark.slow
@pytest.mark.parametrize("launch", [torchrun, srun, by_hand])
def test_two_nodes_find_what_one_process_finds(tmp_path, one, launch):
    two = start(tmp_path, 2, launch)
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


@pytest.mark.slow
def test_a_job_that_slurm_requeues_goes_on(tmp_path, one):
    """Lightning's checkpoint for SLURM is no weights to predict with."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho $@ > requeued\n")
    (tmp_path / "scontrol").chmod(0o755)

    def launch(rank, port):
        before, variables = srun(rank, port, nodes=1)
        return before, {**variables, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    (tmp_path / "requeue").touch()
    run = start(tmp_path, 1, launch, code=-signal.SIGKILL)
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert list(run.glob("fold-1/hpc_ckpt_*.ckpt"))
    (tmp_path / "requeue").unlink()
    start(tmp_path, 1, launch)
    with np.load(one / "oof.npz") as mine, np.load(run / "oof.npz") as theirs:
        np.testing.assert_array_equal(mine["prediction"], theirs["prediction"])
    assert not list(run.rglob("hpc_ckpt*"))
