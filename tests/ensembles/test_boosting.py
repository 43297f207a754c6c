import json
from pathlib import Path

import numpy as np
import pytest
import torch
from boosting_learners import LeastSquares, SklearnRegressor
from lightning.pytorch.demos.boring_classes import BoringModel
from sklearn import _loss as sklearn_loss
from sklearn.ensemble import GradientBoostingRegressor as SklearnBoosting
from sklearn.linear_model import LinearRegression
from sklearn.tree import DecisionTreeRegressor
from torch import nn

from dlblocks._files import read_rows
from dlblocks.data import ArrayDataModule, DigitsDataModule, TabularDataModule
from dlblocks.ensembles import GradientBoosting, Voting
from dlblocks.ensembles._boosting_losses import AbsoluteLoss, HuberLoss, LogLoss, SquaredLoss
from dlblocks.models import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    MLPClassifier,
    MLPRegressor,
    Model,
    Regressor,
    VotingEnsemble,
    load,
)
from dlblocks.tasks import RegressionTask

CPU = {"accelerator": "cpu", "max_epochs": 1}


def boost(make_learner, data, **arguments):
    settings = {"num_stages": 3, "trainer": CPU, "progress_bar": False, "logger": None}
    return GradientBoosting(make_learner, data, **{**settings, **arguments})


def values(num_samples=120, num_values=1, seed=0, **arguments):
    """A linear function of five features, with noise."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(num_samples, 5)).astype(np.float32)
    scales = 10.0 ** np.arange(num_values)
    targets = inputs @ rng.normal(size=(5, num_values)) * scales + 3
    targets += scales * rng.normal(size=targets.shape)
    targets = targets[:, 0] if num_values == 1 else targets
    return ArrayDataModule(inputs, targets.astype(np.float32), **arguments)


def classes(count=3, num_samples=150, **arguments):
    rng = np.random.default_rng(0)
    targets = np.arange(num_samples) % count
    inputs = rng.normal(size=(num_samples, 5)).astype(np.float32)
    inputs[:, 0] += 2 * targets
    inputs[:, 1] -= targets == 1
    return ArrayDataModule(inputs, targets, **arguments)


# Against closed forms


def sum_of_squares(data, part, fitted_on="train"):
    """Mean squared errors of scikit-learn's least squares, and of the mean, fitted to training."""
    raw, targets, _ = data.arrays(fitted_on)
    model = LinearRegression().fit(data.transform(raw).numpy(), targets.numpy())
    inputs, truth, _ = data.arrays(part)
    found = model.predict(data.transform(inputs).numpy())
    return np.mean((truth.numpy() - found) ** 2), np.mean(
        (truth.numpy() - targets.numpy().mean(0)) ** 2
    )


@pytest.mark.parametrize("num_values", [1, 2])
@pytest.mark.parametrize("line_search", [True, False])
def test_one_full_step_of_a_linear_learner_is_least_squares(num_values, line_search):
    data = values(num_values=num_values)
    learner = lambda: LeastSquares(5, num_values)  # noqa: E731
    result = boost(learner, data, num_stages=1, shrinkage=1.0, line_search=line_search).fit()
    for part in ("train", "val"):
        best, constant = sum_of_squares(data, part)
        assert result.history[0][f"{part}/loss"] == pytest.approx(constant, rel=1e-5)
        assert result.history[1][f"{part}/loss"] == pytest.approx(best, rel=1e-5)
    assert result.history[1]["step"] == pytest.approx(1, abs=1e-4)


def test_shrinkage_leaves_a_power_of_the_residuals():
    """What a linear model can explain decays as (1 - ν)^m; the rest of the squared error stays."""
    data, shrinkage = values(), 0.3
    result = boost(lambda: LeastSquares(5, 1), data, num_stages=8, shrinkage=shrinkage).fit()
    best, constant = sum_of_squares(data, "train")
    for m, row in enumerate(result.history):
        expected = best + (constant - best) * (1 - shrinkage) ** (2 * m)
        assert row["stage"] == m
        assert row["train/loss"] == pytest.approx(expected, rel=1e-5)


# Against scikit-learn


