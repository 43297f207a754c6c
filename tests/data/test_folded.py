"""Folds of somebody else's data."""

import itertools
import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import (
    BoringDataModule,
    BoringDataModuleNoLen,
    BoringModel,
    IterableBoringDataModule,
)
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)

from dlblocks.callbacks import ExactResume
from dlblocks.data import DigitsDataModule, EpochSampler, FoldedDataModule
from dlblocks.data._foreign import TARGETS, count_shared, input_keys, read_column

N = 50
X = torch.arange(N).float()[:, None].repeat(1, 4)
Y = torch.arange(N) % 3


class Samples(Dataset):
    """Somebody's data set: a dictionary a sample, and what it knows beside."""

    classes = ("ant", "bee", "cat")

    def __init__(self, shift=0.0, **attributes):
        self.shift = shift
        vars(self).update(attributes)

    def __len__(self):
        return N

    def __getitem__(self, i):
        return {"x": X[i] + self.shift, "y": Y[i]}


def collate(samples):
    return {**default_collate(samples), "collated": True}


class Theirs(pl.LightningDataModule):
    """With the guard, the loader settings and the hooks that people write."""

    vocabulary = 7

    def __init__(self, size=3):
        super().__init__()
        self.save_hyperparameters()
        self.prepared = 0
        self.transferred = []

    def prepare_data(self):
        self.prepared += 1

    def setup(self, stage):
        if not hasattr(self, "train_set"):
            self.train_set = Samples(targets=Y.tolist(), groups=(np.arange(N) // 5).tolist())
            self.val_set = Samples(shift=1000.0)

    def train_dataloader(self):
        return DataLoader(self.train_set, 8, shuffle=True, drop_last=True, collate_fn=collate)

    def val_dataloader(self):
        return DataLoader(self.val_set, 8)

    def test_dataloader(self):
        return DataLoader(Samples(shift=2000.0), 8)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.transferred.append(self.trainer.training)
        return {**batch, "x": batch["x"] * 2}


class Spy(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch)
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch)

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], 0.1)


def rows(batches, scale=1.0):
    """Which samples are in batches: their inputs are their numbers."""
    return [round(x / scale) for batch in batches for x in batch["x"][:, 0].tolist()]


def test_folds_are_those_of_scikit_learn():
    labels = Y.numpy()
    groups = np.arange(N) // 5
    for arguments, splitter, columns in (
        ({}, StratifiedKFold, (labels,)),
        ({"stratify": False}, KFold, ()),
        ({"stratify": False, "groups": groups}, GroupKFold, (labels, groups)),
    ):
        data = FoldedDataModule(TensorDataset(X, Y), split_seed=4, **arguments)
        expected = splitter(5, shuffle=True, random_state=4).split(X.numpy(), *columns)
        for fold, (train, val) in enumerate(expected):
            folded = data.for_fold(fold, 5)
            np.testing.assert_array_equal(folded.indices("val"), val)
            np.testing.assert_array_equal(folded.indices("train"), train)
            assert len(folded.indices("test")) == 0


def test_batches_hooks_and_settings_are_theirs(make_trainer):
    theirs, spy = Theirs(), Spy()
    data = FoldedDataModule(theirs).for_fold(1, 5)
    make_trainer(num_sanity_val_steps=0, max_epochs=2).fit(spy, datamodule=data)
    train, val = (data.indices(part).tolist() for part in ("train", "val"))
    seen = rows(spy.seen["train"], scale=2)
    assert all(batch["collated"] for batch in spy.seen["train"] + spy.seen["val"])
    assert [len(batch["x"]) for batch in spy.seen["train"]] == [8] * 10  # drop_last, as theirs
    assert set(seen) <= set(train)
    assert seen[:40] != seen[40:]
    assert seen != sorted(seen)
    assert rows(spy.seen["val"], scale=2) == val * 2  # nothing dropped, in order
    groups = np.arange(N) // 5
    assert not set(groups[train]) & set(groups[val])
    assert theirs.transferred.count(True) == 10  # the hook can see its Trainer
    assert theirs.prepared == 1
    assert data.vocabulary == 7  # for modules that ask the datamodule
    assert data.class_names == ["ant", "bee", "cat"]
    assert data.is_classification
    assert data.batch_size == 8
    with pytest.raises(AttributeError, match="vocabulari"):
        _ = data.vocabulari
    # Their test set, and never their validation set.
    make_trainer().test(spy, datamodule=data, verbose=False)
    assert rows(spy.seen["test"], scale=2) == list(range(2000, 2000 + N))
    assert theirs.trainer is not None


