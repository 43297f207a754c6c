"""Hold out one part of the samples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dlblocks._errors import check_range, checked
from dlblocks.data._blocks import Plane
from dlblocks.data._folds import check_apart, fold_pairs, shuffled_folds
from dlblocks.data._strata import (
    NUM_BINS,
    Fold,
    are_values,
    as_column,
    check_class_counts,
    check_groups,
    first_copies,
    quantile_bins,
    with_copies,
)


@checked
def holdout(
    num_samples: int,
    fraction: float,
    *,
    targets: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    copies: bool = False,
    in_order: bool = False,
    gap: int = 0,
    plane: Plane | None = None,
    seed: int = 0,
) -> Fold:
    """Hold out a share of the samples, and return (rest, held out).

    As in `kfold`, the samples are stratified by `targets`, and `groups`, which may be `copies`,
    stay whole. With groups, one of ``round(1 / fraction)`` folds is held out, so its share is only
    as close to `fraction` as the sizes of the groups allow. ``fraction=0`` holds out nothing.
    `in_order` holds out the last samples, in the order of time, and leaves out the `gap` samples
    before them. It cannot cut a group. With a `plane` one or more of its
    blocks are held out, and samples nearer than its margin are in neither part.

    Raises:
        ValueError: `fraction` is outside [0, 1), a class has a single member, there are too few
            samples, or `in_order` would cut a group.

    Example:
        >>> rest, held_out = holdout(10, 0.2)
        >>> len(rest), len(held_out)
        (8, 2)
        >>> holdout(5, 0.4, in_order=True)
        (array([0, 1, 2]), array([3, 4]))
        >>> holdout(5, 0.4, in_order=True, gap=2)
        (array([0]), array([3, 4]))
    """
    check_range("fraction", fraction, 0, 1, high_open=True)
    everything = np.arange(num_samples)
    if fraction == 0:
        return everything, everything[:0]
    num_held_out = min(max(1, round(num_samples * fraction)), num_samples - 1)
    if num_held_out < 1:
        raise ValueError(f"{num_samples} samples are too few to hold out a fraction {fraction}.")
    if in_order:
        num_kept = num_samples - num_held_out - gap
        if num_kept < 1:
            raise ValueError(
                f"gap={gap} leaves no sample before the last {num_held_out} of {num_samples}; use "
                "a smaller gap, a smaller share, or more data."
            )
        rest, held_out = everything[:num_kept], everything[-num_held_out:]
        members = as_column("groups", groups, num_samples)
        check_apart("the split in time", members, rest, held_out)
        return rest, held_out
    if plane is not None:
        num_folds = max(2, round(1 / fraction))
        blocks = plane.blocks(num_folds, seed)
        rest, held_out = _group_holdout(None, blocks, num_folds, fraction, seed)
        return plane.far_from(rest, held_out), held_out
    classes = as_column("targets", targets, num_samples)
    members = as_column("groups", groups, num_samples)
    if copies and members is not None:
        first, copy_of = first_copies(members)
        classes = None if classes is None else classes[first]
        return with_copies(holdout(len(first), fraction, targets=classes, seed=seed), copy_of)
    if members is not None:
        num_folds = max(2, round(1 / fraction))
        # Only one of the folds is used, so a class need not have members in every fold.
        check_groups(members, num_folds)
        return _group_holdout(classes, members, num_folds, fraction, seed)
    if classes is not None and are_values(classes):
        # At most as many bins as samples in the smaller part, so that its size need not change.
        smaller = min(num_held_out, num_samples - num_held_out)
        classes = quantile_bins(classes, 2, min(NUM_BINS, smaller))
    elif classes is not None:
        num_classes = check_class_counts(classes, 2, "a stratified split")
        # Both sides must be able to hold a member of each class.
        num_held_out = min(max(num_held_out, num_classes), num_samples - num_classes)
    if classes is not None:
        return _stratified_holdout(classes, num_held_out, seed)
    from sklearn.model_selection import ShuffleSplit

    return fold_pairs(ShuffleSplit(1, test_size=num_held_out, random_state=seed), num_samples)[0]


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
    gap: int = 0,
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
        gap: Number of samples before them that are in neither part.
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
    labels = None if targets is None or are_values(np.asarray(targets)) else np.asarray(targets)
    strata = targets if stratify else None
    if groups is not None and not copies and not in_order:
        members = as_column("groups", groups, num_samples)
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
            gap=gap,
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
    labels = None if classes is None or are_values(classes) else classes
    if classes is not None and are_values(classes):
        classes = quantile_bins(classes, num_folds)
    if classes is not None and np.unique(classes, return_counts=True)[1].min() < num_folds:
        classes = None  # too few members of a class to stratify by

    def badness(fold: Fold) -> tuple[int, float]:
        rest, held_out = fold
        lost = 0 if labels is None else len(np.setdiff1d(labels, labels[rest]))
        return lost, abs(len(held_out) / len(groups) - fraction)

    found = shuffled_folds(len(groups), num_folds, classes, groups, seed)
    # A part may be empty if there are few groups and they are stratified.
    return min((fold for fold in found if len(fold[0]) and len(fold[1])), key=badness)
