"""Splits into training, validation and test samples.

`splits` makes every kind of split that a datamodule offers. The splitters are scikit-learn's.
"""

from __future__ import annotations

import hashlib
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from numbers import Integral
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt

from dlblocks._errors import check_choice, check_range, checked, named

Indices = npt.NDArray[np.int64]
Fold = tuple[Indices, Indices]
Split = Literal["kfold", "time_series", "leave_one_group_out", "predefined"]
SPLITS: tuple[str, ...] = get_args(Split)
# Bins of values to stratify by. The means of the folds of log-normal values (100 to 2,000 samples,
# 5 and 10 folds) spread 0.7 times as far as without bins for 5, 0.6 for 10 and 0.5 for 20; more
# bins would leave few samples in each, and groups could no longer be dealt out evenly.
NUM_BINS = 10
SHOWN = 200  # characters of a splitter's parameters


@runtime_checkable
class Splitter(Protocol):
    """A splitter object, as those of `sklearn.model_selection`."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[Any]:
        """Yield the positions that train and those that validate, for each fold."""

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
        check_choice("split", split, SPLITS)
        return
    state = getattr(split, "random_state", 0)
    is_drawn = state is not None or getattr(split, "shuffle", True)
    if is_drawn and not isinstance(state, Integral):
        name = split_name(split)
        raise ValueError(f"split={name} draws other folds at every call; set random_state=0.")


def counts_folds(split: Split | Splitter) -> bool:
    """Tell whether the data or a splitter says the number of folds."""
    return split in ("leave_one_group_out", "predefined") or not isinstance(split, str)


def is_in_time(split: Split | Splitter) -> bool:
    """Tell whether training is always before validation."""
    if isinstance(split, str):
        return split == "time_series"
    from sklearn.model_selection import TimeSeriesSplit

    return isinstance(split, TimeSeriesSplit)


def own_repeats(split: Split | Splitter) -> int:
    """Count the repeats: more than one for a splitter such as `RepeatedKFold`."""
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
) -> list[dict[str, Indices]]:
    """Splits ``range(num_samples)`` into ``"train"``, ``"val"`` and ``"test"``, once for each fold.

    First `test_fraction` is held out, the same in every fold and repeat; the rest is split into
    folds, or with ``num_folds=None`` once by `val_fraction`.

    Args:
        num_samples: Number of samples N.
        split: ``"kfold"``; ``"time_series"``, where all that is held out are the last samples; or
            ``"leave_one_group_out"`` and ``"predefined"``, which have as many folds as `groups` and
            `folds` have values; or a splitter of scikit-learn.
        num_folds: Number of folds, or None for a single split, or for what the data says.
        val_fraction: Validation share of what is not held out, without folds.
        test_fraction: Share held out first.
        targets: Stratify by them; see `kfold`.
        labels: Targets for a splitter, which may stratify by them.
        groups: Keep them whole; see `kfold`.
        folds: See `predefined`.
        seed: Seed of the splits.
        repeat: Another number gives other folds of ``"kfold"`` and of `RepeatedKFold`.
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
    classes = _as_column("targets", targets, num_samples)
    members = _as_column("groups", groups, num_samples)
    numbers = _as_column("folds", folds, num_samples)
    keep: dict[str, Any] = {"targets": classes, "groups": members, "copies": copies, "seed": seed}
    rest, test = hold_out_test(num_samples, split, test_fraction, development, **keep)
    if classes is not None:
        classes = classes[rest]
    if members is not None:
        members = members[rest]
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
        pairs = [holdout(len(rest), val_fraction, in_order=in_order, **keep)]
    elif split == "time_series":
        pairs = time_series(len(rest), num_folds)
    else:
        pairs = kfold(len(rest), num_folds, **keep)
    if num_folds not in (None, len(pairs)):
        raise ValueError(
            f"num_folds={num_folds}, but split={_shown(split)} makes {len(pairs)} folds of this "
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
    """The rows of the development set and those held out.

    Arguments are those of `splits` and, in `keep`, of `holdout`.

    Example:
        >>> hold_out_test(4, "time_series", 0.25)
        (array([0, 1, 2]), array([3]))
    """
    rest, test = holdout(num_samples, test_fraction, in_order=is_in_time(split), **keep)
    return (rest if development is None else development), test


def _check_columns(split: Split | Splitter, groups: object, folds: object, copies: bool) -> None:
    """Refuses a column that is missing, or that the split would have to disregard."""
    check_split(split)
    by_groups = split == "leave_one_group_out"
    if groups is not None and (split == "time_series" or (copies and by_groups)):
        what = "groups='duplicates'" if copies else "groups"
        raise ValueError(f"{what} cannot be kept whole by split={split!r}; leave groups out.")
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
        raise ValueError(f"folds has no effect with split={_shown(split)}; use split='predefined'.")


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
    """Splits ``range(num_samples)`` into `num_folds` (train, validation) pairs, shuffled by `seed`.

    The validation parts are disjoint and together hold every sample once; each train part is the
    rest. The splitter is scikit-learn's: `KFold`; `StratifiedKFold` with `targets`; `GroupKFold`
    with `groups`; `StratifiedGroupKFold` with both.

    Args:
        num_samples: Number of samples N.
        num_folds: Number of folds K, 2 <= K <= N.
        targets: Class of each sample, shape (N,). Given, the folds are stratified: each has the
            proportions of the classes of the whole, as nearly as the counts allow. Values, floating
            point, are stratified by their `quantile_bins`.
        groups: Group of each sample, shape (N,) (a patient, a writer). Given, no group is in both
            parts of a fold.
        copies: Groups are copies of one sample each. The first of each group are split, without
            groups, and the others follow: much faster where nearly every sample is a group.
        seed: Seed of the shuffle.

    Returns:
        K pairs of sorted int64 index arrays.

    Raises:
        ValueError: K outside [2, N], more folds than members of a class or than groups, a missing
            group.

    Example:
        >>> train, val = kfold(6, 3, targets=[0, 0, 0, 1, 1, 1])[0]
        >>> len(train), len(val)
        (4, 2)
    """
    check_range("num_folds", num_folds, 2, num_samples)
    classes = _as_column("targets", targets, num_samples)
    members = _as_column("groups", groups, num_samples)
    if copies and members is not None:
        first, copy_of = _first_copies(members)
        classes = None if classes is None else classes[first]
        found = kfold(len(first), num_folds, targets=classes, seed=seed)
        return [_with_copies(fold, copy_of) for fold in found]
    if classes is not None and _are_values(classes):
        classes = quantile_bins(classes, num_folds)
    elif classes is not None:
        _check_class_counts(classes, num_folds, f"num_folds={num_folds}")
    if members is not None:
        _check_groups(members, num_folds)
    return _shuffled_folds(num_samples, num_folds, classes, members, seed)


def _shuffled_folds(
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
    return _pairs(drawn, num_samples, classes, groups)


def time_series(num_samples: int, num_folds: int) -> list[Fold]:
    """Folds of samples in the order of time: training is always before validation.

    scikit-learn's `TimeSeriesSplit`: of K + 1 blocks, fold k validates block k + 1 and trains on
    all blocks before it. The first block, ``N - K · (N // (K + 1))`` samples, is never validated.

    Raises:
        ValueError: K < 2, or fewer than K + 1 samples.

    Example:
        >>> [(train.tolist(), val.tolist()) for train, val in time_series(6, 2)]
        [([0, 1], [2, 3]), ([0, 1, 2, 3], [4, 5])]
    """
    from sklearn.model_selection import TimeSeriesSplit

    check_range("num_folds", num_folds, 2, num_samples - 1)
    return _pairs(TimeSeriesSplit(num_folds), num_samples)


def leave_one_group_out(groups: npt.ArrayLike) -> list[Fold]:
    """One fold for each group, in sorted order, which validates that group alone.

    Raises:
        ValueError: All samples are of one group, or a group is missing.

    Example:
        >>> [val.tolist() for _, val in leave_one_group_out(["b", "a", "b"])]
        [[1], [0, 2]]
    """
    from sklearn.model_selection import LeaveOneGroupOut

    members = _as_column("groups", groups, len(np.asarray(groups)))
    return _pairs(LeaveOneGroupOut(), len(members), groups=members)


def predefined(folds: npt.ArrayLike, groups: npt.ArrayLike | None = None) -> list[Fold]:
    """One fold for each value of `folds`, in sorted order, validating the samples of that value.

    A negative number or an empty text is no fold: such samples train in every one.

    Args:
        folds: Integers or texts, shape (N,).
        groups: Checked, if given: each must lie in one fold.

    Raises:
        ValueError: Fewer than two folds, a fold without training samples, or a group in two.

    Example:
        >>> [val.tolist() for _, val in predefined([1, -1, 0, 1])]
        [[2], [0, 3]]
    """
    from sklearn.model_selection import PredefinedSplit

    numbers = _fold_numbers(folds)
    num_folds = int(numbers.max(initial=-1)) + 1
    if num_folds < 2:
        raise ValueError(
            f"folds has {num_folds} different value(s) that are not negative or empty; "
            "split='predefined' needs at least 2."
        )
    pairs = _pairs(PredefinedSplit(numbers), len(numbers))
    _check_folds(pairs, len(numbers), _as_column("groups", groups, len(numbers)))
    return pairs


def _by_splitter(
    splitter: Splitter,
    rest: Indices,
    num_samples: int,
    targets: np.ndarray | None,
    groups: np.ndarray | None,
) -> list[Fold]:
    """Return all folds of a splitter object.

    Raises:
        ValueError: It cannot split these samples, makes other folds at every call or none, or a
            sample or group would be trained on and validated.
    """
    from sklearn.model_selection import PredefinedSplit

    try:
        drawn = splitter
        if isinstance(splitter, PredefinedSplit):  # which knows the samples by their numbers
            if len(splitter.test_fold) != num_samples:
                raise ValueError(f"it has {len(splitter.test_fold)}, and the data {num_samples}.")
            drawn = PredefinedSplit(splitter.test_fold[rest])
        pairs = _pairs(drawn, len(rest), targets, groups)
        if not type(splitter).__module__.startswith("sklearn."):  # those have a `random_state`
            again = _pairs(drawn, len(rest), targets, groups)
            if len(again) != len(pairs) or not all(
                map(np.array_equal, chain(*pairs), chain(*again))
            ):
                raise ValueError("it makes other folds at every call; fix its random numbers.")
        if not pairs:
            raise ValueError("it makes no fold.")
        _check_folds(pairs, len(rest), groups)
    except ValueError as error:
        what = f"split={split_name(splitter)} cannot split these {len(rest)} samples"
        raise named(error, what) from error
    return pairs


def _check_folds(pairs: list[Fold], num_samples: int, groups: np.ndarray | None) -> None:
    for fold, (train, val) in enumerate(pairs):
        both = np.concatenate([train, val])
        if not len(train) or not len(val) or both.min() < 0 or both.max() >= num_samples:
            raise ValueError(f"fold {fold} has an empty part or unknown samples.")
        if len(np.intersect1d(train, val)):
            raise ValueError(f"fold {fold} validates samples that it trains on.")
        shared = train[:0] if groups is None else np.intersect1d(groups[train], groups[val])
        if len(shared):
            raise ValueError(
                f"fold {fold} trains on and validates group {shared[0]!s} ({len(shared)} such "
                "groups); give folds of whole groups, as GroupKFold does, or leave groups out."
            )


def _pairs(splitter: Any, num_samples: int, targets: Any = None, groups: Any = None) -> list[Fold]:
    with warnings.catch_warnings():  # whether groups stay whole is checked afterwards
        warnings.filterwarnings("ignore", "The groups parameter is ignored")
        folds = list(splitter.split(np.zeros(num_samples), targets, groups))
    return [(_sorted(train), _sorted(val)) for train, val in folds]


@checked
def holdout(
    num_samples: int,
    fraction: float,
    *,
    targets: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    copies: bool = False,
    in_order: bool = False,
    seed: int = 0,
) -> Fold:
    """Holds out about `fraction` of ``range(num_samples)``; returns (rest, held out).

    Stratified by `targets`, and whole by `groups`, which may be `copies`, as in `kfold`. With
    groups the held-out share is that of one of ``round(1 / fraction)`` folds, so it is only as near
    to `fraction` as the sizes of the groups allow. ``fraction=0`` holds out nothing. `in_order`
    holds out the last samples, in the order of time.

    Raises:
        ValueError: `fraction` outside [0, 1), a class with a single member, or too few samples.

    Example:
        >>> rest, held_out = holdout(10, 0.2)
        >>> len(rest), len(held_out)
        (8, 2)
        >>> holdout(5, 0.4, in_order=True)
        (array([0, 1, 2]), array([3, 4]))
    """
    check_range("fraction", fraction, 0, 1, high_open=True)
    everything = np.arange(num_samples)
    if fraction == 0:
        return everything, everything[:0]
    num_held_out = min(max(1, round(num_samples * fraction)), num_samples - 1)
    if num_held_out < 1:
        raise ValueError(f"{num_samples} samples are too few to hold out a fraction {fraction}.")
    if in_order:
        return everything[:-num_held_out], everything[-num_held_out:]
    classes = _as_column("targets", targets, num_samples)
    members = _as_column("groups", groups, num_samples)
    if copies and members is not None:
        first, copy_of = _first_copies(members)
        classes = None if classes is None else classes[first]
        return _with_copies(holdout(len(first), fraction, targets=classes, seed=seed), copy_of)
    if members is not None:
        num_folds = max(2, round(1 / fraction))
        # No class has to reach every fold here: only one of the folds is used.
        _check_groups(members, num_folds)
        return _group_holdout(classes, members, num_folds, fraction, seed)
    if classes is not None and _are_values(classes):
        # No more bins than samples in the smaller part, whose size then needs no change.
        smaller = min(num_held_out, num_samples - num_held_out)
        classes = quantile_bins(classes, 2, min(NUM_BINS, smaller))
    elif classes is not None:
        num_classes = _check_class_counts(classes, 2, "a stratified split")
        # Both sides must be able to hold a member of each class.
        num_held_out = min(max(num_held_out, num_classes), num_samples - num_classes)
    if classes is not None:
        return _stratified_holdout(classes, num_held_out, seed)
    from sklearn.model_selection import ShuffleSplit

    return _pairs(ShuffleSplit(1, test_size=num_held_out, random_state=seed), num_samples)[0]


def _stratified_holdout(classes: np.ndarray, num_held_out: int, seed: int) -> Fold:
    """Hold out the samples that `train_test_split` would, in a fifth of its time."""
    try:
        from sklearn.utils.extmath import _approximate_mode
    except ImportError:  # it is private
        from sklearn.model_selection import StratifiedShuffleSplit

        splitter = StratifiedShuffleSplit(1, test_size=num_held_out, random_state=seed)
        train, held_out = next(splitter.split(np.empty(len(classes)), classes))
        return np.sort(train), np.sort(held_out)

    codes, counts = np.unique(classes, return_inverse=True, return_counts=True)[1:]
    rng = np.random.RandomState(seed)
    kept = _approximate_mode(counts, len(classes) - num_held_out, rng)
    _approximate_mode(counts - kept, num_held_out, rng)  # it draws, too
    small = codes.astype(np.min_scalar_type(len(counts)))  # sorted much faster
    members = np.split(np.argsort(small, kind="stable"), np.cumsum(counts)[:-1])
    is_held_out = np.zeros(len(classes), dtype=bool)
    for rows, count in zip(members, kept, strict=True):
        is_held_out[rows[rng.permutation(len(rows))[count:]]] = True
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def selection(
    num_samples: int,
    selection_fraction: float,
    *,
    targets: npt.ArrayLike | None = None,
    stratify: bool = True,
    groups: npt.ArrayLike | None = None,
    copies: bool = False,
    in_order: bool = False,
    seed: int = 0,
) -> Fold:
    """Split the training samples of a fold into training and selection part.

    About `selection_fraction` of the samples becomes the selection part, on which the epoch is
    selected. Groups stay whole, so that its share is only as near as their sizes allow.

    Args:
        num_samples: Number of training samples N.
        selection_fraction: Share of the selection part, in (0, 1).
        targets: Classes or values. No class may be lost to the training part.
        stratify: Stratify by `targets`.
        groups: Keep them whole.
        copies: Groups are copies of one sample each; see `kfold`.
        in_order: Take the last samples, in the order of time.
        seed: Seed of the draw.

    Raises:
        ValueError: Fewer than two samples, no group, or a class less would be left to train on.

    Example:
        >>> training, selected_on = selection(20, 0.15, seed=1)
        >>> len(training), len(selected_on)
        (17, 3)
    """
    check_range("selection_fraction", selection_fraction, 0, 1, low_open=True, high_open=True)
    if num_samples < 3:
        raise ValueError(f"{num_samples} training samples are too few for a selection part")
    labels = None if targets is None or _are_values(np.asarray(targets)) else np.asarray(targets)
    strata = targets if stratify else None
    if groups is not None and not copies and not in_order:
        members = _as_column("groups", groups, num_samples)
        num_groups = len(np.unique(members))
        if num_groups < 2:
            raise ValueError("its training samples are all of one group")
        # As many parts as there are groups, where there are fewer than the fraction asks for.
        num_folds = min(max(2, round(1 / selection_fraction)), num_groups)
        classes = None if strata is None else np.asarray(strata)
        training, selected_on = _group_holdout(
            classes, members, num_folds, selection_fraction, seed
        )
    else:
        training, selected_on = holdout(
            num_samples,
            selection_fraction,
            targets=strata,
            groups=groups,
            copies=copies,
            in_order=in_order,
            seed=seed,
        )
    if len(training) < 2:
        raise ValueError(f"the selection part would leave {len(training)} sample to train on")
    if labels is not None:
        gone = np.setdiff1d(labels, labels[training])
        if len(gone):
            raise ValueError(f"the selection part would take all samples of class {gone[0]}")
    return training, selected_on


def _group_holdout(
    classes: np.ndarray | None, groups: np.ndarray, num_folds: int, fraction: float, seed: int
) -> Fold:
    """Return the fold whose held-out share is nearest to `fraction`.

    A fold that leaves all classes in the rest goes before one that does not.
    """
    labels = None if classes is None or _are_values(classes) else classes
    if classes is not None and _are_values(classes):
        classes = quantile_bins(classes, num_folds)
    if classes is not None and np.unique(classes, return_counts=True)[1].min() < num_folds:
        classes = None  # too few members of a class to stratify by

    def badness(fold: Fold) -> tuple[int, float]:
        rest, held_out = fold
        lost = 0 if labels is None else len(np.setdiff1d(labels, labels[rest]))
        return lost, abs(len(held_out) / len(groups) - fraction)

    found = _shuffled_folds(len(groups), num_folds, classes, groups, seed)
    # A part may be empty where few groups are dealt out by class.
    return min((fold for fold in found if len(fold[0]) and len(fold[1])), key=badness)


def quantile_bins(values: npt.ArrayLike, needed: int, num_bins: int = NUM_BINS) -> Indices:
    """The number of each value's quantile bin: classes to stratify values by.

    Bins that equal values have left with fewer than `needed` members are merged with the next.

    Args:
        values: Shape (N,).
        needed: Members that each bin must have, such as the number of folds.
        num_bins: Number of bins, if there are ``num_bins * needed`` values or more.

    Example:
        >>> quantile_bins([0.1, 0.2, 0.3, 9.0], needed=2).tolist()
        [0, 0, 1, 1]
    """
    column = np.asarray(values, dtype=np.float64)
    num_bins = max(1, min(num_bins, len(column) // needed))
    edges = np.quantile(column, np.linspace(0, 1, num_bins + 1)[1:-1])
    bins = np.searchsorted(edges, column, side="right")
    merged, members = [0], 0
    for count in np.bincount(bins, minlength=num_bins):
        members += int(count)
        merged.append(merged[-1] + (members >= needed))
        members = 0 if members >= needed else members
    # What is left at the end joins the last whole bin.
    numbers = np.minimum(merged[:-1], max(merged[-1] - 1, 0))
    return numbers[bins].astype(np.int64)


def _first_copies(groups: np.ndarray) -> tuple[Indices, Indices]:
    """Return each group's first row, and each sample's group as a number."""
    first, copy_of = np.unique(groups, return_index=True, return_inverse=True)[1:]
    return first, copy_of


def _with_copies(fold: Fold, copy_of: Indices) -> Fold:
    """Return a fold of all samples, from a fold of the different ones."""
    rest, held_out = (np.flatnonzero(np.isin(copy_of, part)).astype(np.int64) for part in fold)
    return rest, held_out


def _sorted(indices: Sequence[int] | np.ndarray) -> Indices:
    return np.sort(np.asarray(indices, dtype=np.int64))


def _shown(split: Split | Splitter) -> str:
    return repr(split) if isinstance(split, str) else split_name(split)


def _as_column(argument: str, values: npt.ArrayLike | None, num_samples: int) -> Any:
    """Return `values` as an array (N,), or None for None.

    Raises:
        ValueError: They have another shape, or lack some.
    """
    if values is None:
        return None
    column = np.asarray(values)
    if column.shape != (num_samples,):
        raise ValueError(
            f"{argument} has shape {column.shape}, expected one value a sample, ({num_samples},)."
        )
    missing: Any = []
    if column.dtype.kind == "f":
        missing = np.flatnonzero(np.isnan(column))
    elif column.dtype.kind not in "biu":  # of texts, of which NumPy does not know it
        rows = enumerate(column.tolist())
        missing = [i for i, value in rows if value is None or value != value]
    if len(missing) and argument != "folds":
        raise ValueError(
            f"{argument} has no value in row {missing[0]} ({len(missing)} rows in all); "
            "fill it in or leave those samples out."
        )
    return column


def _are_values(targets: np.ndarray) -> bool:
    return bool(np.issubdtype(targets.dtype, np.floating))


def _fold_numbers(folds: npt.ArrayLike) -> Indices:
    """0 … K-1 for the sorted values of `folds`, -1 for those that are none."""
    values = np.asarray(folds)
    if values.dtype.kind not in "iuUSO":
        raise ValueError(f"folds has dtype {values.dtype}; expected integers or texts.")
    if values.dtype.kind not in "iu":
        values = np.array(["" if value is None else str(value) for value in values])
    none = np.isin(values, ["", "-1"]) if values.dtype.kind == "U" else values < 0
    numbers = np.full(len(values), -1)
    numbers[~none] = np.unique(values[~none], return_inverse=True)[1]
    return numbers


def _check_class_counts(classes: np.ndarray, needed: int, what: str) -> int:
    """Return the number of classes."""
    names, counts = np.unique(classes, return_counts=True)
    if counts.min() < needed:
        few, count = names[counts.argmin()], counts.min()
        raise ValueError(
            f"{what} needs {needed} members of each class, but class {few} has {count}; "
            f"use fewer folds, more data of that class, or stratify=False."
        )
    return len(names)


def _check_groups(groups: np.ndarray, num_folds: int) -> None:
    num_groups = len(np.unique(groups))
    if num_groups < num_folds:
        raise ValueError(
            f"{num_folds} folds need at least {num_folds} groups, but groups has {num_groups}; "
            "use fewer folds, or leave groups out."
        )
