"""Split samples into training, validation and test part.

`splits` performs every kind of split that a datamodule offers. The splitters are scikit-learn's.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from numbers import Integral
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt

from dlblocks._errors import check_choice, named
from dlblocks.data._blocks import Plane
from dlblocks.data._folds import (
    block_folds,
    check_folds,
    fold_pairs,
    kfold,
    leave_one_group_out,
    predefined,
    time_series,
)
from dlblocks.data._holdout import holdout
from dlblocks.data._strata import (
    Fold,
    Indices,
    as_column,
)

Split = Literal["kfold", "time_series", "leave_one_group_out", "predefined", "blocks"]
SPLITS: tuple[str, ...] = get_args(Split)
SHOWN = 200  # characters of a splitter in messages


@runtime_checkable
class Splitter(Protocol):
    """A splitter object, such as those of `sklearn.model_selection`."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[Any]:
        """Yield the training and validation positions of each fold."""

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Count the folds."""


def split_name(split: Split | Splitter) -> str:
    """Return the name of a split, or a splitter's class and parameters.

    Example:
        >>> from sklearn.model_selection import KFold
        >>> split_name("kfold"), split_name(KFold(3))
        ('kfold', 'KFold(n_splits=3, random_state=None, shuffle=False)')
    """
    if isinstance(split, str):
        return split
    with np.printoptions(threshold=sys.maxsize):
        text = " ".join(re.sub(" at 0x[0-9a-fA-F]+", "", repr(split)).split())
    if len(text) > SHOWN:
        text = f"{text[:SHOWN]}… (SHA-256 {hashlib.sha256(text.encode()).hexdigest()})"
    return text


def check_split(split: Any) -> None:
    """Raise a `ValueError` for an unknown split or an unseeded splitter."""
    if isinstance(split, (str, type)) or not isinstance(split, Splitter):
        if not isinstance(split, (str, type)):
            raise ValueError(
                f"split is of type {type(split).__name__}, without split() and get_n_splits(); for "
                "your own folds give sklearn.model_selection.PredefinedSplit(fold of each sample), "
                f"or one of {', '.join(SPLITS)}."
            )
        check_choice("split", split, SPLITS)
        return
    state = getattr(split, "random_state", 0)
    is_drawn = state is not None or getattr(split, "shuffle", True)
    if is_drawn and not isinstance(state, Integral):
        name = split_name(split)
        raise ValueError(f"split={name} draws new folds at every call; set random_state=0.")


def counts_folds(split: Split | Splitter) -> bool:
    """Tell whether the data or a splitter determines the number of folds."""
    return split in ("leave_one_group_out", "predefined") or not isinstance(split, str)


def is_in_time(split: Split | Splitter) -> bool:
    """Tell whether training is always before validation."""
    if isinstance(split, str):
        return split == "time_series"
    from sklearn.model_selection import TimeSeriesSplit

    return isinstance(split, TimeSeriesSplit)


def gap_of(split: Split | Splitter) -> int:
    """Count the samples left out before each later part."""
    return int(getattr(split, "gap", 0)) if is_in_time(split) else 0


def check_order(split: Split | Splitter, folds: Sequence[Mapping[str, Indices]]) -> None:
    """Refuse a splitter in time that is not a `TimeSeriesSplit`.

    Its test and selection part would be drawn from all times.
    """
    if isinstance(split, str) or is_in_time(split) or len(folds) < 2 or _is_of_sklearn(split):
        return
    if all(rows["train"][-1] < rows["val"][0] for rows in folds):
        raise ValueError(
            f"split={split_name(split)} always trains on samples before those it validates, but "
            "the test or selection part would be drawn from all times; derive the splitter from "
            "scikit-learn's TimeSeriesSplit, or use test_fraction=0 and select='last'."
        )


def own_repeats(split: Split | Splitter) -> int:
    """Count the repeats of a splitter such as `RepeatedKFold`, otherwise 1."""
    return int(getattr(split, "n_repeats", 1))


def splits(
    num_samples: int,
    *,
    split: Split | Splitter = "kfold",
    num_folds: int | None = None,
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    targets: npt.ArrayLike | None = None,
    labels: np.ndarray | None = None,
    groups: npt.ArrayLike | None = None,
    folds: npt.ArrayLike | None = None,
    seed: int = 0,
    repeat: int = 0,
    development: Indices | None = None,
    copies: bool = False,
    plane: Plane | None = None,
) -> list[dict[str, Indices]]:
    """Split samples into ``"train"``, ``"val"`` and ``"test"`` for each fold.

    First `test_fraction` is held out, the same in every fold and repeat. The rest is split into
    folds, or with ``num_folds=None`` once by `val_fraction`.

    Args:
        num_samples: Number of samples N.
        split: ``"kfold"``; ``"time_series"``, which always holds out the last samples;
            ``"leave_one_group_out"`` or ``"predefined"``, with one fold for each value in `groups`
            or `folds`; ``"blocks"`` of the plane; or a splitter of scikit-learn.
        num_folds: Number of folds. None for a single split, or for the number in the data.
        val_fraction: Validation share of the rest, without folds.
        test_fraction: Share held out first.
        targets: Targets to stratify by; see `kfold`.
        labels: Targets for a splitter, which may stratify by them.
        groups: Groups to keep whole; see `kfold`.
        folds: Predefined folds; see `predefined`.
        seed: Seed of the splits.
        repeat: Another number gives other folds of ``"kfold"`` and of `RepeatedKFold`.
        development: Rows to split instead of all that are not held out. They must be sorted, and
            none of them held out.
        copies: Each group consists of copies of one sample, as with ``groups="duplicates"``.
        plane: Where samples lie, for ``"blocks"``. Training samples nearer than its margin to
            validation or test samples are in no part.

    Raises:
        ValueError: An argument that the split needs is missing, or one that it cannot use is given;
            `num_folds` differs from the number in the data; or the split itself fails.

    Example:
        >>> first, *others = splits(10, num_folds=4, test_fraction=0.2)
        >>> {part: len(rows) for part, rows in first.items()}, len(others)
        ({'train': 6, 'val': 2, 'test': 2}, 3)
    """
    _check_columns(split, groups, folds, copies, plane)
    classes = as_column("targets", targets, num_samples)
    members = as_column("groups", groups, num_samples)
    numbers = as_column("folds", folds, num_samples)
    keep: dict[str, Any] = {"targets": classes, "groups": members, "copies": copies, "seed": seed}
    rest, test = hold_out_test(num_samples, split, test_fraction, development, **keep, plane=plane)
    if classes is not None:
        classes = classes[rest]
    if members is not None:
        members = members[rest]
    plane = None if plane is None else plane[rest]
    keep |= {"targets": classes, "groups": members, "seed": seed + repeat}
    pairs: list[Fold]
    if not isinstance(split, str):
        values = None if labels is None else labels[rest]
        pairs = _by_splitter(split, rest, num_samples, values, members)
        count = len(pairs) // own_repeats(split)
        pairs = pairs[repeat * count : (repeat + 1) * count]
    elif split == "leave_one_group_out":
        pairs = leave_one_group_out(members)
    elif split == "predefined":
        pairs = predefined(numbers[rest], members)
    elif num_folds is None:
        in_order = split == "time_series"
        pairs = [holdout(len(rest), val_fraction, in_order=in_order, plane=plane, **keep)]
    elif split == "time_series":
        pairs = time_series(len(rest), num_folds)
    elif plane is not None:
        pairs = block_folds(plane, num_folds, seed=seed + repeat)
    else:
        pairs = kfold(len(rest), num_folds, **keep)
    if num_folds not in (None, len(pairs)):
        raise ValueError(
            f"num_folds={num_folds}, but split={_shown(split)} gives {len(pairs)} folds of this "
            f"data; leave num_folds out, or set num_folds={len(pairs)}."
        )
    return [{"train": rest[train], "val": rest[val], "test": test} for train, val in pairs]


def hold_out_test(
    num_samples: int,
    split: Split | Splitter,
    test_fraction: float,
    development: Indices | None = None,
    **keep: Any,
) -> Fold:
    """Return the rows of the development set and those held out.

    Arguments are those of `splits` and, in `keep`, of `holdout`.

    Example:
        >>> hold_out_test(4, "time_series", 0.25)
        (array([0, 1, 2]), array([3]))
    """
    in_order, gap = is_in_time(split), gap_of(split)
    rest, test = holdout(num_samples, test_fraction, in_order=in_order, gap=gap, **keep)
    return (rest if development is None else development), test


def _check_columns(
    split: Split | Splitter, groups: object, folds: object, copies: bool, plane: Plane | None
) -> None:
    """Refuse a missing column, and one that the split would ignore."""
    check_split(split)
    if split == "blocks" and plane is None:
        raise ValueError(
            "split='blocks' needs positions, one row per sample; set positions= of ArrayDataModule "
            "or FoldedDataModule, or tile= of SegmentationDataModule."
        )
    by_groups = split == "leave_one_group_out"
    if groups is not None and (split in ("time_series", "blocks") or (copies and by_groups)):
        what = "groups='duplicates'" if copies else "groups"
        raise ValueError(f"{what} cannot be kept whole by split={split!r}; leave groups out.")
    for argument, value, needs in (
        ("groups", groups, "leave_one_group_out"),
        ("folds", folds, "predefined"),
    ):
        if split == needs and value is None:
            raise ValueError(
                f"split={split!r} needs {argument}, one value per sample; set {argument}= of "
                "ArrayDataModule or ImageFolderDataModule, or name a column in TabularDataModule."
            )
    if folds is not None and split != "predefined":
        raise ValueError(f"folds has no effect with split={_shown(split)}; use split='predefined'.")


def _by_splitter(
    splitter: Splitter,
    rest: Indices,
    num_samples: int,
    targets: np.ndarray | None,
    groups: np.ndarray | None,
) -> list[Fold]:
    """Return all folds of a splitter object.

    Raises:
        ValueError: The splitter cannot split these samples, returns other folds at every call or
            none, or a sample or group would be in both training and validation part.
    """
    from sklearn.model_selection import PredefinedSplit

    try:
        drawn = splitter
        if isinstance(splitter, PredefinedSplit):  # it lists the fold of each sample
            if len(splitter.test_fold) != num_samples:
                raise ValueError(f"it has {len(splitter.test_fold)}, and the data {num_samples}.")
            drawn = PredefinedSplit(splitter.test_fold[rest])
        pairs = fold_pairs(drawn, len(rest), targets, groups)
        if not _is_of_sklearn(splitter):  # those were checked before
            again = fold_pairs(drawn, len(rest), targets, groups)
            if len(again) != len(pairs) or not all(
                map(np.array_equal, chain(*pairs), chain(*again))
            ):
                raise ValueError("it returns other folds at every call; set its random seed.")
        if not pairs:
            raise ValueError("it returns no fold.")
        check_folds(pairs, len(rest), groups)
    except ValueError as error:
        what = f"split={split_name(splitter)} cannot split these {len(rest)} samples"
        raise named(error, what) from error
    return pairs


def _is_of_sklearn(splitter: Splitter) -> bool:
    # scikit-learn wraps lists of the user's own folds.
    is_wrapped = isinstance(getattr(splitter, "cv", None), list)
    return type(splitter).__module__.startswith("sklearn.") and not is_wrapped


def _shown(split: Split | Splitter) -> str:
    return repr(split) if isinstance(split, str) else split_name(split)
