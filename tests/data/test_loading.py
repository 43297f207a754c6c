"""How batches come about: per-sample transforms, resident arrays, what a model gets to see."""

import re

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from dlblocks.callbacks import Augment, MixUp
from dlblocks.data import ArrayDataModule, DigitsDataModule, EpochSampler, TabularDataModule
from dlblocks.data._normalization import mean_and_std
from dlblocks.data._resident import ResidentArrays
from dlblocks.data.dataset import ArrayDataset
from dlblocks.data.transforms import SampleTransform


class Sees(pl.LightningModule):
    """Keeps the batches that it is given; learns nothing."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs, self.validated = [], []

    def on_train_epoch_start(self):
        self.epochs.append([])

    def training_step(self, batch, batch_idx):
        self.epochs[-1].append([x.clone() for x in batch])
        return self.weight.square()

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch[0].clone())

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.1)

    def inputs(self, epoch):
        return torch.cat([batch[0] for batch in self.epochs[epoch]])

    def targets(self, epoch):
        return torch.cat([batch[1] for batch in self.epochs[epoch]])


def crop():
    return v2.Compose([v2.RandomCrop(8, padding=2), v2.RandomHorizontalFlip()])


def fit(make_trainer, data, epochs=2, callbacks=(), **arguments):
    sees = Sees()
    make_trainer(max_epochs=epochs, callbacks=list(callbacks)).fit(sees, data, **arguments)
    return sees


# A transform of single samples


def test_train_transform_is_that_of_seed_epoch_and_row(make_trainer):
    data = DigitsDataModule(batch_size=200, train_transform=crop(), shuffle_seed=5)
    sees = fit(make_trainer, data)
    images, _, rows = data.arrays("train")
    for epoch in (0, 1):
        by_hand = SampleTransform(crop(), seed=5).batch(images, rows, epoch)
        order = np.random.default_rng((5, epoch)).permutation(len(rows))
        assert torch.equal(sees.inputs(epoch), data.transform(by_hand)[order])
    # The validation part is as it is.
    assert torch.equal(torch.cat(sees.validated[-2:]), data.transform(data.arrays("val")[0]))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # on two cores
def test_workers_make_no_difference_to_it(make_trainer):
    def epochs(num_workers):
        data = DigitsDataModule(batch_size=400, train_transform=crop(), num_workers=num_workers)
        sees = fit(make_trainer, data)
        return [sees.inputs(epoch) for epoch in (0, 1)]

    for one, other in zip(epochs(0), epochs(4), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("transformed", [True, False])
def test_a_run_that_goes_on_has_the_next_epoch(make_trainer, tmp_path, num_workers, transformed):
    """Lightning starts the workers of a resumed run before it tells them the epoch."""

    def data():
        return DigitsDataModule(
            batch_size=400,
            num_workers=num_workers,
            train_transform=crop() if transformed else None,
        )

    whole = fit(make_trainer, data(), epochs=3)
    first, trainer = Sees(), make_trainer(max_epochs=2)
    trainer.fit(first, data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    rest = fit(make_trainer, data(), epochs=3, ckpt_path=tmp_path / "a.ckpt")
    assert len(rest.epochs) == 1
    assert torch.equal(rest.inputs(0), whole.inputs(2))


def test_dataset_is_indexed_by_epoch_and_position():
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    data = ArrayDataset(images, torch.arange(20), torch.arange(5, 15), SampleTransform(crop()))
    for key in ((3, 7), 7):
        image, target, row = data[key]
        batch = data.__getitems__([key])
        assert torch.equal(image, batch.inputs[0])
        assert int(target) == row == 12
    assert not torch.equal(data[3, 7][0], data[4, 7][0])
    assert len(list(data)) == 10  # iteration ends
    sampler = EpochSampler(data, shuffle=True, with_epoch=True)
    sampler.set_epoch(4)
    assert {epoch for epoch, _ in sampler} == {4}
    assert sorted(position for _, position in sampler) == list(range(10))


def test_train_transform_is_no_hyperparameter():
    data = DigitsDataModule(train_transform=crop())
    assert "train_transform" not in data.hparams
    assert data.hparams["batch_size"] == 64


def test_tables_take_no_train_transform():
    arguments = {"train_transform": crop()}
    for table in (
        TabularDataModule("wine", **arguments),
        ArrayDataModule(np.random.rand(20, 3), np.arange(20) % 2, **arguments),
    ):
        with pytest.raises(ValueError, match=r"needs images.*use train_transform=None"):
            table.setup()


# Arrays on the accelerator


def test_gather_on_another_device():
    """The meta device has shapes and no values: what touches the CPU arrays instead is an error."""
    data = ArrayDataset(torch.empty(9, 3, 4, 4, device="meta"), torch.empty(9, device="meta"))
    rows = data.__getitems__([4, 2])
    assert rows.inputs.device.type == rows.targets.device.type == "meta"
    assert rows.inputs.shape == (2, 3, 4, 4)
    assert rows.rows.tolist() == [4, 2]


def test_copies_are_made_once():
    inputs, targets = torch.zeros(4, 2), torch.zeros(4)
    arrays, meta = {"inputs": inputs, "targets": targets}, torch.device("meta")
    resident = ResidentArrays(True)
    first = resident.move(arrays, meta)
    assert [x.device.type for x in first] == ["meta", "meta"]
    assert all(a is b for a, b in zip(first, resident.move(arrays, meta), strict=True))
    other = resident.move({**arrays, "inputs": inputs + 1}, meta)  # completed for another fold
    assert other[0] is not first[0]
    assert other[1] is first[1]
    for wanted, device in ((True, "cpu"), (False, "meta"), ("auto", "meta")):
        assert ResidentArrays(wanted).move(arrays, torch.device(device))[0] is inputs


@pytest.mark.parametrize("resident", [True, "auto"])
def test_on_the_cpu_the_arrays_stay_where_they_are(make_trainer, resident):
    plain = fit(make_trainer, DigitsDataModule(), epochs=1)
    data = DigitsDataModule(device_resident=resident)
    sees = fit(make_trainer, data, epochs=1)
    assert torch.equal(sees.inputs(0), plain.inputs(0))
    loader = data.train_dataloader()
    assert loader.dataset.inputs is data.source.inputs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resident", [True, "auto"])
def test_on_a_gpu_the_arrays_are_there(make_trainer, resident):
    def seen(**arguments):
        sees, data = Sees(), DigitsDataModule(**arguments)
        trainer = make_trainer(accelerator="gpu", devices=1, callbacks=[Augment(rotation=10)])
        trainer.fit(sees, data)
        return sees.inputs(0).cpu(), data.train_dataloader().dataset.inputs.device.type

    (one, here), (other, there) = seen(), seen(device_resident=resident)
    assert (here, there) == ("cpu", "cuda")
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device_resident": True, "num_workers": 2}, r"num_workers=2.*use num_workers=0"),
        ({"device_resident": True, "train_transform": crop()}, "callbacks.Augment"),
        ({"device_resident": "yes"}, "Choose from: auto, or give True or False"),
        ({"train_transform": 3}, "train_transform=3 cannot be called"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        DigitsDataModule(**arguments)


# Normalisation


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 18])
def test_mean_and_std_in_chunks(dtype, chunk, monkeypatch):
    monkeypatch.setattr("dlblocks.data._normalization.CHUNK", chunk)
    inputs = (torch.rand(40, 3, 4, 5) * torch.tensor([1, 90, 255]).view(3, 1, 1)).to(dtype)
    rows = torch.arange(0, 40, 3)
    mean, std = mean_and_std(inputs, rows)
    expected = inputs[rows].double()
    torch.testing.assert_close(mean, expected.mean((0, 2, 3)))
    torch.testing.assert_close(std, expected.std((0, 2, 3), correction=0))


def test_inverse_transform(make_trainer):
    data = DigitsDataModule()
    images = data.arrays("train")[0]
    torch.testing.assert_close(data.inverse_transform(data.transform(images)), images.float())
    assert torch.equal(data.as_images(data.transform(images)), images)


# What a model gets to see


def test_show_draws_the_first_training_batch(make_trainer):
    data = DigitsDataModule(batch_size=30, train_transform=crop())
    sees = fit(make_trainer, DigitsDataModule(batch_size=30, train_transform=crop()), epochs=1)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    figure = data.show_batch(count=12)
    assert torch.equal(torch.get_rng_state(), state)
    assert data.trainer is None
    data.setup()
    axes = [axis for axis in figure.axes if axis.images]
    assert len(axes) == 12
    for axis, image, target in zip(axes, sees.epochs[0][0][0], sees.targets(0), strict=False):
        np.testing.assert_array_equal(axis.images[0].get_array(), data.as_images(image[None])[0, 0])
        assert axis.get_xlabel() == str(int(target))


def test_show_goes_through_the_callbacks():
    mix = MixUp(1.0)
    labels = [axis.get_xlabel() for axis in DigitsDataModule().show_batch([mix], count=9).axes]
    assert sum("%, " in label for label in labels) >= 5
    assert mix.found_classes is None  # a copy was used


def test_show_takes_one_callback_alone():
    labels = [axis.get_xlabel() for axis in DigitsDataModule().show_batch(MixUp(1.0), count=9).axes]
    assert any("%, " in label for label in labels)


@pytest.mark.parametrize("callbacks", [[], [MixUp(1.0)]], ids=["plain", "mixed"])
def test_show_draws_several_values_as_values(callbacks):
    """In [0, 1] as shares of classes are, but they are none."""
    values = np.random.default_rng(0).random((40, 2))
    data = ArrayDataModule(np.zeros((40, 1, 4, 4), np.uint8), values)
    labels = [axis.get_xlabel() for axis in data.show_batch(callbacks).axes]
    assert all(re.fullmatch(r"[\d.]+, [\d.]+", label) for label in labels)


def test_show_needs_images():
    with pytest.raises(AttributeError, match="not images"):
        TabularDataModule("wine").show_batch()
