"""Boosting, bagging and voting at the edges: odd data, odd learners, other processes."""

import json
import os
import random

import forked
import numpy as np
import pytest
import torch
from bagging_runs import digits, mlp, settings
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dlblocks.data import ArrayDataModule
from dlblocks.data.dataset import EpochSampler
from dlblocks.ensembles import AdaBoost, Bagging, DeepEnsemble, GradientBoosting, Voting
from dlblocks.models import MLPClassifier, MLPRegressor, load

CPU = {"accelerator": "cpu", "max_epochs": 1}
never_better = pytest.mark.filterwarnings("ignore:.*has not improved")


def quick(kind, make_learner, data, **arguments):
    given = {"num_stages": 3, "trainer": CPU, "progress_bar": False, "logger": None}
    return kind(make_learner, data, **{**given, **arguments})


def arrays(targets="values", count=60):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(count, 5)).astype(np.float32)
    if targets == "values":
        return inputs, (inputs[:, 0] + rng.normal(size=count)).astype(np.float32)
    return inputs, (inputs[:, 0] > 0) + 2 * (np.arange(count) % 2).astype(np.int64)


def regressor(width=1):
    return MLPRegressor(5, width, hidden=[4], lr=0.02)


def classifier():
    return MLPClassifier(5, 4, hidden=[8], lr=0.05)


class Constant(nn.Module):
    """Puts out one value, whatever it is fitted to; another one for other samples than those."""

    def __init__(self, value, elsewhere=None, width=1):
        super().__init__()
        self.values, self.width = (value, value if elsewhere is None else elsewhere), width

    def fit_samples(self, inputs, targets, weights):
        self.count = len(inputs)

    def forward(self, inputs):
        value = self.values[len(inputs) != self.count]
        return torch.full((len(inputs), self.width), value)


# Boosting


@pytest.mark.parametrize("kind", ["values", "two values", "classes", "ada"])
def test_without_validation_all_stages_are_kept(kind, tmp_path):
    inputs, targets = arrays("values" if "values" in kind else "classes")
    if kind == "two values":
        targets = np.stack([targets, 3 * targets], 1)
    data = ArrayDataModule(inputs, targets, val_fraction=0.0)
    width = {"values": 1, "two values": 2}.get(kind, 4)
    boosting, make = (
        (AdaBoost, classifier) if kind == "ada" else (GradientBoosting, lambda: regressor(width))
    )
    trainer = {**CPU, "max_epochs": 20}
    result = quick(boosting, make, data, run_dir=tmp_path / "a", trainer=trainer).fit()
    assert result.best_stage == len(result.model.net.members) == 3
    assert not any("val" in name for row in result.history for name in row)
    losses = [row["train/loss"] for row in result.history]
    assert losses[-1] < losses[0]


@never_better
def test_a_constant_that_no_stage_improves_is_kept(tmp_path, make_trainer):
    """Learners that get validation wrong: early stopping keeps none of them."""
    inputs, targets = arrays()
    make = lambda: Constant(0.01, elsewhere=50.0)  # noqa: E731
    data = ArrayDataModule(inputs, targets)
    result = quick(
        GradientBoosting, make, data, num_stages=9, patience=2, line_search=False,
        run_dir=tmp_path / "a",
    ).fit()  # fmt: skip
    assert result.best_stage == 0 and len(result.history) == 3
    loaded = load(result.checkpoint)
    mean = data.arrays("train")[1].mean().item()
    for model in (result.model, loaded):
        assert len(model.net.members) == 0
        assert model(torch.zeros(2, 5)).flatten().tolist() == pytest.approx([mean] * 2, rel=1e-5)
    (found,) = make_trainer().validate(loaded, datamodule=data, verbose=False)
    assert found["val/loss"] == pytest.approx(result.history[0]["val/loss"], rel=1e-5)


@never_better
@pytest.mark.parametrize("patience", [1, 2, 4])
def test_patience_counts_the_stages_since_the_best(patience, tmp_path):
    """The validation part gets better for two stages, and worse from the third on."""
    made = []

    def make():
        made.append(Constant(0.0, elsewhere=0.3 if len(made) < 2 else -0.3))
        return made[-1]

    inputs, targets = arrays()
    data = ArrayDataModule(inputs, targets)
    data.setup("fit")
    targets[data.indices("val")] = data.arrays("train")[1].mean().item() + 5
    result = quick(
        GradientBoosting, make, ArrayDataModule(inputs, targets), num_stages=20, shrinkage=1.0,
        line_search=False, patience=patience, run_dir=tmp_path / "a",
    )  # fmt: skip
    assert (found := result.fit()).best_stage == 2 == len(found.model.net.members)
    assert len(found.history) == 1 + 2 + patience
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["num_stages"] == summary["best_stage"] == 2
    assert summary["metrics"]["val/loss"]["mean"] == found.history[2]["val/loss"]


