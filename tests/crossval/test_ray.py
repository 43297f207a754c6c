"""Folds on a cluster of machines, one of which dies in mid-run."""

import sys

import commands
import forked
import pytest
from same_runs import assert_same

# What all runs have in common; each is a process of its own, as for a user. Folds note where they
# begin, at which epoch. While a file ``victim`` names a node or process, a fold that runs there
# stops in its third epoch and waits to be killed.
COMMON = """
import os, sys, time
from pathlib import Path
import joblib, torch
import lightning.pytorch as pl
torch.set_num_threads(1)
from dlblocks.callbacks import ExactResume, MixUp
from dlblocks.crossval import cross_validate
from dlblocks.data import DigitsDataModule
from dlblocks.models import MLPClassifier

folder = Path(sys.argv[1]).absolute()


class Place(pl.Callback):
    def on_train_start(self, trainer, module):
        with (folder / f"fold-{trainer.datamodule.fold}.txt").open("a") as file:
            file.write(f"{place()} {trainer.current_epoch}\\n")

    def on_train_epoch_start(self, trainer, module):
        victim = folder / "victim"
        if trainer.current_epoch == 2 and victim.exists() and victim.read_text() == str(place()):
            (folder / "ready").write_text(str(trainer.datamodule.fold))
            time.sleep(300)


def run(n_jobs=2):
    return cross_validate(
        lambda: MLPClassifier(64, 10, hidden=[16], dropout=0.2, lr=0.01, lr_schedule="one_cycle"),
        DigitsDataModule(batch_size=200), num_folds=4, n_jobs=n_jobs,
        make_callbacks=lambda: [MixUp(0.2), Place(), ExactResume()],
        trainer={"max_epochs": 4, "accelerator": "cpu"}, run_dir=folder / "run", figures=False,
    )


def kill_when_ready(kill):
    import threading

    def wait():
        while not (folder / "ready").exists():
            time.sleep(0.1)
        (folder / "victim").unlink()
        kill()

    threading.Thread(target=wait, daemon=True).start()
"""

RAY = """
import ray
from ray.cluster_utils import Cluster
from ray.util.joblib import register_ray

def place():
    return ray.get_runtime_context().get_node_id()

if __name__ == "__main__":
    # A node is dead after two calls that it does not take, a second apart.
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000,
              "health_check_failure_threshold": 2}
    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={
        **node, "include_dashboard": False, "_system_config": health})
    second = cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    (folder / "victim").write_text(second.node_id)
    kill_when_ready(lambda: cluster.remove_node(second, allow_graceful=False))
    register_ray()
    with joblib.parallel_config("ray"):
        run()
    ray.shutdown()
    cluster.shutdown()
"""

DASK = """
from dask.distributed import Client, LocalCluster

def place():
    return os.getpid()

if __name__ == "__main__":
    import signal
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            victim = next(iter(client.run(os.getpid).values()))
            (folder / "victim").write_text(str(victim))
            kill_when_ready(lambda: os.kill(victim, signal.SIGKILL))
            with joblib.parallel_config("dask"):
                run()
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    def start(name, script):
        folder = tmp_path_factory.mktemp(name)
        (folder / "script.py").write_text(COMMON + script)
        # With authorization it leaves a file in the home folder.
        env = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
        if name == "ray":
            with pytest.MonkeyPatch.context() as patched:
                patched.chdir(folder)
                for variable, value in env.items():
                    patched.setenv(variable, value)
                done = forked.script("script.py", ".")
            assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-4000:])
        else:  # the processes that Dask spawns do not start from a forked script
            commands.run("python", "script.py", ".", cwd=folder, env=env)
        return folder

    return start


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["script.py", str(folder)])
        script = {"place": lambda: "here"}
        exec(COMMON, script)
        script["run"](n_jobs=1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("package", "script"), [("ray", RAY), ("distributed", DASK)])
def test_the_folds_of_a_dead_machine_are_run_again(start, request, package, script):
    pytest.importorskip(package)
    whole = request.getfixturevalue("whole")
    folder = start(package, script)
    lost = int((folder / "ready").read_text())
    began = {fold: (folder / f"fold-{fold}.txt").read_text().splitlines() for fold in range(4)}
    assert [len(lines) for lines in began.values()] == [1 + (fold == lost) for fold in range(4)]
    (first, epoch), (second, later) = (line.split() for line in began[lost])
    assert first != second
    assert (epoch, later) == ("0", "2")  # it went on from its last checkpoint
    assert_same(folder / "run", whole / "run", num_folds=4)
    assert not list((folder / "run").rglob(".*"))  # no lock is left
