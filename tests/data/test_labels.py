"""Labels of any values become classes, and the mapping is kept."""

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.model_selection import StratifiedKFold
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dlblocks.crossval import cross_validate
from dlblocks.data import ArrayDataModule, FoldedDataModule
from dlblocks.data._labels import encode_labels, read_labels
from dlblocks.models import Classifier, MLPClassifier


@pytest.mark.parametrize(
    ("values", "classes", "names"),
    [
        # Whole numbers of any kind and value.
        ([1, 2, 3, 1], [0, 1, 2, 0], ["1", "2", "3"]),
        (np.array([-1, 1, -1]), [0, 1, 0], ["-1", "1"]),
        (torch.tensor([3, 7, 7]), [0, 1, 1], ["3", "7"]),
        (np.array([255, 0], np.uint8), [1, 0], ["0", "255"]),
        (np.array([2**64 - 1, 2**63], np.uint64), [1, 0], [str(2**63), str(2**64 - 1)]),
        (np.array([10, 9, 100], dtype=">i4"), [1, 0, 2], ["9", "10", "100"]),
        # Those that count from 0 stay, and a class may lack samples.
        ([2, 0, 1], [2, 0, 1], ["0", "1", "2"]),
        ([0, 3, 1, 5], [0, 3, 1, 5], ["0", "1", "2", "3", "4", "5"]),  # 4 of 6 occur
        ([0, 3, 9], [0, 1, 2], ["0", "3", "9"]),  # 3 of 10 do
        # 1 and 1.0 are the same label.
        (np.array([1.0, 2.0, 1.0]), [0, 1, 0], ["1", "2"]),
        (np.array([1, 1.0, 2], object), [0, 0, 1], ["1", "2"]),
        (["1", "1.0", "2"], [0, 0, 1], ["1", "2"]),
        (np.array(["2.0", 2, 1], object), [1, 1, 0], ["1", "2"]),
        (["1.0", "2.0"], [0, 1], ["1.0", "2.0"]),
        # Texts: by number if all are numbers, else by name.
        (["10", "9", "-1"], [2, 1, 0], ["-1", "9", "10"]),
        (["10", "9", "a"], [0, 1, 2], ["10", "9", "a"]),
        (["v", "ü", "ö"], [0, 2, 1], ["v", "ö", "ü"]),
        (np.array([b"b", b"a"]), [1, 0], ["a", "b"]),
        (["NA", "None", "nan"], [0, 1, 2], ["NA", "None", "nan"]),  # names like any other
        (np.array([True, False, True]), [1, 0, 1], ["False", "True"]),
        (np.array([[4], [6], [4]]), [0, 1, 0], ["4", "6"]),
        ([torch.tensor(4), torch.tensor(6)], [0, 1], ["4", "6"]),
        # pandas
        (pd.Series(["b", "a"], index=[7, 3]), [1, 0], ["a", "b"]),
        (pd.Series([3, 7], dtype="Int64"), [0, 1], ["3", "7"]),
        (pd.Series(["b", "a"], dtype="category"), [1, 0], ["a", "b"]),
        (pd.Categorical([7, 3, 7]), [1, 0, 1], ["3", "7"]),
        (pd.Series([True, False], dtype="boolean"), [1, 0], ["False", "True"]),
        (pd.DataFrame({"y": [5, 4]}), [1, 0], ["4", "5"]),
    ],
)
def test_labels_become_classes(values, classes, names):
    found, found_names = encode_labels("targets", values)
    assert found.dtype == torch.int64
    assert (found.tolist(), found_names) == (classes, names)


@pytest.mark.parametrize(
    ("values", "names", "classes"),
    [
        (["c", "a"], ["c", "b", "a"], [0, 2]),
        ([2, 0], ["c", "b", "a"], [2, 0]),
        ([1.0, 0.0], ["c", "b"], [1, 0]),
        ([1, 2], ["1", "2", "3"], [1, 2]),  # positions, whatever the names
        (["1", "2.0"], ["1", "2", "3"], [0, 1]),
        ([True, False], ["no", "yes"], [1, 0]),
        ([True, False], ["True", "False"], [0, 1]),
    ],
)
def test_labels_among_given_names(values, names, classes):
    assert encode_labels("targets", values, names)[0].tolist() == classes