def test_a_bag_of_one_sample_and_a_single_stage(tmp_path):
    data = ArrayDataModule(*arrays())
    result = quick(
        GradientBoosting, regressor, data, subsample=1e-9, num_stages=1, run_dir=tmp_path / "a"
    ).fit()
    assert len(result.model.net.members) == 1
    assert all(np.isfinite(list(row.values())).all() for row in result.history)


def test_a_class_that_training_lacks(tmp_path):
    """Its logit begins with half a sample, so that the loss on validation is finite."""
    inputs, labels = arrays("classes")  # whole groups go to validation: one of the four classes
    data = ArrayDataModule(inputs, labels, groups=labels, num_folds=4, stratify=False)
    data.setup("fit")
    (lacking,) = set(range(4)) - set(data.arrays("train")[1].tolist())
    result = quick(GradientBoosting, lambda: regressor(4), data, run_dir=tmp_path / "a").fit()
    few = 0.5 / len(data.indices("train"))
    start = result.history[0]["val/loss"]  # of that class alone
    assert start == pytest.approx(-np.log(few / (1 + few)))
    assert all(np.isfinite(row["val/loss"]) for row in result.history)
    assert set(data.arrays("val")[1].tolist()) == {lacking}


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
@pytest.mark.parametrize("kind", [GradientBoosting, AdaBoost])
def test_a_model_of_another_precision_takes_inputs_as_they_come(
    kind, precision, tmp_path, make_trainer
):
    is_ada = kind is AdaBoost
    data = ArrayDataModule(*arrays("classes" if is_ada else "values"))
    result = quick(
        kind, classifier if is_ada else regressor, data,
        trainer={**CPU, "max_epochs": 20, "precision": precision}, run_dir=tmp_path / "a",
    ).fit()  # fmt: skip
    x = data.transform(data.arrays("val")[0])
    assert torch.equal(result.model(x), load(result.checkpoint)(x))
    (found,) = make_trainer().validate(result.model, datamodule=data, verbose=False)
    rel = 1e-5 if precision == "64-true" else 0.05
    assert found["val/loss"] == pytest.approx(result.history[-1]["val/loss"], rel=rel)


@pytest.mark.parametrize(
    ("value", "elsewhere", "part"), [(np.nan, 0.0, "train"), (0.1, np.inf, "val")]
)
@pytest.mark.parametrize("kind", [GradientBoosting, AdaBoost])
def test_outputs_that_are_not_finite_are_an_error(kind, value, elsewhere, part, tmp_path):
    is_ada = kind is AdaBoost
    make = lambda: Constant(value, elsewhere, width=4 if is_ada else 1)  # noqa: E731
    data = ArrayDataModule(*arrays("classes" if is_ada else "values"))
    with pytest.raises(FloatingPointError, match=rf"stage 1 .* the {part} samples .* not finite"):
        quick(kind, make, data, run_dir=tmp_path / "a").fit()


def test_one_sample_of_two_classes_leaves_adaboost_with_one_vote(tmp_path):
    inputs = np.eye(2, 5, dtype=np.float32)
    data = ArrayDataModule(inputs, np.array([0, 1]), num_folds=2, stratify=False, normalize=False)
    data.setup("fit")
    label = int(data.source.targets[data.indices("train")[0]])

    class Given(Constant):
        def forward(self, inputs):
            return nn.functional.one_hot(torch.full((len(inputs),), label), 2).float()

    with pytest.warns(UserWarning, match="makes no error"):
        result = quick(AdaBoost, lambda: Given(0.0), data, run_dir=tmp_path / "a").fit()
    assert result.model.alphas == [pytest.approx(np.log(3))]


@pytest.mark.parametrize(("name", "value"), [("num_stages", 2.5), ("patience", 1.5), ("seed", 0.5)])
@pytest.mark.parametrize("kind", [GradientBoosting, AdaBoost])
def test_counts_are_whole_numbers(kind, name, value):
    data = ArrayDataModule(*arrays())
    with pytest.raises(ValueError, match=f"{name}={value} .*whole number"):
        quick(kind, regressor, data, **{name: value})


def states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_draws_of_numpy_and_python_repeat_and_leave_no_trace(tmp_path):
    def make():
        net = nn.Linear(5, 1)
        with torch.no_grad():
            net.weight *= np.random.rand() + random.random()
        return net

    def run(name, seed=0):
        data = ArrayDataModule(*arrays())
        run = quick(GradientBoosting, make, data, seed=seed, run_dir=tmp_path / name)
        return run.fit().history

    before = states()
    one = run("a")
    assert states() == before
    random.random(), np.random.rand()
    assert run("b") == one != run("c", seed=1)
    before = states()
    broken = lambda: Constant(np.nan, width=1)  # noqa: E731
    with pytest.raises(FloatingPointError):
        quick(GradientBoosting, broken, ArrayDataModule(*arrays()), run_dir=tmp_path / "d").fit()
    assert states() == before


# Bagging


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_bagging_leaves_the_random_states_alone(engine, tmp_path):
    before = states()
    Bagging(mlp, digits(), engine=engine, **settings(num_members=2, run_dir=tmp_path / "a")).fit()
    assert states() == before


