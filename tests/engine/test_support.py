"""What looks as if it could be fitted together, and would give wrong numbers in silence."""

import itertools
import random

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from torch import nn

from dlblocks.data import ArrayDataModule
from dlblocks.engine import Member, NotVectorizable, StackedFit
from dlblocks.models import GAN, Classifier, MLPClassifier, VisionClassifier

TRAINER = {"accelerator": "cpu", "max_epochs": 2}
inputs, targets = (torch.tensor(x) for x in load_iris(return_X_y=True))
DATA = {"inputs": inputs.float(), "targets": targets, "batch_size": 32, "num_folds": 3}


def together(make, data=None):
    data = data or ArrayDataModule(**DATA)
    members = [Member(f"fold {k}", make(), data.for_fold(k, 3)) for k in range(3)]
    return StackedFit(members, trainer=TRAINER, monitor="val/loss", mode="min")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(self.b(self.a(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)


class PlainTensor(Net):
    def __init__(self):
        super().__init__()
        self.shift = torch.randn(3)

    def forward(self, x):
        return self.layer(x) + self.shift


class SkipsByChance(Net):
    """Stochastic depth (Huang et al. 2016), drawn by Python."""

    def forward(self, x):
        return self.layer(x) if random.random() < 0.5 else self.layer(2 * x)


class NoisyByNumpy(Net):
    def forward(self, x):
        return self.layer(x) + float(np.random.normal())


class Counter(Net):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * self.calls


class Rebound(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.layer(x - self.mean)


class OnlyInEvaluation(Net):
    def forward(self, x):
        return self.layer(x) if self.training or x.sum() > 0 else -self.layer(x)


class AsksForTheEpoch(MLPClassifier):
    def loss(self, outputs, targets):
        return super().loss(outputs, targets) * (1 + self.current_epoch)


class Logs(MLPClassifier):
    def loss(self, outputs, targets):
        self.log("train/extra", 1.0)
        return super().loss(outputs, targets)


class OwnMetrics(MLPClassifier):
    def compute_metrics(self, stage):
        return {f"{stage}/loss": torch.tensor(0.0)}


class FromItsData(MLPClassifier):
    def setup(self, stage):
        super().setup(stage)
        self.scale = float(self.trainer.datamodule.train_targets().float().std())

    def loss(self, outputs, targets):
        return self.scale * super().loss(outputs, targets)


def hooked():
    model = MLPClassifier(4, 3)
    next(model.parameters()).register_hook(lambda gradient: 0 * gradient)
    return model


ACTIVATIONS = itertools.cycle([nn.ReLU(), nn.SiLU()])
SLOPES = itertools.cycle([0.1, 0.2])
MODES = itertools.cycle([True, False])


def of_layer(layer):
    return Classifier(nn.Sequential(nn.Linear(4, 3), layer), 3)


def one_is_evaluated():
    return of_layer(nn.BatchNorm1d(3).train(next(MODES)))


def one_is_hooked():
    model = of_layer(nn.ReLU())
    if next(MODES):
        model.net.register_forward_hook(lambda module, args, output: 2 * output)
    return model


def remembers():
    """A closure over the model's own net, which the copy of the first model would call for all."""
    model = of_layer(nn.Sequential(nn.Linear(3, 3)))
    before = model.net[1].forward
    model.net[1].forward = lambda x: 2 * before(x)
    return model


class OwnOutputs(MLPClassifier):
    def outputs_and_loss(self, batch):
        outputs, loss = super().outputs_and_loss(batch)
        return outputs, 3 * loss


def lazy():
    return Classifier(nn.Sequential(nn.LazyLinear(3)), 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classifier(Tied(), 3), r"net\.b\.weight is tied"),
        (lambda: Classifier(PlainTensor(), 3), r"net\.shift is or holds a tensor"),
        (lambda: Classifier(SkipsByChance(), 3), r"random numbers of Python.*draw them with torch"),
        (lambda: Classifier(NoisyByNumpy(), 3), r"random numbers of Python or NumPy"),
        (lambda: Classifier(Counter(), 3), "changes its own attributes in a step"),
        (lambda: Classifier(Rebound(), 3), "replaces the tensor mean"),
        (lambda: Classifier(OnlyInEvaluation(), 3), "cannot be computed for several"),
        (lambda: AsksForTheEpoch(4, 3), r"uses the Trainer \(current_epoch"),
        (lambda: Logs(4, 3), r"uses the Trainer .*self\.log"),
        (lambda: OwnMetrics(4, 3), "overrides compute_metrics"),
        (lambda: FromItsData(4, 3), r"scale is .* in model 1"),
        (hooked, "hook on its gradient"),
        (lazy, "is lazy"),
        (lambda: of_layer(next(ACTIVATIONS)), r"net\.1 is SiLU\(\) in model 1 and ReLU\(\)"),
        (lambda: of_layer(nn.LeakyReLU(next(SLOPES))), "net.1 is LeakyReLU"),
        (one_is_evaluated, "in evaluation mode in model 1"),
        (one_is_hooked, "hooks: 1 in model"),
        (remembers, r"Classifier 1 has loss .* by itself and .* among the others"),
        (lambda: OwnOutputs(4, 3), "overrides outputs_and_loss"),
        (lambda: MLPClassifier(4, 3, label_smoothing=random.choice([0.1, 0.2])), "label_smoothing"),
    ],
)
def test_models_that_are_refused(make, message):
    random.seed(1)
    with pytest.raises(NotVectorizable, match=message):
        together(make)


class SaysWhy(MLPClassifier):
    not_vectorizable = "its steps meet each other"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GAN([1, 2, 2], width=4), "GAN is trained on images alone"),
        (
            lambda: VisionClassifier("resnet18", 3, freeze=True, unfreeze_epoch=2),
            "unfreeze_epoch changes what VisionClassifier trains",
        ),
        (lambda: SaysWhy(4, 3), "its steps meet each other"),
    ],
)
def test_models_say_why_they_are_refused(make, message):
    with pytest.raises(NotVectorizable, match=message):
        together(make)


