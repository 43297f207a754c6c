import gzip
import hashlib
import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from sklearn import datasets as sklearn_datasets
from sklearn.impute import SimpleImputer
from torchvision import datasets as torchvision_datasets

from dlblocks.data import (
    ArrayDataModule,
    CIFAR10DataModule,
    CIFAR100DataModule,
    CurveDataModule,
    DigitsDataModule,
    FashionMNISTDataModule,
    ImageFolderDataModule,
    MNISTDataModule,
    TabularDataModule,
)
from dlblocks.models import CNNClassifier


def test_digits_are_scikit_learns():
    bunch = sklearn_datasets.load_digits()
    data = DigitsDataModule()
    np.testing.assert_allclose(data.source.inputs[:, 0].numpy() / 255 * 16, bunch.images, atol=0.04)
    np.testing.assert_array_equal(data.source.targets, bunch.target)


# Arrays


def test_arrays_are_shared_and_never_written():
    inputs, targets = np.random.default_rng(0).random((12, 3), dtype=np.float32), np.arange(12) % 3
    kept = inputs.copy()
    data = ArrayDataModule(inputs, targets)
    assert data.source.inputs.numpy().base is not None
    assert np.shares_memory(data.source.inputs.numpy(), inputs)
    data.setup()
    for batch in data.train_dataloader():
        data.on_after_batch_transfer(batch, 0)[0].zero_()
        batch[0].zero_()
    np.testing.assert_array_equal(inputs, kept)


def test_kinds_of_targets():
    x = np.zeros((4, 2))
    assert ArrayDataModule(x, [0, 1, 2, 1]).num_classes == 3
    names = ArrayDataModule(x, ["b", "a", "b", "c"])
    assert names.class_names == ["a", "b", "c"]
    assert names.source.targets.tolist() == [1, 0, 1, 2]
    assert ArrayDataModule(x, np.array([True, False, True, False])).num_classes == 2
    values = ArrayDataModule(x, torch.randn(4, 2))
    assert (values.num_classes, values.out_features) == (None, 2)
    assert ArrayDataModule(x, np.arange(4, dtype=np.uint16)).num_classes == 4


def test_groups_stay_together():
    groups = np.repeat(np.arange(10), 3)
    data = ArrayDataModule(np.zeros((30, 2)), np.arange(30) % 2, groups=groups, test_fraction=0.2)
    found = [set(groups[data.arrays(part)[2]]) for part in ("train", "val", "test")]
    assert not found[0] & found[1]
    assert not (found[0] | found[1]) & found[2]


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (np.array([[0.0, 1], [np.nan, 2], [3, 4]]), [0, 1, 0], r"nan\) in row 1, column 0"),
        (np.array([[0.0, 1], [3, np.inf], [3, 4]]), [0, 1, 0], r"inf\) in row 1, column 1"),
        (np.zeros((3, 2)), [0.0, np.nan, 1], "targets has 1 value"),
        (np.zeros((3, 2)), [0, 1], "equally long"),
        (np.zeros((0, 2)), np.zeros(0, dtype=int), "empty"),
        (np.zeros((3, 2)), [1, 1, 1], "one class only"),
        (np.zeros((3, 2)), [0, -1, 1], "label -1 in row 1"),
        (np.zeros(3), [0, 1, 0], r"shape \(3,\)"),
        (np.zeros((3, 8, 8, 3)), [0, 1, 0], "last axis looks like channels"),
        (np.zeros((3, 2)), np.eye(3, dtype=int), "argmax"),
        (np.array([["a"], ["b"], ["c"]]), [0, 1, 0], "expected numbers"),
        (np.full((3, 2), 1e300), [0, 1, 0], "not finite"),
    ],
)
def test_bad_arrays_are_refused(inputs, targets, message):
    with pytest.raises(ValueError, match=message):
        ArrayDataModule(inputs, targets).setup()


def test_inputs_that_need_a_gradient_are_detached():
    inputs, values = (torch.rand(8, 2, requires_grad=True) for _ in range(2))
    data = ArrayDataModule(inputs, values)
    data.setup()
    assert not data.source.inputs.requires_grad and not data.source.targets.requires_grad
    assert data.columns.targets.shape == (8, 2)


