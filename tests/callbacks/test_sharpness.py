"""Sharpness where the answer is known, and against training without it."""

import csv
import itertools
import json
import math

import forked
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dlblocks.callbacks import (
    SAM,
    ExactResume,
    MixUp,
    Sharpness,
    WeightNoise,
    sharpness,
    top_eigenvalue,
)
from dlblocks.cli import main
from dlblocks.data import DigitsDataModule
from dlblocks.models import MLPClassifier

X = torch.randn(38, 5, generator=torch.Generator().manual_seed(1))
Y = torch.arange(38) % 3


def leaf(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def symmetric(eigenvalues, seed=0):
    """A matrix with these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))[0]
    return q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T


# The pure functions


def test_box_maximum_of_a_quadratic_with_axes_for_eigenvectors():
    """½ Σ h_i (x_i + z_i)², from 1 off its minimum in one coordinate, f(x) = 2."""
    h = torch.tensor([4.0, 2.0, -3.0, 0.0], dtype=torch.float64)
    x = leaf(1.0, 0.0, 0.0, 7.0)
    epsilon = 0.1
    b = epsilon * torch.tensor([2.0, 1.0, 1.0, 8.0], dtype=torch.float64)
    rise = 4 * b[0] + 2 * b[0] ** 2 + b[1] ** 2  # at the corner; the third coordinate stays
    found = sharpness(lambda: (h * x**2).sum() / 2, [x], epsilon, iterations=50)
    assert found == pytest.approx(float(100 * rise / (1 + 2)), rel=1e-6)
    assert x.tolist() == [1.0, 0.0, 0.0, 7.0]


@pytest.mark.parametrize("seed", range(3))
def test_box_maximum_of_a_convex_quadratic_is_at_the_best_corner(seed):
    matrix = symmetric(np.logspace(0, -3, 8), seed)
    x = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=8)), dtype=torch.float64)
    best = float(torch.einsum("bi,ij,bj->b", corners, matrix, corners).max()) / 2 * 0.01**2
    found = sharpness(lambda: x @ matrix @ x / 2, [x], 0.01, starts=10)
    assert found == pytest.approx(100 * best, rel=1e-6)
    one = sharpness(lambda: x @ matrix @ x / 2, [x], 0.01, starts=1)
    assert 0.3 * found < one <= found * (1 + 1e-9)


def test_linear_loss_is_exact_in_both_spaces():
    x = [leaf(1.0, -2.0), leaf(0.5)]
    a, b = torch.tensor([3.0, -1.0], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)

    def loss():
        return (a * x[0]).sum() + (b * x[1]).sum()

    base = 3.0 + 2.0 + 0.1
    rise = 0.01 * (3 * 2 + 1 * 3 + 0.2 * 1.5)
    assert sharpness(loss, x, 0.01) == pytest.approx(100 * rise / (1 + base))
    assert top_eigenvalue(loss, x) == 0.0

    # A as the function draws it: a block for each tensor, from the seed.
    generator = torch.Generator().manual_seed(5)
    columns = torch.cat(
        [torch.randn(2, n, generator=generator, dtype=torch.float64) for n in (2, 1)], 1
    ).T
    center = torch.linalg.pinv(columns) @ torch.cat([t.detach() for t in x])
    slope = columns.T @ torch.cat([a, b])
    rise = float((slope.abs() * 0.01 * (center.abs() + 1)).sum())
    found = sharpness(loss, x, 0.01, directions=2, seed=5)
    assert found == pytest.approx(100 * rise / (1 + base))
    assert x[0].tolist() == [1.0, -2.0]


def test_the_corner_that_the_gradient_points_to_is_tried_last():
    """Slopes so unlike that one iteration moves most coordinates little."""
    slopes = torch.logspace(0, -6, 30, dtype=torch.float64)
    slopes[::2] *= -1
    x = torch.zeros(30, dtype=torch.float64, requires_grad=True)
    points = []

    def loss():
        points.append(x.detach().clone())
        return (slopes * x).sum()

    found = sharpness(loss, [x], 0.01, iterations=1, starts=1)
    assert found == pytest.approx(100 * 0.01 * float(slopes.abs().sum()), rel=1e-9)
    corner = 0.01 * slopes.sign()
    assert torch.allclose(points[-1], corner, rtol=1e-12)
    assert not any(torch.allclose(point, corner) for point in points[:-1])


def test_a_corner_that_is_lower_changes_nothing():
    """Of 1 - (x - 0.005)² the maximum lies within the box."""
    x = leaf(0.0)
    found = sharpness(lambda: 1 - (x - 0.005).square().sum(), [x], 0.01, iterations=50)
    base = 1 - 0.005**2
    assert found == pytest.approx(100 * (1 - base) / (1 + base), rel=1e-6)


def test_units_of_the_loss_do_not_matter_to_the_search():
    """Ten iterations find as much of a loss of 1e-6 as of one of 1."""
    matrix = symmetric(np.linspace(1, -0.5, 20))
    x = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    found = [sharpness(lambda c=c: c * (x @ matrix @ x), [x], 1e-3) / c for c in (1.0, 1e-6, 1e3)]
    assert found == pytest.approx([found[0]] * 3, rel=1e-3)


def test_never_below_zero_and_undefined_where_it_is():
    x = leaf(0.0)
    assert sharpness(lambda: -(x**2).sum(), [x], 0.1) == 0.0
    assert sharpness(lambda: 0 * x.sum() + 2, [x], 0.1) == 0.0
    assert math.isnan(sharpness(lambda: x.sum() - 1.5, [x], 0.1))
    assert math.isnan(sharpness(lambda: x.sum() * math.nan, [x], 0.1))
    assert math.isnan(top_eigenvalue(lambda: (x**2).sum() * math.nan, [x]))
    assert sharpness(lambda: (1 / (x - 0.05)).abs().sum(), [x], 0.2) > 0


@pytest.mark.parametrize(
    "eigenvalues",
    [[5.0, 1.0, 0.5, 0.1], [1.0, 0.99, 0.0, -7.0], [-1.0, -2.0, -3.0], [3.0, -3.0], [2.0], [0, 0]],
)
def test_top_eigenvalue_of_a_matrix(eigenvalues):
    matrix = symmetric(eigenvalues)
    x = torch.zeros(len(eigenvalues), dtype=torch.float64, requires_grad=True)
    found = top_eigenvalue(lambda: x @ matrix @ x / 2, [x], tolerance=1e-9)
    assert found == pytest.approx(max(eigenvalues), rel=1e-3, abs=1e-12)


# torch.func is wrong for a LayerNorm (torch 2.15): not symmetric, and other than finite
# differences, with which autograd's own agrees.
@pytest.mark.parametrize(
    ("norm", "full_hessian"),
    [
        (nn.Identity(), lambda f, x: jacrev(jacrev(f))(x)),
        (nn.LayerNorm(6), torch.autograd.functional.hessian),
    ],
)
def test_top_eigenvalue_is_that_of_the_full_hessian(norm, full_hessian):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), norm, nn.Linear(6, 3)).double()
    names = dict(net.named_parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in names.values()])

    def at(vector):
        pieces = vector.split([p.numel() for p in names.values()])
        values = {n: v.view_as(p) for (n, p), v in zip(names.items(), pieces, strict=True)}
        return F.cross_entropy(functional_call(net, values, X.double()), Y)

    true = float(torch.linalg.eigvalsh(full_hessian(at, flat))[-1])

    def parts():
        for x, y in zip(X.double().split(10), Y.split(10), strict=True):
            yield F.cross_entropy(net(x), y) * len(y) / len(Y)

    found = top_eigenvalue(parts, list(net.parameters()), tolerance=1e-6)
    assert found == pytest.approx(true, rel=1e-6)
    few = top_eigenvalue(parts, list(net.parameters()), max_iterations=3)
    assert 0.5 * true < few < true


def test_attention_has_second_derivatives():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(3, 4, 8)
    assert top_eigenvalue(lambda: layer(x)[..., 0].square().mean(), list(layer.parameters())) > 0


@pytest.mark.parametrize("function", [sharpness, top_eigenvalue])
@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([], ValueError, "params holds no values"),
        ([torch.zeros(2)], ValueError, "does not require gradients"),
        ([torch.zeros(2, dtype=torch.half, requires_grad=True)], TypeError, "torch.float16"),
    ],
)
def test_wrong_parameters(function, params, error, message):
    with pytest.raises(error, match=message):
        function(lambda: params[0].sum(), params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, "epsilon=0.0"),
        ({"directions": 3}, r"directions=3 is outside \[1, 2\]"),
        ({"iterations": 0}, "iterations=0"),
        ({"starts": 0}, "starts=0"),
    ],
)
def test_wrong_numbers(arguments, message):
    x = leaf(1.0, 2.0)
    with pytest.raises(ValueError, match=message):
        sharpness(lambda: x.sum(), [x], **arguments)
    with pytest.raises(ValueError, match="scalar, got shape"):
        sharpness(lambda: x * 2, [x])


# The callback


class Foreign(pl.LightningModule):
    """Batch norm, dropout, a metric, logs, frozen and unused parameters."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)
        )
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.register_buffer("steps", torch.zeros(()))

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x) * self.frozen
        loss = F.cross_entropy(logits, y)
        self.steps += 1
        self.accuracy(logits, y.argmax(1) if y.ndim > 1 else y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        self.log("train_accuracy", self.accuracy, on_step=False, on_epoch=True)
        return {"loss": loss}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def loader(**arguments):
    return DataLoader(TensorDataset(X, Y), 4, shuffle=True, **arguments)


class Notes(pl.Callback):
    """The logged numbers, epoch by epoch."""

    def __init__(self):
        self.rows = []

    def on_train_epoch_end(self, trainer, module):
        logged = trainer.callback_metrics
        self.rows.append({k: float(v) for k, v in logged.items() if "sharp" in k or "hess" in k})


def by_hand(net, x, y, **arguments):
    net.eval()
    params = list(net.parameters())

    def loss():
        return F.cross_entropy(net(x), y)

    return {
        "train/sharpness": sharpness(loss, params, 1e-3, **arguments),
        "train/hessian_eigenvalue": top_eigenvalue(loss, params),
    }


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_numbers_are_those_of_the_function_without_what_training_adds(precision, make_trainer):
    module, notes = Foreign(), Notes()
    del module.unused
    around = [MixUp(0.4, num_classes=3), WeightNoise(0.1), SAM(0.05)]
    measure = Sharpness(limit_batches=None, at_epochs=[-1])
    trainer = make_trainer(max_epochs=2, callbacks=[*around, measure, notes], precision=precision)
    trainer.fit(module, loader())
    assert notes.rows[0] == {}
    x = X.double() if precision == "64-true" else X
    tolerance = 1e-4 if precision == "64-true" else 0.02  # rounding in f(x + z) - f(x)
    assert notes.rows[1] == pytest.approx(by_hand(module.net, x, Y), rel=tolerance)
    assert not vars(module).keys() & {"training_step", "log"}


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 3}])
def test_training_does_not_notice(settings, make_trainer):
    ends = []
    for callbacks in ([], [Sharpness(), Sharpness(directions=3, eigenvalue=False)]):
        pl.seed_everything(0, verbose=False)
        module = Foreign()
        trainer = make_trainer(
            max_epochs=3, callbacks=[MixUp(0.4, num_classes=3), *callbacks], **settings
        )
        trainer.fit(module, loader())
        logged = dict(trainer.callback_metrics)
        ends.append((module.state_dict(), torch.rand(()), np.random.rand(), logged))
    (plain, *after, logged), (measured, *after_measured, more) = ends
    assert all(torch.equal(a, b) for a, b in zip(plain.values(), measured.values(), strict=True))
    assert after == after_measured
    assert all(torch.equal(logged[name], more[name]) for name in logged) and len(logged) == 2
    assert more.keys() - logged.keys() == {
        "train/sharpness",
        "train/sharpness_subspace",
        "train/hessian_eigenvalue",
    }
    assert all(float(more[name]) > 0 for name in more.keys() - logged.keys())