MISSING = [
    (["cat", "dog", None], "None"),
    (["cat", "dog", np.nan], "nan"),
    (np.array(["cat", "dog", np.nan]), "'nan'"),  # NumPy has made a text of it
    (np.array([1, 2, None], object), "None"),
    (np.array([1.0, 2.0, np.nan]), "nan"),
    (["cat", "dog", " "], "' '"),
    (np.ma.array([1, 2, 3], mask=[0, 0, 1]), "None"),
    (pd.Series(["cat", "dog", None]), "nan"),
    (pd.Series([1, 2, None], dtype="Int64"), "nan"),
    (pd.Series(["cat", "dog", None], dtype="category"), "nan"),
    (np.array([1, 2, pd.NA], object), "<NA>"),
    (pd.Series(pd.to_datetime(["2024-01-01", "2024-01-02", None])).astype(object), "NaT"),
]


@pytest.mark.parametrize(("values", "shown"), MISSING)
def test_missing_labels_are_refused(values, shown):
    message = rf"targets has 1 missing label\(s\), the first \({shown}\) in row 2; remove"
    with pytest.raises(ValueError, match=message):
        encode_labels("targets", values)
    with pytest.raises(ValueError, match=message):
        read_labels("targets", values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 1.0],), "targets has 0.5 in row 0, which is not a whole number"),
        (([1.0, np.inf],), "targets has inf in row 1"),
        ((np.eye(3, dtype=int),), r"shape \(3, 3\).*argmax"),
        ((3,), r"shape \(\)"),
        ((["a", "x", "x"], ["a", "b"]), "label 'x' in row 1, which is not among .*'a', 'b'; "),
        (([0, 1, 3], ["a", "b", "c"]), "label 3 in row 2, but class_names has 3 names.* 0 … 2"),
        (([0, -1], ["a", "b"]), "label -1 in row 1"),
        ((["1"], ["1", "1.0"]), "a name twice"),
    ],
)
def test_other_labels_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        encode_labels("targets", *arguments)


def test_lists_are_no_labels():
    with pytest.raises(TypeError, match="targets has a list, dictionary or array"):
        encode_labels("targets", np.array([{"box": 1}, {"box": 2}]))


X = np.random.default_rng(0).random((36, 4), dtype=np.float32)


def test_a_test_set_has_the_classes_of_the_training_set():
    def module(train, test, **arguments):
        return ArrayDataModule(
            X, train, test_inputs=X[:2], test_targets=test, **arguments
        ).source.test_targets.tolist()

    assert module([3, 7, 9] * 12, [9, 3]) == [2, 0]
    assert module(["b", "a", "c"] * 12, np.array([["c"], ["b"]])) == [2, 1]
    assert module([1, 2, 3] * 12, ["3", "1"]) == [2, 0]
    assert module([0, 1, 2] * 12, [2, 2]) == [2, 2]
    assert module([0, 1, 2] * 12, [3, 0], class_names=list("abcd")) == [3, 0]
    with pytest.raises(ValueError, match=r"test_targets has label 4 in row 1, .*'3', '7', '9'"):
        module([3, 7, 9] * 12, [3, 4])
    with pytest.raises(ValueError, match="test_targets has 1 missing label"):
        module([3, 7, 9] * 12, [3, None])


def test_floating_point_targets_stay_values():
    for values in ([1.0, 2.0, 4.0] * 12, torch.tensor([1.0, 2.0, 4.0] * 12)):
        data = ArrayDataModule(X, values)
        assert data.class_names is None
        assert data.source.targets.tolist() == [1.0, 2.0, 4.0] * 12


@pytest.mark.parametrize(
    ("labels", "engine"), [([3, 7, -2], "sequential"), ([["b"], ["a"], ["c"]], "vectorized")]
)
def test_any_labels_train_as_if_counted_from_0(labels, engine, tmp_path):
    """Weights, folds, pooled metrics and figures are those of classes."""
    order = [str(x) for x in np.ravel(sorted(labels))]
    mapped = [order.index(str(x)) for x in np.ravel(labels)]

    def run(values, name):
        return cross_validate(
            lambda: MLPClassifier(4, 3, hidden=[4], class_weights="balanced"),
            ArrayDataModule(X, np.array(values * 12)),
            num_folds=3,
            engine=engine,
            trainer={"accelerator": "cpu", "max_epochs": 1},
            run_dir=tmp_path / name,
            figures=name == "ours",
        )

    ours, plain = run(labels, "ours"), run(mapped, "plain")
    assert ours.info["class_names"] == order
    np.testing.assert_array_equal(ours.oof.target, np.array(mapped * 12))
    np.testing.assert_array_equal(ours.oof.prediction, plain.oof.prediction)
    assert ours.pooled() == plain.pooled()
    assert (tmp_path / "ours" / "figures" / "confusion_matrix.png").exists()


