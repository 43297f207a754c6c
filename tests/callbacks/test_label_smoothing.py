"""Label smoothing against torch's loss, and a loop written from Szegedy et al. 2016."""

import lightning.pytorch as pl
import pytest
import torch
from conftest import no_address
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate

from dlblocks.callbacks import CutMix, LabelSmoothing, MixUp, smooth_labels
from dlblocks.losses import cross_entropy
from dlblocks.models import MLPClassifier

LOGITS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(12) % 4


def test_the_papers_loop():
    smooth = smooth_labels(CLASSES, 0.1, 4)
    for i in range(12):
        for c in range(4):
            expected = (1 - 0.1) * (1.0 if CLASSES[i] == c else 0.0) + 0.1 / 4
            assert float(smooth[i, c]) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 2, 3)])
@pytest.mark.parametrize("ignore_index", [-100, 2, 255])
def test_the_loss_is_torchs_with_label_smoothing(shape, ignore_index):
    targets = CLASSES.reshape(shape).clone()
    if ignore_index != 2:
        targets.flatten()[3:6] = ignore_index
    logits = torch.randn(shape[0], 4, *shape[1:])
    smooth = smooth_labels(targets, 0.2, 4, ignore_index=ignore_index)
    assert smooth.shape == logits.shape
    expected = F.cross_entropy(logits, targets, label_smoothing=0.2, ignore_index=ignore_index)
    torch.testing.assert_close(cross_entropy(logits, smooth), expected)
    # torch's own loss of soft targets divides by all of them.
    counted = (targets != ignore_index).float().mean()
    torch.testing.assert_close(F.cross_entropy(logits, smooth), expected * counted)


def test_class_weights_weigh_the_smoothed_rows():
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0])
    smooth = smooth_labels(CLASSES, 0.2, 4)
    total, mass = 0.0, 0.0
    for row, log_p in zip(smooth, LOGITS.log_softmax(1), strict=True):
        total -= float((weight * row * log_p).sum())
        mass += float((weight * row).sum())
    loss = cross_entropy(LOGITS, smooth, weight=weight)
    assert float(loss) == pytest.approx(total / mass, rel=1e-5)
    # torch's sum is the same, its denominator is the weight of the hard labels.
    theirs = F.cross_entropy(LOGITS, CLASSES, weight=weight, label_smoothing=0.2)
    assert float(theirs) == pytest.approx(total / float(weight[CLASSES].sum()), rel=1e-5)


def test_soft_targets_are_smoothed_by_their_mass():
    soft = torch.rand(5, 4)
    soft /= soft.sum(1, keepdim=True)
    soft[2] = 0
    soft[3] *= 0.25  # mixed with an ignored sample
    smooth = smooth_labels(soft, 0.4)
    for row, new in zip(soft, smooth, strict=True):
        torch.testing.assert_close(new, 0.6 * row + 0.4 / 4 * row.sum())
    assert torch.equal(smooth[2], torch.zeros(4))
    torch.testing.assert_close(cross_entropy(LOGITS[:5], smooth),
                               cross_entropy(LOGITS[:5], soft, label_smoothing=0.4))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    smooth = smooth_labels(CLASSES, 0.1, 4, dtype=dtype)
    assert smooth.dtype == smooth_labels(smooth, 0.1).dtype == dtype
    if dtype == torch.float64:
        assert float(smooth[0, 1]) == 0.1 / 4


def fit(module, callbacks, make_trainer, **arguments):
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(2))
    data = DataLoader(TensorDataset(x, CLASSES % 3), 4, **arguments)
    make_trainer(callbacks=callbacks).fit(module, data)
    return torch.cat([y for _, y in module.seen])


