"""Test a model of a cross-validation once."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from dlblocks._files import read_json, write_json
from dlblocks._quiet import isolated
from dlblocks.crossval._report import TESTED
from dlblocks.crossval._splits import FOLDS
from dlblocks.data import DataModule, SplitDataModule
from dlblocks.runs._trainer import check_trainer_arguments, quiet_trainer
from dlblocks.runs.intervals import HeldOutScores, count_tested, predict_test


def score_once(
    run_dir: Path,
    model: pl.LightningModule,
    datamodule: SplitDataModule,
    *,
    trainer: Mapping[str, Any] | None,
    allow_shared: bool,
    task: str | None,
) -> HeldOutScores:
    """Compute metrics of the test set, once.

    See `CrossValidationResult.test`.
    """
    path = run_dir / TESTED
    if path.is_file():
        raise FileExistsError(
            f"{path} says that the test set was looked at already: "
            f"{json.loads(path.read_text())['metrics']}. Choosing a model by a second look would "
            "make its score too good; delete the file if that is not why."
        )
    arguments = check_trainer_arguments(trainer)
    with isolated():
        tester = quiet_trainer(run_dir, arguments)
        data = datamodule.without_validation()  # all folds have the same test set
        check_data_of(run_dir, data)
        data.trainer = tester  # as Lightning does; their loaders may ask it
        shared = data.shared_with_test()
        note = _note_on_shared(data, shared, allow_shared)
        logged = tester.test(model, datamodule=data, verbose=False)
        # One dictionary a loader; Lightning tells their names apart.
        metrics = {name: float(value) for loader in logged for name, value in loader.items()}
        if not metrics:
            raise ValueError(
                f"nothing was logged in the test of {type(model).__name__}; log metrics in its "
                "test_step, and leave out limit_test_batches=0."
            )
        written: dict[str, Any] = {
            "metrics": metrics,
            "model": type(model).__name__,
            "shared_with_training": shared,
            **({"notes": [note]} if note else {}),
        }
        if tester.is_global_zero:
            write_json(path, written)  # before what may fail: the test set was looked at
        scores = HeldOutScores(
            metrics,
            *predict_test(tester, model, data, len(logged)),
            num_samples=count_tested(data, tester, len(logged)),
            notes=[note] if note else [],
            task=task,
        )
    if tester.is_global_zero:
        intervals = {name: list(scores.interval(name)) for name in scores}
        write_json(path, {**written, "intervals": intervals})
        if note:
            print(note, file=sys.stderr, flush=True)
    return scores


def check_data_of(run_dir: Path, data: SplitDataModule) -> None:
    """Raise a `ValueError` for data or a test set of another run.

    A new datamodule may split in another way. Then the run has trained on some of its test samples.
    """
    path = run_dir / FOLDS
    if not path.is_file():
        return
    splits = read_json(path, "choose another run_dir: nothing says what its folds are")
    same = data.fingerprint() == splits["fingerprint"]
    if not same or data.splits(splits["num_folds"])[0]["test"].tolist() != splits["test"]:
        raise ValueError(
            f"the datamodule has other samples, or holds out others, than the run in "
            f"'{run_dir}', which may have trained on some of them; give the datamodule of "
            "that run, with splits drawn by a seeded generator. Other data are tested by "
            "Trainer.test(model, datamodule=…)."
        )


def _note_on_shared(data: SplitDataModule, shared: int | None, allow: bool) -> str | None:
    """Describe test samples that are in the development set, or refuse them."""
    if shared == 0:
        return None
    if shared is None:
        return (
            "Whether test samples are in the development set is not known: the data sets hold no "
            "arrays to compare, and their samples are too many or differ every time they are "
            "loaded."
        )
    note = f"{shared} of {data.count_test()} test samples are in the development set, too"
    if isinstance(data, DataModule):
        return f"{note}: exact copies in the official test set."
    if allow:
        return f"{note}, which allow_shared=True allows."
    raise ValueError(
        f"{note}: the score would be too good. Does setup('test') draw the split anew? Draw it in "
        "__init__, or by random_split(…, generator=torch.Generator().manual_seed(0)). If the data "
        "really hold duplicates, set allow_shared=True."
    )
