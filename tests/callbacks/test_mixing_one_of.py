"""One of several transforms a batch; real processes, a resumed run and YAML."""

import json

import forked
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dlblocks.callbacks import Augment, BatchTransform, CutMix, Cutout, MixUp, OneOf
from dlblocks.cli import main

C = 3
X, Y = torch.rand(12, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % C
BATCH = [X, Y]


class Add(BatchTransform):
    """Adds a number; keeps the first draw of each of its batches."""

    def __init__(self, number, **arguments):
        super().__init__(**arguments)
        self.number, self.draws = number, []

    def transform(self, inputs, targets, generator):
        self.draws.append(float(torch.rand((), generator=generator)))
        return inputs + self.number, targets


class AddBefore(Add):
    before_hook = True


def what(one, step, epoch=0, rank=0):
    """Which number was added."""
    return round(float((one.apply(BATCH, epoch=epoch, step=step, rank=rank)[0] - X).mean()))


def test_each_batch_gets_one_as_often_as_its_weight():
    one = OneOf([Add(1), Add(2), Add(3)], weights=[1, 2, 0], p=0.75)
    counts = [0, 0, 0, 0]
    for step in range(2000):
        counts[what(one, step)] += 1
    assert counts[3] == 0
    assert stats.chisquare(counts[:3], [500, 500, 1000]).pvalue > 0.01


def test_each_sample_gets_one_as_often_as_its_weight():
    one = OneOf([Add(1), Add(2), Add(3)], weights=[1, 2, 0], p=0.75, per_sample=True)
    counts = torch.zeros(4)
    rows = []
    for step in range(200):
        added = (one.apply(BATCH, epoch=0, step=step, rank=0)[0] - X).round()
        assert torch.equal(added, added[:, :1, :1, :1].expand_as(X))
        rows.append(added[:, 0, 0, 0])
        counts += torch.bincount(rows[-1].long(), minlength=4)
    assert counts[3] == 0
    assert stats.chisquare(counts[:3], [600, 600, 1200]).pvalue > 0.01
    other = OneOf([Add(1), Add(2), Add(3)], weights=[1, 2, 0], p=0.75, per_sample=True)
    assert what(other, 3) == what(one, 3)
    # Neighbours, and the same sample of the next batch, are chosen for by themselves.
    table = torch.stack(rows)
    assert abs(np.corrcoef(table[:, 0], table[:, 1])[0, 1]) < 0.2
    assert abs(np.corrcoef(table[1:, 0], table[:-1, 0])[0, 1]) < 0.2


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("targets", ["soft", "pair"])
def test_each_sample_is_that_of_its_transform_and_all_targets_are_alike(targets, layout):
    mixers = [MixUp(0.8, num_classes=C, targets=targets), CutMix(num_classes=C, targets=targets)]
    members = [*mixers, Cutout(4), Add(3)]
    one = OneOf(members, p=0.8, per_sample=True)
    x = X.contiguous(memory_format=layout)
    seen = set()
    for step in range(6):
        new_x, new_y = one.apply([x, Y], epoch=0, step=step, rank=0)
        assert new_x.is_contiguous(memory_format=layout)
        alone = [member.apply([x, Y], epoch=0, step=step, rank=0) for member in members]
        assert torch.equal(x, X)
        for i in range(len(X)):
            found = [torch.equal(new_x[i], made[i]) for made, _ in [*alone, (x, Y)]]
            number = found.index(True)
            seen.add(number)
            own = torch.eye(C)[Y[i]]
            if targets == "pair":
                first, second, lam = (part[i] for part in new_y)
                assert first == Y[i]
                if number < 2:
                    expected = alone[number][1]
                    assert (second, lam) == (expected.second[i], expected.lam[i])
                else:
                    assert lam == 1
            else:
                expected = alone[number][1][i] if number < 2 else own
                torch.testing.assert_close(new_y[i], expected)
    assert seen == {0, 1, 2, 3, 4}


def test_each_sample_before_or_after_the_datamodules_hook():
    one = OneOf([AddBefore(3), Add(1)], per_sample=True)
    added = (one.apply(BATCH, epoch=0, step=2, rank=0)[0] - X).round()
    assert sorted(added.unique().tolist()) == [1, 3]


def test_each_sample_of_a_fit(make_trainer, plain_module):
    """Somebody else's module, the last epoch without: targets there are hard again."""
    module = plain_module(nn.Sequential(nn.Flatten(), nn.Linear(108, C)))
    one = OneOf(
        [MixUp(0.8), Cutout(4, stop_epoch=1), OneOf([CutMix(), Cutout(2)], per_sample=True)],
        stop_epoch=-1, per_sample=True,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(X, Y), batch_size=5)
    make_trainer(max_epochs=3, callbacks=[one]).fit(module, loader)
    shapes = [tuple(y.shape) for _, y in module.seen]
    assert shapes == [(5, C), (5, C), (2, C)] * 2 + [(5,), (5,), (2,)]
    for _, y in module.seen[:6]:
        torch.testing.assert_close(y.sum(1), torch.ones(len(y)))
    assert torch.equal(module.seen[6][0], X[:5])


def test_what_cannot_be_put_together_is_said():
    class Crop(BatchTransform):
        def transform(self, inputs, targets, generator):
            return inputs[..., 1:], targets

    one = OneOf([Crop(), MixUp(num_classes=C), MixUp(num_classes=C, targets="pair")],
                per_sample=True)  # fmt: skip
    with pytest.raises(
        ValueError, match=r"different structures .*\(12, 3, 6, 5\).*per_sample=False"
    ):
        one.apply(BATCH, epoch=0, step=1, rank=0)


def test_the_choice_is_a_function_of_seed_step_and_rank():
    def choices(seed=0, rank=0):
        one = OneOf([Add(1), Add(2)], seed=seed)
        return [what(one, step, rank=rank) for step in range(100)]

    first = choices()
    assert choices() == first
    for other in (choices(seed=1), choices(rank=1)):
        assert 20 < sum(a != b for a, b in zip(first, other, strict=True)) < 80


def test_members_never_share_draws():
    members = [Add(1), Add(1), OneOf([Add(1), Add(1)])]
    one, other = OneOf(members), Add(1)
    for step in range(200):
        one.apply(BATCH, epoch=0, step=step, rank=0)
        other.apply(BATCH, epoch=0, step=step, rank=0)
    draws = [m.draws for m in (*members[:2], *members[2].transforms, other)]
    assert sum(map(len, draws)) == 400
    assert len(set().union(*draws)) == 400


def test_a_chosen_member_does_what_it_does_alone():
    members = [MixUp(0.8, num_classes=C), CutMix(num_classes=C), Cutout(4), Augment(erase=1.0)]
    one = OneOf(members)
    for step in range(1, 40):
        member = one.chosen(epoch=0, step=step, rank=0)
        found = one.apply(BATCH, epoch=0, step=step, rank=0)
        expected = member.apply(BATCH, epoch=0, step=step, rank=0)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert (found[1].ndim == 2) == isinstance(member, (MixUp, CutMix))


def test_members_act_at_their_own_time(make_trainer, plain_module):
    """Augment before the datamodule's own hook, MixUp after it, whichever is chosen."""

    class Hooked(plain_module):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [batch[0] * 10, batch[1]]

    module = Hooked(nn.Sequential(nn.Flatten(), nn.Linear(108, C)))
    one = OneOf([Add(1), AddBefore(1)])
    make_trainer(max_epochs=10, callbacks=[one]).fit(module, DataLoader(TensorDataset(X, Y), 6))
    added = []
    for step, (x, _) in enumerate(module.seen):
        raw = X[:6] if step % 2 == 0 else X[6:]
        added.append(round(float((x - raw * 10).mean())))
        chosen = one.chosen(epoch=0, step=step, rank=0)
        assert added[-1] == (10 if chosen is one.transforms[1] else 1)
    assert set(added) == {1, 10}


def test_schedules_and_classes_of_members(make_trainer, plain_module):
    members = [MixUp(1.0, stop_epoch=-1), CutMix(start_epoch=1, stop_epoch=-1)]
    module = plain_module(nn.Sequential(nn.Flatten(), nn.Linear(108, C)), num_classes=C)
    one = OneOf(members, stop_epoch=-2)
    make_trainer(max_epochs=4, callbacks=[one]).fit(module, DataLoader(TensorDataset(X, Y), 3))
    for step, (_, y) in enumerate(module.seen):
        epoch = step // 4
        chosen = one.chosen(epoch=epoch, step=step, rank=0)
        acts = chosen is not None and chosen.active(epoch)
        assert y.is_floating_point() == (acts or step == 0)
    assert one.chosen(epoch=2, step=9, rank=0) is None
    assert members[0].found_classes == C


def test_all_members_are_tried_on_the_first_batch(make_trainer, plain_module):
    """A table is no image: said at once, though CutMix comes once in a thousand batches."""
    module = plain_module()
    one = OneOf([MixUp(), CutMix()], weights=[1, 0.001])
    loader = DataLoader(TensorDataset(torch.rand(8, 4), Y[:8]), 4)
    with pytest.raises(ValueError, match="CutMix expects image batches"):
        make_trainer(callbacks=[one]).fit(module, loader)

    class Hard(plain_module):
        def training_step(self, batch, batch_idx):
            return nn.functional.nll_loss(self.net(batch[0]), batch[1])

    one = OneOf([Add(1), MixUp()], weights=[1, 0.001])
    with pytest.raises(RuntimeError, match=r"(?s)MixUp gave training_step soft targets"):
        make_trainer(callbacks=[one]).fit(Hard(), loader)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([],), ValueError, "0 entries; expected at least one"),
        (([MixUp(), CutMix()], [1]), ValueError, "2 numbers >= 0"),
        (([MixUp(), CutMix()], [1, -1]), ValueError, "2 numbers >= 0"),
        (([MixUp(), CutMix()], [0, 0]), ValueError, "not all 0"),
        (([MixUp(), CutMix()], [1, float("nan")]), ValueError, "must be 2 numbers >= 0"),
        (([MIX := MixUp(), MIX],), ValueError, "all different objects"),
    ],
)
def test_bad_arguments(arguments, error, message):
    transforms, *weights = arguments
    with pytest.raises(error, match=message):
        OneOf(transforms, weights=weights[0] if weights else None)


