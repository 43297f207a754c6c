import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from dlblocks.data import (
    ArrayDataModule,
)

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
        (np.zeros((3, 2)), [0, 1], "lengths must be equal"),
        (np.zeros((0, 2)), np.zeros(0, dtype=int), "empty"),
        (np.zeros((3, 2)), [1, 1, 1], r"only one class \('1'\)"),
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


def test_columns_that_are_not_finite_are_named():
    inputs = np.zeros((30, 12))
    inputs[3, 2], inputs[5, 7] = np.nan, np.inf
    data = ArrayDataModule(inputs, np.arange(30) % 2)
    with pytest.raises(ValueError, match=r"2 value.*row 3, column 2; they are in columns 2, 7; "):
        data.setup()
    inputs[:, :11] = np.nan
    with pytest.raises(ValueError, match="in columns 0, 1, 2, 3, 4, 5, 6, 7 and 3 more"):
        ArrayDataModule(inputs, np.arange(30) % 2).setup()
    values = np.where(np.arange(30) == 4, np.nan, 1.0)
    with pytest.raises(ValueError, match=r"targets has 1 value.*row 4; remove these rows.$"):
        ArrayDataModule(np.zeros((30, 2)), values).setup()


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
            r"test_inputs is .* shape \(6, 1, 4, 4\) and inputs .* of \(6, 3, 4, 4\)",
        ),
        (
            (IMAGES, [0, 1, 2] * 2),
            (IMAGES / 255, [0, 1, 2] * 2),
            r"test_inputs is torch.float32 .*inputs torch.uint8.*same units and shape",
        ),
        (
            (IMAGES, [0, 1, 2] * 2),
            (IMAGES, [0.0, 1, 2] * 2),
            r"test_targets is torch.float32 .*and targets torch.int64",
        ),
        (
            (IMAGES, [0.0, 1, 2] * 2),
            (IMAGES, np.zeros((6, 2))),
            r"test_targets is .* shape \(6, 2\) and targets .* of \(6,\)",
        ),
        (
            (IMAGES, [0, 1, 2] * 2),
            (IMAGES, [0, 1, 3] * 2),
            "test_targets has label 3 in row 2, which is not among the classes '0', '1', '2'; ",
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
        (np.asfortranarray(np.zeros((4, 3), dtype=np.float32)), "samples are not contiguous"),
        (np.array([["a"]] * 4), "dtype <U1"),
        (np.array([[None]] * 4), "cannot be mapped .*Python objects"),
        (np.zeros((4, 3, 8), dtype=np.uint8), "dtype uint8"),
        (np.full((4, 3), np.nan, dtype=np.float32), r"12 value\(s\) that are not finite"),
    ],
)
def test_bad_array_files_are_refused(tmp_path, array, message):
    path = tmp_path / "bad.npy"
    np.save(path, array)
    kind = "features" if array.ndim < 4 else "image"
    with pytest.raises(ValueError, match=f"inputs.*{message}"):
        ArrayDataModule(str(path), [0, 1, 0, 1], input_kind=kind).setup()
    with pytest.raises(ValueError, match=f"test_inputs.*{message}"):
        ArrayDataModule(
            np.zeros((2, 3)), [0, 1], test_inputs=path, test_targets=[0, 1, 0, 1],
            input_kind="features",
        ).setup()  # fmt: skip


def test_files_that_are_no_array_files_are_refused(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match=r"inputs='.*none\.npy' does not exist"):
        ArrayDataModule(str(tmp_path / "none.npy"), [0, 1]).setup()
    with pytest.raises(ValueError, match=r"targets='labels\.csv' is not a \.npy file"):
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
