"""Which samples train and which validate: pure functions of indices, over scikit-learn's splitters.

Every function is a pure function of its arguments: it never reads or advances a global random
state, so a split is the same on every rank, in every fold and under every global seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dlblocks.errors import check_range

Indices = npt.NDArray[np.int64]
Fold = tuple[Indices, Indices]


def kfold(
    num_samples: int,
    num_folds: int,
    *,
    targets: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    seed: int = 0,
) -> list[Fold]:
    """Splits ``range(num_samples)`` into `num_folds` (train, validation) pairs, shuffled by `seed`.

    The validation parts are disjoint and together hold every sample once; each train part is the
    rest. The splitter is scikit-learn's: `KFold`; `StratifiedKFold` with `targets`; `GroupKFold`
    with `groups`; `StratifiedGroupKFold` with both.

    Args:
        num_samples: Number of samples N.
        num_folds: Number of folds K, 2 <= K <= N.
        targets: Class of each sample, shape (N,). Given, the folds are stratified: each has the
            proportions of the classes of the whole, as nearly as the counts allow.
        groups: Group of each sample, shape (N,) (a patient, a writer). Given, no group is in both
            parts of a fold.
        seed: Seed of the shuffle.

    Returns:
        K pairs of sorted int64 index arrays.

    Raises:
        ValueError: K outside [2, N], more folds than members of a class or than groups.

    Example:
        >>> train, val = kfold(6, 3, targets=[0, 0, 0, 1, 1, 1])[0]
        >>> len(train), len(val)
        (4, 2)
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    if num_folds < 2:
        raise ValueError(f"num_folds={num_folds} is too few; cross-validation needs at least 2.")
    if num_folds > num_samples:
        raise ValueError(
            f"num_folds={num_folds} is more than the {num_samples} samples; "
            f"use at most num_folds={num_samples}."
        )
    classes = None if targets is None else _as_column("targets", targets, num_samples)
    members = None if groups is None else _as_column("groups", groups, num_samples)
    if classes is not None:
        _check_class_counts(classes, num_folds, "num_folds")
    if members is not None:
        _check_groups(members, num_folds)

    if classes is not None and members is not None:
        splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    elif members is not None:
        splitter = GroupKFold(num_folds, shuffle=True, random_state=seed)
    elif classes is not None:
        splitter = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    else:
        splitter = KFold(num_folds, shuffle=True, random_state=seed)
    folds = splitter.split(np.zeros(num_samples), classes, members)
    return [(_sorted(train), _sorted(val)) for train, val in folds]


def holdout(
    num_samples: int,
    fraction: float,
    *,
    targets: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    seed: int = 0,
) -> Fold:
    """Holds out about `fraction` of ``range(num_samples)``; returns (rest, held out).

    Stratified by `targets` and whole by `groups`, as in `kfold`. With groups the held-out share is
    that of one of ``round(1 / fraction)`` folds, so it is only as near to `fraction` as the sizes
    of the groups allow. ``fraction=0`` holds out nothing.

    Raises:
        ValueError: `fraction` outside [0, 1), a class with a single member, or too few samples.

    Example:
        >>> rest, held_out = holdout(10, 0.2)
        >>> len(rest), len(held_out)
        (8, 2)
    """
    from sklearn.model_selection import train_test_split

    check_range("fraction", fraction, 0, 1, high_open=True)
    everything = np.arange(num_samples)
    if fraction == 0:
        return everything, np.empty(0, dtype=np.int64)
    if groups is not None:
        num_folds = max(2, round(1 / fraction))
        # No class has to reach every fold here: only one of the folds is used.
        classes = None if targets is None else _as_column("targets", targets, num_samples)
        members = _as_column("groups", groups, num_samples)
        _check_groups(members, num_folds)
        return _group_holdout(classes, members, num_folds, seed)

    classes = None if targets is None else _as_column("targets", targets, num_samples)
    num_held_out = min(max(1, round(num_samples * fraction)), num_samples - 1)
    if num_held_out < 1:
        raise ValueError(f"{num_samples} samples are too few to hold out a fraction {fraction}.")
    if classes is not None:
        _check_class_counts(classes, 2, "a stratified split")
        # Both sides must be able to hold a member of each class.
        num_classes = len(np.unique(classes))
        num_held_out = min(max(num_held_out, num_classes), num_samples - num_classes)
    rest, held_out = train_test_split(
        everything, test_size=num_held_out, random_state=seed, stratify=classes
    )
    return _sorted(rest), _sorted(held_out)