class OwnTransform(ArrayDataModule):
    def transform(self, inputs):
        return super().transform(inputs) * 2


class OwnHook(ArrayDataModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return super().on_after_batch_transfer(batch, dataloader_idx)


class OwnLoader(ArrayDataModule):
    def train_dataloader(self):
        return super().train_dataloader()


@pytest.mark.parametrize("cls", [OwnTransform, OwnHook, OwnLoader])
def test_data_that_are_refused(cls):
    with pytest.raises(NotVectorizable, match=f"{cls.__name__} overrides "):
        together(lambda: MLPClassifier(4, 3), cls(**DATA))


def test_a_member_that_is_trained_in_other_parts():
    frozen = iter([False, True, False])

    def make():
        model = MLPClassifier(4, 3)
        if next(frozen):
            model.net.layers[0].requires_grad_(False)
        return model

    with pytest.raises(NotVectorizable, match="not trained"):
        together(make)


def test_full_batches():
    done = together(lambda: MLPClassifier(4, 3), ArrayDataModule(**{**DATA, "batch_size": "full"}))
    done.fit()
    assert all(member.steps == 2 for member in done.members)
    assert len(done.predict(done.members[0], "val")["index"]) == 50


def test_a_share_that_leaves_no_batch():
    data = ArrayDataModule(**DATA)
    members = [Member("fold 0", MLPClassifier(4, 3), data.for_fold(0, 3))]
    with pytest.raises(ValueError, match=r"limit_train_batches=0.001 of \d+ batches leaves none"):
        StackedFit(
            members,
            trainer={**TRAINER, "limit_train_batches": 0.001},
            monitor="val/loss",
            mode="min",
        )
