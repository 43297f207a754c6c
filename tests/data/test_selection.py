"""The selection part: which training samples of a fold choose its epoch."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from dlblocks.data import ArrayDataModule, DigitsDataModule, FoldedDataModule
from dlblocks.data._holdout import selection

N = 120
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 4)).astype(np.float32)
CLASSES = RNG.permutation(np.repeat([0, 1, 2], [80, 28, 12]))
VALUES = RNG.normal(size=N).astype(np.float32)
GROUPS = RNG.permutation(np.arange(N) // 6)
PARTS = ("train", "selection", "val", "test")


def parts(data, fold=0, num_folds=4, fraction=0.15):
    chosen = data.for_fold(fold, num_folds).with_selection(fraction)
    return {part: chosen.indices(part).numpy() for part in PARTS}


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"test_fraction": 0.2},
        {"groups": GROUPS},
        {"split": "time_series"},
        {"split": "predefined", "folds": np.arange(N) % 4},
        {"split": "leave_one_group_out", "groups": np.arange(N) % 4},
    ],
)
def test_it_is_taken_from_the_training_samples_alone(arguments, foreign):
    if foreign:
        data = FoldedDataModule(
            TensorDataset(torch.from_numpy(X), torch.from_numpy(CLASSES)), **arguments
        )
    else:
        data = ArrayDataModule(X, CLASSES, **arguments)
    for fold in range(4):
        plain = data.for_fold(fold, 4)
        found = parts(data, fold)
        both = np.sort(np.concatenate([found["train"], found["selection"]]))
        np.testing.assert_array_equal(both, plain.indices("train"))
        for part in ("val", "test"):
            np.testing.assert_array_equal(found[part], plain.indices(part))
        assert len(found["selection"])


def test_it_has_the_proportions_of_the_classes():
    found = parts(ArrayDataModule(X, CLASSES))
    assert len(found["selection"]) == 14  # round(0.15 · 90) = 14 (half to even)
    counts = np.bincount(CLASSES[found["selection"]], minlength=3)
    np.testing.assert_allclose(counts, 14 * np.array([80, 28, 12]) / N, atol=1)


def test_values_are_stratified_only_on_request():
    spread = {}
    for stratify in (None, True):
        means = []
        for seed in range(40):
            data = ArrayDataModule(X, VALUES, stratify=stratify, split_seed=seed)
            means.append(VALUES[parts(data)["selection"]].mean())
        spread[stratify] = np.std(means)
    assert spread[True] < 0.6 * spread[None]


def test_groups_stay_whole_and_there_is_at_least_one():
    data = ArrayDataModule(X, CLASSES, groups=GROUPS)
    for fold in range(4):
        found = parts(data, fold)
        members = [set(GROUPS[found[part]]) for part in ("train", "selection", "val")]
        assert not members[0] & members[1] and not (members[0] | members[1]) & members[2]
        assert members[1]
    few = np.arange(N) // 30  # four groups: three train, of which one must select
    found = parts(ArrayDataModule(X, RNG.integers(0, 2, N), groups=few), num_folds=4)
    assert [len(set(few[found[part]])) for part in ("train", "selection", "val")] == [2, 1, 1]


@pytest.mark.parametrize(
    ("sizes", "expected"), [((90, 10), 10), ((60, 30, 10), 10), ((20, 40), 20), ((5,) * 20, 15)]
)
def test_the_groups_nearest_to_the_share_are_taken(sizes, expected):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    targets = RNG.integers(0, 2, len(groups))
    for seed in range(20):
        for of in (None, targets):
            _, selected_on = selection(len(groups), 0.15, targets=of, groups=groups, seed=seed)
            assert abs(len(selected_on) - expected) <= (0 if len(sizes) < 20 else 5)


def test_no_class_is_lost_to_the_training_part():
    targets = np.array([0] * 50 + [1] * 50 + [2] * 2)
    folds = np.arange(102) % 3
    x = RNG.normal(size=(102, 2)).astype(np.float32)
    kept = refused = 0
    for seed in range(60):
        data = ArrayDataModule(x, targets, split="predefined", folds=folds, split_seed=seed)
        for fold in range(3):
            try:
                found = parts(data, fold, None, 0.3)
            except ValueError as error:
                assert "all samples of class 2" in str(error)
                refused += 1
                continue
            kept += 1
            both = np.concatenate([found["train"], found["selection"]])
            assert set(targets[found["train"]]) == set(targets[both])
    assert kept > 100 and refused > 5


def test_of_time_series_the_last_rows_before_validation_select():
    for fold in range(4):
        found = parts(ArrayDataModule(X, VALUES, split="time_series"), fold)
        assert found["train"].max() < found["selection"].min()
        assert found["selection"].max() < found["val"].min()


def test_predefined_folds_go_by_groups_if_there_are_any():
    folds = GROUPS % 4
    data = ArrayDataModule(X, CLASSES, split="predefined", folds=folds, groups=GROUPS)
    found = parts(data, 1)
    assert not set(GROUPS[found["train"]]) & set(GROUPS[found["selection"]])


@pytest.mark.parametrize(
    ("data", "num_folds", "reason"),
    [
        (ArrayDataModule(X[:4], VALUES[:4]), 2, "2 training samples are too few"),
        (ArrayDataModule(X[:8], np.repeat([0, 1], [6, 2])), 2, "class 1 has 1"),
        (ArrayDataModule(X, CLASSES, groups=np.arange(N) // 60), 2, "all of one group"),
        (ArrayDataModule(X, CLASSES, groups=CLASSES), 3, "all samples of class"),
    ],
)
def test_what_cannot_be_split_names_the_way_out(data, num_folds, reason):
    with pytest.raises(ValueError, match=f"{reason}.*select='last'"):
        parts(data, num_folds=num_folds)


def test_it_depends_on_split_seed_alone():
    first = parts(ArrayDataModule(X, CLASSES))["selection"]
    pl.seed_everything(7, verbose=False)
    np.testing.assert_array_equal(parts(ArrayDataModule(X, CLASSES))["selection"], first)
    other = parts(ArrayDataModule(X, CLASSES, split_seed=1))["selection"]
    assert not np.array_equal(first, other)


def test_nothing_is_fitted_to_it():
    outlier = X.copy()
    data = ArrayDataModule(outlier, CLASSES)
    rows = parts(data)["selection"]
    before = data.for_fold(0, 4).with_selection(0.15).preprocess
    outlier[rows] = 1e6
    after = ArrayDataModule(outlier, CLASSES).for_fold(0, 4).with_selection(0.15).preprocess
    assert torch.equal(before.scale, after.scale) and torch.equal(before.shift, after.shift)


def test_validation_loads_the_part_that_is_named():
    data = DigitsDataModule(batch_size=100).for_fold(0, 5).with_selection(0.15)
    data.setup("fit")
    sizes = {}
    for data.validate_on in ("selection", "val"):
        sizes[data.validate_on] = sum(len(batch[0]) for batch in data.val_dataloader())
    assert sizes == {"selection": 172, "val": 288}
    data.validate_on = None
    assert data.val_dataloader() == []
