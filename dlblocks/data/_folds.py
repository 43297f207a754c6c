"""Make the folds of every kind of split. The splitters are scikit-learn's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dlblocks._errors import check_range, checked
from dlblocks.data._blocks import Plane
from dlblocks.data._strata import (
    Fold,
    Indices,
    are_values,
    as_column,
    check_class_counts,
    check_groups,
    first_copies,
    quantile_bins,
    with_copies,
)


@checked
def kfold(
    num_samples: int,
    num_folds: int,
    *,
    targets: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    copies: bool = False,
    seed: int = 0,
) -> list[Fold]:
    """Split samples into K shuffled folds, with scikit-learn's splitters.

    The validation parts are disjoint and together contain every sample once. Each training part is
    the rest. The splitter is `KFold`; `StratifiedKFold` with `targets`; `GroupKFold` with `groups`;
    `StratifiedGroupKFold` with both.

    Args:
        num_samples: Number of samples N.
        num_folds: Number of folds K, 2 <= K <= N.
        targets: Class of each sample, shape (N,), to stratify the folds: each has the class
            proportions of the whole, as closely as the counts allow. Values, floating point, are
            stratified by their `quantile_bins`.
        groups: Group of each sample, shape (N,), such as a patient or a writer. No group is in
            both parts of a fold.
        copies: Each group consists of copies of one sample. Then the first of each group are split
            without groups, and the others follow. This is much faster if nearly every sample is a
            group.
        seed: Seed of the shuffle.

    Returns:
        K pairs (training, validation) of sorted int64 index arrays.

    Raises:
        ValueError: K is outside [2, N], there are more folds than groups or members of a class, or
            a group is missing.

    Example:
        >>> train, val = kfold(6, 3, targets=[0, 0, 0, 1, 1, 1])[0]
        >>> len(train), len(val)
        (4, 2)
    """
    check_range("num_folds", num_folds, 2, num_samples)
    classes = as_column("targets", targets, num_samples)
    members = as_column("groups", groups, num_samples)
    if copies and members is not None:
        first, copy_of = first_copies(members)
        classes = None if classes is None else classes[first]
        found = kfold(len(first), num_folds, targets=classes, seed=seed)
        return [with_copies(fold, copy_of) for fold in found]
    if classes is not None and are_values(classes):
        classes = quantile_bins(classes, num_folds)
    elif classes is not None:
        check_class_counts(classes, num_folds, f"num_folds={num_folds}")
    if members is not None:
        check_groups(members, num_folds)
    return shuffled_folds(num_samples, num_folds, classes, members, seed)


def shuffled_folds(
    num_samples: int,
    num_folds: int,
    classes: np.ndarray | None,
    groups: np.ndarray | None,
    seed: int,
) -> list[Fold]:
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    if groups is None:
        splitter = KFold if classes is None else StratifiedKFold
    else:
        splitter = GroupKFold if classes is None else StratifiedGroupKFold
    drawn = splitter(num_folds, shuffle=True, random_state=seed)
    return fold_pairs(drawn, num_samples, classes, groups)


def time_series(num_samples: int, num_folds: int) -> list[Fold]:
    """Split samples in the order of time, with training before validation.

    This is scikit-learn's `TimeSeriesSplit`. Of K + 1 blocks, fold k validates block k + 1 and
    trains on all blocks before it. The first block, ``N - K · (N // (K + 1))`` samples, is never
    validated.

    Raises:
        ValueError: K < 2, or there are fewer than K + 1 samples.

    Example:
        >>> [(train.tolist(), val.tolist()) for train, val in time_series(6, 2)]
        [([0, 1], [2, 3]), ([0, 1, 2, 3], [4, 5])]
    """
    from sklearn.model_selection import TimeSeriesSplit

    check_range("num_folds", num_folds, 2, num_samples - 1)
    return fold_pairs(TimeSeriesSplit(num_folds), num_samples)


def leave_one_group_out(groups: npt.ArrayLike) -> list[Fold]:
    """Split samples into one fold for each group, which validates it.

    The groups are sorted.

    Raises:
        ValueError: All samples belong to one group, or a group is missing.

    Example:
        >>> [val.tolist() for _, val in leave_one_group_out(["b", "a", "b"])]
        [[1], [0, 2]]
    """
    from sklearn.model_selection import LeaveOneGroupOut

    members = as_column("groups", groups, len(np.asarray(groups)))
    return fold_pairs(LeaveOneGroupOut(), len(members), groups=members)


def predefined(folds: npt.ArrayLike, groups: npt.ArrayLike | None = None) -> list[Fold]:
    """Split samples into one fold for each value, which validates its samples.

    The values are sorted. Samples with a negative number or an empty text are used for training in
    every fold.

    Args:
        folds: Integers or texts, shape (N,).
        groups: Groups to check, shape (N,): each must be inside one fold.

    Raises:
        ValueError: There are fewer than two folds, a fold has no training samples, or a group is in
            two folds.

    Example:
        >>> [val.tolist() for _, val in predefined([1, -1, 0, 1])]
        [[2], [0, 3]]
    """
    from sklearn.model_selection import PredefinedSplit

    numbers = fold_numbers(folds)
    num_folds = int(numbers.max(initial=-1)) + 1
    if num_folds < 2:
        raise ValueError(
            f"folds has {num_folds} different value(s) that are not negative or empty; "
            "split='predefined' needs at least 2."
        )
    pairs = fold_pairs(PredefinedSplit(numbers), len(numbers))
    check_folds(pairs, len(numbers), as_column("groups", groups, len(numbers)))
    return pairs


def fold_pairs(
    splitter: Any, num_samples: int, targets: Any = None, groups: Any = None
) -> list[Fold]:
    with warnings.catch_warnings():  # groups are checked afterwards
        warnings.filterwarnings("ignore", "The groups parameter is ignored")
        folds = list(splitter.split(np.zeros(num_samples), targets, groups))
    return [(as_indices(train), as_indices(val)) for train, val in folds]


def block_folds(plane: Plane, num_folds: int, *, seed: int = 0) -> list[Fold]:
    """Split samples into K folds of blocks, with a margin.

    The validation parts are disjoint and together contain every sample once. Training samples
    nearer than the margin to a validation sample are in neither part of that fold.

    Args:
        plane: Where the N samples lie.
        num_folds: Number of folds K, 2 <= K <= N.
        seed: Seed of the order of images and blocks.

    Raises:
        ValueError: There are too few places for K blocks, or a fold has no training samples left.

    Example:
        >>> tiles = np.array([[0, 0, 8 * i, 8, 8] for i in range(6)], float)
        >>> [(train.tolist(), val.tolist()) for train, val in block_folds(Plane(tiles), 2)]
        [([0, 1], [3, 4, 5]), ([4, 5], [0, 1, 2])]
    """
    check_range("num_folds", num_folds, 2, len(plane.positions))
    found = kfold(len(plane.positions), num_folds, groups=plane.blocks(num_folds, seed), seed=seed)
    return [(plane.far_from(train, val), val) for train, val in found]


def as_indices(indices: Sequence[int] | np.ndarray) -> Indices:
    return np.sort(np.asarray(indices, dtype=np.int64))


def fold_numbers(folds: npt.ArrayLike) -> Indices:
    """Number the sorted values of `folds` 0 … K-1, and others -1."""
    values = np.asarray(folds)
    if values.dtype.kind not in "iuUSO":
        raise ValueError(f"folds has dtype {values.dtype}; expected integers or texts.")
    if values.dtype.kind not in "iu":
        values = np.array(["" if value is None else str(value) for value in values])
    none = np.isin(values, ["", "-1"]) if values.dtype.kind == "U" else values < 0
    numbers = np.full(len(values), -1)
    numbers[~none] = np.unique(values[~none], return_inverse=True)[1]
    return numbers


def check_folds(pairs: list[Fold], num_samples: int, groups: np.ndarray | None) -> None:
    for fold, (train, val) in enumerate(pairs):
        both = np.concatenate([train, val])
        if not len(train) or not len(val) or both.min() < 0 or both.max() >= num_samples:
            raise ValueError(f"fold {fold} has an empty part or unknown samples.")
        if len(np.intersect1d(train, val)):
            raise ValueError(f"fold {fold} validates samples that it trains on.")
        check_apart(f"fold {fold}", groups, train, val)


def check_apart(what: str, groups: np.ndarray | None, train: Indices, val: Indices) -> None:
    """Raise a `ValueError` if a group is in two parts."""
    shared = train[:0] if groups is None else np.intersect1d(groups[train], groups[val])
    if len(shared):
        raise ValueError(
            f"{what} trains on and validates group {shared[0]!s} ({len(shared)} such groups); keep "
            "groups whole, as GroupKFold does, or leave groups out."
        )
