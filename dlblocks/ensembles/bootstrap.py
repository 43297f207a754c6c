"""Samples drawn from a training part, one for each member of an ensemble: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dlblocks.data import SplitDataModule

Rows = npt.NDArray[np.int64]


def draw(
    rows: npt.ArrayLike,
    *,
    seed: int,
    member: int,
    share: float = 1.0,
    replace: bool = True,
    groups: npt.ArrayLike | None = None,
    classes: npt.ArrayLike | None = None,
) -> Rows:
    """Draws a sample of some rows, a function of (seed, member) alone.

    With the defaults it is the bootstrap (Efron 1979): N of N rows with replacement, in which a row
    has the chance 1 - (1 - 1/N)^N ≈ 0.632 to be.

    Args:
        rows: The rows to draw from, int64 of shape (N,).
        seed: Another seed gives other samples.
        member: Number of the member.
        share: Size of the sample over N, in (0, 1]; at least one is drawn.
        replace: Draw with replacement; without, and with a `share` of 1, all rows are returned.
        groups: Group of each row, shape (N,): whole groups are drawn, `share` of their number.
        classes: Class of each row, shape (N,): each class is drawn by itself, `share` of its size.

    Example:
        >>> draw([4, 5, 6], seed=0, member=1).tolist()
        [5, 6, 6]
    """
    pool = np.asarray(rows, dtype=np.int64)
    if share == 1 and not replace:
        return pool
    random = np.random.default_rng((seed, member))

    def some(of: npt.NDArray[Any]) -> npt.NDArray[Any]:
        size = max(1, round(share * len(of)))
        return random.choice(of, size, replace=replace)

    if groups is not None:
        column = np.asarray(groups)
        parts = [pool[column == group] for group in some(np.unique(column))]
        return np.concatenate(parts)
    if classes is not None:
        column = np.asarray(classes)
        return np.concatenate([some(pool[column == c]) for c in np.unique(column)])
    return some(pool)


def draw_all(
    data: SplitDataModule,
    num_members: int,
    *,
    seed: int,
    share: float,
    replace: bool,
    stratify: bool,
) -> list[Rows]:
    """A sample of the training part of `data` for each member; whole groups where it has groups.

    Raises:
        ValueError: `stratify` without classes, or with groups; or a training part of one group.
    """
    rows = data.indices("train").numpy()
    columns = data.columns
    groups = None if columns.groups is None else columns.groups[rows]
    if groups is not None and replace and len(np.unique(groups)) < 2:
        raise ValueError(
            "the training part is of a single group, and whole groups are drawn, so that nothing "
            "would be out of the bag; use bootstrap=False, or data without groups."
        )
    classes = None
    if stratify:
        if not data.is_classification or columns.targets is None:
            raise ValueError("stratify=True needs classes as targets; use stratify=False.")
        if groups is not None:
            raise ValueError(
                "stratify=True cannot be heeded where whole groups are drawn; use stratify=False, "
                "or data without groups."
            )
        classes = columns.targets[rows]
    return [
        draw(
            rows,
            seed=seed,
            member=k,
            share=share,
            replace=replace,
            groups=groups,
            classes=classes,
        )
        for k in range(num_members)
    ]


def missing_classes(data: SplitDataModule, samples: Sequence[Rows]) -> dict[int, list[int]]:
    """For members whose samples lack a class of the training part, the classes that they lack."""
    targets = data.columns.targets
    if not data.is_classification or targets is None:
        return {}
    there = np.unique(targets[data.indices("train").numpy()])
    lacking = {k: np.setdiff1d(there, targets[sample]) for k, sample in enumerate(samples)}
    return {k: classes.tolist() for k, classes in lacking.items() if len(classes)}