IMAGES = np.zeros((6, 3, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            (IMAGES, [0, 1, 2] * 2),
            (IMAGES[:, :1], [0, 1, 2] * 2),
            r"test_inputs has samples of shape \(1, 4, 4\) and inputs of \(3, 4, 4\)",
        ),
        (
            (IMAGES, [0, 1, 2] * 2),
            (IMAGES / 255, [0, 1, 2] * 2),
            r"test_inputs is torch.float32 and inputs torch.uint8.*same units and dtype",
        ),
        (
            (IMAGES, [0, 1, 2] * 2),
            (IMAGES, [0.0, 1, 2] * 2),
            r"test_targets is torch.float32 and targets torch.int64; give integers in both",
        ),
        (
            (IMAGES, [0.0, 1, 2] * 2),
            (IMAGES, np.zeros((6, 2))),
            r"test_targets has shape \(6, 2\) and targets \(6,\)",
        ),
        (
            (IMAGES, [0, 1, 2] * 2),
            (IMAGES, [0, 1, 3] * 2),
            r"test_targets has label 3 in row 2, but targets has the classes 0 … 2; give class_nam",
        ),
    ],
)
def test_a_test_set_unlike_the_training_set_is_refused(train, test, message):
    with pytest.raises(ValueError, match=message):
        ArrayDataModule(*train, test_inputs=test[0], test_targets=test[1]).setup()


def test_a_test_set_like_the_training_set_is_taken():
    """Of other floats; with named classes that the training set lacks; with fewer classes."""
    x, half = np.zeros((6, 2), np.float32), np.zeros((3, 2), np.float16)
    for targets, names in (([0, 1, 3], list("abcd")), ([0, 0, 0], None)):
        data = ArrayDataModule(
            x, [0, 1, 2] * 2, test_inputs=half, test_targets=targets, class_names=names
        )
        assert len(data.arrays("test")[0]) == 3


def test_label_beyond_the_names_is_refused():
    with pytest.raises(ValueError, match="label 3 in row 2"):
        ArrayDataModule(np.zeros((3, 2)), [0, 1, 3], class_names=["a", "b", "c"]).setup()


def test_values_that_are_not_finite_are_counted_over_all_rows():
    inputs = np.zeros((5, 2**19), dtype=np.float32)  # looked at two rows at a time
    inputs[3, 7], inputs[4, 1], inputs[4, 9] = np.inf, np.nan, np.nan
    with pytest.raises(ValueError, match=r"3 value\(s\) .* first \(inf\) in row 3, column 7"):
        ArrayDataModule(inputs, [0, 1, 0, 1, 0]).setup()


def test_huge_but_finite_values_are_no_infinity():
    big = np.full((4, 2), 3e38, dtype=np.float32)
    assert ArrayDataModule(big, [0, 1, 0, 1]).num_classes == 2


# Array files