def test_the_order_is_ours():
    """That of `EpochSampler`, whatever the global seed; `test_foreign` has two ranks."""
    data = FoldedDataModule(TensorDataset(X, Y), shuffle_seed=3).for_fold(0, 5)
    data.setup("fit")
    loaders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        loaders.append([x[:, 0].tolist() for x, _ in data.train_dataloader()])
    sampler = EpochSampler(range(40), shuffle=True, seed=3)
    expected = data.indices("train")[list(sampler)].tolist()
    assert loaders[0] == loaders[1]
    assert list(itertools.chain(*loaders[0])) == expected


def test_the_models_own_hook_is_called_if_they_have_none(make_trainer):
    class Doubles(Spy):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return {"x": batch[0] * 2}

    spy = Doubles()
    data = FoldedDataModule(TensorDataset(X, Y), num_folds=5)
    with pytest.warns(UserWarning, match="overridden `on_before_batch_transfer` in `LightningMod"):
        make_trainer(num_sanity_val_steps=0).fit(spy, datamodule=data)
    assert rows(spy.seen["val"], scale=2) == data.indices("val").tolist()


def test_validation_is_not_augmented_with_an_eval_dataset(make_trainer):
    spy = Spy()
    data = FoldedDataModule(
        DataLoader(Samples(shift=100.0), 8), eval_dataset=Samples(), num_folds=5, test_fraction=0.2
    )
    trainer = make_trainer(num_sanity_val_steps=0)
    trainer.fit(spy, datamodule=data)
    trainer.test(spy, datamodule=data, verbose=False)
    found = {part: rows(batches) for part, batches in spy.seen.items()}
    assert found["val"] == data.indices("val").tolist()
    assert found["test"] == data.indices("test").tolist()
    assert sorted(found["train"]) == (data.indices("train") + 100).tolist()
    with pytest.raises(ValueError, match="eval_dataset has 50 samples and the training data set 3"):
        FoldedDataModule(TensorDataset(X[:3]), eval_dataset=Samples()).setup("fit")


def test_columns_are_read_without_loading_a_sample():
    class Never(Dataset):
        def __init__(self, **attributes):
            vars(self).update(attributes)

        def __len__(self):
            return 4

        def __getitem__(self, i):
            raise AssertionError

    y = [3, 1, 2, 0]
    half = Subset(Never(targets=y), [0, 3])
    for dataset, expected in (
        (Never(targets=y), y),
        (Never(labels=np.array(y)), y),
        (Never(y=[torch.tensor(i) for i in y]), y),
        (half, [3, 0]),
        (Subset(half, [1]), [0]),
        (ConcatDataset([half, TensorDataset(torch.zeros(2, 1), torch.tensor([7, 8]))]),
         [3, 0, 7, 8]),
    ):  # fmt: skip
        assert read_column(dataset, TARGETS).tolist() == expected
    for dataset in (
        Never(), Never(targets=y[:2]), TensorDataset(X), ConcatDataset([half, Never()]),
        Never(targets="text"),
    ):  # fmt: skip
        assert read_column(dataset, TARGETS) is None
    names = FoldedDataModule(Never(targets=["b", "a", "b", "c"]))
    assert names.columns.targets.tolist() == [1, 0, 1, 2]
    values = FoldedDataModule(Never(targets=[0.5, 1.5, 2.0, 3.0]))
    assert not values.is_classification
    assert values.class_names is None
    unknown = FoldedDataModule(Never(), num_folds=2)
    unknown.setup("fit")
    with pytest.raises(ValueError, match="stratify=True needs targets"):
        FoldedDataModule(Never(), num_folds=2, stratify=True).setup("fit")
    labels = torch.eye(4).long()
    FoldedDataModule(Never(targets=labels), num_folds=2).setup("fit")
    with pytest.raises(ValueError, match="several labels"):
        FoldedDataModule(Never(targets=labels), num_folds=2, stratify=True).setup("fit")


