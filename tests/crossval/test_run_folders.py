"""Which folder a call works in, and what it says of a run that is there already."""

import os
import re
import time
from pathlib import Path

import forked
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from same_runs import assert_same

from dlblocks._files import OtherRunError
from dlblocks.cli import main
from dlblocks.crossval import cross_validate, nested_cross_validate
from dlblocks.data import ArrayDataModule, TabularDataModule
from dlblocks.ensembles import Bagging, DeepEnsemble, GradientBoosting
from dlblocks.models import MLPClassifier, MLPRegressor
from dlblocks.runs import fit_and_test
from dlblocks.runs import folder as files
from dlblocks.runs._other_run import replace_untrained
from dlblocks.runs.folder import locked
from dlblocks.tracking import versions

CPU = {"max_epochs": 1, "accelerator": "cpu"}
QUIET = {"progress_bar": False, "figures": False}
WHEN = r"\d{4}-\d\d-\d\d \d\d:\d\d"


class Fails(Callback):
    """Kills the fit with this number, from 0, while `on`."""

    on = True
    fits = 0

    def on_train_start(self, trainer, pl_module):
        Fails.fits += 1
        if Fails.on and Fails.fits > 1:
            raise RuntimeError("killed")


@pytest.fixture(autouse=True)
def _fresh():
    Fails.on, Fails.fits = True, 0


def model(lr=0.01):
    return MLPClassifier(4, 3, hidden=[4], lr=lr)


def folds(run_dir=None, lr=0.01, callback=Fails, **arguments):
    return cross_validate(
        lambda: model(lr), TabularDataModule("iris"), num_folds=3, trainer=CPU, run_dir=run_dir,
        make_callbacks=lambda: [callback()], **{**QUIET, **arguments},
    )  # fmt: skip


def nested(run_dir=None):
    return nested_cross_validate(
        model, TabularDataModule("iris"), {"lr": [0.01]}, num_folds=2, inner_folds=2, trainer=CPU,
        run_dir=run_dir, **QUIET,
    )  # fmt: skip


def ensemble(kind=Bagging, run_dir=None):
    return kind(
        model, TabularDataModule("iris"), num_members=2, trainer=CPU, run_dir=run_dir, **QUIET
    ).fit()


def boosted(run_dir=None):
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    return GradientBoosting(
        lambda: MLPRegressor(2, 1, hidden=[4]), ArrayDataModule(x, x[:, :1]), num_stages=2,
        trainer=CPU, run_dir=run_dir, progress_bar=False,
    ).fit()  # fmt: skip


def interrupted(**arguments):
    with pytest.raises(RuntimeError, match="killed"):
        folds(**arguments)
    Fails.on = False


def test_calls_without_a_folder_number_theirs(capfd):
    Fails.on = False
    assert [folds().run_dir.name for _ in range(3)] == [
        "cross-validation", "cross-validation-2", "cross-validation-3"
    ]  # fmt: skip
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (nested, "nested-cross-validation"),
        (ensemble, "bagging"),
        (lambda: ensemble(DeepEnsemble), "deep-ensemble"),
        (boosted, "boosting"),
        (
            lambda: fit_and_test(
                model(), TabularDataModule("iris", test_fraction=0.2), trainer=CPU,
                progress_bar=False,
            ),
            "fit",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_so_do_the_others(call, name, capfd):
    call()
    call()
    assert sorted(path.name for path in Path("runs").iterdir()) == [name, f"{name}-2"]
    assert all((path / "summary.json").is_file() for path in Path("runs").iterdir())
    assert capfd.readouterr().err == ""


def test_an_ensemble_that_is_fitted_again_is_loaded():
    bagging = Bagging(model, TabularDataModule("iris"), num_members=2, trainer=CPU, **QUIET)
    assert bagging.fit().run_dir == bagging.fit().run_dir == Path("runs/bagging")


def test_an_unfinished_run_is_resumed_if_it_is_the_same(capfd):
    interrupted()
    other = folds(lr=0.5)  # of another configuration
    assert other.run_dir.name == "cross-validation-2"
    assert capfd.readouterr().err == ""
    Fails.fits = 0
    same = folds()
    assert same.run_dir.name == "cross-validation"
    assert Fails.fits == 2
    said = capfd.readouterr().err
    assert re.fullmatch(
        rf"runs/cross-validation: resuming a run of {WHEN}, 1 of 3 folds done\.\n", said
    )
    assert folds(resume=False).run_dir.name == "cross-validation-3"


def test_an_unfinished_run_in_use_is_left_alone():
    interrupted()
    process = forked.start(_hold)
    try:
        wait_for(Path("held"))
        assert folds().run_dir.name == "cross-validation-2"
    finally:
        process.kill()
        process.join()
    assert folds().run_dir.name == "cross-validation"


def wait_for(path):
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.02)


