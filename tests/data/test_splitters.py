"""Splitter objects of scikit-learn as `split`: its own folds, reproducible, without leaks."""

import json
import pickle

import numpy as np
import pytest
import torch
from conftest import no_address
from sklearn import model_selection as sk
from torch.utils.data import TensorDataset

from dlblocks.crossval import CrossValidationResult, cross_validate, nested_cross_validate
from dlblocks.data import ArrayDataModule, DigitsDataModule, FoldedDataModule
from dlblocks.ensembles import Bagging
from dlblocks.models import MLPClassifier, load

N = 60
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3)).astype(np.float32)
Y = RNG.permutation(np.arange(N) % 3)
GROUPS = np.arange(N) // 4
FOLD = RNG.integers(-1, 4, N)
SPLITTERS = [
    sk.KFold(4),
    sk.KFold(4, shuffle=True, random_state=3),
    sk.StratifiedKFold(5, shuffle=True, random_state=0),
    sk.GroupKFold(3),
    sk.StratifiedGroupKFold(5, shuffle=True, random_state=0),
    sk.TimeSeriesSplit(4, gap=2),
    sk.PredefinedSplit(FOLD),
    sk.ShuffleSplit(6, random_state=0),
    sk.StratifiedShuffleSplit(3, test_size=0.3, random_state=1),
    sk.GroupShuffleSplit(3, random_state=1),
    sk.LeaveOneGroupOut(),
    sk.LeavePGroupsOut(14),
    sk.LeaveOneOut(),
]
NEED_GROUPS = ("Group", "LeaveP")


def data(splitter, **arguments):
    name = type(splitter).__name__
    groups = GROUPS if any(part in name for part in NEED_GROUPS) else None
    return ArrayDataModule(X, Y, **{"split": splitter, "groups": groups, **arguments})


@pytest.mark.parametrize("splitter", SPLITTERS, ids=no_address)
def test_folds_are_those_of_the_splitter(splitter):
    module = data(splitter)
    expected = list(splitter.split(X, Y, module.columns.groups))
    assert module.count_folds() == splitter.get_n_splits(X, Y, module.columns.groups)
    for fold, (train, val) in enumerate(expected):
        rows = module.splits()[fold]
        np.testing.assert_array_equal(rows["train"], np.sort(train))
        np.testing.assert_array_equal(rows["val"], np.sort(val))
        assert not len(rows["test"])
    last = module.for_fold(len(expected) - 1, None)
    assert last.indices("val").tolist() == sorted(expected[-1][1])


@pytest.mark.parametrize(
    "splitter",
    [
        sk.StratifiedGroupKFold(5, shuffle=True, random_state=0),
        sk.TimeSeriesSplit(3),
        sk.PredefinedSplit(FOLD),
        sk.ShuffleSplit(2, random_state=0),
    ],
    ids=no_address,
)
def test_folds_of_the_development_set(splitter):
    """The splitter sees the targets and groups of the samples that are not held out."""
    module = data(splitter, test_fraction=0.2)
    test = module.indices("test").numpy()
    rest = np.setdiff1d(np.arange(N), test)
    if isinstance(splitter, sk.TimeSeriesSplit):
        np.testing.assert_array_equal(test, np.arange(48, N))
    if isinstance(splitter, sk.PredefinedSplit):
        splitter = sk.PredefinedSplit(FOLD[rest])
    groups = None if module.columns.groups is None else GROUPS[rest]
    for rows, (train, val) in zip(
        module.splits(), splitter.split(X[rest], Y[rest], groups), strict=True
    ):
        np.testing.assert_array_equal(rows["train"], rest[np.sort(train)])
        np.testing.assert_array_equal(rows["val"], rest[np.sort(val)])
        np.testing.assert_array_equal(rows["test"], test)


def test_repeats_of_a_splitter_are_repeats():
    splitter = sk.RepeatedStratifiedKFold(n_splits=3, n_repeats=2, random_state=0)
    module = data(splitter)
    expected = list(splitter.split(X, Y))
    assert (module.count_folds(), module.count_repeats()) == (3, 2)
    for repeat in range(2):
        for fold, rows in enumerate(module.splits(repeat=repeat)):
            np.testing.assert_array_equal(rows["val"], expected[3 * repeat + fold][1])