# Anybody's data


class Theirs(Dataset):
    def __init__(self, labels, **attributes):
        self.labels = labels
        vars(self).update(attributes)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return torch.from_numpy(X[i % 36]), self.labels[i]


COUNTS = np.repeat([0, 1, 2], [20, 12, 4])


@pytest.mark.parametrize(
    "labels",
    [
        COUNTS + 1,
        np.array([3, 7, -5])[COUNTS],
        COUNTS[:, None],
        COUNTS.astype(object),
        pd.Series(COUNTS + 1, index=np.arange(36)[::-1]),
        np.array(["b", "a", "c"])[COUNTS].tolist(),
        np.array(["b", "a", "c"], object)[COUNTS][:, None],
    ],
    ids=["from 1", "any", "column", "objects", "Series", "texts", "column of texts"],
)
def test_folds_of_anybodys_labels_are_stratified(labels):
    data = FoldedDataModule(Theirs(labels))
    assert data.is_classification
    expected = StratifiedKFold(4, shuffle=True, random_state=0).split(COUNTS, COUNTS)
    for rows, (train, val) in zip(data.splits(4), expected, strict=True):
        np.testing.assert_array_equal(rows["train"], train)
        np.testing.assert_array_equal(rows["val"], val)
        assert np.bincount(COUNTS[rows["val"]]).tolist() == [5, 3, 1]
    assert data.notes() == []


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("values", [values for values, _ in MISSING])
def test_missing_labels_of_anybodys_data_are_refused(values, given):
    dataset = Theirs(range(3)) if given else Theirs(values)
    data = FoldedDataModule(dataset, targets=values if given else None)
    with pytest.raises(ValueError, match=r"targets has 1 missing label\(s\), .* in row 2"):
        data.splits(2)


def test_boxes_are_no_labels_and_large_numbers_no_classes():
    boxes = FoldedDataModule(Theirs([{"box": i} for i in range(6)]))
    assert not boxes.is_classification
    assert "folds are not stratified" in boxes.notes()[0]
    prices = FoldedDataModule(Theirs(np.array([1, 10**12] * 3)), stratify=False)
    assert prices.class_names is None


def test_classes_as_a_column_are_classes():
    data = ArrayDataModule(X, COUNTS[:, None])
    assert data.num_classes == 3
    np.testing.assert_array_equal(data.source.targets, COUNTS)


def module_of(net):
    class Plain(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, inputs):
            return self.net(inputs)

        def training_step(self, batch, batch_idx):
            x, y = batch
            return nn.functional.cross_entropy(self(x), y.flatten())

        def validation_step(self, batch, batch_idx):
            x, y = batch
            y = y.flatten()
            self.log("val/loss", nn.functional.cross_entropy(self(x), y))
            self.log("val/accuracy", (self(x).argmax(1) == y).float().mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return Plain()


def test_labels_as_a_column_have_pooled_metrics(tmp_path):
    """As in MedMNIST, whose labels have shape (N, 1)."""
    result = cross_validate(
        lambda: module_of(nn.Linear(4, 3)),
        FoldedDataModule(Theirs(COUNTS[:, None])),
        num_folds=4,
        trainer={"accelerator": "cpu", "max_epochs": 1},
        run_dir=tmp_path / "run",
        figures=False,
    )
    np.testing.assert_array_equal(result.oof.target, COUNTS)
    expected = (result.oof.prediction.argmax(1) == COUNTS).mean()
    assert result.pooled()["accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("weights", [None, "balanced"])
def test_our_models_say_what_to_do_about_anybodys_labels(weights, make_trainer):
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(COUNTS + 1))
    model = Classifier(nn.Linear(4, 3), 3, class_weights=weights)
    message = (
        r"labels 1, 2, 3, but num_classes=3 means the classes 0 … 2\. Classes count from 0: map "
        "the labels in the data set, or use ArrayDataModule, which maps"
    )
    data = FoldedDataModule(DataLoader(dataset, 36), num_folds=2)
    with pytest.raises(ValueError, match=message):
        make_trainer(num_sanity_val_steps=0).fit(model, datamodule=data)


def test_a_label_that_the_first_batch_lacks_is_named(make_trainer):
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(COUNTS + 1))
    model = Classifier(nn.Linear(4, 3), 3)
    with pytest.raises(ValueError, match="the labels 3, but num_classes=3"):
        make_trainer(num_sanity_val_steps=0).fit(model, DataLoader(dataset, 4), DataLoader(dataset))
