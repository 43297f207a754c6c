"""Which samples validate in which fold, and of what data: ``folds.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from dlblocks.data import SplitDataModule
from dlblocks.errors import other_lightning
from dlblocks.files import is_rank_zero, whole_file


def new_datamodule(
    given: SplitDataModule | Callable[[], SplitDataModule], seed: int
) -> SplitDataModule:
    """Returns the datamodule that was given, or a new one of the function that was given.

    Raises:
        TypeError: It is none that can be set to folds.
    """
    # Somebody else's data may be drawn or split by the global seed: then the same in every fold.
    pl.seed_everything(seed, workers=True, verbose=False)
    datamodule: Any = given
    if callable(given) and not isinstance(given, pl.LightningDataModule):
        datamodule = given()
    if not isinstance(datamodule, SplitDataModule):
        raise TypeError(
            f"datamodule must be a dlblocks DataModule or a function that returns one, got "
            f"{type(datamodule).__name__}; ArrayDataModule makes one of your arrays, "
            f"FoldedDataModule of your LightningDataModule or Dataset.{other_lightning(datamodule)}"
        )
    if is_rank_zero():
        datamodule.prepare_data()
    return datamodule


def plan_splits(
    data: SplitDataModule, num_folds: int | None, repeats: int, *, selection_fraction: float = 0.0
) -> dict[str, Any]:
    """All splits of a cross-validation, as `describe_splits` says them.

    Args:
        data: The data.
        num_folds: Number of folds, or None for what the data say.
        repeats: Number of repeats.
        selection_fraction: Share of each training part that selects the epoch.

    Raises:
        ValueError: `num_folds` is not what the data say, or repeats would all be the same.
    """
    if repeats > 1 and data.split != "kfold":
        raise ValueError(
            f"repeats={repeats}, but split={data.split!r} makes the same folds every time; use "
            "repeats=1, or split='kfold'."
        )
    num_folds = data.count_folds(num_folds)
    if selection_fraction:
        data = data.with_selection(selection_fraction)
    return describe_splits(data, num_folds, repeats)


def check_same(data: SplitDataModule, splits: Mapping[str, Any], number: int) -> None:
    """Raises a `ValueError` unless fit `number` has the same samples and split in `data`."""
    written = splits["folds"][number]
    rows = data.splits(splits["num_folds"], repeat=written["repeat"])[written["fold"]]
    found = data.fingerprint(), rows["val"].tolist(), rows["test"].tolist()
    if found != (splits["fingerprint"], written["val"], splits["test"]):
        raise ValueError(
            f"the datamodule made for fit {number} has other data or splits them in another way "
            "than the first; the function that makes it must return the same every time."
        )


def describe_splits(datamodule: SplitDataModule, num_folds: int, repeats: int) -> dict[str, Any]:
    """What ``folds.json`` holds: all splits of a cross-validation, as plain values.

    Args:
        datamodule: The data, not necessarily set to a fold.
        num_folds: Number of folds.
        repeats: Number of repeats.

    Returns:
        ``split``, ``num_folds``, ``repeats``, ``split_seed``; ``num_samples`` of the data and
        ``num_test`` of those held out; ``fingerprint``; ``folds``, one a fit: ``repeat``, ``fold``,
        ``num_train``, ``num_val`` and the validation rows, ``val``, after `with_selection` also
        ``selection``, the rows that select the epoch; and ``test``, the rows held out. All other
        rows train, but under ``"time_series"`` those before `val` alone.
    """
    found = [
        (repeat, fold, rows)
        for repeat in range(repeats)
        for fold, rows in enumerate(datamodule.splits(num_folds, repeat=repeat))
    ]
    test = found[0][2]["test"]
    return {
        "split": datamodule.split,
        "num_folds": num_folds,
        "repeats": repeats,
        "split_seed": datamodule.split_seed,
        "num_samples": datamodule.columns.num_samples,
        "num_test": len(test),
        "fingerprint": datamodule.fingerprint(),
        "folds": [
            {
                "repeat": repeat,
                "fold": fold,
                "num_train": len(rows["train"]),
                "num_val": len(rows["val"]),
                "val": rows["val"].tolist(),
                **({"selection": rows["selection"].tolist()} if "selection" in rows else {}),
            }
            for repeat, fold, rows in found
        ],
        "test": test.tolist(),
    }


def write_splits(path: Path, description: dict[str, Any]) -> None:
    """Writes ``folds.json``, whole or not at all, with one line a fold."""
    lines = []
    for key, value in description.items():
        text = json.dumps(value)
        if key == "folds":
            text = "[\n    " + ",\n    ".join(json.dumps(fold) for fold in value) + "\n  ]"
        lines.append(f'  "{key}": {text}')
    with whole_file(path) as part:
        part.write_text("{\n" + ",\n".join(lines) + "\n}\n")