def test_several_labels_reach_a_splitter():
    class Multilabel(sk.KFold):
        def split(self, X, y, groups=None):
            assert y.shape == (N, 4)
            return super().split(X)

    labels = RNG.integers(0, 2, (N, 4)).astype(np.float32)
    assert ArrayDataModule(X, labels, split=Multilabel(3)).count_folds() == 3


def test_anybodys_data_set():
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    module = FoldedDataModule(dataset, split=sk.StratifiedKFold(3, shuffle=True, random_state=1))
    expected = sk.StratifiedKFold(3, shuffle=True, random_state=1).split(X, Y)
    for rows, (_, val) in zip(module.splits(), expected, strict=True):
        np.testing.assert_array_equal(rows["val"], val)


class Drawn(sk.KFold):
    """Draws at every call, and does not say so."""

    def split(self, X, y=None, groups=None):
        order = np.random.permutation(len(X))
        yield order[:40], order[40:]


class Overlapping(sk.KFold):
    def split(self, X, y=None, groups=None):
        yield np.arange(40), np.arange(39, 60)


class Outside(sk.KFold):
    def split(self, X, y=None, groups=None):
        yield np.arange(40), np.arange(40, 61)


class Empty(sk.KFold):
    def split(self, X, y=None, groups=None):
        yield np.arange(60), np.arange(0)


class Nothing(sk.KFold):
    def split(self, X, y=None, groups=None):
        return iter(())


@pytest.mark.parametrize(
    ("splitter", "arguments", "message"),
    [
        (sk.KFold(4, shuffle=True), {}, r"split=KFold\(n_splits=4.*draws new folds.*random_st"),
        (sk.ShuffleSplit(3), {}, "draws new folds at every call"),
        (sk.RepeatedKFold(), {}, "draws new folds at every call"),
        (sk.ShuffleSplit(random_state=np.random.RandomState(0)), {}, "draws new folds"),
        (Drawn(4), {}, "returns other folds at every call"),
        (Overlapping(4), {}, "fold 0 validates samples that it trains on"),
        (Outside(4), {}, "fold 0 has an empty part or unknown samples"),
        (Empty(4), {}, "fold 0 has an empty part or unknown samples"),
        (Nothing(4), {}, "returns no fold"),
        (sk.KFold(4), {"num_folds": 5}, r"num_folds=5, but split=KFold\(.*gives 4 folds"),
        (sk.KFold(4), {"fold": 4}, r"fold=4 is outside \[0, 3\]"),
        (sk.KFold(7), {"groups": GROUPS}, "fold 0 trains on and validates group 2.*GroupKFold"),
        (sk.KFold(61), {}, r"cannot split these 60 samples: .*n_splits=61"),
        (sk.GroupKFold(3), {"groups": None}, "cannot split these 60 samples: The 'groups'"),
        (sk.PredefinedSplit(FOLD[:50]), {}, "these 60 samples: it has 50, and the data 60"),
        (sk.KFold(4), {"folds": FOLD}, r"folds has no effect with split=KFold"),
        (sk.KFold(4), {"stratify": True}, "stratify=True has no effect"),
        (sk.KFold, {}, "split=.* is not known"),
        (5, {}, "split is of type int, without split"),
        ([(FOLD[:9], FOLD[9:])], {}, r"^split is of type list, .{,99}PredefinedSplit\(fold of"),
    ],
    ids=no_address,
)
def test_impossible_splitters_are_refused(splitter, arguments, message):
    with pytest.raises(ValueError, match=message):
        data(splitter, **arguments).setup()


def test_duplicates_stay_together():
    inputs = np.concatenate([X, X])
    targets = np.concatenate([Y, Y])
    module = ArrayDataModule(inputs, targets, groups="duplicates", split=sk.GroupKFold(3))
    assert module.count_duplicates() == 0
    with pytest.raises(ValueError, match="trains on and validates group"):
        ArrayDataModule(inputs, targets, groups="duplicates", split=sk.KFold(3)).setup()


# Runs


def run(splitter, run_dir, **arguments):
    return cross_validate(
        lambda: MLPClassifier(3, 3, hidden=[4]), lambda: data(splitter, test_fraction=0.2),
        run_dir=run_dir, trainer={"max_epochs": 1, "accelerator": "cpu"}, progress_bar=False,
        figures=False, **arguments,
    )  # fmt: skip