def test_our_models_and_data(make_trainer):
    ends = []
    for callbacks in ([], [Sharpness(limit_batches=2, seed=4)]):
        pl.seed_everything(0, verbose=False)
        model = MLPClassifier(64, 10, hidden=[16], dropout=0.3, norm="batch", lr=0.01)
        data = DigitsDataModule(batch_size=128, train_transform=lambda image: image * 0)
        trainer = make_trainer(max_epochs=2, callbacks=callbacks)
        trainer.fit(model, datamodule=data)
        ends.append((model, data, dict(trainer.callback_metrics)))
    (plain, _, logged), (model, data, more) = ends
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert all(torch.equal(logged[name], more[name]) for name in logged)
    x, y, _ = data.arrays("train")
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(4))[:256]
    expected = by_hand(model.net, data.transform(x[rows]), y[rows], seed=4)
    measured = {name: float(more[name]) for name in expected}
    assert measured == pytest.approx(expected, rel=0.02)


def test_a_killed_run_goes_on_with_the_same_numbers(make_trainer, tmp_path):
    def run(folder, epochs, **arguments):
        notes = Notes()
        torch.manual_seed(1)
        module = Foreign()
        callbacks = [Sharpness(every_n_epochs=2), ExactResume(tmp_path / folder), notes]
        trainer = make_trainer(max_epochs=epochs, callbacks=callbacks, enable_checkpointing=True)
        trainer.fit(module, loader(), **arguments)
        return module.state_dict(), notes.rows

    whole, rows = run("whole", 4)
    run("part", 2)
    part, more = run("part", 4, ckpt_path="last")
    assert all(torch.equal(a, b) for a, b in zip(whole.values(), part.values(), strict=True))
    assert rows[3] == more[1] and len(rows[3]) == 2


