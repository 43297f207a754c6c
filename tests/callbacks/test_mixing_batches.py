"""Mixing under the Trainer: batches of every structure, other entries, schedules, clear errors."""

from collections import OrderedDict, defaultdict, namedtuple

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate

from dlblocks.callbacks import Augment, CutMix, Cutout, MixUp
from dlblocks.losses import MixedTargets, mixed_loss
from dlblocks.metrics import hard_labels
from dlblocks.models import Classifier, MLPClassifier

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
N, C = 12, 3
LABELS = torch.arange(N) % C
# Every pixel of an image is its sample's number, so that whence it came can be read off it.
IMAGES = torch.arange(float(N))[:, None, None, None].expand(N, 1, 6, 6).contiguous()
LATER = {"epoch": 0, "step": 7, "rank": 0}
Pair = namedtuple("Pair", ["x", "y"])


def loader(batch_size=4, x=IMAGES, y=LABELS, make=list, **arguments):
    def collate(samples):
        return make(default_collate(samples))

    return DataLoader(TensorDataset(x, y), batch_size, collate_fn=collate, **arguments)


class Net(pl.LightningModule):
    """Somebody else's classifier; keeps what training and validation saw."""

    def __init__(self, loss=F.cross_entropy, num_classes=C, **arguments):
        super().__init__(**arguments)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, C))
        self.loss, self.seen, self.validated, self.steps = loss, [], [], 0
        if num_classes:
            self.num_classes = num_classes

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return self.loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch)
        F.nll_loss(self.net(batch[0]), batch[1])  # takes class indices only

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.steps += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4)


# Structures