@pytest.mark.parametrize("mixer", [MixUp, CutMix])
def test_before_or_after_mixing(mixer, make_trainer, plain_module):
    x = torch.randn(12, 1, 2, 2)
    y = CLASSES % 3
    y[::5] = -100
    found = []
    for first in (True, False):
        module = plain_module(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
        callbacks = [mixer(1.0, seed=3), LabelSmoothing(0.3)]
        # The place in the list is part of the mixing's draws.
        callbacks = (
            [LabelSmoothing(0.3), callbacks[0]] if first else [LabelSmoothing(0), *callbacks]
        )
        make_trainer(callbacks=callbacks).fit(module, DataLoader(TensorDataset(x, y), 4))
        found.append(torch.cat([y for _, y in module.seen]))
    torch.testing.assert_close(found[0], found[1])
    assert ((found[0] > 0.11).sum(1) == 2).any()  # some are mixed
    assert (found[0].sum(1) < 0.99).any()  # some with an ignored partner, or ignored


@pytest.mark.parametrize("kind", ["tuple", "list", "dict"])
def test_containers_and_the_modules_number_of_classes(kind, make_trainer, plain_module):
    def collate(samples):
        x, y = default_collate(samples)
        return {"tuple": (x, y), "list": [x, y], "dict": {"x": x, "y": y}}[kind]

    keys = {"input_key": "x", "target_key": "y"} if kind == "dict" else {}
    seen = fit(plain_module(), [LabelSmoothing(0.3, **keys)], make_trainer, collate_fn=collate)
    torch.testing.assert_close(seen, smooth_labels(CLASSES % 3, 0.3, 3))


def test_several_inputs(make_trainer, plain_module):
    batch = {"x": [torch.zeros(4, 2), torch.zeros(4, 3)], "y": torch.arange(4)}
    callback = LabelSmoothing(0.2, 4, input_key="x", target_key="y")
    new = callback.apply(batch, epoch=0, step=0, rank=0)
    assert torch.equal(new["y"], smooth_labels(batch["y"], 0.2, 4))
    assert new["x"][1] is batch["x"][1]


def test_not_after_targets_in_pairs(make_trainer, plain_module):
    with pytest.raises(ValueError, match="put it before"):
        fit(plain_module(), [MixUp(1.0, targets="pair"), LabelSmoothing(0.1)], make_trainer)


def test_validation_keeps_its_targets(make_trainer, plain_module):
    validated = []

    class Validated(plain_module):
        def validation_step(self, batch, batch_idx):
            validated.append(batch[1])

    data = DataLoader(TensorDataset(torch.randn(12, 4), CLASSES % 3), 4)
    make_trainer(callbacks=[LabelSmoothing(0.3)]).fit(Validated(), data, data)
    assert all(not y.is_floating_point() for y in validated)


def test_zero_switches_off(make_trainer, plain_module):
    assert torch.equal(fit(plain_module(), [LabelSmoothing(0.0)], make_trainer), CLASSES % 3)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: LabelSmoothing(1.0), r"smoothing=1.0 is outside \[0, 1\)"),
        (lambda: LabelSmoothing(-0.1), "smoothing=-0.1"),
        (lambda: LabelSmoothing(0.1, num_classes=1), "num_classes=1"),
        (lambda: smooth_labels(CLASSES, 0.1), "set num_classes="),
        (lambda: smooth_labels(torch.randn(5), 0.1), "values of a regression"),
        (lambda: smooth_labels(torch.rand(5, 4), 0.1, 3), "have 4 classes"),
        (lambda: smooth_labels(torch.rand(5, 4) > 0.5, 0.1, 4), "several labels"),
    ],
)
def test_bad_input(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_bad_labels_and_unknown_numbers(make_trainer, plain_module):
    with pytest.raises(ValueError, match=r"label 2, outside 0 … 1 \(num_classes=2\) and not"):
        fit(plain_module(), [LabelSmoothing(0.1, 2)], make_trainer)
    with pytest.raises(ValueError, match="must know the number of classes"):
        fit(plain_module(num_classes=None), [LabelSmoothing(0.1)], make_trainer)
    module = plain_module(nn.Linear(4, 2))
    seen = fit(module, [LabelSmoothing(0.1, ignore_index=2, num_classes=2)], make_trainer)
    assert torch.equal(seen.sum(1) == 0, CLASSES % 3 == 2)


def test_not_on_top_of_the_models_own(make_trainer):
    model = MLPClassifier(4, 3, hidden=[4], label_smoothing=0.1)
    data = DataLoader(TensorDataset(torch.randn(12, 4), CLASSES % 3), 4)
    with pytest.raises(ValueError, match=r"label_smoothing=0.1, and LabelSmoothing would smooth"):
        make_trainer(callbacks=[LabelSmoothing(0.1)]).fit(model, data, data)


class HardLossOnly(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.steps = 0

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        loss = F.nll_loss(self.layer(inputs).log_softmax(1), targets)
        self.steps += 1
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("late", [{}, {"start_epoch": 3}, {"p": 0.01, "seed": 1}], ids=no_address)
def test_a_loss_that_cannot_take_soft_targets_is_said_before_the_first_step(late, make_trainer):
    data = DataLoader(TensorDataset(torch.randn(12, 4), CLASSES % 3), 4)
    # Of two that soften, the one that made the targets soft is to blame.
    for others in ([], [MixUp(num_classes=3)]):
        module = HardLossOnly()
        callbacks = [LabelSmoothing(0.1, 3, **late), *others]
        message = r"(?s)LabelSmoothing gave training_step soft targets, .*\(4, 3\).*argument"
        with pytest.raises(RuntimeError, match=message) as raised:
            make_trainer(max_epochs=5, callbacks=callbacks).fit(module, data)
        assert "MixUp" not in str(raised.value)
        assert module.steps == 0


def test_a_first_batch_that_is_not_smoothed_has_rows_of_ones(make_trainer, plain_module):
    data = DataLoader(TensorDataset(torch.randn(12, 4), CLASSES % 3), 4)
    module = plain_module()
    callback = LabelSmoothing(0.3, start_epoch=1)
    make_trainer(max_epochs=2, callbacks=[callback]).fit(module, data)
    assert torch.equal(module.seen[0][1], torch.eye(3)[CLASSES[:4] % 3])
    assert torch.equal(module.seen[1][1], CLASSES[4:8] % 3)
    torch.testing.assert_close(module.seen[3][1], 0.7 * torch.eye(3)[CLASSES[:4] % 3] + 0.1)
