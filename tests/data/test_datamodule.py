import inspect
import itertools
import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from conftest import no_address
from jsonargparse import ArgumentParser
from torch.utils.data import DataLoader, TensorDataset, default_collate

from dlblocks._errors import ArgumentError, constructor_arguments
from dlblocks.data import (
    ArrayDataModule,
    ArrayDataset,
    CurveDataModule,
    DataModule,
    DigitsDataModule,
    EpochSampler,
    FoldedDataModule,
    ImageFolderDataModule,
    MNISTDataModule,
    Source,
    TabularDataModule,
)
from dlblocks.data.dataset import collate, collate_with_index
from dlblocks.models import MLPClassifier, MLPRegressor


def parts(datamodule):
    return {part: set(datamodule.arrays(part)[2].tolist()) for part in ("train", "val", "test")}


def test_folds_cover_the_development_set_and_never_the_test_set():
    whole = DigitsDataModule(num_folds=5)
    validated, tested = [], []
    for fold in range(5):
        found = parts(whole.for_fold(fold, 5))
        assert not found["train"] & found["val"]
        assert not (found["train"] | found["val"]) & found["test"]
        assert len(found["train"] | found["val"] | found["test"]) == 1797
        validated += found["val"]
        tested.append(found["test"])
    assert len(validated) == len(set(validated)) == 1797 - len(tested[0])
    assert all(test == tested[0] for test in tested)


def test_splits_depend_on_split_seed_alone():
    first = parts(DigitsDataModule(num_folds=5, fold=2))
    pl.seed_everything(123, verbose=False)
    second = parts(DigitsDataModule(num_folds=5, fold=2, shuffle_seed=7, batch_size=9))
    assert first == second
    assert parts(DigitsDataModule(num_folds=5, fold=2, split_seed=1)) != first


def test_for_fold_changes_only_the_copy():
    original = DigitsDataModule()
    before = parts(original)
    copy = original.for_fold(3, 5, repeat=4)
    assert (copy.num_folds, copy.fold, copy.repeat) == (5, 3, 4)
    assert parts(copy)["test"] == before["test"]
    assert parts(copy) != parts(original.for_fold(3, 5))
    assert copy.hparams["fold"] == copy.hparams_initial["fold"] == 3
    assert original.hparams["fold"] == 0
    assert original.hparams["num_folds"] is None
    assert parts(original) == before
    assert copy.source is original.source


def test_normalisation_is_that_of_the_training_part():
    inputs = np.random.default_rng(0).normal(3, 2, (50, 3, 4, 4)).astype(np.float32)
    targets = np.arange(50) % 2
    data = ArrayDataModule(inputs, targets, num_folds=5)
    train, _, rows = data.arrays("train")
    batch = data.transform(train)
    assert torch.allclose(batch.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(batch.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)
    mean, std = inputs[rows].mean((0, 2, 3)), inputs[rows].std((0, 2, 3))
    expected = (inputs - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(data.transform(torch.from_numpy(inputs)), expected, atol=1e-5)

    # Nothing of the validation part is in it.
    spoiled = inputs.copy()
    spoiled[data.arrays("val")[2]] = 1e6
    other = ArrayDataModule(spoiled, targets, num_folds=5)
    other.setup()
    assert torch.equal(other.transform(train), batch)


def test_uint8_is_scaled_and_constant_columns_stay_finite():
    images = torch.full((10, 1, 2, 2), 255, dtype=torch.uint8)
    data = ArrayDataModule(images, np.arange(10) % 2, normalize=False)
    data.setup()
    assert torch.equal(data.transform(images), torch.ones(10, 1, 2, 2))
    data = ArrayDataModule(np.full((10, 2), 7.7), np.arange(10) % 2)
    data.setup()
    assert data.transform(data.source.inputs).abs().max() < 1e-5


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, "mapped"], ids=no_address)
def test_batches_have_the_dtype_of_the_model(dtype, precision, tmp_path, make_trainer):
    class Look(MLPClassifier):
        def training_step(self, batch, batch_idx):
            seen.append(batch[0])
            return super().training_step(batch, batch_idx)

    seen: list = []
    inputs = np.random.default_rng(0).integers(0, 256, (20, 1, 3, 3))
    if dtype == "mapped":
        np.save(tmp_path / "half.npy", inputs.astype(np.float16))
        inputs = np.load(tmp_path / "half.npy", mmap_mode="r")
    else:
        inputs = inputs.astype(dtype)
    data = ArrayDataModule(inputs, np.arange(20) % 2, batch_size=8)
    make_trainer(precision=precision).fit(Look(9, 2), datamodule=data)
    own = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    assert {x.dtype for x in seen} == {own}
    assert data.inverse_transform(seen[0].float()).max() > 99  # the scale is that of the source


