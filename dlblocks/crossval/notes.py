"""Sentences that a result shows beside its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlblocks.data import SplitDataModule
from dlblocks.predictions import NoPredictions


def duplicates_note(count: int | None, splits: Mapping[str, Any]) -> list[str]:
    """Say how many validation samples have a copy in training.

    Args:
        count: As `SplitDataModule.count_duplicates` finds it.
        splits: As `dlblocks.crossval.splits.describe_splits` makes them.
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
        splits: As `dlblocks.crossval.splits.describe_splits` makes them.
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
        splits: As `dlblocks.crossval.splits.describe_splits` makes them.
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
