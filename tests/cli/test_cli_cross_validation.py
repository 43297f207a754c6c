"""`dlblocks cross-validate` and `nested-cross-validate`: what they leave, and that it repeats."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from dlblocks.cli import main
from dlblocks.crossval import NestedResult, load_result, nested_cross_validate
from dlblocks.data import TabularDataModule
from dlblocks.models import MLPClassifier, load

MODEL = ["--model=MLPClassifier", "--model.hidden=[8]", "--data=TabularDataModule",
         "--data.data=iris"]  # fmt: skip
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
         "--trainer.max_epochs=1"]  # fmt: skip
FLAGS = [*MODEL, *QUIET, "--num_folds=2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "iris"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        main(["cross-validate", *FLAGS, "--refit", f"--run_dir={run}"])
    for part in ("mean ± std", f"{run}/refit/model.ckpt", f"Everything is in {run}"):
        assert part in said.getvalue()
    return run


@pytest.fixture
def run(finished):
    return Path(shutil.copytree(finished, "mine/iris"))


def scores(run):
    return load_result(run).values("val/loss")


def test_the_run_folder_has_configuration_report_and_a_model_of_all_data(finished):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["model"]["init_args"]["hidden"] == [8]
    assert config["model"]["init_args"]["in_features"] == 4  # filled in from the data
    assert (config["num_folds"], config["refit"], config["run_dir"]) == (2, True, None)
    assert "Cross-validation: iris" in (finished / "report.html").read_text()
    assert load(finished / "refit" / "model.ckpt").hparams.hidden == [8]


def test_each_fold_has_its_own_data_and_model(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["num_folds"] == 2
    assert summary["config"]["model"]["hidden"] == [8]
    assert summary["config"]["trainer"]["max_epochs"] == 1
    assert len(set(summary["metrics"]["val/loss"]["folds"])) == 2
    paths = [finished / f"fold-{k}" / "checkpoints" / "best.ckpt" for k in (0, 1)]
    first, second = map(load, paths)
    assert first.hparams == second.hparams
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


def test_the_configuration_repeats_the_run_in_a_new_folder(run):
    before = (run / "folds.csv").read_bytes()
    main(["cross-validate", f"--config={run / 'config.yaml'}", "--refit=false"])
    again = run.with_name("iris-2")
    assert scores(again) == scores(run)
    assert not (again / "refit").exists()
    assert (run / "folds.csv").read_bytes() == before


def test_the_configuration_resumes_an_unfinished_run(run, capsys):
    first = (run / "fold-0" / "fold.json").read_bytes()
    whole = scores(run)
    for name in ("summary.json", "fold-1/fold.json"):
        (run / name).unlink()
    main(["cross-validate", f"--config={run / 'config.yaml'}", "--refit=false"])
    assert not run.with_name("iris-2").exists()
    assert scores(run) == whole
    assert (run / "fold-0" / "fold.json").read_bytes() == first


def test_the_configuration_is_there_before_the_first_fit():
    Path("stopper.py").write_text(
        "from lightning.pytorch.callbacks import Callback\n"
        "class Stopper(Callback):\n"
        "    def on_train_start(self, trainer, pl_module):\n"
        "        raise RuntimeError('stopped')\n"
    )
    with pytest.raises(RuntimeError, match="stopped"):
        main(["cross-validate", *FLAGS, "--trainer.callbacks+=stopper.Stopper", "--run_dir=a"])
    assert {"config.yaml", "plan.json"} <= {path.name for path in Path("a").iterdir()}
    assert not Path("a/summary.json").exists()


def test_a_configuration_of_mine_is_not_written_over(capsys):
    Path("a").mkdir()
    Path("a/config.yaml").write_text("mine")
    with pytest.raises(SystemExit):
        main(["cross-validate", *FLAGS, "--run_dir=a"])
    assert "already holds a run" in capsys.readouterr().err
    assert Path("a/config.yaml").read_text() == "mine"


def test_nested_as_python_does_it():
    main([
        "nested-cross-validate", *FLAGS, "--inner_folds=2", "--grid={lr: [1e-5, 1e-1]}",
        "--run_dir=cli", "--refit", "--engine=vectorized",
    ])  # fmt: skip
    result = load_result("cli")
    python = nested_cross_validate(
        lambda lr: MLPClassifier(4, 3, hidden=[8], lr=lr), TabularDataModule("iris"),
        {"lr": [1e-5, 1e-1]}, num_folds=2, inner_folds=2, progress_bar=False, figures=False,
        engine="vectorized", trainer={"max_epochs": 1, "accelerator": "cpu"}, run_dir="python",
    )  # fmt: skip
    assert isinstance(result, NestedResult)
    assert [row["hyperparameters"] for row in result.choices] == [{"lr": 0.1}] * 2
    assert result.values("val/loss") == python.values("val/loss")
    assert [row["mean"] for row in result.search] == [row["mean"] for row in python.search]
    assert "Search" in Path("cli/report.html").read_text()
    assert [str(path) for path in Path("cli").rglob("config.yaml")] == ["cli/config.yaml"]
    (path,) = Path("cli/refit").glob("*/refit/model.ckpt")
    assert load(path).hparams.lr == 0.1
    assert json.loads(Path("cli/refit/search.json").read_text())[1]["chosen"]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ([], "nested-cross-validate needs a grid; give --grid='{lr: [0.01, 0.1]}'"),
        (["--grid={lrr: [0.1]}"], "'lrr' is not known; did you mean 'lr'?"),
        (["--grid={lr: [0.1, fast]}"], "model.lr: expected float, got 'fast'."),
        (["--grid={lr: 0.1}"], "grid: expected list, got '0.1'."),
        (["--grid={lr: [0.1, 0.1]}"], "grid has lr=0.1 twice"),
    ],
)
def test_wrong_grids_are_one_line(grid, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["nested-cross-validate", *FLAGS, *grid])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not Path("runs").exists()