def test_train_targets_and_other_splits():
    data = FoldedDataModule(TensorDataset(X, Y), split="time_series", num_folds=4)
    assert data.train_targets().tolist() == Y[:10].tolist()
    folds = np.arange(N) % 4 - 1
    data = FoldedDataModule(TensorDataset(X), folds=folds, split="predefined")
    assert data.count_folds() == 3
    with pytest.raises(ValueError, match="no targets that can be read"):
        data.train_targets()


def test_lightnings_demo_datamodule(make_trainer):
    demo = BoringDataModule()
    data = FoldedDataModule(demo).for_fold(1, 4)
    make_trainer().fit(BoringModel(), datamodule=data)
    (train,) = next(iter(data.train_dataloader())).shape[:1]
    assert train == 1
    assert [len(data.indices(part)) for part in ("train", "val", "test")] == [48, 16, 0]
    val = torch.cat(list(data.val_dataloader()))
    assert torch.equal(val, demo.random_full.data[:64][data.indices("val")])


class Noisy(Dataset):
    """Draws random numbers for every sample, in the worker process if there is one."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return {"x": X[i] + torch.rand(4)}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_killed_run_goes_on_with_the_same_batches(tmp_path, make_trainer, num_workers):
    class Dies(Spy):
        def training_step(self, batch, batch_idx):
            if self.global_step == 7:
                raise RuntimeError("killed")
            return super().training_step(batch, batch_idx)

    def fit(spy, folder):
        pl.seed_everything(0, verbose=False)
        data = FoldedDataModule(DataLoader(Noisy(), 4, num_workers=num_workers), num_folds=5)
        trainer = make_trainer(
            enable_checkpointing=True, max_epochs=2,
            callbacks=[ExactResume(tmp_path / folder, every_n_train_steps=5)],
        )  # fmt: skip
        resumed = (tmp_path / folder).exists()
        trainer.fit(spy, datamodule=data, ckpt_path="last" if resumed else None)
        return [batch["x"] for batch in spy.seen["train"]]

    whole = fit(Spy(), "whole")
    with pytest.raises(RuntimeError, match="killed"):
        fit(Dies(), "killed")
    rest = fit(Spy(), "killed")
    assert len(whole) == 20
    assert len(rest) == 15
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], rest, strict=True))


def test_it_can_be_sent_to_another_process():
    data = pickle.loads(pickle.dumps(FoldedDataModule(Theirs()).for_fold(2, 5)))
    assert data.indices("val").tolist() == FoldedDataModule(Theirs()).for_fold(2, 5).indices(
        "val"
    ).tolist()  # fmt: skip
    assert data.hparams["wrapped"] == {"class": "Theirs", "size": 3}
    assert data.hparams["num_folds"] == 5


def test_fingerprint():
    def of(*tensors, **arguments):
        return FoldedDataModule(TensorDataset(*tensors), **arguments).fingerprint()

    parts = [Subset(TensorDataset(X, Y), rows) for rows in (range(10), range(10, 20))]
    found = [
        of(X, Y), of(X + 1, Y), of(X, 2 - Y), of(X, Y, groups=Y), of(X[1:], Y[1:]),
        *(FoldedDataModule(part).fingerprint() for part in parts),
        FoldedDataModule(ConcatDataset(parts)).fingerprint(),
        FoldedDataModule(Samples()).fingerprint(),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert of(X, Y) == of(X.clone(), Y, split_seed=3, num_folds=2)


def test_names_of_classes():
    texts = ["cat", "dog", "owl"]
    targets = np.arange(N) % 3
    data = FoldedDataModule(Samples(), targets=targets, class_names=texts)
    assert data.class_names == data.for_fold(0, 5).class_names == texts
    more = FoldedDataModule(Samples(), targets=targets, class_names=[*texts, "yak"])
    assert more.class_names == [*texts, "yak"]
    assert "class_names" not in data.hparams
    values = FoldedDataModule(Samples(), targets=targets * 1.0, class_names=texts)
    assert values.class_names is None
    for names, message in ((texts[:2], "has 2 names, but the targets have class 2; give 3"),
                           ([*texts, "cat"], "'cat'] has a name twice")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            FoldedDataModule(Samples(), targets=targets, class_names=names).setup("fit")
    for names in ("abc", [0, 1, 2]):
        with pytest.raises(TypeError, match=r"class_names=.* must be a list"):
            FoldedDataModule(Samples(), targets=targets, class_names=names)


def test_names_of_folds():
    groups = np.array(["b", "a", "c", "a", "b"] * (N // 5))
    for split, name in (("leave_one_group_out", "groups"), ("predefined", "folds")):
        given = {name: groups, "split": split}
        data = FoldedDataModule(Samples(), targets=np.arange(N) % 2, **given)
        names = [data.for_fold(fold, None).fold_name() for fold in range(data.count_folds())]
        assert names == ["a", "b", "c"]
    numbers = np.where(groups == "a", -1, np.where(groups == "b", 7, 3))
    data = FoldedDataModule(Samples(), folds=numbers, split="predefined")
    assert [data.for_fold(fold, None).fold_name() for fold in (0, 1)] == ["3", "7"]
    drawn = FoldedDataModule(Samples(), groups=groups, targets=np.arange(N) % 2)
    assert drawn.for_fold(0, 3).fold_name() is None


def weighted():
    sampler = WeightedRandomSampler([1.0] * N, N)
    return DataLoader(Samples(), 8, sampler=sampler)


@pytest.mark.parametrize(
    ("data", "arguments", "error", "message"),
    [
        (3, {}, TypeError, "got int"),
        (DigitsDataModule(), {}, TypeError, "has folds already"),
        (BoringDataModuleNoLen(), {}, TypeError, "RandomIterableDataset .* no numbered samples"),
        (IterableBoringDataModule(), {}, TypeError, "returned list; folds need a single"),
        (weighted(), {}, ValueError, "WeightedRandomSampler .* cannot be restricted to a fold"),
        (
            DataLoader(Samples(), 8, sampler=RandomSampler(range(N), replacement=True)),
            {}, ValueError, "RandomSampler",
        ),
        (DataLoader(Samples(), batch_size=None), {}, ValueError, "batch_size=None"),
        (Samples(), {"targets": Y[:9]}, ValueError, "targets has 9 values .* 50 samples"),
        (Samples(), {"groups": np.ones(N), "num_folds": 3}, ValueError, "but groups has 1"),
        (Samples(), {"num_folds": 51}, ValueError, r"num_folds=51 is outside \[2, 50\]"),
        (Samples(), {"split": "leave_one_group_out"}, ValueError, "needs groups"),
    ],
)  # fmt: skip
def test_bad_data_are_refused(data, arguments, error, message):
    with pytest.raises(error, match=message):
        FoldedDataModule(data, **arguments).setup("fit")


# Test samples that are training samples


class Resplit(pl.LightningDataModule):
    """As in many tutorials: every `setup` draws the split anew, and makes the data set anew."""

    def __init__(self, make=lambda: TensorDataset(X, Y), loaders=lambda loader: loader):
        super().__init__()
        self.make, self.loaders, self.stages = make, loaders, []

    def setup(self, stage):
        self.stages.append(stage)
        self.train_set, self.test_set = random_split(self.make(), [40, 10])

    def train_dataloader(self):
        return DataLoader(self.train_set, 8, shuffle=True)

    def test_dataloader(self):
        return self.loaders(DataLoader(self.test_set, 8))


class Loaded(Dataset):
    """Holds nothing: its samples are known when they are loaded."""

    def __init__(self, first=0, noise=0.0):
        self.first, self.noise = first, noise

    def __len__(self):
        return 50

    def __getitem__(self, i):
        i = (self.first + i) % N
        return {"x": X[i] + self.noise * torch.rand(4), "y": [int(Y[i]), "text", None]}


class Transformed(Dataset):
    """Somebody's wrapper of a part."""

    def __init__(self, part):
        self.part = part

    def __len__(self):
        return len(self.part)

    def __getitem__(self, i):
        x, *rest = self.part[i]
        return x + torch.rand(()), *rest


