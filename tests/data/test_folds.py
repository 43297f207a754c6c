import random

import numpy as np
import pytest
import torch
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    PredefinedSplit,
    StratifiedGroupKFold,
    StratifiedKFold,
    TimeSeriesSplit,
    train_test_split,
)

from dlblocks.data import holdout, kfold
from dlblocks.data._folds import leave_one_group_out, predefined, time_series
from dlblocks.data._strata import quantile_bins
from dlblocks.data.splitting import splits

N = 60
TARGETS = np.random.default_rng(0).integers(0, 3, N)
GROUPS = np.arange(N) // 4


@pytest.mark.parametrize("seed", range(8))
def test_the_held_out_part_is_that_of_train_test_split(seed):
    rng = np.random.default_rng(seed)
    # Equal counts tie where the fraction is rounded; names need not be 0 … C-1.
    equal, skewed = np.repeat([7, 3, 5, 4], 5), rng.choice([2, 9, 4], 97, p=[0.1, 0.3, 0.6])
    for classes in (equal, np.concatenate([skewed, [2, 2]]), None):
        count = 99 if classes is None else len(classes)
        for fraction in (0.13, 0.5):
            found = holdout(count, fraction, targets=classes, seed=seed)
            theirs = train_test_split(
                np.arange(count), test_size=len(found[1]), random_state=seed, stratify=classes
            )
            for ours, part in zip(found, theirs, strict=True):
                np.testing.assert_array_equal(ours, np.sort(part))


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
        ({"num_folds": 1}, "num_folds=1 is outside"),
        ({"num_folds": 61}, r"num_folds=61 is outside \[2, 60\]"),
        ({"num_folds": 5, "targets": [0] * 57 + [1] * 3}, "class 1 has 3"),
        ({"num_folds": 5, "targets": TARGETS[:10]}, "one value per sample"),
        ({"num_folds": 5, "groups": np.arange(N) % 4}, "at least 5 groups, but groups has 4"),
        ({"num_folds": 5, "groups": np.full(N, "ward")}, "at least 5 groups, but groups has 1"),
        ({"num_folds": 5, "groups": [*range(N - 1), None]}, "groups has no value in row 59"),
        ({"num_folds": 5, "groups": [np.nan, *range(1, N)]}, "groups has no value in row 0"),
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


def same(ours, theirs):
    for (train, val), (expected_train, expected_val) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(train, expected_train)
        np.testing.assert_array_equal(val, expected_val)


def test_other_splits_are_scikit_learns():
    x = np.zeros(N)
    same(time_series(N, 7), TimeSeriesSplit(7).split(x))
    same(leave_one_group_out(GROUPS), LeaveOneGroupOut().split(x, groups=GROUPS))
    given = np.random.default_rng(1).integers(-1, 4, N)
    same(predefined(given), PredefinedSplit(given).split())
    names = np.array(["", "a", "b", "c", "d"])[given + 1]
    same(predefined(names), PredefinedSplit(given).split())
    assert all((given[train] < 0).sum() == (given < 0).sum() for train, _ in predefined(given))


def test_quantile_bins():
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=1000)
    bins = quantile_bins(values, 5)
    assert np.bincount(bins).tolist() == [100] * 10
    assert (np.diff(bins[np.argsort(values)]) >= 0).all()
    # Ties and few values: whole bins, each with enough members, and equal values in one bin.
    for values in (
        np.repeat([0.0, 1.0, 2.0], [90, 3, 7]), rng.poisson(1.0, 100), rng.random(7), np.ones(20),
        np.r_[np.zeros(99), 1.0], np.r_[0.0, np.ones(99)],
    ):  # fmt: skip
        bins = quantile_bins(values, 5)
        counts = np.bincount(bins)
        assert counts.min() >= 5 or len(counts) == 1
        assert all(len(set(bins[values == value])) == 1 for value in values)