@pytest.fixture
def saved(tmp_path):
    """Images as uint8 and features as float32 and float16, in files; and their classes."""
    random = np.random.default_rng(0)
    arrays = {
        "images": random.integers(0, 256, (24, 3, 5, 4), dtype=np.uint8),
        "features": random.random((24, 6), dtype=np.float32),
        "half": random.random((24, 6)).astype(np.float16),
        "targets": np.arange(24) % 3,
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    return arrays


@pytest.mark.parametrize("name", ["images", "features", "half"])
@pytest.mark.parametrize("give", [str, Path, lambda path: np.load(path, mmap_mode="r")])
def test_array_files_give_the_same_as_arrays(tmp_path, saved, name, give):
    plain = ArrayDataModule(saved[name], saved["targets"], batch_size=5, num_folds=3, fold=1)
    inputs, targets = (give(tmp_path / f"{name}.npy") for name in (name, "targets"))
    mapped = ArrayDataModule(
        inputs, targets, batch_size=5, num_folds=3, fold=1, test_inputs=inputs, test_targets=targets
    )
    for data in (plain, mapped):
        data.setup()
    assert mapped.source.inputs.dtype == plain.source.inputs.dtype
    assert torch.equal(mapped.source.test_inputs, plain.source.inputs)
    for loader in ("train_dataloader", "val_dataloader"):
        ours, theirs = (
            [data.on_after_batch_transfer(batch, 0) for batch in getattr(data, loader)()]
            for data in (mapped, plain)
        )
        assert len(ours) == len(theirs) > 1
        for (x, y), (other_x, other_y) in zip(ours, theirs, strict=True):
            assert torch.equal(x, other_x)
            assert torch.equal(y, other_y)


def test_array_files_can_be_given_on_the_command_line(tmp_path, saved):
    parser = ArgumentParser()
    parser.add_class_arguments(ArrayDataModule, "data")
    given = ["--data.inputs", "images.npy", "--data.targets", "targets.npy"]
    data = parser.instantiate_classes(parser.parse_args(given)).data  # in tmp_path
    np.testing.assert_array_equal(data.source.inputs, saved["images"])


def test_a_memory_map_is_shared_and_an_array_that_is_read_only_is_not(tmp_path, saved):
    inputs = np.load(tmp_path / "images.npy", mmap_mode="r")
    for given in (inputs, np.asarray(inputs), inputs[:], inputs[::2]):
        source = ArrayDataModule(given, np.arange(len(given)) % 3).source
        assert source.inputs.data_ptr() == inputs.ctypes.data
    whole = np.load(tmp_path / "images.npy")
    whole.flags.writeable = False
    source = ArrayDataModule(whole, saved["targets"]).source
    assert source.inputs.data_ptr() != whole.ctypes.data


def test_a_map_with_channels_last_is_turned_without_a_copy(tmp_path, saved):
    np.save(tmp_path / "last.npy", saved["images"].transpose(0, 2, 3, 1).copy())
    with pytest.raises(
        ValueError, match=r"inputs has shape \(24, 5, 4, 3\), whose last axis looks"
    ):
        ArrayDataModule(str(tmp_path / "last.npy"), saved["targets"]).setup()
    last = np.load(tmp_path / "last.npy", mmap_mode="r")
    turned = ArrayDataModule(last.transpose(0, 3, 1, 2), saved["targets"])
    np.testing.assert_array_equal(turned.source.inputs, saved["images"])
    assert turned.source.inputs.data_ptr() == last.ctypes.data


def test_names_and_big_endian_numbers_in_files(tmp_path):
    np.save(tmp_path / "names.npy", np.array(["b", "ä", "b", "c"]))
    data = ArrayDataModule(np.zeros((4, 2)), str(tmp_path / "names.npy"))
    assert data.class_names == ["b", "c", "ä"]
    np.save(tmp_path / "values.npy", np.array([0.5, 1, 2, 3], dtype=">f8"))
    data = ArrayDataModule(np.zeros((4, 2)), str(tmp_path / "values.npy"))
    assert data.source.targets.tolist() == [0.5, 1, 2, 3]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 3)), r"dtype float64 and shape \(4, 3\).* save it as float32"),
        (np.zeros((4, 3), dtype=int), "dtype int64"),
        (np.zeros((4, 3, 8, 8), dtype=np.uint16), "dtype uint16"),
        (np.zeros((4, 3), dtype=np.uint8), "dtype uint8 .* float32, or as uint8 if it is images"),
        (np.zeros((4, 3), dtype=bool), "dtype bool"),
        (np.zeros((4, 3), dtype=">f4"), "dtype >f4"),
        (np.zeros((4, 3), dtype=np.complex64), "dtype complex64"),
        (np.asfortranarray(np.zeros((4, 3), dtype=np.float32)), "do not lie one after the other"),
        (np.array([["a"]] * 4), "dtype <U1"),
        (np.array([[None]] * 4), "cannot be mapped .*Python objects"),
        (np.zeros((4, 3, 8), dtype=np.uint8), "dtype uint8"),
        (np.full((4, 3), np.nan, dtype=np.float32), r"12 value\(s\) that are not finite"),
    ],
)
def test_bad_array_files_are_refused(tmp_path, array, message):
    path = tmp_path / "bad.npy"
    np.save(path, array)
    with pytest.raises(ValueError, match=f"inputs.*{message}"):
        ArrayDataModule(str(path), [0, 1, 0, 1]).setup()
    with pytest.raises(ValueError, match=f"test_inputs.*{message}"):
        ArrayDataModule(
            np.zeros((2, 3)), [0, 1], test_inputs=path, test_targets=[0, 1, 0, 1]
        ).setup()


