import itertools
import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from dlblocks.nets import CNN, MLP


def num_parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("hidden", [(), (7,), (7, 5)])
def test_mlp_is_its_formula(hidden):
    net = MLP(4, 3, hidden=hidden, activation="tanh", init=None)
    x = torch.randn(6, 2, 2)
    expected = x.reshape(6, 4)
    linears = [m for m in net.modules() if isinstance(m, nn.Linear)]
    for linear in linears[:-1]:
        expected = torch.tanh(expected @ linear.weight.T + linear.bias)
    expected = expected @ linears[-1].weight.T + linears[-1].bias
    torch.testing.assert_close(net(x), expected)
    widths = [4, *hidden, 3]
    assert num_parameters(net) == sum((a + 1) * b for a, b in itertools.pairwise(widths))


def test_mlp_norm_and_dropout():
    net = MLP(4, 3, hidden=[8, 8], norm="batch", dropout=0.5)
    kinds = [type(m) for m in net.layers]
    assert kinds[:4] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert net.layers[0].bias is None  # batch norm would undo it
    assert any(isinstance(m, nn.LayerNorm) for m in MLP(4, 3, norm="layer").modules())


@pytest.mark.parametrize(
    ("init", "activation", "expected"),
    [
        ("kaiming", "relu", math.sqrt(2 / 1000)),
        ("kaiming", "tanh", (5 / 3) / math.sqrt(1000)),
        ("xavier", "identity", math.sqrt(2 / (1000 + 800))),
    ],
)
def test_initial_spread(init, activation, expected):
    net = MLP(1000, 2, hidden=[800], init=init, activation=activation)
    assert net.layers[0].weight.std().item() == pytest.approx(expected, rel=0.01)
    assert net.layers[0].bias.abs().max() == 0


def test_kaiming_keeps_the_scale_of_a_deep_relu_net():
    net = MLP(256, 256, hidden=[256] * 20)
    x = torch.randn(512, 256)
    for layer in net.layers[:-1]:
        x = layer(x)
    assert 0.3 < x.square().mean() < 3


@pytest.mark.parametrize("head", ["gap", "flatten"])
@pytest.mark.parametrize("norm", ["batch", None])
def test_cnn_size_and_shape(head, norm):
    net = CNN(
        3, 10, channels=[8, 16], convs_per_block=2, norm=norm, head=head, image_size=(9, 13),
        hidden=[5],
    )  # fmt: skip
    assert net(torch.randn(2, 3, 9, 13)).shape == (2, 10)
    bias = norm is None
    convs = [(3, 8), (8, 8), (8, 16), (16, 16)]
    expected = sum(9 * a * b + b * bias + 2 * b * (not bias) for a, b in convs)
    flat = 16 if head == "gap" else 16 * (9 // 4) * (13 // 4)
    expected += (flat + 1) * 5 + 6 * 10
    assert num_parameters(net) == expected


def test_cnn_is_its_formula():
    net = CNN(1, 2, channels=[4, 6], norm=None, pool="avg", init=None)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    last = next(m for m in net.modules() if isinstance(m, nn.Linear))
    x = torch.randn(3, 1, 8, 8)
    h = F.avg_pool2d(F.conv2d(x, convs[0].weight, convs[0].bias, padding=1).relu(), 2)
    h = F.conv2d(h, convs[1].weight, convs[1].bias, padding=1).relu().mean((2, 3))
    torch.testing.assert_close(net(x), h @ last.weight.T + last.bias)


@pytest.mark.parametrize(
    "net",
    [
        MLP(64, 10, hidden=[64], norm="batch"),
        CNN(1, 10, channels=[16, 32]),
        CNN(1, 10, channels=[16], head="flatten", image_size=8, norm=None),
    ],
)
def test_nets_overfit_one_batch(net):
    bunch = load_digits()
    x = torch.tensor(bunch.images[:64, None] / 16, dtype=torch.float32)
    y = torch.tensor(bunch.target[:64])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert (net.eval()(x).argmax(1) == y).float().mean() > 0.98


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(4, 2, activation="rlu"), "did you mean 'relu'"),
        (lambda: MLP(4, 2, norm="bach"), "did you mean 'batch'"),
        (lambda: MLP(4, 2, init="he"), "init='he'"),
        (lambda: MLP(4, 2, dropout=1.0), r"dropout=1.0 is outside \[0, 1\)"),
        (lambda: MLP(4, 2, hidden=[0]), "hidden=0"),
        (lambda: MLP(0, 2), "in_features=0"),
        (lambda: CNN(1, 2, kernel_size=4), "must be odd"),
        (lambda: CNN(1, 2, channels=[]), "no block"),
        (lambda: CNN(1, 2, head="flatten"), "set image_size"),
        (lambda: CNN(1, 2, channels=[4] * 4, head="flatten", image_size=8), "too small"),
        (lambda: CNN(1, 2, image_size=(1, 2, 3)), "image_size"),
        (lambda: MLP(4, 2)(torch.zeros(3, 5)), "set in_features=5"),
        (lambda: CNN(1, 2)(torch.zeros(3, 3, 8, 8)), "set in_channels=3"),
        (lambda: CNN(3, 2)(torch.zeros(3, 8, 9, 3)), r"\(8, 9, 3\), whose .*permute\(2, 0, 1\)"),
        (lambda: CNN(1, 2, channels=[4, 4, 4])(torch.zeros(3, 1, 3, 9)), "too small for 2 pool"),
        (lambda: CNN(1, 2)(torch.zeros(3, 64)), "use MLP"),
        (lambda: CNN(1, 2, head="flatten", image_size=8)(torch.zeros(3, 1, 9, 9)), "image_size"),
    ],
)
def test_bad_arguments_and_inputs(make, message):
    with pytest.raises(ValueError, match=message):
        make()
