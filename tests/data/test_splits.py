"""Ways of splitting, as datamodules offer them; and the fingerprint of the data."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import PredefinedSplit, TimeSeriesSplit

from dlblocks.data import (
    ArrayDataModule,
    CurveDataModule,
    DigitsDataModule,
    MNISTDataModule,
    TabularDataModule,
)
from dlblocks.data._fingerprint import MAX_BYTES, fingerprint

X, Y = np.random.default_rng(0).random((30, 2)), np.arange(30) % 2
GROUPS = np.arange(30) // 3


def validated(data):
    num_folds = data.count_folds()
    return [data.for_fold(k, num_folds).indices("val").numpy() for k in range(num_folds)]


def test_the_data_say_how_many_folds():
    folds = np.tile([2, 0, 1, -1, 2], 6)
    data = ArrayDataModule(X, Y, split="predefined", folds=folds)
    assert data.count_folds() == data.count_folds(3) == 3
    for ours, (_, expected) in zip(validated(data), PredefinedSplit(folds).split(), strict=True):
        np.testing.assert_array_equal(ours, expected)
    third = ArrayDataModule(X, Y, split="predefined", folds=folds, fold=2)  # num_folds not needed
    assert third.indices("val").tolist() == np.flatnonzero(folds == 2).tolist()
    data = ArrayDataModule(X, Y, split="leave_one_group_out", groups=GROUPS, test_fraction=0.1)
    assert data.count_folds() == 9
    assert all(len(set(GROUPS[val])) == 1 for val in validated(data))
    with pytest.raises(ValueError, match="num_folds=5, but split='leave_one_group_out' gives 9"):
        data.count_folds(5)
    with pytest.raises(ValueError, match=r"fold=3 is outside \[0, 2\]"):
        ArrayDataModule(X, Y, split="predefined", folds=folds, fold=3).setup()
    plain = ArrayDataModule(X, Y, num_folds=7)
    assert [plain.count_folds(), plain.count_folds(3), ArrayDataModule(X, Y).count_folds()] == [
        7, 3, 5,
    ]  # fmt: skip


def test_time_series_of_a_datamodule():
    data = ArrayDataModule(X, Y, split="time_series")
    expected = [val for _, val in TimeSeriesSplit(5).split(X)]
    for ours, theirs in zip(validated(data), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    data = ArrayDataModule(X, Y, split="time_series", test_fraction=0.2, val_fraction=0.25)
    assert data.indices("val").tolist() == [18, 19, 20, 21, 22, 23]
    assert data.indices("test").tolist() == [24, 25, 26, 27, 28, 29]


def test_time_series_of_digits_and_of_torchvision_s_sets():
    data = DigitsDataModule(split="time_series", num_folds=3, fold=2)
    assert data.indices("train").max() < data.indices("val").min()
    assert data.indices("val").max() < data.indices("test").min()
    assert MNISTDataModule(split="time_series", num_folds=3).split == "time_series"
    with pytest.raises(ValueError, match="'leave_one_group_out' needs groups"):
        DigitsDataModule(split="leave_one_group_out").setup()


def test_values_are_stratified_if_asked_for():
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=200)
    x = rng.random((200, 2))

    def spread(stratify):
        data = ArrayDataModule(x, values, stratify=stratify)
        return np.std([values[val].mean() for val in validated(data)])

    assert spread(True) < 0.8 * spread(False)
    assert spread(None) == spread(False)
    column = CurveDataModule(num_samples=50, stratify=True, num_folds=2)  # targets (N, 1)
    assert len(column.indices("val")) in (19, 20, 21)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "random"}, "split='random' is not known"),
        ({"split": "time_series", "stratify": True}, "stratify=True has no effect"),
        ({"split": "leave_one_group_out"}, "needs groups"),
        ({"split": "predefined"}, "needs folds"),
        ({"folds": GROUPS}, "use split='predefined'"),
        ({"groups": np.zeros(30), "num_folds": 2}, "at least 2 groups, but groups has 1"),
        ({"groups": GROUPS[:7]}, r"groups has shape \(7,\)"),
        ({"num_folds": 1}, "num_folds=1 is outside"),
        ({"num_folds": 31, "stratify": False}, r"num_folds=31 is outside \[2, 30\]"),
        ({"split": "time_series", "num_folds": 30}, r"num_folds=30 is outside \[2, 29\]"),
    ],
)
def test_bad_splits_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ArrayDataModule(X, Y, **arguments).setup()


def test_several_labels_cannot_be_stratified():
    labels = np.random.default_rng(0).integers(0, 2, (30, 4)).astype(np.float32)
    ArrayDataModule(X, labels, num_folds=3).setup()
    with pytest.raises(ValueError, match=r"targets has shape \(30, 4\), several labels"):
        ArrayDataModule(X, labels, num_folds=3, stratify=True).setup()


def test_a_column_of_folds(tmp_path):
    text = "x,who,part,y\n" + "".join(
        f"{i},{'abcdef'[i // 2]},{part},{i % 2}\n"
        for i, part in enumerate(["10", "10", "", "", "9", "9", "NA", "-1", "10", "10", "9", "9"])
    )
    (tmp_path / "table.csv").write_text(text)
    common = {"data": str(tmp_path / "table.csv"), "target": "y", "group": "who"}
    data = TabularDataModule(
        **common, fold_column="part", split="predefined", test_fraction=0, normalize=False
    )
    assert data.source.feature_names == ["x"]
    assert [val.tolist() for val in validated(data)] == [[4, 5, 10, 11], [0, 1, 8, 9]]
    data = TabularDataModule(**common, split="leave_one_group_out", test_fraction=0)
    with pytest.raises(ValueError, match="fold_column='party' is not a column"):
        TabularDataModule(**common, fold_column="party", split="predefined").setup()
    (tmp_path / "table.csv").write_text(text.replace("3,b,", "3,,"))
    with pytest.raises(ValueError, match="row 4 has no value in column 'who'"):
        data.setup()
    with pytest.raises(ValueError, match="fold_column='part' has no effect on data='iris'"):
        TabularDataModule("iris", fold_column="part")


def test_fingerprint_sees_every_change():
    def of(**changes):
        arguments = {"inputs": X, "targets": Y, "groups": None, "folds": None, **changes}
        split = "predefined" if arguments["folds"] is not None else "kfold"
        return ArrayDataModule(**arguments, split=split).fingerprint()

    other = X.copy()
    other[7, 1] += 1e-3
    found = [
        of(), of(inputs=other), of(inputs=X[:, ::-1]), of(inputs=X.astype(np.float16)),
        of(inputs=X[:-1], targets=Y[:-1]), of(targets=1 - Y), of(targets=Y.astype(np.float32)),
        of(groups=GROUPS), of(groups=GROUPS.astype(str)), of(folds=GROUPS),
        DigitsDataModule().fingerprint(),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert of() == of(inputs=torch.from_numpy(X), targets=torch.from_numpy(Y))
    settings = DigitsDataModule(split_seed=3, num_folds=5, fold=2, batch_size=7, normalize=False)
    assert settings.fingerprint() == found[-1]


def test_fingerprint_of_a_large_map_reads_little_of_it(tmp_path):
    size = 40 * MAX_BYTES  # a sparse file: it takes no room on the disk
    shape = (size // 2**20, 2**20)
    large = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=shape)

    def of():
        return fingerprint({"inputs": torch.from_numpy(large)}, {"targets": np.zeros(3)})

    first = of()
    assert first == of()
    for row in (0, shape[0] - 1):
        large[row, 5] += 1
        assert of() != first
        large[row, 5] -= 1
    large[1, 5] += 1  # between the rows that are looked at, as the docstring says
    assert of() == first