def test_files_that_are_no_array_files_are_refused(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match=r"inputs='.*none\.npy' is no file"):
        ArrayDataModule(str(tmp_path / "none.npy"), [0, 1]).setup()
    with pytest.raises(ValueError, match=r"targets='labels\.csv' is no \.npy file"):
        ArrayDataModule(np.zeros((2, 3)), "labels.csv").setup()
    whole = (tmp_path / "images.npy").read_bytes()
    for name, content in (
        ("empty", b""),
        ("cut", whole[:1000]),
        ("text", b"a,b\n1,2\n"),
        ("pickle", pickle.dumps([1, 2])),
    ):
        (tmp_path / f"{name}.npy").write_bytes(content)
        with pytest.raises(ValueError, match=rf"inputs='.*{name}\.npy' cannot be mapped"):
            ArrayDataModule(tmp_path / f"{name}.npy", saved["targets"]).setup()


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


# Folders of images


def paint(path, colour, size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_image_folder(tmp_path):
    for i in range(4):
        paint(tmp_path / "red" / f"{i}.png", (255, 0, 0))
        paint(tmp_path / "blue" / f"{i}.bmp", (0, 0, 255), size=(8, 30))
    data = ImageFolderDataModule(str(tmp_path), size=(6, 8))
    assert data.class_names == ["blue", "red"]
    assert data.source.inputs.shape == (8, 3, 6, 8)
    assert data.source.inputs.dtype == torch.uint8
    for image, target in zip(data.source.inputs, data.source.targets, strict=True):
        assert (image[0 if target else 2] == 255).all()
    grey = ImageFolderDataModule(str(tmp_path), size=4, in_channels=1)
    assert grey.input_shape == (1, 4, 4)


def test_image_folder_trains_a_cnn_with_a_logger(tmp_path, make_trainer):
    """Lightning refuses hyperparameters of model and data that share a name and differ."""
    for i in range(6):
        paint(tmp_path / "images" / "red" / f"{i}.png", (255, 40 * i, 0))
        paint(tmp_path / "images" / "blue" / f"{i}.png", (0, 40 * i, 255))
    trainer = make_trainer(logger=CSVLogger(tmp_path / "log"), log_every_n_steps=1)
    trainer.fit(
        CNNClassifier(3, 2, channels=[4]),
        datamodule=ImageFolderDataModule(str(tmp_path / "images"), size=8, batch_size=4),
    )
    assert trainer.global_step == 3


def test_image_folder_with_a_test_set(tmp_path):
    for part, count in (("train", 6), ("test", 2)):
        for name in ("a", "b"):
            for i in range(count):
                paint(tmp_path / part / name / f"{i}.png", (i, i, i))
    data = ImageFolderDataModule(str(tmp_path), size=4)
    assert len(data.arrays("test")[0]) == 4
    assert len(data.arrays("train")[0]) + len(data.arrays("val")[0]) == 12


def test_bad_image_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        ImageFolderDataModule(str(tmp_path / "none"), size=4).setup()
    paint(tmp_path / "a" / "good.png", (1, 2, 3))
    paint(tmp_path / "b" / "good.png", (1, 2, 3))
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (9, 9, 9)).save(buffer, "PNG")
    (tmp_path / "b" / "broken.png").write_bytes(buffer.getvalue()[:60])
    with pytest.raises(ValueError, match=r"broken\.png cannot be decoded"):
        ImageFolderDataModule(str(tmp_path), size=4).setup()
    with pytest.raises(ValueError, match="in_channels=2"):
        ImageFolderDataModule(str(tmp_path), size=4, in_channels=2)


@pytest.mark.parametrize("size", [2.5, (8.5, 8), (8, 8, 8), "8", None])
def test_bad_sizes_are_refused(size):
    with pytest.raises(ValueError, match=r"size=.* must be \(height, width\) or one number"):
        ImageFolderDataModule("folder", size=size)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_is_scaled(tmp_path, name):
    pixels = np.arange(65536).reshape(256, 256).astype(np.uint16)
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / name)
    for channels in (1, 3):
        data = ImageFolderDataModule(str(tmp_path), size=256, in_channels=channels)
        expected = np.round(pixels / 65535 * 255)
        assert (data.source.inputs.numpy() == expected).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_images_of_unknown_range_are_refused(tmp_path, dtype):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / folder / "a.tif")
    with pytest.raises(ValueError, match=r"x/a\.tif cannot be .* mode [FI], .*8 or 16 bits"):
        ImageFolderDataModule(str(tmp_path), size=4).setup()


def test_empty_class_folder_is_refused(tmp_path):
    paint(tmp_path / "a" / "good.png", (1, 2, 3))
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError, match="b"):
        ImageFolderDataModule(str(tmp_path), size=4).setup()


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