def test_half_precision_targets_become_float32(make_trainer):
    x = np.random.default_rng(0).random((20, 3)).astype(np.float16)
    data = ArrayDataModule(x, x[:, 0])
    assert data.source.inputs.dtype == torch.float16  # they stay small
    assert data.source.targets.dtype == torch.float32
    make_trainer().fit(MLPRegressor(3), datamodule=data)


def test_large_means_lose_no_precision():
    inputs = np.random.default_rng(0).normal(1e4, 1, (5000, 1)).astype(np.float32)
    data = ArrayDataModule(inputs, np.arange(5000) % 2)
    data.setup()
    assert abs(float(data.transform(data.arrays("train")[0]).std()) - 1) < 1e-2


def test_order_is_a_function_of_seed_and_epoch():
    data = range(37)

    def order(seed, epoch):
        sampler = EpochSampler(data, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert sorted(order(1, 5)) == list(data)


@pytest.mark.parametrize(("size", "ranks"), [(33, 2), (33, 4), (3, 4), (32, 2)])
def test_ranks_share_the_samples(size, ranks):
    evaluation = [
        list(EpochSampler(range(size), shuffle=False, num_replicas=ranks, rank=rank))
        for rank in range(ranks)
    ]
    assert sorted(itertools.chain(*evaluation)) == list(range(size))  # no padding
    training = [
        EpochSampler(range(size), shuffle=True, num_replicas=ranks, rank=rank)
        for rank in range(ranks)
    ]
    lists = [list(sampler) for sampler in training]
    assert [len(sampler) for sampler in training] == [len(x) for x in lists]
    assert len({len(x) for x in lists}) == 1  # gradients are averaged step by step
    assert set(itertools.chain(*lists)) == set(range(size))
    assert sum(map(len, lists)) - size < ranks


def test_a_last_batch_of_one_is_left_out_of_training():
    sampler = EpochSampler(range(33), shuffle=True, avoid_single=32)
    assert len(sampler) == len(list(sampler)) == 32
    assert len(EpochSampler(range(34), shuffle=True, avoid_single=32)) == 34
    assert len(EpochSampler(range(3), shuffle=True, avoid_single=1)) == 3
    left_out = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        left_out |= set(range(33)) - set(sampler)
    assert len(left_out) > 5  # another one in each epoch


def test_batches_equal_indexing_with_any_collate():
    inputs, targets = torch.randn(20, 3), torch.arange(20)
    rows = torch.tensor([5, 3, 19, 0])
    data = ArrayDataset(inputs, targets, rows)
    for i, row in enumerate(rows.tolist()):
        x, y, index = data[i]
        assert torch.equal(x, inputs[row])
        assert int(y) == index == row
    batch = next(iter(DataLoader(data, batch_size=4, collate_fn=collate_with_index)))
    theirs = next(iter(DataLoader(data, batch_size=4, collate_fn=default_collate)))
    samples = next(iter(DataLoader(data, batch_size=4, collate_fn=list)))
    assert len(samples) == 4
    assert len(samples[0]) == 3
    for ours, other in zip(batch, theirs, strict=True):
        assert torch.equal(ours, other)
    assert torch.equal(batch[0], inputs[rows])
    assert len(collate(data.__getitems__([0, 1]))) == 2


def test_workers_change_nothing():
    def epoch(num_workers):
        data = DigitsDataModule(num_workers=num_workers, batch_size=300)
        data.setup()
        return [x for batch in data.train_dataloader() for x in batch]

    for one, other in zip(epoch(0), epoch(2), strict=True):
        assert torch.equal(one, other)


def test_predict_gives_the_index_of_each_sample(make_trainer):
    class Identity(pl.LightningModule):
        def predict_step(self, batch, batch_idx):
            return batch

    data = DigitsDataModule()
    data.predict_on = "val"
    batches = make_trainer().predict(Identity(), datamodule=data)
    inputs, targets, index = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert set(index.tolist()) == parts(data)["val"]
    assert torch.equal(targets, data.source.targets[index])
    assert torch.allclose(inputs, data.transform(data.source.inputs[index]))


def test_properties_and_pickle():
    data = pickle.loads(pickle.dumps(DigitsDataModule(num_folds=5)))
    assert (data.in_channels, data.image_size, data.in_features) == (1, (8, 8), 64)
    assert data.class_names == [str(i) for i in range(10)]
    assert data.hparams["num_folds"] == 5
    table = ArrayDataModule(np.zeros((4, 2)), np.array([0.0, 1, 2, 3]))
    assert (table.num_classes, table.out_features, table.class_names) == (None, 1, None)
    with pytest.raises(AttributeError, match="not images"):
        _ = table.in_channels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fold": 5, "num_folds": 5}, r"fold=5 is outside \[0, 4\]"),
        ({"fold": 1}, "fold=1 has no effect"),
        ({"num_folds": 1}, "num_folds=1 is outside"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"val_fraction": 1.0}, "val_fraction=1.0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"shuffle_seed": -1}, "shuffle_seed=-1"),
        ({"device_resident": 1}, "device_resident=1 must be True or False or 'auto'"),
        ({"device_resident": "False"}, "device_resident='False' is not known. Choose from: auto"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitsDataModule(**arguments)


@pytest.mark.parametrize("part", ["train", "val", "test", "predict"])
@pytest.mark.parametrize("folded", [True, False])
def test_loaders_before_setup_say_so(part, folded):
    data = DigitsDataModule()
    if folded:
        data = FoldedDataModule(TensorDataset(torch.rand(9, 2), torch.arange(9) % 2))
    with pytest.raises(RuntimeError, match=r"before setup; call setup\('fit'\) first"):
        getattr(data, f"{part}_dataloader")()


def test_missing_test_set_is_said():
    data = DigitsDataModule(test_fraction=0)
    data.setup()
    with pytest.raises(ValueError, match="no test set"):
        data.test_dataloader()
    with pytest.raises(ValueError, match="has an official test set"):
        ArrayDataModule(
            np.zeros((4, 2)),
            [0, 1, 0, 1],
            test_inputs=np.zeros((2, 2)),
            test_targets=[0, 1],
            test_fraction=0.5,
        ).setup()


# Arguments that reach the base classes by **kwargs

LEAVES = {
    ArrayDataModule: {"inputs": np.zeros((9, 2)), "targets": np.arange(9) % 3},
    CurveDataModule: {},
    DigitsDataModule: {},
    FoldedDataModule: {"data": torch.utils.data.TensorDataset(torch.zeros(9, 2))},
    ImageFolderDataModule: {"root": "photos", "size": 8},
    MNISTDataModule: {},
    TabularDataModule: {"data": "iris"},
}


@pytest.mark.parametrize("leaf", LEAVES)
def test_the_command_line_has_all_arguments_with_their_defaults(leaf):
    parser = ArgumentParser()
    parser.add_class_arguments(leaf, "data", fail_untyped=False)
    found = vars(parser.get_defaults().data)
    known = constructor_arguments(leaf)
    assert {"split", "num_folds", "test_fraction", "shuffle_seed"} < known.keys()
    empty = inspect.Parameter.empty
    assert found == {k: None if p.default is empty else p.default for k, p in known.items()}


@pytest.mark.parametrize("leaf", LEAVES)
def test_hyperparameters_hold_all_arguments_but_data(leaf):
    given = {"num_folds": 3, "shuffle_seed": 5, "stratify": False}
    found = leaf(**LEAVES[leaf], **given).hparams_initial
    data = {"inputs", "targets", "test_inputs", "test_targets", "folds", "train_transform"}
    if leaf is ArrayDataModule:
        data |= {"weights", "test_weights"}
    if leaf in (ArrayDataModule, FoldedDataModule):
        data |= {"data", "eval_dataset", "class_names", "groups", "positions"}
    known = constructor_arguments(leaf)
    assert found.keys() | data >= known.keys()
    defaults = {name: known[name].default for name in known.keys() & found.keys()}
    expected = {**defaults, **LEAVES[leaf], **given}
    assert found == {name: expected.get(name, found[name]) for name in found}


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_wrong_name_or_value_is_refused(leaf):
    with pytest.raises(
        TypeError, match=f"{leaf.__name__} has no argument 'num_fold'; did you mean 'num_folds'"
    ):
        leaf(**LEAVES[leaf], num_fold=3)
    with pytest.raises(ValueError, match=r"val_fraction=1\.5 is outside"):
        leaf(**LEAVES[leaf], val_fraction=1.5)
    with pytest.raises(TypeError, match="num_folds='3' must be a whole number"):
        leaf(**LEAVES[leaf], num_folds="3")


def test_a_source_of_ones_own_takes_the_shared_arguments():
    class Mine(DataModule):
        def __init__(self, size: int, **kwargs):
            super().__init__(**kwargs)
            self.size = size
            self.save_hyperparameters()

        def load(self):
            return Source(torch.rand(self.size, 2), torch.arange(self.size) % 2)

    data = Mine(12, num_folds=3, train_transform=torch.nn.Identity())
    assert data.hparams.size == 12
    assert data.hparams.num_folds == 3
    assert data.hparams.batch_size == 64
    assert "train_transform" not in data.hparams
    assert data.for_fold(2, 4).hparams_initial.fold == 2
    assert data.hparams_initial.fold == 0
    with pytest.raises(ArgumentError, match="normalize='no' must be True or False"):
        Mine(12, normalize="no")
