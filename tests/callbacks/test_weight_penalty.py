"""Penalties against autograd on the loss plus the penalty, written out."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dlblocks.callbacks import SAM, WeightPenalty, clip_rows, weight_penalty
from dlblocks.models import MLPClassifier

X = torch.randn(28, 5, generator=torch.Generator().manual_seed(1))
Y = torch.arange(28) % 3


def loader():
    return DataLoader(TensorDataset(X, Y), 4)


def small_net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3))


class Net(pl.LightningModule):
    lr = 0.2

    def __init__(self, net=None):
        super().__init__()
        self.net = net or small_net()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def written_out(net, l1, l2, window, clip, chosen):
    """Steps by the gradient of the mean loss of each window plus the penalty."""
    parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
    for first in range(0, 28, 4 * window):
        rows = slice(first, first + 4 * window)
        batches = zip(X[rows].double().split(4), Y[rows].split(4), strict=True)
        loss = sum(F.cross_entropy(net(x), y) for x, y in batches) / window
        for name in chosen:
            loss = loss + l1 * parameters[name].abs().sum()
            loss = loss + l2 / 2 * (parameters[name] ** 2).sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        factor = min(1.0, clip / float(norm + 1e-6)) if clip else 1.0
        with torch.no_grad():
            for p, g in zip(parameters.values(), gradients, strict=True):
                p -= 0.2 * factor * g


@pytest.mark.parametrize(("l1", "l2"), [(0.02, 0.0), (0.0, 0.1), (0.02, 0.1)])
@pytest.mark.parametrize(("window", "clip"), [(1, None), (3, None), (3, 0.3)])
def test_autograd_on_loss_plus_penalty(l1, l2, window, clip, make_trainer):
    module, net = Net(), small_net().double()
    written_out(net, l1, l2, window, clip, ["0.weight", "3.weight"])
    trainer = make_trainer(
        callbacks=[WeightPenalty(l1=l1, l2=l2)],
        accumulate_grad_batches=window,
        gradient_clip_val=clip,
        precision="64-true",
    )
    trainer.fit(module, loader())
    for a, b in zip(module.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-9, atol=1e-9)
    value = sum(
        l1 * net[i].weight.abs().sum() + l2 / 2 * net[i].weight.square().sum() for i in (0, 3)
    )
    assert float(trainer.callback_metrics["train/penalty"]) == pytest.approx(float(value.detach()))


def test_patterns(make_trainer):
    module, net = Net(), small_net().double()
    written_out(net, 0.0, 0.1, 1, None, ["0.weight", "0.bias"])
    callback = WeightPenalty(l2=0.1, include=["net.0.*", "net.2.*"], exclude=["net.2.*"])
    make_trainer(callbacks=[callback], precision="64-true").fit(module, loader())
    for a, b in zip(module.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-9, atol=1e-9)


def test_l2_is_the_weight_decay_of_sgd(make_trainer):
    def fit(decay, *callbacks):
        torch.manual_seed(0)
        model = MLPClassifier(5, 3, hidden=[4], optimizer="sgd", lr=0.1, weight_decay=decay)
        make_trainer(callbacks=list(callbacks), limit_val_batches=0).fit(model, loader(), loader())
        return model

    ours, theirs = fit(0.0, WeightPenalty(l2=0.3)), fit(0.3)
    for a, b in zip(ours.net.parameters(), theirs.net.parameters(), strict=True):
        assert torch.equal(a, b)


def in_half(scale, make_trainer, *callbacks):
    module = Net()
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    make_trainer(
        callbacks=list(callbacks), plugins=[MixedPrecision("16-mixed", "cpu", scaler)]
    ).fit(module, loader())
    return module


def test_scaled_half_precision(make_trainer):
    net = small_net().double()
    written_out(net, 0.01, 0.1, 1, None, ["0.weight", "3.weight"])
    module = in_half(2.0**10, make_trainer, WeightPenalty(l1=0.01, l2=0.1))
    for a, b in zip(module.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0.02, atol=2e-3)
    # A step that overflows is left out, penalty and all.
    module = in_half(2.0**60, make_trainer, WeightPenalty(l2=0.1))
    assert torch.equal(module.net[0].weight, small_net()[0].weight)


class TwoOptimizers(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.zero_grad()
        self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[i].parameters(), lr=0.2) for i in (0, 3)]


def test_each_of_several_optimizers_has_its_own(make_trainer):
    module, net = TwoOptimizers(), small_net().double()
    make_trainer(callbacks=[WeightPenalty(l2=0.1)], precision="64-true").fit(module, loader())
    written_out(
        nn.Sequential(net[0], net[1], net[2].requires_grad_(False), net[3]),
        0.0,
        0.1,
        1,
        None,
        ["0.weight", "3.weight"],
    )
    for a, b in zip(module.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 3, 3)])
def test_rows_are_projected_into_the_ball(shape):
    weight = torch.randn(shape)
    weight[0] /= 100
    before = weight.clone()
    clip_rows(weight, 0.7)
    for row, old in zip(weight, before, strict=True):
        norm = float(old.square().sum().sqrt())
        torch.testing.assert_close(row, old * min(1.0, 0.7 / norm), rtol=1e-5, atol=1e-7)
    assert torch.equal(weight[0], before[0])  # what is inside is not touched


class Norms(pl.Callback):
    def __init__(self):
        self.largest, self.biases = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.largest.append(
            max(float(module.net[i].weight.detach().norm(dim=1).max()) for i in (0, 3))
        )


@pytest.mark.parametrize("adam", [False, True])
def test_max_norm_holds_after_every_step(adam, make_trainer):
    class ByAdam(Net):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.3)

    # First in the list: the constraint holds before any callback sees the step.
    norms = Norms()
    module = ByAdam() if adam else Net()
    make_trainer(callbacks=[norms, WeightPenalty(max_norm=0.5)]).fit(module, loader())
    assert max(norms.largest) <= 0.5 + 1e-6
    assert max(norms.largest) > 0.49
    assert not any(optimizer._optimizer_step_post_hooks for optimizer in [module.optimizers()])


def test_max_norm_works_under_lbfgs(make_trainer):
    class ByLBFGS(Net):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=3)

    norms, module = Norms(), ByLBFGS()
    make_trainer(callbacks=[norms, WeightPenalty(max_norm=0.5)]).fit(module, loader())
    assert max(norms.largest) <= 0.5 + 1e-6
    with pytest.raises(ValueError, match="LBFGS also uses the loss"):
        make_trainer(callbacks=[WeightPenalty(l1=0.1)]).fit(ByLBFGS(), loader())


def test_a_parameter_without_gradient_gets_no_penalty(make_trainer):
    module = Net()
    module.unused = nn.Linear(2, 2)
    before = module.unused.weight.detach().clone()
    make_trainer(callbacks=[WeightPenalty(l2=0.1)]).fit(module, loader())
    assert torch.equal(module.unused.weight, before)


def test_the_value_is_differentiable_and_wide():
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    weight_penalty([weight], 0.1, 0.2).backward()
    torch.testing.assert_close(weight.grad, torch.tensor([0.3, -0.5]))
    half = torch.full((1000,), 100.0, dtype=torch.float16)
    assert float(weight_penalty([half], l2=2.0)) == pytest.approx(1e7)


def test_fused_optimizers_unscale_too_late(make_trainer):
    class Fused(Net):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), fused=True)

    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match="fused=False"):
        make_trainer(callbacks=[WeightPenalty(l2=0.1)], plugins=[plugin]).fit(Fused(), loader())


def transposed():
    return nn.Sequential(
        nn.Unflatten(1, (5, 1)), nn.ConvTranspose1d(5, 3, 1), nn.Flatten(), nn.Linear(3, 3)
    )


@pytest.mark.parametrize(
    ("arguments", "net", "message"),
    [
        ({}, None, "nothing to do"),
        ({"l1": -0.1}, None, "l1=-0.1 is outside"),
        ({"l2": float("inf")}, None, "l2=inf"),
        ({"max_norm": 0}, None, "max_norm=0 is outside"),
        ({"l1": 0.1, "include": ["0.weight"]}, None, "did you mean 'net.0.weight'"),
        ({"max_norm": 1, "include": ["*.bias"]}, None, "'net.0.bias' has one axis"),
        ({"max_norm": 1}, transposed, "'net.1.weight' is a transposed convolution's"),
    ],
)
def test_bad_input(arguments, net, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        make_trainer(callbacks=[WeightPenalty(**arguments)]).fit(
            Net(net() if net else None), loader()
        )


class Sparse(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4, sparse=True)

    def training_step(self, batch, batch_idx):
        return self.table(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("callback", [WeightPenalty(l2=0.1), WeightPenalty(l1=0.1), SAM(0.05)])
def test_sparse_gradients_are_refused_before_the_first_step(callback, make_trainer):
    loader = DataLoader(TensorDataset(torch.arange(5)), 5)
    with pytest.raises(ValueError, match=r"needs dense gradients, and table .* sparse=False"):
        make_trainer(callbacks=[callback]).fit(Sparse(), loader)
