"""The hook, with somebody else's modules, datamodules and batches."""

import pickle
from collections import namedtuple

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate

from dlblocks.callbacks import BatchTransform, CutMix, MixUp
from dlblocks.callbacks._batch_transform import HOOK, batches_seen, mix

X = torch.randn(12, 4)
Y = torch.arange(12) % 3
Pair = namedtuple("Pair", ["x", "y"])


class AddOne(BatchTransform):
    """Adds 1 to the inputs, and the draw of its generator to a list."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.draws = []

    def transform(self, inputs, targets, generator):
        self.draws.append(float(torch.rand((), generator=generator)))
        return inputs + 1, targets


class Double(AddOne):
    def transform(self, inputs, targets, generator):
        return inputs * 2, targets


CONTAINERS = {
    "list": lambda x, y: [x, y],
    "tuple": lambda x, y: (x, y),
    "dict": lambda x, y: {"x": x, "y": y},
    "namedtuple": lambda x, y: Pair(x, y),
}


def loader(container="list", batch_size=4, x=X, y=Y, **arguments):
    def collate(samples):
        return CONTAINERS[container](*default_collate(samples))

    return DataLoader(TensorDataset(x, y), batch_size, collate_fn=collate, **arguments)


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container(container, make_trainer, plain_module):
    validated = []

    class Validated(plain_module):
        def validation_step(self, batch, batch_idx):
            validated.append(self._pair(batch)[0].clone())

    module, x = Validated(), X.clone()
    keys = {"input_key": "x", "target_key": "y"} if container == "dict" else {}
    callback = AddOne(**keys)
    make_trainer(callbacks=[callback]).fit(module, loader(container), loader(container))
    seen = torch.cat([batch[0] for batch in module.seen])
    assert torch.equal(seen, X + 1)
    # Two batches before the training, to see that it works, and then all.
    assert torch.equal(torch.cat(validated), torch.cat([X[:8], X]))
    assert torch.equal(X, x)
    assert HOOK not in vars(module)


def test_batches_made_beforehand_are_not_written_to(make_trainer, plain_module):
    batches = [[X[i : i + 4].clone(), Y[i : i + 4].clone()] for i in (0, 4, 8)]
    kept = [[t.clone() for t in batch] for batch in batches]
    ready = DataLoader(batches, batch_size=None)
    make_trainer(max_epochs=2, callbacks=[MixUp(1.0, num_classes=3)]).fit(plain_module(), ready)
    for batch, before in zip(batches, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, before, strict=True))


class HookedData(pl.LightningDataModule):
    def train_dataloader(self):
        return loader()

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] * 10, batch[1]]


class BeforeHook(AddOne):
    before_hook = True


@pytest.mark.parametrize(
    ("callback", "expected"), [(AddOne(), X * 10 + 1), (BeforeHook(), (X + 1) * 10)]
)
def test_before_and_after_the_datamodules_own_hook(callback, expected, make_trainer, plain_module):
    module, data = plain_module(), HookedData()
    make_trainer(callbacks=[callback]).fit(module, datamodule=data)
    assert torch.equal(torch.cat([batch[0] for batch in module.seen]), expected)
    assert HOOK not in vars(data)


def test_callbacks_stack_in_the_order_of_the_list(make_trainer, plain_module):
    module = plain_module()
    make_trainer(callbacks=[AddOne(), Double()]).fit(module, loader())
    assert torch.equal(torch.cat([batch[0] for batch in module.seen]), (X + 1) * 2)
    module = plain_module()
    make_trainer(callbacks=[Double(), AddOne()]).fit(module, loader())
    assert torch.equal(torch.cat([batch[0] for batch in module.seen]), X * 2 + 1)


def test_an_exception_removes_the_hook(make_trainer, plain_module):
    class Fails(plain_module):
        def on_train_batch_start(self, batch, batch_idx):
            raise RuntimeError("on purpose")

    module = Fails()
    with pytest.raises(RuntimeError, match="on purpose"):
        make_trainer(callbacks=[AddOne(), Double()]).fit(module, loader())
    assert HOOK not in vars(module)


def test_a_hook_of_the_instance_comes_back(make_trainer, plain_module):
    module = plain_module()

    def own(batch, dataloader_idx):
        return [batch[0] - 1, batch[1]]

    module.on_after_batch_transfer = own
    make_trainer(callbacks=[AddOne()]).fit(module, loader())
    assert torch.allclose(torch.cat([batch[0] for batch in module.seen]), X, atol=1e-6)
    assert module.on_after_batch_transfer is own


@pytest.mark.parametrize("arguments", [{"accumulate_grad_batches": 2}, {}])
def test_once_a_batch_under_accumulation(arguments, make_trainer, plain_module):
    callback, module = AddOne(), plain_module()
    make_trainer(max_epochs=2, callbacks=[callback], **arguments).fit(module, loader())
    assert len(callback.draws) == 6
    assert len(set(callback.draws)) == 6


def test_once_a_batch_under_lbfgs(make_trainer, plain_module):
    class ByLBFGS(plain_module):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), max_iter=4)

    callback, module = AddOne(), ByLBFGS()
    make_trainer(callbacks=[callback]).fit(module, loader())
    assert len(callback.draws) == 3
    assert len(module.seen) > 3  # the closure ran several times, on the same batch
    assert all((batch[0] - X[:4]).allclose(torch.ones(4, 4)) for batch in module.seen[:2])


def test_draws_differ_by_step_callback_seed_and_repeat_on_resume(
    make_trainer, plain_module, tmp_path
):
    def draws(epochs, *callbacks, ckpt=None, **arguments):
        trainer = make_trainer(max_epochs=epochs, callbacks=list(callbacks), **arguments)
        trainer.fit(plain_module(), loader(), ckpt_path=ckpt, weights_only=False)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return [callback.draws for callback in callbacks]

    whole, other, seeded = draws(4, AddOne(), AddOne(), AddOne(seed=1))
    assert len({*whole, *other, *seeded}) == 36
    first = draws(2, AddOne(), AddOne(), AddOne(seed=1))
    rest = draws(4, AddOne(), AddOne(), AddOne(seed=1), ckpt=tmp_path / "last.ckpt")
    assert [a + b for a, b in zip(first, rest, strict=True)] == [whole, other, seeded]


def test_ranks_and_places_draw_differently():
    seeds = {mix(s, step, rank, p) for s in range(4) for step in range(50) for rank in range(4)
             for p in range(3)}  # fmt: skip
    assert len(seeds) == 4 * 50 * 4 * 3
    bits = sum(bin(mix(0, 0, 0, 0) ^ mix(0, i, 0, 0)).count("1") for i in range(1, 200)) / 199
    assert 28 < bits < 35  # about half of 63 bits change


def test_probability_and_epochs(make_trainer, plain_module):
    callback = AddOne(start_epoch=1, stop_epoch=3)
    make_trainer(max_epochs=5, callbacks=[callback]).fit(plain_module(), loader())
    assert len(callback.draws) == 2 * 3
    callback = AddOne(p=0.3)
    make_trainer(max_epochs=100, callbacks=[callback]).fit(plain_module(), loader())
    assert 60 < len(callback.draws) < 120  # 300 batches: 90 ± 8


def test_extra_entries():
    batch = [X, Y, torch.arange(12)]
    changed = AddOne().apply(batch, epoch=0, step=0, rank=0)
    assert torch.equal(changed[2], batch[2])  # sample numbers stay
    masks = [X, Y, torch.zeros(12, 8, 8)]
    with pytest.raises(ValueError, match=r"entry 2 of .*\(12, 8, 8\).*data_keys=\{2: 'keep'\}"):
        AddOne().apply(masks, epoch=0, step=0, rank=0)
    assert AddOne(data_keys="keep").apply(masks, epoch=0, step=0, rank=0)[2] is masks[2]


@pytest.mark.parametrize("batch", [X, {"image": X, "label": Y}, [X], ("text", 3)])
def test_unknown_structures_are_shown(batch):
    with pytest.raises(ValueError, match="set input_key= and target_key="):
        AddOne().apply(batch, epoch=0, step=0, rank=0)


def test_combined_loaders_are_refused_or_addressed(make_trainer, plain_module):
    from lightning.pytorch.utilities import CombinedLoader

    module = plain_module()
    combined = CombinedLoader({"a": loader(), "b": loader()})
    with pytest.raises(ValueError, match=r"\{'a': \[Tensor \(4, 4\), Tensor \(4,\)\], 'b'"):
        make_trainer(callbacks=[AddOne()]).fit(module, combined)


def test_callbacks_can_be_pickled_and_started_again(make_trainer, plain_module):
    callback = pickle.loads(pickle.dumps(CutMix(0.5, num_classes=3)))
    assert callback.alpha == 0.5
    again = AddOne()
    for _ in range(2):
        module = plain_module()
        make_trainer(callbacks=[again]).fit(module, loader())
        assert torch.equal(torch.cat([batch[0] for batch in module.seen]), X + 1)


def test_batch_counter_of_lightning(make_trainer, plain_module):
    """`batches_seen` reads what Lightning keeps for itself; this notices if it changes."""
    counted = []

    class Counts(plain_module):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            if self.trainer.training:
                counted.append(batches_seen(self.trainer))
            return batch

    make_trainer(max_epochs=2).fit(Counts(), loader())
    assert counted == sorted(set(counted))
    assert len(counted) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1.5}, r"p=1.5 is outside \[0, 1\]"),
        ({"start_epoch": 3, "stop_epoch": 3}, "would never act"),
        ({"data_keys": "drop"}, "data_keys='drop'"),
        ({"start_epoch": -1}, "start_epoch=-1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AddOne(**arguments)
