"""Whose W&B runs are written: the caller's, a sweep agent's, or our own. All runs are offline."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
import wandb
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb_offline import read_runs

from dlblocks.cli import main
from dlblocks.crossval import cross_validate
from dlblocks.data import ArrayDataModule, TabularDataModule
from dlblocks.ensembles import Bagging, GradientBoosting
from dlblocks.models import MLPClassifier, MLPRegressor
from dlblocks.runs import fit_and_test

SWEEP = Path(__file__).parents[2] / "configs" / "sweep.yaml"
QUIET = {"progress_bar": False, "figures": False}
TRAINER = {"max_epochs": 1, "accelerator": "cpu"}
# Set by wandb's process for its own children.
OWN = {"WANDB_SERVICE"}
# Where wandb 0.28 reads the parameters of a sweep.
pytestmark = pytest.mark.filterwarnings("ignore:.*Exception ignored in.*yaml")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """W&B as in a new process, whose environment is read once."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    yield
    wandb.teardown()


def variables():
    return {k: v for k, v in os.environ.items() if k.startswith("WANDB_") and k not in OWN}


def model():
    return MLPClassifier(4, 3, hidden=[4])


def folds(run_dir, **arguments):
    return cross_validate(
        model, TabularDataModule("iris"), num_folds=2, logger="wandb", run_dir=run_dir,
        **{"trainer": TRAINER, **QUIET, **arguments},
    )  # fmt: skip


def bagging(run_dir):
    Bagging(
        model, TabularDataModule("iris"), num_members=2, logger="wandb", run_dir=run_dir,
        trainer=TRAINER, **QUIET,
    ).fit()  # fmt: skip


def boosting(run_dir):
    x = torch.randn(40, 2)
    GradientBoosting(
        lambda: MLPRegressor(2, 1, hidden=[4]), ArrayDataModule(x, x[:, :1]), num_stages=1,
        trainer=TRAINER, logger="wandb", run_dir=run_dir, progress_bar=False,
    ).fit()  # fmt: skip


def single(run_dir):
    data = TabularDataModule("iris", test_fraction=0.2)
    fit_and_test(
        model(), data, trainer=TRAINER, logger="wandb", run_dir=run_dir, progress_bar=False
    )


