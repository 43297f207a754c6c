"""Two real processes, started as a user would start them: by torchrun, or by the command line."""

import csv
import json
import runpy
import sys
from pathlib import Path

import forked
import lightning.pytorch as pl
import numpy as np
import pytest

from dlblocks.callbacks import MixUp
from dlblocks.cli import main
from dlblocks.crossval import cross_validate
from dlblocks.data import DigitsDataModule
from dlblocks.models import MLPClassifier
from dlblocks.runs.folder import next_run_dir

ROOT = str(Path(__file__).parents[1])
# 447 = 3 · 149 digits: each fold trains on 298 samples and validates 149, of which two ranks get
# 75 and 74. Batches of 32 in one process are the same samples as 16 on each of two, whose
# gradients DDP averages: training is the same but for rounding.
DATA = """
from sklearn.datasets import load_digits
from dlblocks.data import ArrayDataModule


class Digits447(ArrayDataModule):
    def __init__(self, batch_size: int = 32, num_folds: int | None = None, fold: int = 0):
        images, targets = load_digits(return_X_y=True)
        super().__init__(
            images[:447], targets[:447], batch_size=batch_size, stratify=False,
            num_folds=num_folds, fold=fold,
        )
"""


class Draws(MixUp):
    def transform_entries(self, inputs, targets, generator):
        with open(f"draws-{self.rank}.txt", "a") as file:
            file.write(f"{generator.initial_seed()}\n")
        return super().transform_entries(inputs, targets, generator)

    def on_train_start(self, trainer, module):
        self.rank = trainer.global_rank
        super().on_train_start(trainer, module)


def folds(name, batch_size, **trainer):
    from data447 import Digits447

    cross_validate(
        lambda: MLPClassifier(64, 10, hidden=[16], lr=0.01), Digits447(batch_size), num_folds=3,
        trainer={"max_epochs": 3, "accelerator": "cpu", **trainer}, progress_bar=False,
        run_dir=name, figures=False,
        selection_fraction=0.155,  # leaves 252 of 298 samples, an even number, to train on
    )  # fmt: skip


def measure(devices):
    sys.path.insert(0, ".")
    pl.seed_everything(0, workers=True)
    # Learning rate 0: what is measured is the same model, whoever measures.
    model = MLPClassifier(64, 10, hidden=[16], optimizer="sgd", lr=0.0)
    # 1,438 samples of development in batches of 33: ranks get unequal numbers of validation ones.
    data = DigitsDataModule(batch_size=33, val_fraction=0.15)
    settings = {"accelerator": "cpu", "devices": devices}
    if devices > 1:
        settings["strategy"] = "ddp"
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[Draws(0.5)] if devices > 1 else [], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        **settings,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    (validated,) = trainer.validate(model, datamodule=data, verbose=False)
    (tested,) = trainer.test(model, datamodule=data, verbose=False)
    result = cross_validate(
        lambda: MLPClassifier(64, 10, hidden=[16], lr=0.01), DigitsDataModule(batch_size=33),
        num_folds=2, trainer={"max_epochs": 2, **settings}, progress_bar=False,
        run_dir=f"cv-{devices}",
    )  # fmt: skip
    if devices == 1:
        folds("one", 32)
        folds("bf16-mixed", 32, precision="bf16-mixed")
        folds("bf16-true", 32, precision="bf16-true")
    else:
        folds("ddp", 16, strategy="ddp", devices=2)
    if trainer.is_global_zero:
        assert len(result.oof) == 1438
        Path(f"metrics-{devices}.json").write_text(json.dumps({**validated, **tested}))


COMMAND = [
    "cross-validate", "--model=dlblocks.models.MLPClassifier", "--model.in_features=64",
    "--model.num_classes=10", "--selection_fraction=0.155",
    "--model.hidden=[16]", "--model.lr=0.01", "--data=data447.Digits447", "--num_folds=3",
    "--trainer.max_epochs=3", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
]  # fmt: skip
DDP = ["--data.batch_size=16", "--trainer.strategy=ddp", "--trainer.devices=2"]


def command_line(*flags):
    """As ``python -m dlblocks``; Lightning starts the other process by this command again."""
    sys.argv = ["dlblocks", *flags]
    sys.path.insert(0, ".")
    runpy.run_module("dlblocks", run_name="__main__", alter_sys=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    (folder / "data447.py").write_text(DATA)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        forked.run(measure, 1)
        forked.torchrun(measure, 2)
    return folder


@pytest.mark.slow
def test_metrics_of_two_processes_are_those_of_one(runs):
    one, two = (json.loads((runs / f"metrics-{n}.json").read_text()) for n in (1, 2))
    assert one.keys() == two.keys()
    assert {"val/loss", "val/accuracy", "val/f1", "test/calibration_error"} <= one.keys()
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=1e-5), name