STRUCTURES = {
    "list": (lambda x, y: [x, y], 0, 1),
    "tuple": (lambda x, y: (x, y), 0, 1),
    "namedtuple": (Pair, 0, 1),
    "dict": (lambda x, y: {"x": x, "y": y}, "x", "y"),
    "ordered": (lambda x, y: OrderedDict(x=x, y=y), "x", "y"),
    "defaultdict": (lambda x, y: defaultdict(list, x=x, y=y), "x", "y"),
    "nested": (lambda x, y: {"a": ({"x": x}, "text"), "b": [y]}, ["a", 0, "x"], ["b", 0]),
    "nested tuple": (lambda x, y: ((x, y), 3), [0, 0], [0, 1]),
    "other order": (lambda x, y: [y, "text", x], 2, 0),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures(name):
    make, input_key, target_key = STRUCTURES[name]
    batch = make(IMAGES, LABELS)
    method = CutMix(num_classes=C, input_key=input_key, target_key=target_key)
    changed = method.apply(batch, **LATER)
    expected = CutMix(num_classes=C).apply([IMAGES, LABELS], **LATER)
    found = method.entries(changed)
    assert torch.equal(found.inputs[0], expected[0])
    assert torch.equal(found.targets[0], expected[1])
    assert type(changed) is type(batch)
    own = method.entries(batch)
    assert own.inputs[0] is IMAGES
    assert own.targets[0] is LABELS


def test_several_inputs_are_mixed_alike():
    batch = [{"image": IMAGES, "deep": [IMAGES + 100, "name"]}, LABELS]
    for method in (MixUp(1.0, num_classes=C), CutMix(num_classes=C), Cutout(0.5)):
        images, targets = method.apply(batch, **LATER)
        alone = method.apply([IMAGES, LABELS], **LATER)
        assert torch.equal(images["image"], alone[0])
        assert torch.equal(targets, alone[1])
        assert images["deep"][1] == "name"
        if isinstance(method, Cutout):
            assert torch.equal(images["deep"][0] == 0, (alone[0] == 0) & (images["deep"][0] == 0))
            assert (images["deep"][0] == 0).any()
        else:
            torch.testing.assert_close(images["deep"][0], alone[0] + 100)
    mixed = MixUp(1.0, num_classes=C).apply([(IMAGES, torch.rand(N, 5)), LABELS], **LATER)
    assert mixed[0][1].shape == (N, 5)
    with pytest.raises(ValueError, match=r"the same box into all inputs.*\(12, 5\)"):
        CutMix(num_classes=C).apply([(IMAGES, torch.rand(N, 5)), LABELS], **LATER)
    with pytest.raises(ValueError, match="inputs of 12 and of 3 samples"):
        MixUp(num_classes=C).apply([(IMAGES, torch.rand(3, 5)), LABELS], **LATER)
    with pytest.raises(ValueError, match="Augment changes one input tensor"):
        Augment(horizontal_flip=0.5).apply([(IMAGES, IMAGES), LABELS], **LATER)


# Other entries


def test_masks_and_weights_by_name():
    masks = torch.arange(N)[:, None, None].expand(N, 6, 6).contiguous()
    weights = torch.arange(N) / 10
    batch = {"x": IMAGES, "y": LABELS, "mask": masks, "w": weights, "id": torch.arange(N), "n": 3}
    keys = {"input_key": "x", "target_key": "y", "num_classes": C}
    actions = {"mask": "input", "w": "target"}
    changed = CutMix(data_keys=actions, **keys).apply(batch, **LATER)
    # The mask shows the same samples' numbers as the image, pixel by pixel.
    assert torch.equal(changed["mask"], changed["x"][:, 0].long())
    assert changed["mask"].dtype == torch.int64
    assert changed["id"] is batch["id"]
    plan = CutMix().draw(IMAGES, CutMix().generator(7, 0))
    mixed = plan.lam * weights + (1 - plan.lam) * weights[plan.partner]
    torch.testing.assert_close(changed["w"], mixed)
    with pytest.raises(ValueError, match="masks of classes cannot be averaged"):
        MixUp(data_keys=actions, **keys).apply(batch, **LATER)
    with pytest.raises(ValueError, match="keep them"):
        Cutout(data_keys={"mask": "input", "w": "keep"}, input_key="x", target_key="y").apply(
            batch, **LATER
        )
    kept = Cutout(data_keys="keep", input_key="x", target_key="y").apply(batch, **LATER)
    assert kept["mask"] is masks


@pytest.mark.parametrize(
    ("extra", "data_keys", "message"),
    [
        (torch.rand(N, 2, 4), "refuse", r"entry 2 of .*data_keys=\{2: 'keep'\}.*'input'.*'target'"),
        (torch.rand(N), "refuse", "entry 2 of"),
        ([{"boxes": torch.rand(i, 4)} for i in range(N)], "refuse", r"… 12 entries"),
        ({"deep": [torch.rand(N, 6, 6)]}, "refuse", "entry 2 of"),
        (torch.rand(N), {3: "keep"}, "names 3, which is not in the batch"),
        (torch.rand(N), {0: "keep", 2: "keep"}, "which holds the inputs or the targets"),
        ("text", {2: "input"}, "found no tensor at 2"),
        (torch.arange(N), {2: "target"}, "floating point, got torch.int64"),
    ],
)
def test_entries_that_nobody_knows(extra, data_keys, message):
    with pytest.raises(ValueError, match=message):
        MixUp(num_classes=C, data_keys=data_keys).apply([IMAGES, LABELS, extra], **LATER)


@pytest.mark.parametrize("extra", ["text", torch.tensor(3.0), torch.rand(5, 2), torch.arange(N)])
def test_entries_that_are_carried(extra):
    changed = MixUp(num_classes=C).apply([IMAGES, LABELS, extra], **LATER)
    assert changed[2] is extra


def test_positions_from_the_command_line_are_strings():
    changed = MixUp(num_classes=C, data_keys={"2": "target"}).apply(
        [IMAGES, LABELS, torch.ones(N)], **LATER
    )
    torch.testing.assert_close(changed[2], torch.ones(N))


def test_extras_are_checked_when_made():
    with pytest.raises(ValueError, match=r"data_keys\['m'\]='inputs'.*did you mean 'input'"):
        MixUp(data_keys={"m": "inputs"})
    with pytest.raises(ValueError, match=r"data_keys\['m'\]='target'"):
        Cutout(data_keys={"m": "target"})


def test_nothing_beside_nested_inputs_is_overlooked():
    batch = {"a": {"x": IMAGES, "mask": torch.rand(N, 6, 6)}, "y": LABELS}
    with pytest.raises(ValueError, match=r"entry \['a', 'mask'\]"):
        MixUp(num_classes=C, input_key=["a", "x"], target_key="y").apply(batch, **LATER)


# Other people's modules and data


def test_lightnings_own_demo_classes(make_trainer):
    """Batches that are a bare tensor of inputs, and no targets."""

    class Data(BoringDataModule):
        def train_dataloader(self):
            return DataLoader(self.random_train, batch_size=8)

    class Model(BoringModel):
        def training_step(self, batch, batch_idx):
            seen.append(batch.clone())
            return super().training_step(batch, batch_idx)

    seen, data = [], Data()
    callback = MixUp(1.0, input_key=None, target_key=None)
    make_trainer(callbacks=[callback]).fit(Model(), datamodule=data)
    raw = torch.stack([data.random_train[i] for i in range(len(data.random_train))]).split(8)
    assert len(seen) == len(raw) == 8
    for step, (mixed, own) in enumerate(zip(seen, raw, strict=True)):
        plan = callback.draw(own, callback.generator(step, 0))
        lam = plan.lam[:, None]
        torch.testing.assert_close(mixed, lam * own + (1 - lam) * own[plan.partner])
    with pytest.raises(ValueError, match=r"the batch Tensor \(1, 32\).*input_key=None"):
        make_trainer(callbacks=[MixUp()]).fit(BoringModel(), datamodule=BoringDataModule())


@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle"])
def test_combined_loaders(mode, make_trainer):
    """One of two loaders is mixed, the other left alone."""

    class Two(Net):
        def training_step(self, batch, batch_idx):
            others.append(batch["b"])
            return super().training_step(batch["a"], batch_idx)

    others, module = [], Two()
    both = CombinedLoader({"a": loader(), "b": loader(y=LABELS)}, mode)
    make_trainer(callbacks=[CutMix(input_key=["a", 0], target_key=["a", 1])]).fit(module, both)
    assert all(batch[1].shape == (4, C) for batch in module.seen)
    assert len(module.seen) == len(others) == 3
    for i, (x, y) in enumerate(others):
        assert torch.equal(x, IMAGES[4 * i : 4 * i + 4])
        assert torch.equal(y, LABELS[4 * i : 4 * i + 4])


def test_validation_and_data_set_stay_as_they_are(make_trainer):
    x, y, module = IMAGES.clone(), LABELS.clone(), Net()
    make_trainer(max_epochs=2, callbacks=[MixUp(1.0), CutMix()], num_sanity_val_steps=2).fit(
        module, loader(x=x, y=y), loader(x=x, y=y)
    )
    assert torch.equal(torch.cat([batch[0] for batch in module.validated[:2]]), IMAGES[:8])
    for images, labels in module.validated:
        assert labels.dtype == torch.int64
        assert (images == images[:, :1, :1, :1]).all()
    assert len(module.validated) == 2 + 2 * 3
    assert torch.equal(x, IMAGES)
    assert torch.equal(y, LABELS)


@pytest.mark.parametrize("where", ["argument", "module", "hparams", "datamodule"])
def test_number_of_classes(where, make_trainer):
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return loader()

    data, module = Data(), Net(num_classes=C if where == "module" else None)
    if where == "datamodule":
        data.num_classes = C
    if where == "hparams":
        module.save_hyperparameters({"num_classes": C})
    callback = MixUp(num_classes=C if where == "argument" else None)
    make_trainer(callbacks=[callback]).fit(module, datamodule=data)
    assert module.seen[0][1].shape == (4, C)


def test_unknown_number_of_classes_is_said_at_once(make_trainer):
    module = Net(num_classes=None)
    with pytest.raises(ValueError, match="set num_classes="):
        make_trainer(max_epochs=9, callbacks=[MixUp(start_epoch=5)]).fit(module, loader())
    assert module.steps == 0


# Schedules


@pytest.mark.parametrize(
    ("arguments", "epochs"),
    [
        ({"stop_epoch": -2}, [0, 1, 2]),
        ({"start_epoch": 1, "stop_epoch": -1}, [1, 2, 3]),
        ({"start_epoch": 2}, [2, 3, 4]),
        ({"stop_epoch": 1}, [0]),
    ],
)
def test_epochs(arguments, epochs, make_trainer):
    module = Net()
    make_trainer(max_epochs=5, callbacks=[CutMix(**arguments)]).fit(module, loader())
    mixed = [batch[1].is_floating_point() for batch in module.seen]
    # The very first batch has soft targets, mixed or not.
    assert mixed == [step == 0 or step // 3 in epochs for step in range(15)]


@pytest.mark.parametrize(
    ("arguments", "trainer", "message"),
    [
        ({"stop_epoch": -5}, {"max_epochs": 5}, "would never act in max_epochs=5"),
        ({"start_epoch": 3, "stop_epoch": -2}, {"max_epochs": 5}, "would never act"),
        ({"stop_epoch": -2}, {"max_epochs": -1, "max_steps": 3}, "counts from the end"),
    ],
)
def test_epochs_that_leave_none(arguments, trainer, message, make_trainer):
    module = Net()
    with pytest.raises(ValueError, match=message):
        make_trainer(callbacks=[MixUp(**arguments)], **trainer).fit(module, loader())
    assert module.steps == 0


def test_a_trial_run_and_a_start_that_is_never_reached(make_trainer):
    callbacks = [MixUp(start_epoch=3, stop_epoch=-5)]
    make_trainer(fast_dev_run=True, callbacks=callbacks).fit(Net(), loader(), loader())
    with pytest.warns(UserWarning, match=r"start_epoch=7\) comes after max_epochs=2"):
        make_trainer(max_epochs=2, callbacks=[MixUp(start_epoch=7)]).fit(Net(), loader())


# The first step


@pytest.mark.parametrize("arguments", [{}, {"start_epoch": 3}, {"p": 0.01, "seed": 1}])
def test_a_loss_that_cannot_take_soft_targets_is_said_before_the_first_step(
    arguments, make_trainer
):
    module = Net(loss=F.nll_loss)
    message = r"(?s)MixUp gave training_step soft targets, .*\(4, 3\).*mixed_loss"
    with pytest.raises(RuntimeError, match=message):
        make_trainer(max_epochs=5, callbacks=[MixUp(**arguments)]).fit(module, loader())
    assert module.steps == 0


def test_a_loss_that_cannot_take_pairs_is_told_of_the_loss_that_can(make_trainer):
    with pytest.raises(TypeError, match=r"that are a pair, (.|\n)*mixed_loss, or targets='so"):
        make_trainer(callbacks=[MixUp(targets="pair")]).fit(Net(loss=F.nll_loss), loader())


def test_the_first_batch_goes_through_unmixed(make_trainer):
    module = Net()
    make_trainer(max_epochs=2, callbacks=[MixUp(start_epoch=1)]).fit(module, loader())
    assert torch.equal(module.seen[0][0], IMAGES[:4])
    assert torch.equal(module.seen[0][1], torch.eye(C)[LABELS[:4]])
    assert torch.equal(module.seen[1][1], LABELS[4:8])
    resumed = MixUp(p=0.0, num_classes=C).apply([IMAGES, LABELS], **LATER)
    assert resumed[1] is LABELS  # only the run's first batch, not the first after a resume


def test_errors_of_other_origin_are_left_alone(make_trainer):
    class Fails(Net):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                raise RuntimeError("on purpose")
            return super().training_step(batch, batch_idx)

        def on_train_batch_start(self, batch, batch_idx):
            if self.early:
                raise RuntimeError("on purpose")

    for early in (True, False):
        module = Fails()
        module.early = early
        with pytest.raises(RuntimeError, match=r"^on purpose$"):
            make_trainer(callbacks=[MixUp()]).fit(module, loader())


def test_pairs_for_a_loss_that_needs_hard_targets(make_trainer):
    def loss(outputs, targets):
        def each(outputs, targets):
            return F.nll_loss(outputs.log_softmax(1), targets, reduction="none")

        labels.append(hard_labels(targets))
        return mixed_loss(each, outputs, targets)

    labels, module, soft = [], Net(loss=loss), Net()
    soft.load_state_dict(module.state_dict())
    make_trainer(max_epochs=2, callbacks=[MixUp(1.0, targets="pair")]).fit(module, loader())
    make_trainer(max_epochs=2, callbacks=[MixUp(1.0)]).fit(soft, loader())
    assert all(isinstance(batch[1], MixedTargets) for batch in module.seen)
    for found, batch in zip(labels, soft.seen, strict=True):
        assert torch.equal(found, batch[1].argmax(1))
    for own, other in zip(module.parameters(), soft.parameters(), strict=True):
        torch.testing.assert_close(own, other)
    with pytest.raises(ValueError, match=r"a pair already; use OneOf"):
        make_trainer(callbacks=[MixUp(targets="pair"), CutMix()]).fit(Net(), loader())
    with pytest.raises(AttributeError, match=r"(?s)MixedTargets.*mixed_loss"):
        make_trainer(callbacks=[MixUp(targets="pair")]).fit(
            MLPClassifier(36, C, hidden=[4]), loader()
        )


def test_labels_by_hand_of_mixup_then_cutmix(make_trainer):
    """Every pixel is its sample's number: each label can be counted from the image's pixels."""
    x, y = IMAGES[:4], torch.arange(4)
    mixed = MixUp(1.0, num_classes=4)
    plan = mixed.draw(x, mixed.generator(3, 0))
    x1, y1 = mixed.apply([x, y], epoch=0, step=3, rank=0)
    cut = CutMix(1.0, num_classes=4, seed=1)
    box = cut.draw(x, cut.generator(3, 0))
    _, y2 = cut.apply([x1, y1], epoch=0, step=3, rank=0)
    for i in range(4):
        expected = torch.zeros(4)
        j = int(box.partner[i])
        for sample, share in ((i, box.lam[i]), (j, 1 - box.lam[i])):
            expected[sample] += share * plan.lam[sample]
            expected[int(plan.partner[sample])] += share * (1 - plan.lam[sample])
        torch.testing.assert_close(y2[i], expected)


def test_training_accuracy_of_classifier_is_that_of_the_dominant_label(make_trainer):
    class Watched(MLPClassifier):
        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                right.append((self(batch[0]).argmax(1) == batch[1].argmax(1)).float())
            return super().training_step(batch, batch_idx)

    right, module = [], Watched(36, C, hidden=[8])
    trainer = make_trainer(callbacks=[MixUp(1.0)])
    trainer.fit(module, loader())
    expected = float(torch.cat(right).mean())
    assert float(trainer.callback_metrics["train/accuracy"]) == pytest.approx(expected)
    assert "dominant class" in Classifier.__doc__