@pytest.mark.parametrize(
    ("call", "count"), [(folds, 3), (bagging, 3), (boosting, 1), (single, 1)],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_an_active_run_is_neither_used_nor_finished(call, count, tmp_path):
    mine = wandb.init(project="mine", config={"lr": 0.01}, dir=tmp_path / "mine")
    call(tmp_path / "run")
    assert wandb.run is mine
    mine.log({"afterwards": 7.0})
    mine.finish()
    (read,) = read_runs(tmp_path / "mine")
    assert read["project"] == "mine"
    assert read["config"].keys() - {"_wandb"} == {"lr"}
    assert [row["afterwards"] for row in read["history"]] == [7.0]
    others = read_runs(tmp_path / "run")
    assert len({run["id"] for run in others} - {mine.id}) == len(others) == count
    assert all(run["finished"] for run in others)


class Habits(MLPClassifier):
    """Calls wandb itself, as under Lightning's own logger."""

    def on_fit_start(self):
        self.logger.watch(self, log="gradients", log_freq=1)
        wandb.config.update({"own": 1})

    def on_train_epoch_end(self):
        assert wandb.run is self.logger.experiment
        wandb.log({"by_wandb": float(self.current_epoch)})


@pytest.mark.processes
@pytest.mark.parametrize("engine", [{}, {"n_jobs": 2}], ids=["one by one", "n_jobs"])
def test_modules_that_call_wandb_themselves(engine, tmp_path):
    mine = wandb.init(project="mine", dir=tmp_path / "mine")
    cross_validate(
        lambda: Habits(4, 3, hidden=[4]), TabularDataModule("iris"), num_folds=2, logger="wandb",
        run_dir=tmp_path / "run", trainer=TRAINER, **engine, **QUIET,
    )  # fmt: skip
    assert wandb.run is mine
    wandb.log({"afterwards": 7.0})
    mine.finish()
    assert wandb.run is None
    (read,) = read_runs(tmp_path / "mine")
    assert read["history"][0].keys() - {"_runtime", "_step", "_timestamp"} == {"afterwards"}
    parts = [run for run in read_runs(tmp_path / "run") if run["job_type"] == "fold"]
    assert len(parts) == 2
    for run in parts:
        assert run["config"]["own"] == 1
        assert [row["by_wandb"] for row in run["history"] if "by_wandb" in row] == [0.0]
        assert any("gradients/" in name for row in run["history"] for name in row)


@pytest.mark.processes
def test_workers_that_know_an_ended_process_of_wandb(tmp_path):
    """joblib keeps its workers, whose WANDB_SERVICE is that of the call that has started them."""
    for i in range(2):
        with wandb.init(project="mine", dir=tmp_path / "mine"):
            cross_validate(
                partial(MLPClassifier, 4, 3, hidden=[4]), TabularDataModule("iris"), num_folds=2,
                logger="wandb", run_dir=tmp_path / f"run{i}", trainer=TRAINER, n_jobs=2, **QUIET,
            )  # fmt: skip
        wandb.teardown()
        runs = read_runs(tmp_path / f"run{i}")
        assert sum(run["job_type"] == "fold" for run in runs) == 2


def as_agent(monkeypatch, tmp_path, run_id, parameters):
    """Set what ``wandb agent`` sets before it starts a command or calls a function."""
    path = tmp_path / f"{run_id}.yaml"
    path.write_text(yaml.safe_dump({k: {"value": v} for k, v in parameters.items()}))
    for name, value in (
        ("WANDB_RUN_ID", run_id),
        ("WANDB_SWEEP_ID", "sweep5"),
        ("WANDB_SWEEP_PARAM_PATH", str(path)),
        ("WANDB_PROJECT", "digits"),
    ):
        monkeypatch.setenv(name, value)
    wandb.teardown()


def test_the_sweep_of_the_example(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    (tmp_path / "configs").symlink_to(SWEEP.parent)
    sweep = yaml.safe_load(SWEEP.read_text())
    trials = {"trial1": 0.02, "trial2": 0.001}
    for run_id, lr in trials.items():
        parameters = {"model.lr": lr, "model.dropout": 0.2}
        assert parameters.keys() == sweep["parameters"].keys()
        as_agent(monkeypatch, tmp_path, run_id, parameters)
        before = variables()
        command = create_sweep_command(list(sweep["command"]))
        assert command[0] == "dlblocks"
        assert command[-1] == "${args}"
        given = {"args": {name: {"value": value} for name, value in parameters.items()}}
        main([
            *command[1:-1], *create_sweep_command_args(given)["args"], "--num_folds=2",
            "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false", "--data.batch_size=300",
        ])  # fmt: skip
        assert variables() == before
    runs = read_runs(tmp_path)
    assert len({run["id"] for run in runs}) == len(runs) == 6
    assert {run["project"] for run in runs} == {"digits"}
    summaries = {run["id"]: run for run in runs if run["job_type"] == "summary"}
    parts = [run for run in runs if run["job_type"] == "fold"]
    assert summaries.keys() == trials.keys()
    for run_id, lr in trials.items():
        run = summaries[run_id]
        assert run["sweep"] == "sweep5"
        assert run["config"]["model"]["lr"] == run["config"]["model.lr"] == lr
        assert 0 < run["summary"][sweep["metric"]["name"]] < 1
    assert sorted(run["config"]["lr"] for run in parts) == sorted(2 * [*trials.values()])
    assert not any(run["sweep"] or "model.lr" in run["config"] for run in parts)


def test_a_function_that_has_begun_the_run_of_its_agent(tmp_path, monkeypatch):
    as_agent(monkeypatch, tmp_path, "trial7", {"lr": 0.03})
    mine = wandb.init(dir=tmp_path / "mine")
    assert mine.id == "trial7"
    result = cross_validate(
        lambda: MLPClassifier(4, 3, hidden=[4], lr=mine.config.lr), TabularDataModule("iris"),
        num_folds=2, logger="wandb", run_dir=tmp_path / "run", trainer=TRAINER, **QUIET,
    )  # fmt: skip
    mine.log({"afterwards": 7.0})  # it is not finished
    mine.finish()
    (read,) = read_runs(tmp_path / "mine")
    assert read["summary"]["val/loss/mean"] == pytest.approx(result.mean("val/loss"))
    assert read["config"]["model"]["lr"] == 0.03
    parts = read_runs(tmp_path / "run")
    assert [run["job_type"] for run in parts] == ["fold", "fold"]
    assert len({run["id"] for run in parts} | {"trial7"}) == 3


def test_variables_of_wandb_are_respected(tmp_path, monkeypatch):
    given = {
        "WANDB_PROJECT": "theirs", "WANDB_ENTITY": "team", "WANDB_RUN_GROUP": "together",
        "WANDB_DIR": str(tmp_path / "elsewhere"),
    }  # fmt: skip
    (tmp_path / "elsewhere").mkdir()
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    before = variables()
    folds(tmp_path / "run")
    assert variables() == before
    assert not list((tmp_path / "run").rglob("*.wandb"))
    runs = read_runs(tmp_path / "elsewhere")
    assert len(runs) == 3
    for run in runs:
        assert (run["project"], run["entity"], run["group"]) == ("theirs", "team", "together")


def test_variables_that_are_set_after_a_first_run(tmp_path, monkeypatch):
    """As in a notebook: wandb itself reads its environment once."""
    folds(tmp_path / "a")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_RUN_ID", "mine1")
    folds(tmp_path / "b")
    assert {run["project"] for run in read_runs(tmp_path / "a")} == {"dlblocks"}
    runs = read_runs(tmp_path / "b")
    assert {run["project"] for run in runs} == {"theirs"}
    assert [run["id"] for run in runs if run["job_type"] == "summary"] == ["mine1"]
    assert len({run["id"] for run in runs}) == 3