def split(
    num_samples: int,
    *,
    num_folds: int | None = None,
    fold: int = 0,
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    targets: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    seed: int = 0,
    repeat: int = 0,
) -> dict[str, Indices]:
    """Splits ``range(num_samples)`` into ``"train"``, ``"val"`` and ``"test"``.

    First `test_fraction` is held out, the same in every fold and repeat; of the rest, `fold` of
    `num_folds` validates, or without folds `val_fraction`.

    Args:
        num_samples: Number of samples N.
        num_folds: Number of folds, or None for a single split.
        fold: Which fold validates.
        val_fraction: Validation share of what is not held out, without folds.
        test_fraction: Share held out first.
        targets: Stratify by them; see `kfold`.
        groups: Keep them whole; see `kfold`.
        seed: Seed of the splits.
        repeat: Another number gives other folds.

    Example:
        >>> {part: len(rows) for part, rows in split(10, num_folds=4, test_fraction=0.2).items()}
        {'train': 6, 'val': 2, 'test': 2}
    """
    classes = None if targets is None else _as_column("targets", targets, num_samples)
    members = None if groups is None else _as_column("groups", groups, num_samples)
    rest, test = holdout(num_samples, test_fraction, targets=classes, groups=members, seed=seed)
    arguments: dict[str, Any] = {
        "targets": None if classes is None else classes[rest],
        "groups": None if members is None else members[rest],
        "seed": seed + repeat,
    }
    if num_folds is None:
        train, val = holdout(len(rest), val_fraction, **arguments)
    else:
        train, val = kfold(len(rest), num_folds, **arguments)[fold]
    return {"train": rest[train], "val": rest[val], "test": test}


def _group_holdout(
    classes: np.ndarray | None, groups: np.ndarray, num_folds: int, seed: int
) -> Fold:
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    if classes is not None and np.unique(classes, return_counts=True)[1].min() >= num_folds:
        splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    else:
        splitter = GroupKFold(num_folds, shuffle=True, random_state=seed)
    rest, held_out = next(iter(splitter.split(np.zeros(len(groups)), classes, groups)))
    return _sorted(rest), _sorted(held_out)


def _sorted(indices: Sequence[int] | np.ndarray) -> Indices:
    return np.sort(np.asarray(indices, dtype=np.int64))


def _as_column(argument: str, values: npt.ArrayLike, num_samples: int) -> np.ndarray:
    column = np.asarray(values)
    if column.shape != (num_samples,):
        raise ValueError(
            f"{argument} has shape {column.shape}, expected one value a sample, ({num_samples},)."
        )
    return column


def _check_class_counts(classes: np.ndarray, needed: int, what: str) -> None:
    if np.issubdtype(classes.dtype, np.floating):
        raise ValueError(
            "targets are real numbers, and only classes can be stratified; use stratify=False."
        )
    names, counts = np.unique(classes, return_counts=True)
    if counts.min() < needed:
        few, count = names[counts.argmin()], counts.min()
        said = f"num_folds={needed}" if what == "num_folds" else what
        raise ValueError(
            f"{said} needs {needed} members of each class, but class {few} has {count}; "
            f"use fewer folds, more data of that class, or stratify=False."
        )


def _check_groups(groups: np.ndarray, num_folds: int) -> None:
    num_groups = len(np.unique(groups))
    if num_groups < num_folds:
        raise ValueError(
            f"{num_folds} folds need at least {num_folds} groups, but groups has {num_groups} "
            f"different value{'s' if num_groups != 1 else ''}."
        )