class Texts(Dataset):
    def __init__(self, texts, labels):
        self.texts, self.labels, self.number = texts, labels, np.arange(len(texts))

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, i):
        return self.texts[i], self.labels[i]


whole = Samples()


@pytest.mark.parametrize(
    "make",
    [
        lambda: TensorDataset(X, Y),
        lambda: TensorDataset(X.clone(), Y),
        lambda: TensorDataset(torch.ones(N, 4), Y),  # equal rows are not the same sample
        lambda: whole,
        lambda: Samples(x=X.numpy(), targets=Y.tolist()),
        lambda: Subset(TensorDataset(X.repeat(2, 1)), range(N)),
        lambda: Transformed(TensorDataset(X, Y)),
        lambda: ConcatDataset([TensorDataset(X[:9], Y[:9]), TensorDataset(X[9:], Y[9:])]),
        Loaded,
    ],
)
@pytest.mark.parametrize(
    "loaders", [lambda one: one, lambda one: [one, one], lambda one: {"a": one, "b": [one]}]
)
def test_shared_samples_are_counted(make, loaders):
    theirs = Resplit(make, loaders)
    data = FoldedDataModule(theirs).for_fold(0, 5)
    before = data.loader.dataset
    trained = set(before.indices)
    several = 1 if isinstance(loaders(0), int) else 2
    found = data.shared_with_test()
    assert found == several * len(trained & set(theirs.test_set.indices)) > 0
    assert data.count_test() == several * 10
    # What was counted is tested, and training goes on with what the folds are of.
    assert data.shared_with_test() == found
    assert theirs.stages == ["fit", "test"]
    assert data.loader.dataset is before is not theirs.train_set