@pytest.mark.parametrize(
    ("arguments", "measured"),
    [
        ({}, [0, 1, 2, 3]),
        ({"every_n_epochs": 3}, [2]),
        ({"at_epochs": [0, -1]}, [0, 3]),
        ({"at_epochs": (2,), "epsilon": None}, [2]),
    ],
)
def test_epochs(arguments, measured, make_trainer, monkeypatch):
    epochs = []
    callback = Sharpness(limit_batches=1, **arguments)
    inner = callback._measure
    monkeypatch.setattr(
        callback, "_measure", lambda t, m: epochs.append(t.current_epoch) or inner(t, m)
    )
    trainer = make_trainer(max_epochs=4, callbacks=[callback])
    trainer.fit(Foreign(), loader())
    assert epochs == measured
    assert ("train/sharpness" in trainer.callback_metrics) == ("epsilon" not in arguments)
    fast = make_trainer(callbacks=[Sharpness(**arguments)], fast_dev_run=True)
    fast.fit(Foreign(), loader())


def test_a_loader_of_ones_own_and_a_step_without_index(make_trainer):
    class Short(Foreign):
        def training_step(self, batch):
            return super().training_step(batch, 0)

    module, notes = Short(), Notes()
    own = Sharpness(dataloader=lambda: [[X[:3], Y[:3]], [X[3:10], Y[3:10]]])
    make_trainer(callbacks=[own, notes]).fit(module, loader())
    expected = by_hand(module.net, X[:10], Y[:10])["train/hessian_eigenvalue"]
    assert notes.rows[0]["train/hessian_eigenvalue"] == pytest.approx(expected, rel=1e-3)