def test_stage_losses_are_scikit_learns_with_the_same_trees():
    data = TabularDataModule("diabetes", val_fraction=0.25)
    tree = lambda: DecisionTreeRegressor(max_depth=2, random_state=0)  # noqa: E731
    result = boost(lambda: SklearnRegressor(tree()), data, num_stages=10, shrinkage=0.2).fit()
    (x, y, _), (x_val, y_val, _) = data.arrays("train"), data.arrays("val")
    theirs = SklearnBoosting(n_estimators=10, learning_rate=0.2, max_depth=2, random_state=0)
    if theirs.criterion != "deprecated":  # before scikit-learn 1.9
        theirs.set_params(criterion="squared_error")
    theirs.fit(data.transform(x).numpy(), y.double().numpy())
    ours = [row["train/loss"] for row in result.history[1:]]
    np.testing.assert_allclose(ours, theirs.train_score_, rtol=1e-5)
    staged = theirs.staged_predict(data.transform(x_val).numpy())
    expected = [np.mean((y_val.numpy() - found) ** 2) for found in staged]
    np.testing.assert_allclose([r["val/loss"] for r in result.history[1:]], expected, rtol=1e-5)
    for found, wanted in zip(
        result.model.staged_predict(x_val),
        theirs.staged_predict(data.transform(x_val).numpy()),
        strict=True,
    ):
        np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-4)


def of_sklearn(name, quantile=None):
    kinds = {
        "mse": sklearn_loss.HalfSquaredError,
        "mae": sklearn_loss.AbsoluteError,
        "huber": lambda: sklearn_loss.HuberLoss(quantile=quantile),
    }
    return kinds[name]()


@pytest.mark.parametrize("name", ["mse", "mae", "huber"])
def test_initial_prediction_residuals_and_loss_of_values_are_scikit_learns(name):
    rng = np.random.default_rng(0)
    y, f = rng.standard_t(2, size=101), rng.normal(size=101)
    loss = {"mse": SquaredLoss(), "mae": AbsoluteLoss(), "huber": HuberLoss(0.8)}[name]
    theirs = of_sklearn(name, quantile=0.8)
    columns = torch.from_numpy(y)[:, None], torch.from_numpy(f)[:, None]
    loss.begin(*columns)
    if name == "huber":
        theirs.closs.delta = np.quantile(abs(y - f), 0.8)
        assert loss.delta.item() == pytest.approx(theirs.closs.delta)
    else:  # scikit-learn's boosting starts Huber's from the median, too, not from its optimum
        assert loss.initial(columns[0]).item() == pytest.approx(theirs.fit_intercept_only(y))
    factor = 2 if name == "mse" else 1  # theirs is half of the square
    assert loss.value(*columns) == pytest.approx(factor * theirs(y, f))
    expected = -theirs.gradient(y, f)
    found = loss.residuals(*columns)[:, 0].numpy()
    nonzero = y != f
    np.testing.assert_allclose(found[nonzero], expected[nonzero], atol=1e-12)


@pytest.mark.parametrize(("num_classes", "width"), [(2, 1), (2, 2), (4, 4)])
def test_log_loss_is_scikit_learns(num_classes, width):
    rng = np.random.default_rng(0)
    y, f = rng.integers(num_classes, size=50), rng.normal(size=(50, width))
    loss = LogLoss(num_classes, width)
    encoded = loss.encode(torch.from_numpy(y))
    if width == 1:
        theirs, raw, truth = sklearn_loss.HalfBinomialLoss(), f[:, 0], y.astype(float)
    else:
        theirs, raw = sklearn_loss.HalfMultinomialLoss(n_classes=num_classes), f
        truth = y.astype(float)
    assert loss.value(encoded, torch.from_numpy(f)) == pytest.approx(theirs(truth, raw))
    gradient = theirs.gradient(truth, raw) if width == 1 else theirs.gradient_proba(truth, raw)[0]
    found = loss.residuals(encoded, torch.from_numpy(f)).numpy()
    np.testing.assert_allclose(found, -np.asarray(gradient).reshape(50, width), atol=1e-12)
    start = loss.initial(encoded)
    p = start.sigmoid() if width == 1 else start.softmax(0)
    counts = np.bincount(y, minlength=num_classes) / len(y)
    np.testing.assert_allclose(p, counts[-width:], atol=1e-12)


def test_residuals_are_the_negative_gradient():
    y = torch.randn(30, 1, dtype=torch.float64)
    f = torch.randn(30, 1, dtype=torch.float64, requires_grad=True)
    huber = HuberLoss(0.7)
    huber.begin(y, f.detach())
    (gradient,) = torch.autograd.grad(
        nn.functional.huber_loss(f, y, delta=huber.delta.item(), reduction="sum"), f
    )
    torch.testing.assert_close(huber.residuals(y, f.detach()), -gradient)


