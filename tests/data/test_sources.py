import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch
from sklearn import datasets as sklearn_datasets
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
