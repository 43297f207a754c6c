"""Plan the splits of a cross-validation: ``plan.json`` and ``folds.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from dlblocks._errors import other_lightning
from dlblocks._files import (
    LOCK,
    PLAN,
    atomic_write,
    check_new_run_dir,
    is_part,
    is_rank_zero,
    read_json,
    remove_parts,
)
from dlblocks.data import SplitDataModule
from dlblocks.models._predict import NoPredictions
from dlblocks.runs._plan import check_same_run, described, differences, new_run, run_id_of
from dlblocks.runs._plan import describe as describe_arguments

FOLDS = "folds.json"


def describe(*args: Any, **settings: Any) -> dict[str, Any]:
    """Describe a run as `dlblocks.runs._plan.describe` does, without what differs between folds."""
    found = describe_arguments(*args, **settings)
    for key in ("fold", "num_folds"):
        found["data"].pop(key, None)
    return found


def begin(run_dir: Path, config: Mapping[str, Any], splits: dict[str, Any], *, resume: bool) -> str:
    """Writes the plan into a new run folder, or finds that of the folder the same.

    Returns:
        An id for this run and all that go on with it.

    Raises:
        FileExistsError: The folder holds something else, or another configuration or other data,
            whose differences are listed; or `resume` is off.
        ValueError: A file of the folder is damaged.
    """
    if not (resume and (run_dir / PLAN).is_file()):
        if not _broken_off(run_dir):
            check_new_run_dir(run_dir)
        remove_parts(run_dir)
        write_splits(run_dir / FOLDS, splits)
        return new_run(run_dir, config)
    old = read_json(
        run_dir / FOLDS,
        "choose another run_dir, or delete this one: nothing says what its folds are",
    )
    other = [f"data or splits: {text}" for text in differences(old, described(splits))]
    check_same_run(run_dir, config, other)
    remove_parts(run_dir)
    return run_id_of(run_dir)


def _broken_off(run_dir: Path) -> bool:
    """Whether the folder holds no more than what a kill right here leaves."""
    names = [path.name for path in run_dir.iterdir()] if run_dir.is_dir() else []
    return all(name in (FOLDS, LOCK) or is_part(name) for name in names)


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
    repeats = data.count_repeats(repeats)
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
        rows train, but under ``"time_series"`` those before `val` alone, and of a splitter object
        those that it says.
    """
    found = [
        (repeat, fold, rows)
        for repeat in range(repeats)
        for fold, rows in enumerate(datamodule.splits(num_folds, repeat=repeat))
    ]
    test = found[0][2]["test"]
    return {
        "split": datamodule.split_name,
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
    with atomic_write(path) as part:
        part.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def duplicates_note(count: int | None, splits: Mapping[str, Any]) -> list[str]:
    """Say how many validation samples have a copy in training.

    Args:
        count: As `SplitDataModule.count_duplicates` finds it.
        splits: As `dlblocks.crossval._fold.describe_splits` makes them.
    """
    if not count:
        return []
    total = sum(fold["num_val"] for fold in splits["folds"] if fold["repeat"] == 0)
    return [
        f"{count} of {total} validation samples have an exact copy in the training part of their "
        'fold; keep copies together by groups="duplicates".'
    ]


def selection_note(splits: Mapping[str, Any], fraction: float) -> list[str]:
    """Say where whole groups make the selection part much larger or smaller than asked for.

    Args:
        splits: As `dlblocks.crossval._fold.describe_splits` makes them.
        fraction: The share that was asked for.
    """
    if not fraction:
        return []
    shares = [
        len(fold["selection"]) / (len(fold["selection"]) + fold["num_train"])
        for fold in splits["folds"]
    ]
    if all(fraction / 2 <= share <= 1.5 * fraction for share in shares):
        return []
    low, high = min(shares), max(shares)
    return [
        f"the selection part holds {100 * low:.0f} to {100 * high:.0f} % of a fold's training "
        f"samples, not {100 * fraction:.0f} %, as its groups are whole and the samples are few; "
        "select='last' needs no such part."
    ]


def limit_note(rows: Sequence[Mapping[str, Any]], splits: Mapping[str, Any]) -> list[str]:
    """Say that the Trainer has scored only some validation samples.

    Args:
        rows: Rows of the finished fits.
        splits: As `dlblocks.crossval._fold.describe_splits` makes them.
    """
    sizes = {(fold["repeat"], fold["fold"]): fold["num_val"] for fold in splits["folds"]}
    scored = sum(row["num_val"] for row in rows)
    total = sum(sizes[row["repeat"], row["fold"]] for row in rows)
    if scored >= total:
        return []
    return [
        f"the Trainer limits validation to {scored} of {total} samples, and the scores are of "
        "these; out-of-fold predictions and pooled scores are of all, so that the two differ."
    ]


NO_OOF = "no out-of-fold predictions: "


def predictions_note(reasons: Sequence[NoPredictions | None]) -> list[str]:
    """Say why a result has no out-of-fold predictions.

    Args:
        reasons: Of each fold, None where it has predictions.
    """
    found = [reason for reason in reasons if reason is not None]
    return [f"{NO_OOF}{found[0]}"] if found else []


def count_scored(datamodule: SplitDataModule, trainer: Mapping[str, Any]) -> int:
    """Count the validation samples within the Trainer's limits.

    Args:
        datamodule: Set to the fold.
        trainer: Arguments of the Trainer.
    """
    size = len(datamodule.indices("val"))
    limit = int(trainer.get("fast_dev_run") or 0) or trainer.get("limit_val_batches")
    if limit is None:
        return size
    ranks = getattr(datamodule.trainer, "world_size", 1)
    batch = max(size, 1) if datamodule.batch_size == "full" else datamodule.batch_size
    scored = 0
    for rank in range(ranks):
        mine = len(range(rank, size, ranks))
        batches = -(-mine // batch)
        allowed = int(batches * limit) if isinstance(limit, float) and limit <= 1 else int(limit)
        scored += min(mine, allowed * batch)
    return scored