def test_shared_samples_of_other_data_sets(tmp_path):
    part = TensorDataset(X[:20], Y[:20])
    known = Texts([f"text {i}" for i in range(20)], [0] * 20)
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for file in files:
        file.touch()
    for test, development, expected in (
        (TensorDataset(X[15:30], Y[15:30]), part, 5),
        (TensorDataset(X[15:30], Y[15:30] + 1), part, 0),  # another label: another sample
        (TensorDataset(X[20:30], Y[20:30]), part, 0),
        (Subset(part, range(5, 9)), Subset(part, range(7)), 2),
        (Subset(Subset(part, range(5, 9)), [0]), Subset(part, range(7)), 1),
        (Transformed(Subset(part, range(5, 9))), Subset(part, range(7)), 2),
        (Texts(["text 3", "new"], [0, 0]), known, 1),
        (Texts([str(f) for f in files[2:]], [0, 1]), Texts(files[:3], [0, 1, 0]), 1),
        (Loaded(first=30), Subset(Loaded(), range(40)), 40),
        (Loaded(noise=1.0), Loaded(), None),  # another sample at every look
        (Loaded(), part, 0),
        (TensorDataset(torch.zeros(20_000, 1)), Loaded(), None),  # too many to load
    ):
        assert count_shared(test, development) == expected


def test_shared_samples_follow_the_sampler_and_eval_dataset():
    class Theirs(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Subset(Loaded(noise=1.0), range(40)), 8)

        def test_dataloader(self):
            return DataLoader(evaluated, 8, sampler=SubsetRandomSampler(range(37, 45)))

    evaluated = Loaded()
    plain = FoldedDataModule(Theirs(), num_folds=2)
    assert plain.shared_with_test() is None
    data = FoldedDataModule(Theirs(), num_folds=2, eval_dataset=Subset(evaluated, range(40)))
    assert (data.shared_with_test(), data.count_test()) == (3, 8)
    held_out = FoldedDataModule(Theirs(), num_folds=2, test_fraction=0.2)
    assert (held_out.shared_with_test(), held_out.count_test()) == (0, 8)


def test_no_test_set_is_said():
    class None_(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Samples(), 8)

    class Empty(None_):
        def test_dataloader(self):
            return []

    for theirs in (None_(), Empty()):
        with pytest.raises(ValueError, match=r"no test set.*test_fraction=0\.2"):
            FoldedDataModule(theirs, num_folds=2).shared_with_test()