# The line search


@pytest.mark.parametrize(
    ("loss", "width"),
    [
        (SquaredLoss(), 2),
        (AbsoluteLoss(), 2),
        (HuberLoss(0.7), 2),
        (LogLoss(2, 1), 1),
        (LogLoss(3, 3), 3),
    ],
    ids=["mse", "mae", "huber", "binary", "classes"],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_line_search_finds_the_least_loss_of_a_grid(loss, width, sign):
    torch.manual_seed(1)
    f, h = torch.randn(2, 80, width, dtype=torch.float64)
    if isinstance(loss, LogLoss):
        y = loss.encode(torch.arange(80) % loss.num_classes)
    else:
        y = torch.randn(80, width, dtype=torch.float64)
    h = sign * (h + loss.residuals(y, f))
    loss.begin(y, f)
    loss.reported_delta = getattr(loss, "delta", torch.zeros(1)).item()
    rho = loss.line_search(y, f, h)
    assert rho.shape == (width,) and (sign * rho > 0).all()
    grid = torch.linspace(-5, 5, 4001, dtype=torch.float64)
    outputs = (
        [slice(None)] if isinstance(loss, LogLoss) else [slice(k, k + 1) for k in range(width)]
    )
    for k in outputs:
        on_grid = [loss.value(y[:, k], f[:, k] + step * h[:, k]) for step in grid]
        found = loss.value(y[:, k], f[:, k] + rho[k] * h[:, k])
        assert found <= min(on_grid) + 1e-12


def test_line_search_where_there_is_no_minimum_or_nothing_to_move():
    y, h = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[-0.01], [0.01]]).double()
    for loss in (LogLoss(2, 1), SquaredLoss(), AbsoluteLoss(), HuberLoss(0.9)):
        loss.begin(y, torch.zeros_like(y))
        assert loss.line_search(y, torch.zeros_like(y), torch.zeros_like(y)).tolist() == [0]
    # The classes are separated: the loss falls for ever, and the step is bounded.
    assert LogLoss(2, 1).line_search(y, torch.zeros_like(y), h).item() == pytest.approx(1600)


# Nets, trained


class Counting(nn.Linear):
    def __init__(self, *shape):
        super().__init__(*shape)
        self.calls, self.graphs = 0, 0

    def forward(self, inputs):
        self.calls += 1
        return super().forward(inputs)


def test_no_learner_is_run_again_and_no_gradient_reaches_it(monkeypatch):
    made, snapshots = [], []

    def make_learner():
        snapshots.append([(m.calls, m.weight.detach().clone(), m.weight.grad) for m in made])
        made.append(Counting(5, 1))
        return made[-1]

    data = values(batch_size=32)
    boost(make_learner, data, num_stages=6).fit()
    batches = 3 + 1 + 1  # of training (96 samples), and of training and validation to be kept
    assert [m.calls for m in made] == [1 + batches, *[batches] * 5]  # the first was tried
    for number, (calls, weight, grad) in enumerate(snapshots[-1]):
        learner = made[number]
        assert learner.calls == calls
        assert torch.equal(learner.weight, weight)
        assert learner.weight.grad is grad


def test_learners_are_evaluated_in_evaluation_mode():
    """Batch norm takes up training data only, and dropout is off where predictions are kept."""
    data = values(batch_size=16)
    result = boost(
        lambda: MLPRegressor(5, 1, hidden=[8], norm="batch", dropout=0.5), data, num_stages=2
    ).fit()
    seen = [int(m.net.layers[1].num_batches_tracked) for m in result.model.net.members]
    assert seen == [6, 6]
    predicted = [result.model(data.arrays("val")[0])[:, 0] for _ in range(2)]
    assert torch.equal(*predicted)
    error = (predicted[0] - data.arrays("val")[1]).square().mean().item()
    assert error == pytest.approx(result.history[-1]["val/loss"], rel=1e-5)