def test_a_cross_validation_is_that_of_the_splitter(tmp_path):
    splitter = sk.StratifiedGroupKFold(4, shuffle=True, random_state=0)
    result = run(splitter, tmp_path)
    expected = data(splitter, test_fraction=0.2).splits()
    for fold, rows in enumerate(expected):
        np.testing.assert_array_equal(result.oof.index[result.oof.fold == fold], rows["val"])
    name = "StratifiedGroupKFold(n_splits=4, random_state=0, shuffle=True)"
    assert json.loads((tmp_path / "folds.json").read_text())["split"] == name
    assert json.loads((tmp_path / "plan.json").read_text())["config"]["data"]["split"] == name
    assert load(next(tmp_path.rglob("*.ckpt"))).hparams.in_features == 3
    again = run(splitter, tmp_path)  # the same splitter, made anew
    assert list(again.values("val/loss")) == list(result.values("val/loss"))
    other = sk.StratifiedGroupKFold(4, shuffle=True, random_state=1)
    with pytest.raises(FileExistsError, match=r"random_state=0.*data\.split|data\.split"):
        run(other, tmp_path)
    with pytest.raises(ValueError, match="num_folds=5, but split=StratifiedGroupKFold"):
        run(splitter, tmp_path / "other", num_folds=5)


def test_repeats_and_overlaps_in_a_cross_validation(tmp_path):
    repeated = run(sk.RepeatedKFold(n_splits=2, n_repeats=2, random_state=0), tmp_path / "a")
    assert [(row["repeat"], row["fold"]) for row in repeated.folds] == [
        (0, 0), (0, 1), (1, 0), (1, 1),
    ]  # fmt: skip
    assert np.unique(repeated.oof.index, return_counts=True)[1].tolist() == [2] * 48
    assert CrossValidationResult.load(tmp_path / "a").info["repeats"] == 2
    with pytest.raises(ValueError, match=r"repeats=3, but split='RepeatedKFold.*use repeats=2"):
        run(sk.RepeatedKFold(n_splits=2, n_repeats=2, random_state=0), tmp_path / "b", repeats=3)
    shuffled = run(sk.ShuffleSplit(5, test_size=0.5, random_state=0), tmp_path / "c")
    assert len(shuffled.oof) == 5 * 24
    rows, counts = np.unique(shuffled.oof.index, return_counts=True)
    assert shuffled._num_scored == len(rows) < 5 * 24
    said = f"{(counts > 1).sum()} of {len(rows)} validated samples are in several folds"
    assert any(note.startswith(said) for note in shuffled.notes)
    assert not any("in several folds" in note for note in repeated.notes)


def test_a_nested_cross_validation_splits_the_training_parts(tmp_path):
    splitter = sk.PredefinedSplit(np.arange(N) % 3)
    result = nested_cross_validate(
        lambda lr: MLPClassifier(3, 3, hidden=[4], lr=lr), lambda: data(splitter), {"lr": [0.1]},
        run_dir=tmp_path, trainer={"max_epochs": 1, "accelerator": "cpu"}, progress_bar=False,
        figures=False,
    )  # fmt: skip
    assert len(result.oof) == N
    inner = json.loads(next(tmp_path.glob("fold-0/**/folds.json")).read_text())
    assert [fold["val"] for fold in inner["folds"]] == [
        list(range(1, N, 3)), list(range(2, N, 3)),
    ]  # fmt: skip