def test_members_that_know_their_samples_by_heart_know_nothing_of_the_others(tmp_path):
    """Labels are noise: whatever is right about a sample out of the bag has leaked."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(400, 20)).astype(np.float32)
    data = ArrayDataModule(inputs, rng.integers(0, 4, 400))
    result = Bagging(
        lambda: MLPClassifier(20, 4, hidden=[64], lr=0.02), data, monitor="train/loss",
        engine="vectorized",
        **settings(num_members=5, run_dir=tmp_path / "a",
                   trainer={"max_epochs": 25, "accelerator": "cpu"}),
    ).fit()  # fmt: skip
    model = result.model
    for k, sample in enumerate(result.samples):
        seen = data.source.inputs[np.unique(sample)]
        member = Voting([model.net.members[k]])
        truth = data.source.targets[np.unique(sample)]
        assert (member(seen).argmax(1) == truth).float().mean() > 0.98
    chance, count = 0.25, int((result.oob.votes > 0).sum())
    error = np.sqrt(chance * (1 - chance) / count)
    assert abs(result.oob_score["oob/accuracy"] - chance) < 4 * error
    assert abs(np.mean(result.values("val/accuracy")) - chance) < 4 * np.sqrt(3 / 16 / 80)


def test_another_seed_is_another_order(tmp_path, monkeypatch):
    orders = []
    iterate = EpochSampler.__iter__

    def kept(self):
        order = list(iterate(self))
        if self.shuffle:
            orders.append(tuple(order))
        return iter(order)

    monkeypatch.setattr(EpochSampler, "__iter__", kept)
    for seed in (0, 0, 7):
        trainer = {"max_epochs": 1, "accelerator": "cpu"}
        run = settings(num_members=1, seed=seed, trainer=trainer)
        DeepEnsemble(mlp, digits(), run_dir=tmp_path / str(len(orders)), **run).fit()
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (np.ones(400, dtype=bool), "dtype bool; expected integers"),
        ([0.5, 1.5], "dtype float64; expected"),
        ([[0, 1]], r"shape \(1, 2\)"),
        ([], r"shape \(0,\)"),
        ([10**6], "row 1000000 is not in the training part"),
        ([-1], "row -1 is not in the training part"),
    ],
)
def test_samples_that_are_no_rows_are_refused(rows, said, tmp_path):
    bagging = Bagging(mlp, digits(), samples=[rows] * 3, **settings(run_dir=tmp_path / "a"))
    with pytest.raises(ValueError, match=said):
        bagging.fit()
    assert not (tmp_path / "a").exists()


# Voting


def test_voting_refuses_what_is_no_model():
    for members in ([BoringModel()], [nn.Linear(2, 2)], [None]):
        with pytest.raises(ValueError, match=r"members hold a \w+; every one must be a Model"):
            Voting(members)
    for members in ("a.ckpt", regressor()):
        with pytest.raises(TypeError, match=r"members.* must be a list"):
            Voting(members)


# Files


def predict_elsewhere(paths, inputs, found):
    """In a process of its own, from another folder, by a Trainer."""
    import lightning.pytorch as pl

    os.makedirs("elsewhere")
    os.chdir("elsewhere")
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    # Anybody's loader, whose batches are inputs alone.
    loader = DataLoader(TensorDataset(torch.load(inputs)), batch_size=16)
    outputs = []
    for path in paths:
        batches = trainer.predict(load(path), loader)
        outputs.append(torch.cat([batch["prediction"] for batch in batches]))
    torch.save(outputs, found)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_ensembles_load_in_another_process_and_folder(tmp_path):
    values, labels = (ArrayDataModule(*arrays(kind)) for kind in ("values", "classes"))
    three = {"trainer": {**CPU, "max_epochs": 20}}
    boosted = quick(GradientBoosting, regressor, values, run_dir=tmp_path / "a", **three).fit()
    logits = quick(
        GradientBoosting, lambda: regressor(4), labels, run_dir=tmp_path / "b", **three
    ).fit()
    ada = quick(AdaBoost, classifier, labels, run_dir=tmp_path / "c", **three).fit()
    bagged = Bagging(
        classifier, labels, engine="vectorized", **settings(run_dir=tmp_path / "d")
    ).fit()
    results = [boosted, logits, ada]
    paths = [result.checkpoint.resolve() for result in results]
    paths.append((tmp_path / "d" / "ensemble.ckpt").resolve())
    torch.save(torch.randn(40, 5), tmp_path / "x.pt")
    forked.run(predict_elsewhere, paths, tmp_path / "x.pt", tmp_path / "found.pt")
    inputs = torch.load(tmp_path / "x.pt")
    for model, found in zip(
        [*(result.model for result in results), bagged.model],
        torch.load(tmp_path / "found.pt"),
        strict=True,
    ):
        with torch.no_grad():
            torch.testing.assert_close(found, model.prediction(model(inputs)))


def test_what_a_soft_vote_puts_out_are_logarithms_of_probabilities():
    found = Voting([classifier() for _ in range(3)])(torch.randn(6, 5)).exp().sum(1)
    torch.testing.assert_close(found, torch.ones(6))