def test_normalisation_is_fitted_to_training_alone_and_targets_of_validation_are_not_seen():
    histories = []
    for shift in (0.0, 1e3):
        data = values(val_fraction=0.2)
        data.setup("fit")
        rows = data.indices("val")
        inputs, targets = data.source.inputs.clone(), data.source.targets.clone()
        inputs[rows] += shift
        targets[rows] += shift
        result = boost(
            lambda: MLPRegressor(5, 1, hidden=[4]),
            ArrayDataModule(inputs, targets),
            run_dir=f"shift-{shift}",
        ).fit()
        histories.append([row["train/loss"] for row in result.history])
    assert histories[0] == histories[1]


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_losses_of_values_fall_and_are_those_of_the_trainer(loss, make_trainer):
    data = TabularDataModule("diabetes")
    result = boost(
        lambda: MLPRegressor(10, 1, hidden=[16], lr=0.01),
        data,
        num_stages=8,
        shrinkage=0.5,
        loss=loss,
        subsample=0.7,
        trainer={**CPU, "max_epochs": 4},
    ).fit()
    first, last = result.history[0], result.history[-1]
    assert last["train/loss"] < 0.8 * first["train/loss"]
    assert last["val/loss"] < 0.8 * first["val/loss"]
    loaded = load(result.checkpoint)
    assert isinstance(loaded, GradientBoostingRegressor)
    (metrics,) = make_trainer().validate(loaded, datamodule=data, verbose=False)
    assert metrics["val/loss"] == pytest.approx(last["val/loss"], rel=1e-5)