def test_a_member_that_is_in_the_trainer_too(make_trainer, plain_module):
    mix = MixUp()
    with pytest.raises(ValueError, match="in the Trainer's callbacks and in OneOf"):
        make_trainer(callbacks=[mix, OneOf([mix, CutMix()])]).fit(
            plain_module(), DataLoader(TensorDataset(X, Y), 3)
        )


# Real runs


CONFIG = """
model: {class_path: dlblocks.models.CNNClassifier, init_args: {in_channels: 1, num_classes: 10, channels: [4]}}
data: {class_path: dlblocks.data.DigitsDataModule, init_args: {batch_size: 256}}
trainer:
  max_epochs: 3
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: dlblocks.callbacks.OneOf
      init_args:
        weights: [1, 2, 1]
        stop_epoch: -1
        transforms:
          - class_path: dlblocks.callbacks.MixUp
            init_args: {alpha: 0.8, input_key: [0], data_keys: keep}
          - {class_path: dlblocks.callbacks.CutMix, init_args: {p: 0.5, data_keys: {}}}
          - {class_path: dlblocks.callbacks.Augment, init_args: {crop_padding: 1}}
"""  # noqa: E501


def test_from_yaml(tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(
        CutMix, "draw", lambda self, *a, draw=CutMix.draw: chosen.append(self) or draw(self, *a)
    )
    (tmp_path / "one.yaml").write_text(CONFIG)
    main(["fit", "--config", "one.yaml"])
    assert chosen
    assert chosen[0].p == 0.5
    assert chosen[0].found_classes == 10


# Every pixel is its sample's number.
NUMBERED = torch.arange(16.0)[:, None, None, None].expand(16, 1, 6, 6).contiguous()


class Numbered(pl.LightningModule):
    num_classes = 16

    def __init__(self):
        super().__init__()
        self.seen = []
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16))

    def training_step(self, batch, batch_idx):
        assert torch.allclose(batch[1] @ torch.arange(16.0), batch[0].mean((1, 2, 3)), atol=1e-4)
        self.seen.append(batch[1].tolist())
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fit(epochs, ckpt, out, per_sample):
    torch.manual_seed(0)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=2, strategy="ddp", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[OneOf([MixUp(1.0), CutMix()], per_sample=per_sample)],
    )  # fmt: skip
    module = Numbered()
    # All ranks read the same samples in the same order: what differs is drawn.
    data = DataLoader(TensorDataset(NUMBERED, torch.arange(16)), 8)
    trainer.fit(module, data, ckpt_path=ckpt)
    trainer.save_checkpoint(f"{out}.ckpt")
    with open(f"{out}-{trainer.global_rank}.json", "w") as file:
        json.dump(module.seen, file)


def fit_and_resume():
    for kind in ("batch", "sample"):
        fit(4, None, f"{kind}-whole", kind == "sample")
        fit(2, None, f"{kind}-half", kind == "sample")
        fit(4, f"{kind}-half.ckpt", f"{kind}-rest", kind == "sample")


@pytest.mark.slow
def test_two_ranks_draw_differently_and_a_resumed_run_the_same(tmp_path):
    forked.run(fit_and_resume, environments=forked.ranks(2))

    def seen(name):
        return json.loads((tmp_path / f"{name}.json").read_text())

    for kind in ("batch", "sample"):
        for rank in (0, 1):
            whole = seen(f"{kind}-whole-{rank}")
            assert len(whole) == 8
            assert seen(f"{kind}-half-{rank}") + seen(f"{kind}-rest-{rank}") == whole
        pairs = zip(seen(f"{kind}-whole-0"), seen(f"{kind}-whole-1"), strict=True)
        assert all(a != b for a, b in pairs)