def test_inputs_are_known_by_arrays_and_texts_alone():
    class Named(Dataset):
        def __init__(self, **attributes):
            vars(self).update(attributes)

        def __len__(self):
            return 3

    x = np.array([[1.0, 0.0], [2.0, 2.0], [1.0, -0.0]])
    for dataset, equal in (
        (TensorDataset(torch.from_numpy(x), torch.arange(3)), True),
        (Named(features=x, label=[1, 2, 3], ids=np.arange(3)), True),
        (Named(data=x, other=torch.randn(3, 9)), True),
        (Named(images=[torch.zeros(2), torch.ones(2), torch.zeros(2)]), True),
        (Named(images=[torch.zeros(2), torch.ones(2), torch.zeros(1, 2)]), False),
        (Named(words=["a", "b", "a"]), True),
    ):
        one, two, three = input_keys(dataset)
        assert (one == three, one == two) == (equal, False)
    for dataset in (Named(ids=np.arange(3)), Named(y=x), Named(samples=[("/", 0)] * 3)):
        assert input_keys(dataset) is None


# Their validation samples


class Cached(Dataset):
    """As a user writes it: arrays, a transform and a list of classes."""

    classes = ("ant", "bee", "cat")

    def __init__(self, x, labels, transform=None):
        self.x, self.labels, self.transform = x, labels, transform

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        x = self.x[i]
        return {"x": self.transform(x) if self.transform else x, "y": self.labels[i]}


class ThreeParts(pl.LightningDataModule):
    """A real one: training samples are augmented, validation and test samples are not."""

    def __init__(self, batch_size: int = 8, overlap: int = 0):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        first = 30 - self.hparams.overlap
        self.train_set = Cached(X[:30], Y[:30].tolist(), lambda x: x + 1000)
        self.val_set = Cached(X[first:40], Y[first:40].tolist())
        self.test_set = Cached(X[40:], Y[40:].tolist())

    def train_dataloader(self):
        return DataLoader(self.train_set, self.hparams.batch_size, shuffle=True, collate_fn=collate)

    def val_dataloader(self):
        return DataLoader(self.val_set, 2)

    def test_dataloader(self):
        return DataLoader(self.test_set, 2)


@pytest.mark.parametrize("augmented", [True, False])
def test_validation_samples_join_the_development_set(make_trainer, augmented):
    evaluated = None if augmented else Cached(X[:40], Y[:40].tolist())
    data = FoldedDataModule(ThreeParts(), use_val=True, eval_dataset=evaluated)
    assert data.notes() == []
    assert data.columns.targets.tolist() == Y[:40].tolist()
    assert data.class_names == ["ant", "bee", "cat"]
    assert data.hparams["use_val"] is True
    expected = StratifiedKFold(5, shuffle=True, random_state=0).split(X[:40], Y[:40])
    seen = []
    for fold, (train, val) in enumerate(expected):
        spy, folded = Spy(), data.for_fold(fold, 5)
        make_trainer(num_sanity_val_steps=0).fit(spy, datamodule=folded)
        loaded = rows(spy.seen["train"])
        assert sorted(i % 1000 for i in loaded) == train.tolist()
        assert all((i >= 1000) == (i % 1000 < 30) for i in loaded)  # theirs alone are augmented
        assert all(batch["collated"] for batch in spy.seen["train"] + spy.seen["val"])
        assert len(spy.seen["train"][0]["x"]) == 8
        shown = [i + 1000 if augmented and i < 30 else i for i in val]
        assert rows(spy.seen["val"]) == shown
        seen += val.tolist()
    assert sorted(seen) == list(range(40))
    assert data.shared_with_test() == 0
    assert data.fingerprint() != FoldedDataModule(ThreeParts()).fingerprint()


def test_unused_validation_samples_are_said():
    (note,) = FoldedDataModule(ThreeParts()).notes()
    assert "10 validation samples of ThreeParts are not used; use_val=True" in note
    assert FoldedDataModule(TensorDataset(X, Y)).notes() == []
    with pytest.raises(ValueError, match="3 of 13 validation samples of ThreeParts are also"):
        FoldedDataModule(ThreeParts(overlap=3), use_val=True, num_folds=2).setup("fit")
    with pytest.raises(ValueError, match=r"one validation loader .* Resplit has 0"):
        FoldedDataModule(Resplit(), use_val=True, num_folds=2).setup("fit")
    with pytest.raises(ValueError, match="got a TensorDataset; pass a ConcatDataset"):
        FoldedDataModule(TensorDataset(X, Y), use_val=True)