@pytest.mark.parametrize(("count", "width"), [(2, 1), (2, 2), (3, 3)])
def test_classes_are_learned_and_the_model_is_one(count, width, make_trainer, tmp_path):
    data = classes(count, test_fraction=0.2)
    result = boost(
        lambda: MLPRegressor(5, width, hidden=[8], lr=0.01),
        data,
        num_stages=6,
        trainer={**CPU, "max_epochs": 5},
        shrinkage=0.5,
        run_dir=tmp_path / "run",
    ).fit()
    assert result.history[-1]["val/loss"] < 0.75 * result.history[0]["val/loss"]
    model = load(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert isinstance(model, GradientBoostingClassifier) and len(model.net.members) == 6
    trainer = make_trainer()
    (validated,) = trainer.validate(model, datamodule=data, verbose=False)
    assert validated["val/loss"] == pytest.approx(result.history[-1]["val/loss"], rel=1e-5)
    (tested,) = trainer.test(model, datamodule=data, verbose=False)
    assert tested["test/accuracy"] > 1.3 / count
    batches = trainer.predict(model, datamodule=data)
    found = torch.cat([batch["prediction"] for batch in batches])
    assert found.shape == (30, count)
    inputs, targets, _ = data.arrays("val")
    staged = list(model.staged_predict(inputs))
    losses = [-p[torch.arange(len(p)), targets].log().mean().item() for p in staged]
    expected = [row["val/loss"] for row in result.history[1:]]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_one_logit_and_two_agree_about_two_classes():
    """With exact learners: the softmax of (-f/2, f/2) is the sigmoid of f."""
    data = classes(2)
    runs = []
    for width in (1, 2):
        make = lambda w=width: Regressor(LeastSquares(5, w), w)  # noqa: E731
        run = boost(make, data, num_stages=4, shrinkage=0.5, run_dir=f"{width}")
        runs.append(run.fit())
    for one, two in zip(runs[0].history, runs[1].history, strict=True):
        assert one["train/loss"] == pytest.approx(two["train/loss"], rel=1e-4)


def test_a_stage_sees_its_share_of_the_samples():
    seen = []

    class Watching(LeastSquares):
        def fit_samples(self, inputs, targets, weights):
            seen.append((inputs, targets))
            super().fit_samples(inputs, targets, weights)

    data = values(num_samples=100)
    train = data.transform(data.arrays("train")[0])
    boost(lambda: Watching(5, 1), data, subsample=0.25).fit()
    rows = [{int((train == row).all(1).nonzero()) for row in inputs} for inputs, _ in seen]
    assert [len(found) for found in rows] == [20, 20, 20]  # all different: no replacement
    assert rows[0] != rows[1] != rows[2]


def test_runs_are_repeatable_and_leave_the_random_state_alone():
    def run(name, seed):
        torch.rand(len(name))
        result = boost(
            lambda: MLPRegressor(5, 1, hidden=[4], dropout=0.2),
            values(),
            subsample=0.5,
            seed=seed,
            run_dir=name,
        ).fit()
        return result.history[-1]["train/loss"]

    torch.manual_seed(3)
    run("a", 0)
    after = torch.rand(1)
    torch.manual_seed(3)
    torch.rand(1)
    assert torch.equal(after, torch.rand(1))
    assert run("bb", 0) == run("c", 0) != run("d", 1)


@pytest.mark.parametrize("way", ["in pieces", "transformed"])
def test_inputs_prepared_a_batch_at_a_time_are_those_prepared_at_once(way, monkeypatch):
    def run(name, **arguments):
        data = DigitsDataModule(batch_size=128, **arguments)
        learner = lambda: MLPRegressor(64, 10, hidden=[8])  # noqa: E731
        return boost(learner, data, subsample=0.5, num_stages=2, run_dir=name).fit().history

    once = run("a")
    if way == "in pieces":
        monkeypatch.setattr("dlblocks.ensembles._stages.READY_BYTES", 0)
        assert run("b") == once
    else:  # of the training batches alone: what is kept of a learner is for images as they are
        seen = []
        found = run("b", train_transform=lambda image: seen.append(len(image)) or image)
        for row, expected in zip(found, once, strict=True):
            assert row["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-4)
        assert len(seen) == 2 * 575  # half of 1,150, in each stage


def test_full_batches_take_one_step_a_pass():
    made = []

    def make_learner():
        made.append(Counting(5, 1))
        return made[-1]

    data = values(batch_size="full")
    boost(make_learner, data, num_stages=2, trainer={**CPU, "max_epochs": 3}).fit()
    assert [m.calls for m in made] == [1 + 3 + 2, 3 + 2]


def test_early_stopping_keeps_the_best_stages():
    """Noise: a tree learns it by heart, and validation gets worse from some stage on."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(100, 3)).astype(np.float32)
    data = ArrayDataModule(inputs, (inputs[:, 0] + rng.normal(size=100)).astype(np.float32))
    learner = lambda: SklearnRegressor(DecisionTreeRegressor(max_depth=4, random_state=0))  # noqa: E731
    result = boost(learner, data, num_stages=60, shrinkage=0.3, patience=3).fit()
    assert result.stopped.startswith("val/loss has not improved for 3 stages")
    losses = [row["val/loss"] for row in result.history]
    assert result.best_stage == int(np.argmin(losses)) == len(losses) - 4
    assert len(result.model.net.members) == result.best_stage < 56
    found = result.model(data.arrays("val")[0])[:, 0]
    error = (found - data.arrays("val")[1]).square().mean().item()
    assert error == pytest.approx(min(losses), rel=1e-5)


def test_a_vote_takes_the_boosted_model_over_raw_inputs(tmp_path, make_trainer):
    data = TabularDataModule("diabetes")
    result = boost(lambda: MLPRegressor(10, 1, hidden=[8]), data, run_dir=tmp_path / "a").fit()
    model = Voting([result.model])
    raw = data.arrays("val")[0]
    with torch.no_grad():
        torch.testing.assert_close(model(raw), result.model(raw))
    trainer = make_trainer()
    (alone,) = trainer.validate(result.model, datamodule=data, verbose=False)
    (within,) = trainer.validate(model, datamodule=data, verbose=False)
    assert within["val/rmse"] == pytest.approx(alone["val/rmse"], rel=1e-5)


def test_nothing_left_to_learn_ends_the_fit():
    inputs = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    data = ArrayDataModule(inputs, np.full(20, 2.5, dtype=np.float32))
    with pytest.warns(UserWarning, match="no residuals are left after stage 0"):
        result = boost(lambda: MLPRegressor(2, 1), data).fit()
    assert result.model(torch.zeros(3, 2)).tolist() == [[2.5]] * 3
    assert load(result.checkpoint)(torch.zeros(1, 2)).item() == 2.5


def test_schedule_clipping_and_precision_of_learners():
    data = DigitsDataModule(batch_size=256)
    learner = lambda: MLPRegressor(  # noqa: E731
        64, 10, hidden=[8], optimizer="sgd", lr=0.5, lr_schedule="cosine", warmup_steps=2
    )
    plain = boost(learner, data, run_dir="a").fit()
    clipped = boost(learner, data, trainer={**CPU, "gradient_clip_val": 1e-6}, run_dir="b").fit()
    still = clipped.model.net.members[1].net.layers[0].weight
    torch.manual_seed(1)
    start = learner().net.layers[0].weight
    torch.testing.assert_close(still, start, atol=1e-4, rtol=0)
    assert plain.history[-1]["train/loss"] < clipped.history[-1]["train/loss"]
    for precision in ("bf16-mixed", "64-true"):
        trainer = {**CPU, "precision": precision}
        other = boost(learner, data, trainer=trainer, run_dir=precision).fit()
        assert other.history[-1]["train/loss"] == pytest.approx(
            plain.history[-1]["train/loss"], rel=0.05
        )


# The run folder


def test_run_folder_and_logs(tmp_path):
    result = boost(
        lambda: MLPRegressor(5, 1, hidden=[4]), values(), logger="csv", run_dir=tmp_path / "run"
    ).fit()
    rows = read_rows(tmp_path / "run" / "history.csv")
    assert rows == result.history and [row["stage"] for row in rows] == [0, 1, 2, 3]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["metrics"]["val/loss"]["mean"] == rows[-1]["val/loss"]
    assert summary["num_stages"] == 3 and summary["config"]["model"]["hidden"] == [4]
    assert summary["config"]["shrinkage"] == 0.1
    logged = read_rows(tmp_path / "run" / "metrics.csv")
    assert [row["train/loss"] for row in logged] == [row["train/loss"] for row in rows]
    found = sorted(
        str(p.relative_to(tmp_path / "run")) for p in Path(tmp_path / "run").rglob("*.*")
    )
    assert found == [
        "checkpoints/best.ckpt",
        *(f"checkpoints/stage-{stage}.ckpt" for stage in (1, 2, 3)),
        "history.csv",
        "hparams.yaml",
        "metrics.csv",
        "plan.json",
        "summary.json",
    ]
    with pytest.raises(FileExistsError, match=r"model.hidden was \[4\] and is \[256\]|class was"):
        boost(lambda: MLPRegressor(5, 1), values(), run_dir=tmp_path / "run").fit()


def test_wandb_has_the_losses_of_the_stages(tmp_path, monkeypatch):
    from wandb_offline import read_run

    monkeypatch.setenv("WANDB_MODE", "offline")
    result = boost(
        lambda: MLPRegressor(5, 1, hidden=[4]), values(), logger="wandb", run_dir=tmp_path / "run"
    ).fit()
    (path,) = (tmp_path / "run").rglob("*.wandb")
    run = read_run(path)
    assert [row["val/loss"] for row in run["history"]] == [r["val/loss"] for r in result.history]


def test_progress_bar_counts_stages(capsys):
    boost(lambda: MLPRegressor(5, 1, hidden=[4]), values(), progress_bar=True).fit()
    shown = capsys.readouterr().err
    assert "3/3" in shown and "val/loss" in shown


# Bad input


def learner():
    return MLPRegressor(5, 1, hidden=[4])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"shrinkage": 0.0}, r"shrinkage=0.0 is outside \(0, 1\]"),
        ({"shrinkage": 1.5}, r"shrinkage=1.5"),
        ({"num_stages": 0}, "num_stages=0"),
        ({"subsample": 0.0}, r"subsample=0.0 is outside \(0, 1\]"),
        ({"subsample": 1.1}, "subsample=1.1"),
        ({"huber_quantile": 1.0}, "huber_quantile=1.0"),
        ({"patience": 0}, "patience=0"),
        ({"loss": "hinge"}, "loss='hinge' is not known"),
        ({"trainer": {"max_epoch": 3}}, "did you mean 'max_epochs'"),
        ({"trainer": {"max_epochs": 0}}, "max_epochs"),
        ({"trainer": {"devices": 2}}, "one device"),
        ({"trainer": {"precision": "16-mixed"}}, "bf16-mixed"),
    ],
)
def test_bad_arguments(arguments, said):
    with pytest.raises(ValueError, match=said):
        boost(learner, values(), **arguments)


class OwnOptimizer(MLPRegressor):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(
    ("make_learner", "data", "arguments", "said"),
    [
        (learner, values(), {"loss": "log_loss"}, "which are values; use 'mse', 'mae' or 'huber'"),
        (learner, classes(2), {"loss": "mae"}, "which are classes; use 'log_loss'"),
        (learner, values(num_values=2), {}, r"\[1, 2\] values a sample"),
        (learner, classes(3), {}, r"\[1, 3\] values a sample"),
        (lambda: MLPRegressor(5, 3), classes(2), {}, r"\[2, 3\] values a sample"),
        (lambda: nn.Linear(5, 4), classes(3), {}, r"shape \(2, 3\) .* outputs \(2, 4\)"),
        (lambda: Regressor(nn.Linear(5, 4), 3), classes(3), {}, r"outputs \(2, 4\)"),
        (lambda: MLPRegressor(7, 1), values(), {}, "in_features=7"),
        (lambda: MLPClassifier(5, 3), classes(3), {}, "needs a Regressor"),
        (lambda: VotingEnsemble([learner()]), values(), {}, "configure_optimizers is its own"),
        (lambda: OwnOptimizer(5, 1), values(), {}, "configure_optimizers is its own"),
        (lambda: MLPRegressor(5, 1, lr_schedule="plateau"), values(), {}, "plateau"),
        (learner, values(val_fraction=0.0), {"patience": 3}, "patience=3 needs validation"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_trained(make_learner, data, arguments, said):
    with pytest.raises(ValueError, match=said):
        boost(make_learner, data, **arguments).fit()
    assert not Path("runs").exists()


def test_things_that_are_no_learner_or_no_data():
    with pytest.raises(TypeError, match=r"make_learner is a .*, and no function; it must"):
        boost(learner(), values())
    with pytest.raises(TypeError, match="DataModule"):
        boost(learner, torch.zeros(3))
    with pytest.raises(ValueError, match=r"BoringModel; .* training_step .* not be called"):
        boost(BoringModel, values()).fit()
    with pytest.raises(TypeError, match="returned a str"):
        boost(lambda: "net", values()).fit()


def test_one_learner_returned_twice():
    same = learner()
    with pytest.raises(ValueError, match="the same object, or the same weights, twice"):
        boost(lambda: same, values(), run_dir="a").fit()
    shared = nn.Linear(5, 1)
    with pytest.raises(ValueError, match="the same weights, twice"):
        boost(lambda: Regressor(nn.Sequential(shared)), values(), run_dir="b").fit()


def test_a_loss_that_is_not_finite_names_the_stage():
    with pytest.raises(FloatingPointError, match=r"stage 1 .* lower lr"):
        boost(lambda: MLPRegressor(5, 1, optimizer="sgd", lr=1e25), values()).fit()


def test_learners_over_nets_of_the_users_own_are_given_back_to_load():
    result = boost(lambda: nn.Linear(5, 1), values()).fit()
    with pytest.raises(ValueError, match="net that was made elsewhere"):
        load(result.checkpoint)
    members = [Regressor(nn.Linear(5, 1)) for _ in range(3)]
    model = load(result.checkpoint, overrides={"members": members})
    assert torch.equal(model(torch.ones(2, 5)), result.model(torch.ones(2, 5)))


def test_a_model_of_a_net_and_a_task_is_a_learner():
    """Bit for bit the `Regressor` over the same net."""

    def run(make, name):
        return boost(make, values(), trainer={**CPU, "max_epochs": 2}, run_dir=name).fit()

    one = run(lambda: Model(nn.Linear(5, 1), RegressionTask(1), lr=0.1), "a")
    other = run(lambda: Regressor(nn.Linear(5, 1), 1, lr=0.1), "b")
    assert one.history == other.history
    assert torch.equal(one.model(torch.ones(2, 5)), other.model(torch.ones(2, 5)))


def test_models_refuse_what_does_not_fit(make_trainer):
    with pytest.raises(ValueError, match="steps has 0 rows"):
        GradientBoostingRegressor([learner()], [], [0.0])
    with pytest.raises(ValueError, match=r"have \[1, 3\] values a sample"):
        GradientBoostingClassifier([learner()], [[1.0] * 3], [0.0] * 3, 3)
    with pytest.raises(ValueError, match="initial has 2 values for 3 classes; expected 3"):
        GradientBoostingClassifier([], [], [0.0] * 2, 3)
    with pytest.raises(ValueError, match="hold a MLPClassifier"):
        GradientBoostingRegressor([MLPClassifier(5, 3)], [[1.0]], [0.0])
    model = GradientBoostingRegressor([learner()], [[1.0]], [0.0])
    with pytest.raises(RuntimeError, match="trained already"):
        make_trainer().fit(model, datamodule=values())
