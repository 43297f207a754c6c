"""A datamodule confined to some rows: what inner folds of a nested cross-validation are made of."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    PredefinedSplit,
    StratifiedKFold,
    TimeSeriesSplit,
)
from torch.utils.data import TensorDataset

from dlblocks.data import (
    ArrayDataModule,
    CurveDataModule,
    DigitsDataModule,
    FoldedDataModule,
    TabularDataModule,
)

N = 90
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 2)).astype(np.float32)
LABELS = RNG.integers(0, 3, N)
GROUPS = RNG.integers(0, 9, N)
ROWS = np.sort(RNG.permutation(N)[:70])
SHUFFLED = {"shuffle": True, "random_state": 4}
SPLITTERS = {
    "stratified": ({}, 3, StratifiedKFold(3, **SHUFFLED)),
    "plain": ({"stratify": False}, 3, KFold(3, **SHUFFLED)),
    "groups": ({"groups": GROUPS, "stratify": False}, 3, GroupKFold(3, **SHUFFLED)),
    "time": ({"split": "time_series"}, 3, TimeSeriesSplit(3)),
    "leave one out": (
        {"split": "leave_one_group_out", "groups": GROUPS}, None, LeaveOneGroupOut(),
    ),
    "predefined": (
        {"split": "predefined", "folds": GROUPS - 1}, None, PredefinedSplit(GROUPS[ROWS] - 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("name", SPLITTERS)
def test_rows_are_split_as_scikit_learn_splits_them_alone(name, foreign):
    arguments, num_folds, splitter = SPLITTERS[name]
    if foreign:
        pair = TensorDataset(torch.from_numpy(X), torch.from_numpy(LABELS))
        data = FoldedDataModule(pair, split_seed=4, **arguments)
    else:
        data = ArrayDataModule(X, LABELS, split_seed=4, **arguments)
    part = data.subset(RNG.permutation(ROWS))
    found = part.splits(num_folds)
    groups = GROUPS[ROWS] if "groups" in arguments else None
    expected = splitter.split(X[ROWS], LABELS[ROWS], groups)
    for fold, (train, val) in enumerate(expected):
        np.testing.assert_array_equal(found[fold]["train"], ROWS[train])
        np.testing.assert_array_equal(found[fold]["val"], ROWS[val])
        mine = part.for_fold(fold, num_folds)
        np.testing.assert_array_equal(mine.indices("train"), ROWS[train])
        np.testing.assert_array_equal(mine.indices("val"), ROWS[val])
    assert len(found) == fold + 1
    np.testing.assert_array_equal(part.without_validation().indices("train"), ROWS)
    assert len(part.without_validation().indices("val")) == 0
    assert part.fingerprint() == data.fingerprint()
    assert part.class_names == data.class_names
    assert data.development is None  # left as it was


def test_batches_are_of_those_rows_and_normalised_by_those_that_train():
    part = ArrayDataModule(X, LABELS, batch_size=8, num_folds=2).subset(ROWS)
    train = part.indices("train").numpy()
    loaded = torch.cat([part.transform(batch[0]) for batch in part.train_dataloader()])
    expected = (X[train] - X[train].mean(0)) / X[train].std(0)
    np.testing.assert_allclose(np.sort(loaded, 0), np.sort(expected, 0), atol=1e-5)
    inside = torch.cat([batch[0] for batch in part.val_dataloader()])
    np.testing.assert_array_equal(inside, X[part.indices("val")])


@pytest.mark.parametrize(
    "make", [CurveDataModule, DigitsDataModule, lambda: TabularDataModule("wine")]
)
def test_the_test_set_stays(make):
    data = make()
    development = data.without_validation().indices("train").numpy()
    rows = development[::2]
    part = data.subset(rows)
    for one in (part, part.for_fold(1, 3), part.without_validation()):
        np.testing.assert_array_equal(one.indices("test"), data.indices("test"))
    seen = np.concatenate([part.for_fold(k, 3).indices("val") for k in range(3)])
    np.testing.assert_array_equal(np.sort(seen), rows)
    within = part.subset(rows[:50])
    np.testing.assert_array_equal(within.without_validation().indices("train"), rows[:50])
    with pytest.raises(ValueError, match=r"not in the development set of .* \(1 such rows"):
        part.subset([rows[0], development[1]])
    with pytest.raises(ValueError, match="not in the development set"):
        data.subset(data.indices("test"))


def test_missing_cells_are_filled_in_from_training_rows_alone(tmp_path):
    cells = [str(i) if i % 5 else "" for i in range(20)]
    lines = ["a,y\n", *(f"{cell},{i % 2}\n" for i, cell in enumerate(cells))]
    (tmp_path / "table.csv").write_text("".join(lines))
    data = TabularDataModule("table.csv", target="y", missing="impute", test_fraction=0)
    part = data.subset(range(8)).for_fold(0, 2)
    known = [i for i in part.indices("train").tolist() if i % 5]
    assert part.raw_inputs("val")[0, 0].isnan()  # raw; the model fills it in
    assert part.preprocess.fill[0] == np.median(known)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows has shape"),
        ([[1, 2]], r"rows has shape \(1, 2\)"),
        ([0.5, 1.0], "dtype float64"),
        ([True, False], "dtype bool"),
        ([3, 4, 3], "rows has 3 2 times"),
        ([3, N], f"row {N} is not in the development set of {N} samples"),
        ([-1, 2], "row -1 is not in the development set"),
    ],
)
def test_rows_that_are_none(rows, message):
    with pytest.raises(ValueError, match=message):
        ArrayDataModule(X, LABELS).subset(rows)


def test_all_rows_train_where_no_single_split_is_possible():
    """`without_validation` does not split: three groups allow no fifth."""
    data = ArrayDataModule(X, LABELS, groups=GROUPS % 3)
    assert len(data.without_validation().indices("train")) == N


@pytest.mark.parametrize("foreign", [False, True])
def test_training_rows_are_drawn_with_repeats(foreign):
    inputs, targets = torch.from_numpy(X), torch.from_numpy(LABELS)
    if foreign:
        data = FoldedDataModule(TensorDataset(inputs, targets, torch.arange(N)), targets=LABELS)
    else:
        data = ArrayDataModule(X, LABELS, batch_size=16)
    train = data.indices("train")
    rows = np.random.default_rng(1).choice(train.numpy(), len(train))
    drawn = data.with_train_indices(rows, shuffle_seed=7)
    assert sorted(drawn.indices("train").tolist()) == sorted(rows.tolist())
    assert set(drawn.indices("oob").tolist()) == set(train.tolist()) - set(rows.tolist())
    for part in ("val", "test"):
        assert torch.equal(drawn.indices(part), data.indices(part))
    assert torch.equal(data.indices("train"), train)
    seen = torch.cat([batch[0] for batch in drawn.train_dataloader()])
    seen = seen[:, 0].sort().values
    torch.testing.assert_close(seen, inputs[torch.from_numpy(rows)][:, 0].sort().values)
    assert torch.equal(drawn.train_targets(), targets[torch.from_numpy(rows)])
    assert drawn.shuffle_seed == drawn.hparams["shuffle_seed"] == 7
    assert data.shuffle_seed == data.hparams["shuffle_seed"] == 0
    if not foreign:
        scale, shift = drawn.preprocess.scale, drawn.preprocess.shift
        values = X[rows].astype(np.float64)
        np.testing.assert_allclose(1 / scale, values.std(0), rtol=1e-5)
        np.testing.assert_allclose(-shift / scale, values.mean(0), rtol=1e-4, atol=1e-6)
    # Whatever sets folds afterwards starts anew.
    assert torch.equal(drawn.for_fold(0, None).indices("train"), train)
    with pytest.raises(ValueError, match="not in the training part"):
        data.with_train_indices(data.indices("val"))
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        data.with_train_indices([])
