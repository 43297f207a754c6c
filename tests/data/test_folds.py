import random

import numpy as np
import pytest
import torch
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from dlblocks.data import holdout, kfold

N = 60
TARGETS = np.random.default_rng(0).integers(0, 3, N)
GROUPS = np.arange(N) // 4


@pytest.mark.parametrize(
    ("arguments", "splitter"),
    [
        ({}, KFold),
        ({"targets": TARGETS}, StratifiedKFold),
        ({"groups": GROUPS}, GroupKFold),
        ({"targets": TARGETS, "groups": GROUPS}, StratifiedGroupKFold),
    ],
)
def test_folds_are_scikit_learns_and_partition(arguments, splitter):
    ours = kfold(N, 5, seed=3, **arguments)
    theirs = splitter(5, shuffle=True, random_state=3).split(
        np.zeros(N), arguments.get("targets"), arguments.get("groups")
    )
    for (train, val), (expected_train, expected_val) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(train, np.sort(expected_train))
        np.testing.assert_array_equal(val, np.sort(expected_val))
        assert not set(train) & set(val)
    validated = np.concatenate([val for _, val in ours])
    np.testing.assert_array_equal(np.sort(validated), np.arange(N))


def test_stratified_counts_differ_by_at_most_one():
    counts = np.array([np.bincount(TARGETS[val]) for _, val in kfold(N, 5, targets=TARGETS)])
    assert (counts.max(0) - counts.min(0) <= 1).all()


def test_no_group_is_in_both_parts():
    for arguments in ({}, {"targets": TARGETS}):
        for train, val in kfold(N, 5, groups=GROUPS, **arguments):
            assert not set(GROUPS[train]) & set(GROUPS[val])
        rest, held_out = holdout(N, 0.2, groups=GROUPS, **arguments)
        assert not set(GROUPS[rest]) & set(GROUPS[held_out])
        assert len(rest) + len(held_out) == N


def test_splits_ignore_and_leave_the_global_seeds():
    first = kfold(N, 5, targets=TARGETS)
    np.random.seed(99)
    random.seed(99)
    torch.manual_seed(99)
    state = np.random.get_state()[1].copy()
    second = kfold(N, 5, targets=TARGETS)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one[1], other[1])
    np.testing.assert_array_equal(state, np.random.get_state()[1])
    assert any((a[1] != b[1]).any() for a, b in zip(first, kfold(N, 5, seed=1), strict=True))


def test_holdout_keeps_proportions_and_size():
    rest, held_out = holdout(N, 0.25, targets=TARGETS)
    assert len(held_out) == 15
    assert sorted([*rest, *held_out]) == list(range(N))
    shares = np.bincount(TARGETS[held_out]) / 15 - np.bincount(TARGETS) / N
    assert np.abs(shares).max() < 1 / 15
    rest, held_out = holdout(7, 0.0)
    assert len(rest) == 7
    assert len(held_out) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_folds": 1}, "num_folds=1 is too few"),
        ({"num_folds": 61}, "more than the 60 samples"),
        ({"num_folds": 5, "targets": [0] * 57 + [1] * 3}, "class 1 has 3"),
        ({"num_folds": 5, "targets": TARGETS[:10]}, "one value a sample"),
        ({"num_folds": 5, "targets": np.linspace(0, 1, N)}, "real numbers"),
        ({"num_folds": 5, "groups": np.zeros(N)}, "at least 5 groups"),
    ],
)
def test_impossible_folds_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kfold(N, **arguments)


def test_impossible_holdouts_are_refused():
    with pytest.raises(ValueError, match=r"fraction=1.0 is outside"):
        holdout(N, 1.0)
    with pytest.raises(ValueError, match="class 1 has 1"):
        holdout(5, 0.2, targets=[0, 0, 0, 0, 1])
    with pytest.raises(ValueError, match="too few to hold out"):
        holdout(1, 0.5)