def test_recurrent_nets(make_trainer):
    class Recurrent(Foreign):
        def __init__(self):
            super().__init__()
            self.net = nn.GRU(5, 3)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0])[0], batch[1])

    trainer = make_trainer(callbacks=[Sharpness(limit_batches=1)])
    trainer.fit(Recurrent(), loader())
    assert float(trainer.callback_metrics["train/hessian_eigenvalue"]) > 0


def test_a_loss_below_minus_one_is_said(make_trainer):
    class Below(Foreign):
        def training_step(self, batch, batch_idx):
            return self.net(batch[0]).square().mean() - 5

    trainer = make_trainer(callbacks=[Sharpness(limit_batches=1)])
    with pytest.warns(UserWarning, match="train/sharpness is not a number in epoch 0"):
        trainer.fit(Below(), loader())
    assert float(trainer.callback_metrics["train/hessian_eigenvalue"]) > 0


class Manual(Foreign):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Nothing(Foreign):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) if self.training else None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epsilon": -1.0}, ValueError, "epsilon=-1.0"),
        ({"epsilon": None, "eigenvalue": False}, ValueError, "nothing to measure"),
        ({"directions": 0}, ValueError, "directions=0"),
        ({"every_n_epochs": 0}, ValueError, "every_n_epochs=0"),
        ({"limit_batches": 1.5}, ValueError, "limit_batches=1.5"),
        ({"iterations": 0}, ValueError, "iterations=0"),
        ({"at_epochs": 3}, TypeError, r"must be a list, such as \[3\]"),
        ({"at_epochs": []}, ValueError, "at_epochs is empty"),
        (
            {"at_epochs": [1.5]},
            TypeError,
            r"at_epochs=\[1.5\] must be a list, each entry a whole number",
        ),
        ({"at_epochs": "1"}, TypeError, "at_epochs='1' must be a list, such as"),
        ({"directions": 2.5}, TypeError, "directions=2.5 must be a whole number"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Sharpness(**arguments)


@pytest.mark.parametrize(
    ("arguments", "module", "settings", "error", "message"),
    [
        ({}, Manual, {}, ValueError, "automatic_optimization=False"),
        ({}, Nothing, {}, ValueError, "Nothing.training_step returns, and got NoneType"),
        ({}, Foreign, {"precision": "bf16-true"}, TypeError, "torch.bfloat16"),
        ({"directions": 1000}, Foreign, {}, ValueError, "directions=1000 is outside"),
        ({"at_epochs": [2]}, Foreign, {"max_epochs": 2}, ValueError, "max_epochs=2 does not have"),
        ({"at_epochs": [-1]}, Foreign, {"max_epochs": -1}, ValueError, "counts from the end"),
    ],
)
def test_wrong_fits(arguments, module, settings, error, message, make_trainer):
    trainer = make_trainer(callbacks=[Sharpness(**arguments)], **settings)
    with pytest.raises(error, match=message):
        trainer.fit(module(), loader())


def test_several_loaders_are_refused(make_trainer):
    class Two(Foreign):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx)

    with pytest.raises(ValueError, match="Sharpness reads the training data from one DataLoader"):
        make_trainer(callbacks=[Sharpness()]).fit(Two(), {"a": loader(), "b": loader()})