def test_values_are_stratified_by_quantiles():
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=300)
    for groups in (None, np.arange(300) // 3):
        folds = kfold(300, 5, targets=values, groups=groups)
        validated = np.concatenate([val for _, val in folds])
        assert sorted(validated) == list(range(300))
        plain = kfold(300, 5, groups=groups)
        spread, before = (np.std([values[v].mean() for _, v in f]) for f in (folds, plain))
        assert spread < 0.8 * before
    (ours,) = ([val for _, val in kfold(300, 5, targets=values, seed=2)],)
    theirs = StratifiedKFold(5, shuffle=True, random_state=2)
    deciles = (np.argsort(np.argsort(values)) * 10) // 300  # ranks: a second way to the deciles
    for val, (_, expected) in zip(ours, theirs.split(values, deciles), strict=True):
        np.testing.assert_array_equal(val, expected)
    rest, held_out = holdout(20, 0.2, targets=rng.random(20))
    assert (len(rest), len(held_out)) == (16, 4)
    rest, held_out = holdout(300, 0.2, targets=values)
    assert len(held_out) == 60
    assert np.bincount(quantile_bins(values, 5)[held_out]).tolist() == [6] * 10


def test_time_is_never_reversed():
    for num_folds in (4, None):
        found = splits(N, split="time_series", num_folds=num_folds, test_fraction=0.25)
        assert len(found) == (num_folds or 1)
        for rows in found:
            assert rows["train"].max() < rows["val"].min()
            assert rows["val"].max() < rows["test"].min()
            np.testing.assert_array_equal(rows["test"], np.arange(45, N))
    (rows,) = splits(10, split="time_series", val_fraction=0.3)
    assert rows["val"].tolist() == [7, 8, 9]


def test_splits_by_the_data_have_as_many_folds_as_it_says():
    found = splits(N, split="leave_one_group_out", groups=GROUPS, test_fraction=0.2)
    tested = set(GROUPS[found[0]["test"]])
    assert len(found) == 15 - len(tested)
    assert len(tested) == 3
    for rows in found:
        parts = [set(GROUPS[rows[part]]) for part in ("train", "val", "test")]
        assert len(parts[1]) == 1
        assert sum(map(len, parts)) == 15
    assert len(splits(N, split="predefined", folds=np.arange(N) % 3, num_folds=3)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "kfolds"}, "split='kfolds' is not known; did you mean 'kfold'"),
        ({"split": "leave_one_group_out"}, "split='leave_one_group_out' needs groups"),
        ({"split": "predefined"}, "split='predefined' needs folds"),
        ({"folds": GROUPS}, "folds has no effect with split='kfold'"),
        ({"split": "time_series", "groups": GROUPS}, "cannot be kept whole"),
        ({"split": "time_series", "num_folds": 1}, "num_folds=1"),
        ({"split": "time_series", "num_folds": N}, r"num_folds=60 is outside \[2, 59\]"),
        (
            {"split": "leave_one_group_out", "groups": GROUPS, "num_folds": 5},
            "num_folds=5, but split='leave_one_group_out' gives 15 folds",
        ),
        (
            {"split": "predefined", "folds": np.arange(N) % 3, "num_folds": 4},
            "num_folds=4, but split='predefined' gives 3 folds",
        ),
        ({"split": "leave_one_group_out", "groups": np.ones(N)}, "fewer than 2 unique groups"),
        ({"split": "predefined", "folds": np.zeros(N, int)}, "folds has 1 different value"),
        ({"split": "predefined", "folds": np.zeros(N)}, "expected integers or texts"),
        ({"split": "predefined", "folds": GROUPS[:5]}, r"folds has shape \(5,\)"),
        (
            {"split": "predefined", "folds": np.arange(N) % 3, "groups": GROUPS},
            "fold 0 trains on and validates group 0",
        ),
    ],
)
def test_impossible_splits_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        splits(N, **arguments)
