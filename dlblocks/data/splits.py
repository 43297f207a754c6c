"""Every way of splitting that a datamodule offers, in one function."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy.typing as npt

from dlblocks.data.folds import (
    Fold,
    Indices,
    as_column,
    holdout,
    kfold,
    last,
    leave_one_group_out,
    predefined,
    time_series,
)
from dlblocks.errors import check_choice

Split = Literal["kfold", "time_series", "leave_one_group_out", "predefined"]
SPLITS: tuple[str, ...] = get_args(Split)
# These take the number of folds from the data.
COUNTED: tuple[str, ...] = ("leave_one_group_out", "predefined")


def splits(
    num_samples: int,
    *,
    split: str = "kfold",
    num_folds: int | None = None,
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    targets: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    folds: npt.ArrayLike | None = None,
    seed: int = 0,
    repeat: int = 0,
    development: Indices | None = None,
    copies: bool = False,
) -> list[dict[str, Indices]]:
    """Splits ``range(num_samples)`` into ``"train"``, ``"val"`` and ``"test"``, once for each fold.

    First `test_fraction` is held out, the same in every fold and repeat; the rest is split into
    folds, or with ``num_folds=None`` once by `val_fraction`.

    Args:
        num_samples: Number of samples N.
        split: ``"kfold"``; ``"time_series"``, where all that is held out are the last samples; or
            ``"leave_one_group_out"`` and ``"predefined"``, which have as many folds as `groups` and
            `folds` have values.
        num_folds: Number of folds, or None for a single split, or for what the data says.
        val_fraction: Validation share of what is not held out, without folds.
        test_fraction: Share held out first.
        targets: Stratify by them; see `kfold`.
        groups: Keep them whole; see `kfold`.
        folds: See `predefined`.
        seed: Seed of the splits.
        repeat: Another number gives other folds of ``"kfold"``.
        development: Split these rows alone instead of all that is not held out; sorted, and none
            of them held out.
        copies: `groups` are copies of one sample each, as ``groups="duplicates"`` makes them.

    Raises:
        ValueError: An argument that the split needs is missing, or one that it cannot heed is
            given; `num_folds` is not what the data says; and whatever the split itself raises.

    Example:
        >>> first, *others = splits(10, num_folds=4, test_fraction=0.2)
        >>> {part: len(rows) for part, rows in first.items()}, len(others)
        ({'train': 6, 'val': 2, 'test': 2}, 3)
    """
    _check_columns(split, groups, folds, copies)
    classes = None if targets is None else as_column("targets", targets, num_samples)
    members = None if groups is None else as_column("groups", groups, num_samples)
    numbers = None if folds is None else as_column("folds", folds, num_samples)
    rest, test = hold_out_test(
        num_samples,
        split=split,
        test_fraction=test_fraction,
        targets=classes,
        groups=members,
        seed=seed,
        development=development,
        copies=copies,
    )
    members = None if members is None else members[rest]
    arguments: dict[str, Any] = {
        "targets": None if classes is None else classes[rest],
        "groups": members,
        "copies": copies,
        "seed": seed + repeat,
    }
    pairs: list[Fold]
    if split == "leave_one_group_out" and members is not None:
        pairs = leave_one_group_out(members)
    elif split == "predefined" and numbers is not None:
        pairs = predefined(numbers[rest], members)
    elif split == "time_series" and num_folds is None:
        pairs = [last(len(rest), val_fraction)]
    elif split == "time_series" and num_folds is not None:
        pairs = time_series(len(rest), num_folds)
    elif num_folds is None:
        pairs = [holdout(len(rest), val_fraction, **arguments)]
    else:
        pairs = kfold(len(rest), num_folds, **arguments)
    if num_folds not in (None, len(pairs)):
        raise ValueError(
            f"num_folds={num_folds}, but split={split!r} makes {len(pairs)} folds of this data; "
            f"leave num_folds out, or set num_folds={len(pairs)}."
        )
    return [{"train": rest[train], "val": rest[val], "test": test} for train, val in pairs]


def hold_out_test(
    num_samples: int,
    *,
    split: str = "kfold",
    test_fraction: float = 0.0,
    targets: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    seed: int = 0,
    development: Indices | None = None,
    copies: bool = False,
) -> Fold:
    """The rows of the development set and those held out; arguments are those of `splits`.

    Example:
        >>> hold_out_test(4, split="time_series", test_fraction=0.25)
        (array([0, 1, 2]), array([3]))
    """
    if split == "time_series":
        rest, test = last(num_samples, test_fraction)
    else:
        rest, test = holdout(
            num_samples, test_fraction, targets=targets, groups=groups, copies=copies, seed=seed
        )
    return (rest if development is None else development), test


def _check_columns(split: str, groups: object, folds: object, copies: bool) -> None:
    """Refuses a column that is missing, or that the split would have to disregard."""
    check_choice("split", split, SPLITS)
    if copies and split in ("time_series", "leave_one_group_out"):
        raise ValueError(
            f"groups='duplicates' keeps copies of a sample together, which split={split!r} cannot; "
            "use split='kfold', or leave groups out."
        )
    for argument, value, needs in (
        ("groups", groups, "leave_one_group_out"),
        ("folds", folds, "predefined"),
    ):
        if split == needs and value is None:
            raise ValueError(
                f"split={split!r} needs {argument}, one value a sample; ArrayDataModule and "
                f"ImageFolderDataModule have {argument}=, TabularDataModule a column of the file."
            )
    if folds is not None and split != "predefined":
        raise ValueError(f"folds has no effect with split={split!r}; use split='predefined'.")
    if groups is not None and split == "time_series":
        raise ValueError(
            "groups cannot be kept whole by split='time_series', which cuts by time; leave them "
            "out, or use split='kfold'."
        )