CONFIG = """
model:
  class_path: dlblocks.models.MLPClassifier
  init_args: {in_features: 64, num_classes: 10, hidden: [16]}
data:
  class_path: dlblocks.data.DigitsDataModule
  init_args: {batch_size: 256}
trainer:
  max_epochs: 2
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - {class_path: dlblocks.callbacks.Sharpness, init_args: {limit_batches: 1, at_epochs: [-1]}}
    - class_path: dlblocks.callbacks.Sharpness
      init_args: {epsilon: 5.0e-4, directions: 3, eigenvalue: false, limit_batches: 0.5}
"""


def test_from_yaml(tmp_path):
    (tmp_path / "sharp.yaml").write_text(CONFIG)
    main(["fit", "--config=sharp.yaml"])
    with (tmp_path / "runs" / "sharp" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    measured = {
        name: [float(row[name]) for row in rows if row[name]]
        for name in ("train/sharpness", "train/sharpness_subspace", "train/hessian_eigenvalue")
    }
    assert [len(values) for values in measured.values()] == [1, 2, 1]
    assert all(0 < value < math.inf for values in measured.values() for value in values)
    with pytest.raises(SystemExit):
        main(["fit", "--config=sharp.yaml", "--trainer.callbacks.epsilom=1"])


def measure(devices):
    pl.seed_everything(0, verbose=False)
    notes = Notes()
    measure = [Sharpness(limit_batches=None), Sharpness(directions=5, eigenvalue=False)]
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp_find_unused_parameters_true",
        max_epochs=1, callbacks=[*measure, notes], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Foreign()
    module.configure_optimizers = lambda: None  # the weights stay as they are
    module.net[1].momentum = 0.0
    trainer.fit(module, loader())
    with open(f"rows-{devices}-{trainer.global_rank}.json", "w") as file:
        json.dump([notes.rows[0], [float(p.sum()) for p in module.parameters()]], file)


def test_two_ranks_measure_what_one_does(tmp_path):
    for devices in (1, 2):
        forked.run(measure, devices, environments=forked.ranks(devices))
    one, two, other = (
        json.loads((tmp_path / f"rows-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")
    )
    assert two == other
    assert len(one[0]) == 3
    assert one[0] == pytest.approx(two[0], rel=0.02)