@pytest.mark.slow
def test_cross_validation_predicts_each_sample_once(runs):
    with np.load(runs / "cv-1" / "oof.npz") as one, np.load(runs / "cv-2" / "oof.npz") as two:
        for name in ("index", "target", "fold"):
            np.testing.assert_array_equal(one[name], two[name])
        assert len(np.unique(two["index"])) == len(two["index"]) == 1438
    summary = json.loads((runs / "cv-2" / "summary.json").read_text())
    accuracy = summary["metrics"]["val/accuracy"]
    with np.load(runs / "cv-2" / "oof.npz") as two:
        right = two["prediction"].argmax(1) == two["target"]
        for fold, expected in enumerate(accuracy["folds"]):
            assert right[two["fold"] == fold].mean() == pytest.approx(expected, abs=1e-6)
    assert (runs / "cv-2" / "figures" / "confusion_matrix.png").is_file()


@pytest.mark.slow
def test_ranks_draw_differently(runs):
    draws = [(runs / f"draws-{rank}.txt").read_text().split() for rank in (0, 1)]
    assert len(draws[0]) == len(draws[1]) > 10
    assert not set(draws[0]) & set(draws[1])


def rows(run_dir):
    """Per fold: epochs, best epoch and the metrics."""
    with (run_dir / "folds.csv").open(newline="") as file:
        found = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    left_out = ("seconds", "checkpoint")
    return [{k: float(v) for k, v in row.items() if k not in left_out} for row in found]


def check_same_folds(one, two):
    assert len(rows(one)) == len(rows(two)) == 3
    for mine, theirs in zip(rows(one), rows(two), strict=True):
        assert {"val/loss", "val/accuracy", "val/f1", "val/calibration_error"} <= mine.keys()
        assert mine == pytest.approx(theirs, rel=1e-5)
    with np.load(one / "oof.npz") as mine, np.load(two / "oof.npz") as theirs:
        for name in ("index", "target", "fold", "repeat"):
            np.testing.assert_array_equal(mine[name], theirs[name])
        np.testing.assert_array_equal(theirs["index"], np.arange(447))
        np.testing.assert_allclose(mine["prediction"], theirs["prediction"], atol=1e-5)


@pytest.mark.slow
def test_folds_of_two_processes_are_those_of_one(runs):
    check_same_folds(runs / "one", runs / "ddp")
    with np.load(runs / "one" / "oof.npz") as one:  # that had learnt something
        assert (one["prediction"].argmax(1) == one["target"]).mean() > 0.7


@pytest.mark.slow
def test_folds_of_two_processes_from_the_command_line(runs, monkeypatch):
    """Each process parses the command; without --run_dir rank 0 chooses, and tells the other."""
    monkeypatch.chdir(runs)
    forked.run(command_line, *COMMAND, *DDP, environments=[{"PYTHONPATH": ROOT}])
    (run_dir,) = (runs / "runs").iterdir()
    check_same_folds(runs / "one", run_dir)
    assert (runs / "said-0.txt").read_text().count("Everything is in") == 1


@pytest.mark.parametrize(
    ("launcher", "variables"),
    [
        ("torchrun", {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}),
        ("srun", {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train"}),
    ],
)
def test_a_launcher_s_processes_must_be_told_the_run_folder(monkeypatch, launcher, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{launcher} has started 2 processes.*give run_dir"):
        next_run_dir("runs/a")
    for name in variables:
        monkeypatch.setenv(name, "1")
    assert next_run_dir("runs/a") == Path("runs/a")


@pytest.mark.slow
def test_bf16(runs, monkeypatch):
    monkeypatch.syspath_prepend(runs)
    main([*COMMAND, "--trainer.precision=bf16-mixed", f"--run_dir={runs / 'bf16-cli'}"])
    with np.load(runs / "one" / "oof.npz") as arrays:
        whole = arrays["prediction"]
    for name in ("bf16-mixed", "bf16-true", "bf16-cli"):
        with np.load(runs / name / "oof.npz") as arrays:
            found = arrays["prediction"]
            assert found.dtype == np.float32
            np.testing.assert_array_equal(arrays["index"], np.arange(447))
        # bfloat16 has 8 bits of precision; 30 steps of Adam add up what it rounds.
        assert 0 < np.abs(found - whole).mean() < 0.02
        for row, expected in zip(rows(runs / name), rows(runs / "one"), strict=True):
            assert all(np.isfinite(value) for value in row.values())
            assert row["val/loss"] == pytest.approx(expected["val/loss"], rel=0.1)
    with np.load(runs / "bf16-mixed" / "oof.npz") as a, np.load(runs / "bf16-cli" / "oof.npz") as b:
        np.testing.assert_array_equal(a["prediction"], b["prediction"])
