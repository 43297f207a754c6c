"""Exact copies of samples: counted across folds, and kept together."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from torch.utils.data import Dataset, TensorDataset

from dlblocks.data import (
    ArrayDataModule,
    CIFAR10DataModule,
    DigitsDataModule,
    FoldedDataModule,
    ImageFolderDataModule,
    MNISTDataModule,
    TabularDataModule,
    holdout,
    kfold,
)
from dlblocks.data._fingerprint import row_keys

RNG = np.random.default_rng(0)
ORIGINAL = RNG.integers(0, 40, 90)  # of which sample each is a copy
X = RNG.normal(size=(40, 5)).astype(np.float32)[ORIGINAL]
Y = RNG.integers(0, 2, 90)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32, np.float64])
def test_equal_rows_have_equal_keys(dtype):
    rows = RNG.integers(0, 3, (200, 2, 2)).astype(dtype)
    keys = row_keys(rows)
    expected = np.unique(rows.reshape(200, -1), axis=0, return_inverse=True)[1]
    np.testing.assert_array_equal(keys[:, None] == keys, expected[:, None] == expected)
    np.testing.assert_array_equal(row_keys(torch.from_numpy(rows)), keys)
    turned = rows.transpose(0, 2, 1)  # not contiguous
    np.testing.assert_array_equal(row_keys(turned), row_keys(turned.copy()))


def test_keys_of_odd_rows():
    zero, minus, nan, again = row_keys(np.array([[0.0], [-0.0], [np.nan], [np.nan]]))
    assert zero == minus != nan == again
    assert (
        row_keys(torch.zeros(3, 2, dtype=torch.bfloat16)).tolist()
        == [row_keys(torch.zeros(1, 2, dtype=torch.bfloat16))[0]] * 3
    )
    one, two, three = row_keys(np.array(["a", "b", "a"]))
    assert one == three != two
    one, two, three = row_keys([torch.zeros(2), torch.zeros(1, 2), torch.zeros(2).double()])
    assert len({one, two, three}) == 3  # shape and dtype count
    assert row_keys(torch.zeros(0, 3)).shape == (0,)
    assert len(set(row_keys(torch.zeros(4, 0)))) == 1
    big = np.zeros((3000, 2**11), dtype=np.uint8)  # more than one chunk
    big[2999, -1] = 1
    assert len(set(row_keys(big).tolist())) == 2


def slow_count(x, splits):
    rows = [tuple(np.ravel(row).tolist()) for row in x]
    return sum(
        sum(rows[i] in {rows[j] for j in fold["train"]} for i in fold["val"]) for fold in splits
    )


def together(data, num_folds=4):
    """Whether no two parts of a fold have equal inputs, and every sample is in one part."""
    keys = data.input_keys()
    for fold in data.splits(num_folds):
        parts = [set(keys[rows].tolist()) for rows in fold.values()]
        if sum(map(len, parts)) != len(set(keys.tolist())):
            return False
        if sum(map(len, fold.values())) != len(keys):
            return False
    return True


MAKE = {
    "arrays": lambda **k: ArrayDataModule(X, Y, **k),
    "images": lambda **k: ArrayDataModule(
        (X[:, :4].reshape(-1, 1, 2, 2) * 40).astype("u1"), Y, **k
    ),
    "folded": lambda **k: FoldedDataModule(
        TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), **k
    ),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("split", [
    {}, {"split": "time_series"}, {"test_fraction": 0.2}, {"stratify": False},
    {"split": "predefined", "folds": np.arange(90) % 4 - 1},
])  # fmt: skip
def test_duplicates_are_counted(name, split):
    data = MAKE[name](**split)
    num_folds = 3 if "folds" in split else 4
    for repeat in (0, 1) if "split" not in split else (0,):
        found = data.count_duplicates(num_folds, repeat=repeat)
        assert found == slow_count(X, data.splits(num_folds, repeat=repeat)) > 10


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("split", [{}, {"test_fraction": 0.2}, {"stratify": False}])
def test_copies_are_kept_together(name, split):
    assert not together(MAKE[name](**split))
    data = MAKE[name](groups="duplicates", **split)
    assert together(data)
    assert data.count_duplicates(4) == 0
    assert slow_count(X, data.splits(4)) == 0
    whole = data.without_validation()
    keys = data.input_keys()
    assert not set(keys[whole.indices("train")]) & set(keys[whole.indices("test")])
    selecting = data.for_fold(0, 4).with_selection(0.15)
    parts = [set(keys[selecting.indices(part)]) for part in ("train", "selection", "val", "test")]
    assert all(parts[:3])
    assert sum(map(len, parts)) == len(set(keys.tolist()))
    inner = data.subset(data.splits(4)[0]["train"])
    assert together_within(inner, keys)


def together_within(data, keys):
    return all(not set(keys[f["train"]]) & set(keys[f["val"]]) for f in data.splits(3))


def test_folds_of_copies_are_scikit_learns_of_the_different_samples():
    first, copy_of = np.unique(ORIGINAL, return_index=True, return_inverse=True)[1:]
    for splitter, targets in ((StratifiedKFold, Y), (KFold, None)):
        found = kfold(90, 4, targets=targets, groups=ORIGINAL, copies=True, seed=3)
        expected = splitter(4, shuffle=True, random_state=3).split(first, Y[first])
        for (train, val), (their_train, their_val) in zip(found, expected, strict=True):
            np.testing.assert_array_equal(train, np.flatnonzero(np.isin(copy_of, their_train)))
            np.testing.assert_array_equal(val, np.flatnonzero(np.isin(copy_of, their_val)))
    rest, held_out = holdout(90, 0.25, targets=Y, groups=ORIGINAL, copies=True, seed=3)
    _, theirs = train_test_split(
        np.arange(len(first)), test_size=round(len(first) / 4), random_state=3, stratify=Y[first]
    )
    np.testing.assert_array_equal(held_out, np.flatnonzero(np.isin(copy_of, theirs)))
    assert len(rest) + len(held_out) == 90


def test_tables_digits_and_image_folders(tmp_path):
    rows = [f"{a},{b},{'no' if i % 2 else 'yes'}" for i, (a, b) in enumerate(
        zip(ORIGINAL, ["", *"xyxyxyxy"] * 10, strict=True))]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(["a,b,label", *rows]))
    table = {"data": str(tmp_path / "t.csv"), "target": "label", "missing": "impute"}
    assert TabularDataModule(**table).count_duplicates(4) > 0
    data = TabularDataModule(**table, groups="duplicates")
    assert together(data)
    assert data.hparams["groups"] == "duplicates"
    assert DigitsDataModule().count_duplicates(5) == 0  # the data have none
    assert together(DigitsDataModule(groups="duplicates"))
    for i in range(12):
        (tmp_path / "root" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        grey = 20 * (i // 4)  # four copies of each
        Image.new("L", (8, 8), grey).save(tmp_path / "root" / f"class{i % 2}" / f"{i}.png")
    folder = {"root": str(tmp_path / "root"), "size": 4, "stratify": False}
    assert ImageFolderDataModule(**folder).count_duplicates(3) > 0
    data = ImageFolderDataModule(**folder, groups="duplicates")
    assert together(data, 3)
    assert data.hparams["groups"] == "duplicates"
    for other in (MNISTDataModule, CIFAR10DataModule):
        assert other(str(tmp_path), groups="duplicates").hparams["groups"] == "duplicates"


class Files(Dataset):
    def __init__(self):
        self.targets = [0, 1] * 10

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return torch.zeros(3), self.targets[i]


def test_what_is_not_known_or_cannot_be(monkeypatch):
    assert FoldedDataModule(Files()).count_duplicates(2) is None
    with pytest.raises(ValueError, match="Files holds no arrays"):
        FoldedDataModule(Files(), groups="duplicates", num_folds=2).setup("fit")
    for name, make in MAKE.items():
        with pytest.raises(ValueError, match="groups='duplicate' is not known; did you mean"):
            make(groups="duplicate")
        for split in ("time_series", "leave_one_group_out"):
            with pytest.raises(ValueError, match=f"groups='duplicates'.*{split}"):
                make(groups="duplicates", split=split, num_folds=2).setup("fit")
        with pytest.raises(ValueError, match="trains on and validates group"):
            make(groups="duplicates", split="predefined", folds=np.arange(90) % 3).setup("fit")
        make(groups="duplicates", split="predefined", folds=ORIGINAL % 3).setup("fit")
        assert name
    with pytest.raises(ValueError, match="give one"):
        TabularDataModule("t.csv", target="y", group="g", groups="duplicates")
    monkeypatch.setattr("dlblocks.data._source_data.MAX_SEARCHED_BYTES", 90 * 5 * 4 - 1)
    assert ArrayDataModule(X, Y).count_duplicates(4) is None
    assert together_within(ArrayDataModule(X, Y, groups="duplicates"), row_keys(X))  # as asked
