"""A chain of layers for several models, held against each model by itself."""

import copy
import types

import pytest
import torch
from torch import nn

from dlblocks.engine._chain import Chain
from dlblocks.engine._stacked_models import StackedModels
from dlblocks.models import Classifier, CNNClassifier, MLPClassifier, Model
from dlblocks.tasks import MulticlassTask

IMAGES, VECTORS = (3, 5, 2, 8, 8), (3, 5, 6)
RELU = nn.ReLU()


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def classifier(*layers):
    def new():
        net = copy.deepcopy(nn.Sequential(*layers)).double()
        for layer in net.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()  # each model has its own weights
        return Classifier(net, num_classes=4)

    return new


def cnn(**arguments):
    return lambda: CNNClassifier(2, 4, channels=[3, 5], **arguments)


CHAINS = {
    "cnn": (cnn(), IMAGES),
    "average, no norm": (cnn(pool="avg", norm=None, activation="gelu"), IMAGES),
    "flatten": (cnn(head="flatten", image_size=8, hidden=[7]), IMAGES),
    "mlp of images": (lambda: MLPClassifier(128, 4, hidden=[7], norm="batch"), IMAGES),
    "mlp": (lambda: MLPClassifier(6, 4, hidden=[7], norm="layer"), VECTORS),
    "strides, groups, a layer twice": (
        classifier(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), RELU,
            nn.Conv2d(4, 6, (3, 1), padding="same", dilation=(2, 1), bias=False), RELU,
            nn.GroupNorm(3, 6), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(24, 4),
        ),
        IMAGES,
    ),
    "chains in chains": (
        classifier(
            nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False), nn.Tanh()),
            nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(108, 5)), nn.BatchNorm1d(5)),
            nn.Sequential(), nn.Linear(5, 4, bias=False),
        ),
        IMAGES,
    ),
    "vectors": (classifier(nn.Linear(6, 5), nn.LayerNorm(5), RELU, nn.Linear(5, 4)), VECTORS),
    "flattened images": (classifier(nn.Flatten(), nn.Linear(128, 4)), IMAGES),
}  # fmt: skip


def stacked(make, count=3):
    models = []
    for k in range(count):
        torch.manual_seed(k)
        models.append(make())
    apart = copy.deepcopy(models)
    return StackedModels(models, torch.device("cpu")), apart


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("members", [None, [0, 2]])
def test_losses_gradients_and_statistics(name, members):
    make, shape = CHAINS[name]
    stack, apart = stacked(make)
    assert stack._chain is not None
    stack.make_gradients([name for name, p in stack.params.items() if p.requires_grad])
    inputs, targets = torch.randn(shape), torch.randint(0, 4, shape[:2])
    assert stack._chain.takes(inputs)
    used = members or [0, 1, 2]
    for _ in range(2):  # gradients add up
        losses, outputs = stack.run(inputs[used], targets[used], members)
        losses.sum().backward()
        for i, k in enumerate(used):
            model = apart[k]
            expected = model.forward_prepared(inputs[k])
            loss = model.loss(expected, targets[k])
            loss.backward()
            torch.testing.assert_close(outputs[i], expected)
            torch.testing.assert_close(losses[i], loss)
    stack.train(False)
    outputs = stack.run(inputs, targets)[1]
    for k, (model, alone) in enumerate(zip(stack.models, apart, strict=True)):
        for mine, its in zip(model.parameters(), alone.parameters(), strict=True):
            expected = torch.zeros_like(its) if its.grad is None else its.grad
            torch.testing.assert_close(mine.grad, expected)
        torch.testing.assert_close(model.state_dict(), alone.state_dict())
        torch.testing.assert_close(outputs[k], alone.eval().forward_prepared(inputs[k]))


class Penalty(CNNClassifier):
    def loss(self, outputs, targets):
        return super().loss(outputs, targets) + sum(p.square().sum() for p in self.net.parameters())


class Tempered(MulticlassTask):
    def decode(self, outputs):
        return outputs / 3


class Thrice(nn.Sequential):
    """Without layers of its own."""

    def forward(self, x):
        return 3 * x


def hooked_model():
    model = cnn()()
    model.register_forward_hook(lambda module, args, output: 2 * output)
    return model


def own_loss():
    model = cnn()()
    model.loss = types.MethodType(lambda self, *args: 3 * type(self).loss(self, *args), model)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: Penalty(2, 4, channels=[3]),
        lambda: Model(nn.Sequential(nn.Flatten(), nn.Linear(128, 4)), Tempered(4)),
        hooked_model,
        own_loss,
        classifier(nn.Flatten(), Thrice(), nn.Linear(128, 4)),
    ],
)
def test_what_surrounds_the_net_counts(make):
    stack, apart = stacked(make)
    stack.make_gradients([name for name, p in stack.params.items() if p.requires_grad])
    inputs, targets = torch.randn(IMAGES), torch.randint(0, 4, IMAGES[:2])
    losses, outputs = stack.run(inputs, targets)
    losses.sum().backward()
    for k, model in enumerate(apart):
        expected = model.forward_prepared(inputs[k])
        loss = model.loss(expected, targets[k])
        loss.backward()
        torch.testing.assert_close((losses[k], outputs[k]), (loss, expected))
        for mine, its in zip(stack.models[k].parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, its.grad)


class OwnForward(CNNClassifier):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


def hooked():
    model = cnn()()
    model.net.register_forward_hook(lambda module, args, output: 2 * output)
    return model


def replaced():
    model = cnn()()
    model.net.blocks[0].forward = lambda x: x.repeat(1, 2, 1, 1)[:, :3]
    return model


def normed():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)))
    return Classifier(net, num_classes=4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: OwnForward(2, 4),
        hooked,
        replaced,
        normed,
        classifier(nn.Flatten(2), nn.Linear(64, 4)),
        classifier(nn.Linear(8, 4), nn.Flatten()),
        classifier(nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), nn.Flatten()),
        classifier(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.Flatten()),
        classifier(nn.Flatten(), nn.Softmax(1)),
        classifier(nn.Flatten(), nn.Flatten(), nn.Linear(128, 4)),
    ],
)
def test_other_nets_are_no_chains(make):
    assert Chain.of(make()) is None


def test_inputs_with_more_axes_than_the_layers_expect():
    stack, _ = stacked(classifier(nn.Linear(6, 4), nn.ReLU()))
    assert stack._chain is not None
    assert not stack._chain.takes(torch.zeros(3, 5, 7, 6))
    assert not Chain.of(cnn()()).takes(torch.zeros(3, 5, 6))


def test_dropout_draws_for_each_model_and_whole_channels():
    layers = [nn.Conv2d(2, 4, 1), nn.Dropout2d(0.5), nn.Flatten(), nn.Dropout(0.5)]
    chain = Chain.of(classifier(*layers)())
    tensors = {"net.0.weight": torch.ones(3, 4, 2, 1, 1), "net.0.bias": torch.zeros(3, 4)}
    found = chain.forward(torch.ones(3, 50, 2, 6, 6), tensors).unflatten(2, (4, 36))
    assert set(found.unique().tolist()) == {0.0, 8.0}  # 2 · 2 · 2
    kept = (found != 0).any(3).double()  # channels of which something is left
    assert (kept[0] != kept[1]).any()
    assert (kept[1] != kept[2]).any()
    assert 0.42 < kept.mean() < 0.58  # 600 channels; five standard deviations are 0.1
    inside = (found != 0).double().mean(3)[kept == 1]
    assert 0.45 < inside.mean() < 0.55
