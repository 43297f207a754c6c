"""Gradient boosting against its definition, written out: what a stage sees, and where it steps."""

import numpy as np
import pytest
import torch
from boosting_learners import LeastSquares
from scipy.optimize import minimize_scalar
from torch import nn

from dlblocks.data import ArrayDataModule
from dlblocks.data.dataset import EpochSampler
from dlblocks.ensembles import GradientBoosting
from dlblocks.models import Regressor

SHARE, SHRINKAGE, QUANTILE = 0.5, 0.4, 0.8


class Recording(LeastSquares):
    def fit_samples(self, inputs, targets, weights):
        self.inputs, self.targets = inputs, targets
        super().fit_samples(inputs, targets, weights)


def boost(make_learner, data, **arguments):
    given = {"num_stages": 3, "progress_bar": False, "logger": None}
    return GradientBoosting(make_learner, data, **{**given, **arguments}).fit()


def data_for(loss):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(101, 4)).astype(np.float32)
    if loss == "log_loss":
        return ArrayDataModule(inputs, (inputs[:, 0] > 0) + (rng.normal(size=101) > 1).astype(int))
    targets = inputs @ rng.normal(size=(4, 2)) + rng.standard_t(2, size=(101, 2))
    return ArrayDataModule(inputs, (targets * [1, 20]).astype(np.float32))


def huber(r, delta):
    return np.where(abs(r) <= delta, r**2 / 2, delta * (abs(r) - delta / 2))


def softmax(f):
    e = np.exp(f - f.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("line_search", [True, False])
@pytest.mark.parametrize("loss", ["mse", "mae", "huber", "log_loss"])
def test_stages_are_those_of_a_slow_loop(loss, line_search, tmp_path):
    data, made = data_for(loss), []
    is_classes = loss == "log_loss"
    width = 3 if is_classes else 2

    def make():
        made.append(Recording(4, width))
        return made[-1]

    result = boost(
        make, data, loss=loss, subsample=SHARE, shrinkage=SHRINKAGE, huber_quantile=QUANTILE,
        line_search=line_search, run_dir=tmp_path / "a",
    )  # fmt: skip
    x, y, _ = data.arrays("train")
    x = data.transform(x)
    y = np.eye(3)[y.numpy()] if is_classes else y.double().numpy()
    start = y.mean(0) if loss == "mse" else np.log(y.mean(0)) if is_classes else np.median(y, 0)
    f = np.tile(start, (len(y), 1))
    reported = np.quantile(abs(y - f), QUANTILE)

    def risk(y, f, delta):
        """The losses of each output; for classes of all."""
        if is_classes:
            return -np.log(softmax(f)[y == 1]).mean(keepdims=True)
        r = y - f
        return {"mse": r**2, "mae": abs(r), "huber": huber(r, delta)}[loss].mean(0)

    steps = result.model.net.get_buffer("steps").double().numpy()
    for m, learner in enumerate(made):
        bag = [int((x == row).all(1).nonzero()) for row in learner.inputs]
        assert len(set(bag)) == len(bag) == round(SHARE * len(y))
        delta = np.quantile(abs(y - f)[bag], QUANTILE)
        gradient = {
            "mse": y - f,
            "mae": np.sign(y - f),
            "huber": np.clip(y - f, -delta, delta),
            "log_loss": y - softmax(f),
        }[loss][bag]
        scale = np.sqrt((gradient**2).mean(None if is_classes else 0))
        np.testing.assert_allclose(learner.targets, gradient / scale, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            h = learner(x).double().numpy()
        if line_search:
            rho = [
                minimize_scalar(
                    lambda t, k=k: risk(y[bag], f[bag] + t * h[bag], delta)[k],  # noqa: B023
                    bounds=(0, 200 * np.max(scale)),
                    method="bounded",
                    options={"xatol": 1e-9},
                ).x
                for k in ([0] if is_classes else range(width))
            ]
        else:
            rho = scale
        np.testing.assert_allclose(steps[m], SHRINKAGE * np.ones(width) * rho, rtol=1e-4)
        f = f + steps[m] * h
        expected = risk(y, f, reported).mean()
        assert result.history[m + 1]["train/loss"] == pytest.approx(expected, rel=1e-5)


def test_another_seed_is_another_bag(tmp_path):
    bags = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        made = [Recording(4, 2) for _ in range(3)]
        left = list(made)
        boost(
            lambda left=left: left.pop(0), data_for("mse"), subsample=SHARE, seed=seed,
            run_dir=tmp_path / name,
        )  # fmt: skip
        bags.append([learner.inputs.numpy().tobytes() for learner in made])
    assert bags[0] == bags[1] and not set(bags[0]) & set(bags[2])
    assert len(set(bags[0])) == 3


def test_every_pass_of_every_stage_has_an_order_of_its_own(tmp_path, monkeypatch):
    orders = []
    iterate = EpochSampler.__iter__

    def kept(self):
        order = list(iterate(self))
        if self.shuffle:
            orders.append(tuple(order))
        return iter(order)

    monkeypatch.setattr(EpochSampler, "__iter__", kept)
    boost(
        lambda: nn.Linear(4, 2), data_for("mse"), trainer={"accelerator": "cpu", "max_epochs": 2},
        run_dir=tmp_path / "a",
    )  # fmt: skip
    assert len(orders) == len(set(orders)) == 6


def test_gradients_are_clipped_by_value_and_rates_follow_the_schedule(tmp_path):
    """Gradients far beyond the limit: every weight moves by the limit times the rate of a step."""
    inputs = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    data = ArrayDataModule(inputs, 2 * inputs[:, :2] - inputs[:, 1:], batch_size="full")
    starts = []

    def make():
        learner = Regressor(nn.Linear(3, 2), 2, optimizer="sgd", lr=0.5, lr_schedule="cosine")
        starts.append([p.detach().clone() for p in learner.parameters()])
        return learner

    limit, passes = 1e-5, 4
    trainer = {"accelerator": "cpu", "max_epochs": passes}
    trainer |= {"gradient_clip_val": limit, "gradient_clip_algorithm": "value"}
    result = boost(make, data, num_stages=1, trainer=trainer, run_dir=tmp_path / "a")
    rates = 0.5 * (1 + np.cos(np.pi * np.arange(passes) / passes)) / 2
    (weight, _), (start, _) = result.model.net.members[0].parameters(), starts[0]
    moved = (weight - start).abs().detach()
    torch.testing.assert_close(
        moved, torch.full_like(moved, limit * rates.sum()), rtol=0.02, atol=0
    )
