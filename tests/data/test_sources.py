import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch
from sklearn import datasets as sklearn_datasets
from sklearn.impute import SimpleImputer
from torchvision import datasets as torchvision_datasets

from dlblocks.data import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    CurveDataModule,
    DigitsDataModule,
    FashionMNISTDataModule,
    MNISTDataModule,
    TabularDataModule,
)


def test_digits_are_scikit_learns():
    bunch = sklearn_datasets.load_digits()
    data = DigitsDataModule()
    np.testing.assert_allclose(data.source.inputs[:, 0].numpy() / 255 * 16, bunch.images, atol=0.04)
    np.testing.assert_array_equal(data.source.targets, bunch.target)


# Tables


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "diabetes"])
def test_tables_of_scikit_learn(name):
    loader = getattr(sklearn_datasets, f"load_{name}")
    bunch = loader(scaled=False) if name == "diabetes" else loader()
    data = TabularDataModule(name, num_folds=3)
    np.testing.assert_allclose(data.source.inputs, bunch.data.astype(np.float32))
    np.testing.assert_allclose(data.source.targets, bunch.target)
    assert (data.num_classes is None) == (name == "diabetes")
    data.setup()


CSV = """size,colour,age,label,patient
1.5,red,3,yes,a
2.5,,,no,a
3.5,blue,5,yes,b
4.5,red,1,no,c
5.5,green,NA,yes,d
6.5,blue,8,no,e
7.5,red,2,yes,f
8.5,red,9,no,g
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(CSV)
    return str(path)


def test_csv_encodes_and_imputes_from_the_training_rows(table):
    data = TabularDataModule(csv=table, target="label", missing="impute", test_fraction=0)
    data.setup()
    names = data.source.feature_names
    assert names[:5] == ["size", "colour=blue", "colour=green", "colour=red", "age"]
    assert data.class_names == ["no", "yes"]
    train_inputs, _, rows = data.arrays("train")
    raw_age = data.source.inputs[:, 4:5].numpy()
    expected = SimpleImputer(strategy="median").fit(raw_age[rows]).transform(raw_age)
    inputs = data.raw_inputs("train")
    np.testing.assert_allclose(inputs[:, 4:5], expected)
    colours = data.source.inputs[rows][:, 1:4]
    most = colours[~colours[:, 0].isnan()].sum(0).argmax()
    assert inputs[1, 1:4].tolist() == torch.eye(3)[most].tolist()
    assert data.source.inputs[1, 1:4].isnan().all()  # the source itself is left as it is
    assert len(train_inputs) + len(data.arrays("val")[0]) == 8


def test_csv_imputation_sees_no_validation_row(tmp_path):
    rows = [f"{i if i % 7 else ''},{i % 2}" for i in range(1, 41)]
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "\n".join(rows))
    data = TabularDataModule(csv=str(path), target="y", missing="impute", test_fraction=0)
    before = data.raw_inputs("train")[data.arrays("train")[2]]
    for row in data.arrays("val")[2].tolist():
        rows[row] = f"{1e6},{rows[row].split(',')[1]}"
    path.write_text("x,y\n" + "\n".join(rows))
    spoiled = TabularDataModule(csv=str(path), target="y", missing="impute", test_fraction=0)
    assert torch.equal(spoiled.raw_inputs("train")[spoiled.arrays("train")[2]], before)


def test_csv_groups_and_tasks(table):
    data = TabularDataModule(csv=table, target="label", group="patient", missing="impute")
    assert "patient=a" not in data.source.feature_names
    data.setup()
    assert TabularDataModule(csv=table, target="size", missing="impute").num_classes is None
    forced = TabularDataModule(csv=table, target="size", task="classification", missing="impute")
    assert forced.num_classes == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "labell"}, "did you mean 'label'"),
        ({"target": "label"}, "row 2 has no value in column 'colour'; set missing='impute'"),
        ({"target": "age"}, "row 2 has no value in column 'age'"),
        ({"target": "label", "group": "who"}, "group='who' is no column"),
        ({"target": "colour", "task": "regression"}, "has no value in column 'colour'"),
    ],
)
def test_bad_tables_are_refused(table, arguments, message):
    with pytest.raises(ValueError, match=message):
        TabularDataModule(csv=table, **arguments).setup()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", "row 2 has 1 cells"),
        ("a,a\n1,2\n", "two columns named 'a'"),
        ("a,b\n", "no rows"),
        ("b\n1\n2\n", "no column beside target"),
        ("a,b\ninf,0\n1,1\n1,0\n2,1\n", r"row 0, column 0 \('a'\)"),
        ("a,b\n,0\n,1\n", "column 'a'"),
    ],
)
def test_bad_csv_files_are_refused(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        TabularDataModule(csv=str(path), target="b").setup()


def test_bad_table_arguments():
    with pytest.raises(ValueError, match="give one of them"):
        TabularDataModule()
    with pytest.raises(ValueError, match="did you mean 'wine'"):
        TabularDataModule("wines")
    with pytest.raises(ValueError, match="needs target="):
        TabularDataModule(csv="x.csv")
    with pytest.raises(ValueError, match="has no effect"):
        TabularDataModule("wine", target="x")
    with pytest.raises(FileNotFoundError, match="is no file"):
        TabularDataModule(csv="nowhere.csv", target="x").setup()


# Vision: small files in the true format


def idx(array):
    kind = struct.pack(">HBB", 0, 8, array.ndim)
    return kind + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("cls", [MNISTDataModule, FashionMNISTDataModule])
def test_mnist_files(cls, tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / cls.dataset_name / "raw"
    folder.mkdir(parents=True)
    written = {}
    for name, count in (("train", 40), ("t10k", 20)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            (folder / f"{name}-{kind}-ubyte").write_bytes(idx(array))
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
        written[name] = images
    data = cls(str(tmp_path), download=False, num_folds=2)
    assert data.input_shape == (1, 28, 28)
    assert data.num_classes == 10
    inputs, targets, index = data.arrays("test")
    np.testing.assert_array_equal(inputs[:, 0], written["t10k"])
    assert targets.tolist() == [i % 10 for i in range(20)]
    assert index.tolist() == list(range(20))
    assert len(data.arrays("train")[0]) + len(data.arrays("val")[0]) == 40


@pytest.mark.parametrize("cls", [CIFAR10DataModule, CIFAR100DataModule])
def test_cifar_files(cls, tmp_path, monkeypatch):
    theirs = getattr(torchvision_datasets, cls.dataset_name)
    folder = tmp_path / theirs.base_folder
    folder.mkdir()
    key = theirs.meta["key"]
    count = 10 if key == "label_names" else 100
    label_key = "labels" if count == 10 else "fine_labels"
    random = np.random.default_rng(0)
    images, md5 = {}, {}

    def write(name, value):
        (folder / name).write_bytes(pickle.dumps(value))
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    for name, _ in theirs.train_list + theirs.test_list:
        images[name] = random.integers(0, 256, (2 * count, 3072), dtype=np.uint8)
        write(name, {"data": images[name], label_key: [i % count for i in range(2 * count)]})
    write(theirs.meta["filename"], {key: [f"class {i}" for i in range(count)]})
    # torchvision knows the true files by their checksums; these are ours.
    for attribute in ("train_list", "test_list"):
        entries = [[name, md5[name]] for name, _ in getattr(theirs, attribute)]
        monkeypatch.setattr(theirs, attribute, entries)
    meta = {**theirs.meta, "md5": md5[theirs.meta["filename"]]}
    monkeypatch.setattr(theirs, "meta", meta)

    data = cls(str(tmp_path), download=False)
    assert data.input_shape == (3, 32, 32)
    assert data.class_names == [f"class {i}" for i in range(count)]
    (test_name, _), *_ = theirs.test_list
    np.testing.assert_array_equal(data.arrays("test")[0], images[test_name].reshape(-1, 3, 32, 32))


def test_missing_vision_files_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not hold MNIST .*download=True"):
        MNISTDataModule(str(tmp_path), download=False).setup()


# The curve


def test_curve():
    data = CurveDataModule(num_samples=20_000, noise=0.1)
    x, y = data.source.inputs.double().numpy(), data.source.targets.double().numpy()
    residual = y - np.exp(-(x**2)) * np.cos(10 * x)
    assert x.shape == y.shape == (20_000, 1)
    assert abs(residual.mean()) < 0.003
    assert abs(residual.std() - 0.1) < 0.003
    assert np.abs(x).max() <= 2
    again = CurveDataModule(num_samples=20_000, noise=0.1)
    assert torch.equal(again.source.targets, data.source.targets)
    with pytest.raises(ValueError, match="must be below"):
        CurveDataModule(low=1, high=0)