def test_time_is_kept_by_selection_and_bagging(tmp_path):
    module = data(sk.TimeSeriesSplit(3)).for_fold(2, 3).with_selection(0.2)
    assert module.indices("train").max() < module.indices("selection").min()
    with pytest.raises(ValueError, match="past against future"):
        Bagging(lambda: MLPClassifier(3, 3), data(sk.TimeSeriesSplit(3)), run_dir=tmp_path).fit()


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("arguments", [{}, {"max_train_size": 80}, {"test_size": 6}], ids=str)
def test_the_gap_of_time_is_kept_at_every_border(arguments, foreign):
    """Windows of 5 samples that begin in two parts do not share a sample."""
    gap, values = 4, torch.arange(240.0)[:, None]
    splitter = sk.TimeSeriesSplit(3, gap=gap, **arguments)
    if foreign:
        dataset = TensorDataset(values, values[:, 0])
        module = FoldedDataModule(dataset, split=splitter, test_fraction=0.2)
    else:
        module = ArrayDataModule(values, values[:, 0], split=splitter, test_fraction=0.2)
    seen = np.arange(240)[:, None] + np.arange(gap + 1)  # the samples in each window
    for rows in module.with_selection(0.2).splits():
        parts = [rows[part] for part in ("train", "selection", "val", "test")]
        assert all(len(part) for part in parts)
        for i, part in enumerate(parts):
            for later in parts[i + 1 :]:
                assert not set(seen[part].flat) & set(seen[later].flat)
    # The gap is as long as it says, not longer.
    last = module.with_selection(0.2).splits()[-1]
    assert last["selection"][0] - last["train"][-1] == gap + 1
    assert last["val"][0] - last["selection"][-1] == gap + 1
    whole = module.without_validation()
    assert whole.indices("test")[0] - whole.indices("train")[-1] == gap + 1
    outer = module.splits()[-1]["train"]  # the training part of a nested cross-validation
    for rows in module.subset(outer).with_selection(0.2).splits():
        assert max(rows["val"]) <= max(outer)
        assert rows["selection"][0] - rows["train"][-1] == gap + 1


def test_a_gap_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="gap=48 leaves no sample before the last 12 of 60"):
        data(sk.TimeSeriesSplit(3, gap=48), test_fraction=0.2).setup()
    chosen = data(sk.TimeSeriesSplit(3, gap=12)).for_fold(0, 3).with_selection(0.2)
    with pytest.raises(ValueError, match=r"fold 0 .*gap=12 leaves no sample.*select='last'"):
        chosen.setup()


class Windows(sk.KFold):
    """Folds in time, with a gap: a splitter as people write it."""

    def split(self, X, y=None, groups=None):
        for start in (20, 30, 40):
            yield np.arange(start - 5), np.arange(start, min(start + 10, len(X)))


class Derived(sk.TimeSeriesSplit):
    split = Windows.split


def test_a_splitter_of_time_is_derived_from_that_of_scikit_learn():
    """Otherwise the test and selection part would be drawn from all times."""
    data(Windows(3)).setup()
    with pytest.raises(ValueError, match=r"Windows.*always trains on samples before.*TimeSeriesSp"):
        data(Windows(3), test_fraction=0.2).setup()
    with pytest.raises(ValueError, match="derive the splitter from"):
        data(Windows(3)).for_fold(0, 3).with_selection(0.2).setup()
    listed = sk.check_cv([*Windows(3).split(np.zeros(48))])
    with pytest.raises(ValueError, match="derive the splitter from"):
        data(listed, test_fraction=0.2).setup()
    rows = data(Derived(3, gap=5), test_fraction=0.1).with_selection(0.2).splits()[-1]
    assert rows["test"].tolist() == list(range(54, 60))
    assert rows["selection"][0] - rows["train"][-1] == 6


def test_the_end_of_time_does_not_cut_a_group():
    folds = sk.TimeSeriesSplit(3, test_size=12)  # whole groups of 4
    with pytest.raises(ValueError, match="the split in time trains on and validates group 12"):
        data(folds, groups=GROUPS, test_fraction=0.15).setup()  # the last 9
    data(folds, groups=GROUPS, test_fraction=0.2).setup()
    chosen = data(folds, groups=GROUPS).for_fold(0, 3)
    chosen.with_selection(1 / 3).setup()  # 8 of 24
    with pytest.raises(ValueError, match=r"fold 0 .*validates group 4"):
        chosen.with_selection(0.25).setup()  # 6 of 24


def test_a_datamodule_with_a_splitter_can_be_pickled():
    module = DigitsDataModule(split=sk.KFold(4, shuffle=True, random_state=0), fold=1)
    copy = pickle.loads(pickle.dumps(module))
    assert copy.indices("val").equal(module.indices("val"))
    assert copy.hparams.split == "KFold(n_splits=4, random_state=0, shuffle=True)"
