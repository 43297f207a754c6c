"""Split samples into training, validation and test part.

`splits` performs every kind of split that a datamodule offers. The splitters are scikit-learn's.
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
from dlblocks.data._blocks import Plane

Indices = npt.NDArray[np.int64]
Fold = tuple[Indices, Indices]
Split = Literal["kfold", "time_series", "leave_one_group_out", "predefined", "blocks"]
SPLITS: tuple[str, ...] = get_args(Split)
# Number of bins to stratify values by. For log-normal values (100 to 2,000 samples, 5 and 10 folds)
# the means of the folds spread 0.7 times as far as without stratification with 5 bins, 0.6 times
# with 10 and 0.5 times with 20. More bins would have few samples each, and groups could not be
# distributed evenly.
NUM_BINS = 10
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
    classes = _as_column("targets", targets, num_samples)
    members = _as_column("groups", groups, num_samples)
    numbers = _as_column("folds", folds, num_samples)
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
    rest, test = holdout(num_samples, test_fraction, in_order=is_in_time(split), **keep)
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
    return _pairs(TimeSeriesSplit(num_folds), num_samples)


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

    members = _as_column("groups", groups, len(np.asarray(groups)))
    return _pairs(LeaveOneGroupOut(), len(members), groups=members)


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
        pairs = _pairs(drawn, len(rest), targets, groups)
        if not type(splitter).__module__.startswith("sklearn."):  # those were checked before
            again = _pairs(drawn, len(rest), targets, groups)
            if len(again) != len(pairs) or not all(
                map(np.array_equal, chain(*pairs), chain(*again))
            ):
                raise ValueError("it returns other folds at every call; set its random seed.")
        if not pairs:
            raise ValueError("it returns no fold.")
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
                "groups); keep groups whole, as GroupKFold does, or leave groups out."
            )


def _pairs(splitter: Any, num_samples: int, targets: Any = None, groups: Any = None) -> list[Fold]:
    with warnings.catch_warnings():  # groups are checked afterwards
        warnings.filterwarnings("ignore", "The groups parameter is ignored")
        folds = list(splitter.split(np.zeros(num_samples), targets, groups))
    return [(_sorted(train), _sorted(val)) for train, val in folds]


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


@checked
def holdout(
    num_samples: int,
    fraction: float,
    *,
    targets: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    copies: bool = False,
    in_order: bool = False,
    plane: Plane | None = None,
    seed: int = 0,
) -> Fold:
    """Hold out a share of the samples, and return (rest, held out).

    As in `kfold`, the samples are stratified by `targets`, and `groups`, which may be `copies`,
    stay whole. With groups, one of ``round(1 / fraction)`` folds is held out, so its share is only
    as close to `fraction` as the sizes of the groups allow. ``fraction=0`` holds out nothing.
    `in_order` holds out the last samples, in the order of time. With a `plane` one or more of its
    blocks are held out, and samples nearer than its margin are in neither part.

    Raises:
        ValueError: `fraction` is outside [0, 1), a class has a single member, or there are too few
            samples.

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
    if plane is not None:
        num_folds = max(2, round(1 / fraction))
        blocks = plane.blocks(num_folds, seed)
        rest, held_out = _group_holdout(None, blocks, num_folds, fraction, seed)
        return plane.far_from(rest, held_out), held_out
    classes = _as_column("targets", targets, num_samples)
    members = _as_column("groups", groups, num_samples)
    if copies and members is not None:
        first, copy_of = _first_copies(members)
        classes = None if classes is None else classes[first]
        return _with_copies(holdout(len(first), fraction, targets=classes, seed=seed), copy_of)
    if members is not None:
        num_folds = max(2, round(1 / fraction))
        # Only one of the folds is used, so a class need not have members in every fold.
        _check_groups(members, num_folds)
        return _group_holdout(classes, members, num_folds, fraction, seed)
    if classes is not None and _are_values(classes):
        # At most as many bins as samples in the smaller part, so that its size need not change.
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
    """Hold out the samples of `train_test_split`, in a fifth of its time."""
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
    _approximate_mode(counts - kept, num_held_out, rng)  # `train_test_split` draws here too
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
    plane: Plane | None = None,
    seed: int = 0,
) -> Fold:
    """Split the training samples of a fold into training and selection part.

    About `selection_fraction` of the samples become the selection part, which chooses the epoch.
    Groups stay whole, so the share is only as close as their sizes allow.

    Args:
        num_samples: Number of training samples N.
        selection_fraction: Share of the selection part, in (0, 1).
        targets: Classes or values. The training part must keep all classes.
        stratify: Stratify by `targets`.
        groups: Groups to keep whole.
        copies: Each group consists of copies of one sample; see `kfold`.
        in_order: Take the last samples, in the order of time.
        plane: Take blocks of the plane; see `holdout`.
        seed: Seed of the draw.

    Raises:
        ValueError: The training part would have fewer than two samples, no group, or lose a class.

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
        # One part for each group, if there are too few groups for the fraction.
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
            plane=plane,
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
    """Return the fold whose held-out share is closest to `fraction`.

    Folds whose rest keeps all classes come first.
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
    # A part may be empty if there are few groups and they are stratified.
    return min((fold for fold in found if len(fold[0]) and len(fold[1])), key=badness)


def quantile_bins(values: npt.ArrayLike, needed: int, num_bins: int = NUM_BINS) -> Indices:
    """Return the quantile bin of each value, to stratify by it.

    Equal values may leave bins with fewer than `needed` members, which are merged with the next.

    Args:
        values: Shape (N,).
        needed: Smallest number of members of a bin, such as the number of folds.
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
    # Too small a rest at the end joins the last bin.
    numbers = np.minimum(merged[:-1], max(merged[-1] - 1, 0))
    return numbers[bins].astype(np.int64)


def _first_copies(groups: np.ndarray) -> tuple[Indices, Indices]:
    """Return each group's first row, and each sample's group as a number."""
    first, copy_of = np.unique(groups, return_index=True, return_inverse=True)[1:]
    return first, copy_of


def _with_copies(fold: Fold, copy_of: Indices) -> Fold:
    """Extend a fold of different samples to all their copies."""
    rest, held_out = (np.flatnonzero(np.isin(copy_of, part)).astype(np.int64) for part in fold)
    return rest, held_out


def _sorted(indices: Sequence[int] | np.ndarray) -> Indices:
    return np.sort(np.asarray(indices, dtype=np.int64))


def _shown(split: Split | Splitter) -> str:
    return repr(split) if isinstance(split, str) else split_name(split)


def _as_column(argument: str, values: npt.ArrayLike | None, num_samples: int) -> Any:
    """Return `values` as an array (N,), or None for None.

    Raises:
        ValueError: The shape is wrong, or a value is missing.
    """
    if values is None:
        return None
    column = np.asarray(values)
    if column.shape != (num_samples,):
        raise ValueError(
            f"{argument} has shape {column.shape}, expected one value per sample, ({num_samples},)."
        )
    missing: Any = []
    if column.dtype.kind == "f":
        missing = np.flatnonzero(np.isnan(column))
    elif column.dtype.kind not in "biu":  # texts, for which np.isnan fails
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


def _check_class_counts(classes: np.ndarray, needed: int, what: str) -> int:
    """Check that each class has enough members, and count the classes."""
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
