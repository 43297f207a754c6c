"""Join and compare out-of-fold predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dlblocks.runs._fits import FitResult
from dlblocks.tasks import PredictionTable


def difference(mine: PredictionTable, theirs: PredictionTable) -> str:
    """Describe the first difference between the folds of two tables."""
    if len(mine) != len(theirs):
        return f"there are {len(mine)} out-of-fold predictions here and {len(theirs)} there"
    names = ["repeat", "index", "fold"]
    if mine.has("target") and theirs.has("target"):
        names.append("target")
        if mine.target.shape != theirs.target.shape:
            return f"targets have shape {mine.target.shape} here and {theirs.target.shape} there"
    for name in names:
        here, there = mine[name], theirs[name]
        same = (here == there).reshape(len(here), -1).all(1)
        if not same.all():
            at = int(np.argmin(same))
            return (
                f"{name} differs in {int((~same).sum())} of {len(here)} rows, first for sample "
                f"{mine.index[at]} in repeat {mine.repeat[at]}: {here[at]} here and "
                f"{there[at]} there"
            )
    return ""


def share_correct(table: PredictionTable) -> npt.NDArray[np.floating] | None:
    """Compute the share of right predictions of each sample's class.

    Returns:
        Share of the repeats, one value a sample, sorted by index, shape (N,). None if the
        predictions are not classes or scores of them.
    """
    try:
        task = table.of_task() if table.has("target", "prediction") else None
    except ValueError:
        return None
    right = None if task is None else task.right(table.target, table.prediction)
    if right is None:
        return None
    _, sample, counts = np.unique(table.index, return_inverse=True, return_counts=True)
    return np.bincount(sample, weights=right) / counts


def join(
    results: Sequence[FitResult], task: str | None = None, folder: Path | None = None
) -> PredictionTable | None:
    """Join the predictions of all folds, sorted by repeat and index.

    None if a fold has none, or other columns than another.
    """
    parts = [
        result.predicted.with_columns(fold=result.row["fold"], repeat=result.row["repeat"])
        for result in results
        if result.predicted is not None
    ]
    if not parts or len(parts) < len(results):
        return None
    table = PredictionTable.concatenate(parts, folder=folder)
    # A column that a module adds in some folds alone may be missing, but not what is scored.
    needed = {name for part in parts for name in part.columns if name in ("target", "prediction")}
    if not needed <= {*table.columns}:
        return None
    table.task = task
    return table