def _hold():
    with locked(Path("runs/cross-validation")):
        Path("held").touch()
        time.sleep(60)


@pytest.mark.parametrize("call", [folds, nested, ensemble, boosted])
def test_a_finished_run_that_is_loaded_is_reported(call, capfd):
    Fails.on = False
    call(run_dir="mine")
    os.utime("mine/summary.json", (0, 1_700_000_000))
    assert capfd.readouterr().err == ""
    call(run_dir="mine")
    said = capfd.readouterr().err
    assert re.fullmatch(
        rf"mine: finished {WHEN}, loaded; pass another run_dir for a new run\.\n", said
    )
    assert "2023-11-1" in said


def test_the_command_line_passes_over_another_configuration(capfd, monkeypatch):
    monkeypatch.setattr("dlblocks.crossval._outcome.save_figures", lambda *args: None)
    command = [
        "cross-validate", "--model=MLPClassifier", "--model.in_features=4",
        "--model.num_classes=3", "--data=TabularDataModule", "--data.data=iris",
        "--num_folds=2", "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    for lr in (0.1, 0.2):
        main([*command, f"--model.lr={lr}"])
        Path("runs/MLPClassifier-cross-validate/summary.json").unlink(missing_ok=True)
    assert "Everything is in runs/MLPClassifier-cross-validate-2." in capfd.readouterr().out
    main([*command, "--model.lr=0.1"])
    said = capfd.readouterr()
    assert "2 of 2 folds done" in said.err
    assert "Everything is in runs/MLPClassifier-cross-validate." in said.out


def test_other_ranks_take_the_folders_of_rank_0_in_their_order(monkeypatch):
    """Lightning starts them in the second call; they run the script from its beginning."""
    monkeypatch.setattr(files, "_chosen", [])
    assert [files.next_run_dir("runs/a"), files.next_run_dir("runs/b")] == [
        Path("runs/a"), Path("runs/b")
    ]  # fmt: skip
    monkeypatch.setattr(files, "_chosen", [])
    monkeypatch.setattr(files, "is_rank_zero", lambda: False)
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/plan.json").touch()
    assert [files.next_run_dir("runs/a"), files.next_run_dir("runs/b")] == [
        Path("runs/a"), Path("runs/b")
    ]  # fmt: skip


# Another run that has not trained yet


def mistyped(**arguments):
    with pytest.raises(ValueError, match="monitor='val/los' was not logged"):
        folds("mine", callback=Callback, monitor="val/los", mode="min", **arguments)
    assert Path("mine/fold-0/checkpoints/last.ckpt").is_file()  # of before the first step


def test_a_run_that_has_not_trained_is_replaced(capfd):
    mistyped(lr=0.5, seed=3)
    capfd.readouterr()
    result = folds("mine", callback=Callback)
    said = capfd.readouterr().err
    assert said.startswith("mine: replaced another run, which had not trained yet: ")
    assert said.count("\n") == 1
    assert "monitor was 'val/los' and is 'val/loss'" in said
    fresh = folds("fresh", callback=Callback)
    # Not from the other run's optimizer with its lr.
    assert result.values("val/loss") == fresh.values("val/loss")
    assert_same(Path("mine"), Path("fresh"))
    with pytest.raises(FileExistsError, match="holds a run of another kind"):
        folds("mine", callback=Callback, lr=0.5)


@pytest.mark.parametrize("call", [nested, ensemble, boosted])
def test_so_it_is_by_other_kinds_of_run(call):
    mistyped()
    call(run_dir="mine")
    assert Path("mine/folds.json").exists() == (call is nested)
    assert call(run_dir="mine")  # which loads it


def trained(path=Path("mine/fold-0/checkpoints/last.ckpt")):
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "global_step": 1}, path)


@pytest.mark.parametrize(
    "change",
    [
        trained,
        lambda: Path("mine/fold-0/checkpoints/last.ckpt").write_text("damaged"),
        lambda: Path("mine/fold-1").mkdir() or Path("mine/fold-1/fold.json").write_text("{}"),
        lambda: Path("mine/together.ckpt").touch(),
        lambda: Path("mine/thesis.txt").touch(),
        lambda: Path("mine/metrics.csv").symlink_to("fold-0/metrics.csv"),
        lambda: os.environ.update(WORLD_SIZE="2"),
    ],
    ids=["trained", "damaged", "fold", "together", "theirs", "link", "processes"],
)
def test_a_folder_that_holds_more_stays_as_it_is(change, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    mistyped()
    change()
    before = {path: path.lstat().st_mtime_ns for path in Path("mine").rglob("*")}
    with pytest.raises(OtherRunError, match="holds a run of another kind"):
        replace_untrained(Path("mine"), versions(), "monitor differs")
    assert {path: path.lstat().st_mtime_ns for path in Path("mine").rglob("*")} == before
