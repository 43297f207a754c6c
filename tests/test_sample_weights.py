"""Weights of samples, in loss and scores: as if a sample were there several times."""

import json

import forked
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics
from torch import nn
from torch.nn import functional as F
from torchmetrics import Metric

from dlblocks.callbacks import Augment, CutMix, LabelSmoothing, MixUp, OneOf
from dlblocks.crossval import cross_validate
from dlblocks.data import ArrayDataModule, TabularDataModule
from dlblocks.ensembles import Bagging, GradientBoosting
from dlblocks.losses import binary_cross_entropy, cross_entropy
from dlblocks.models import Classifier, CNNClassifier, MLPClassifier, MLPRegressor
from dlblocks.tasks import MulticlassTask, MultilabelTask, PredictionTable, RegressionTask, Task

RNG = np.random.default_rng(0)
N = 90
X = RNG.normal(size=(N, 4)).astype("float32")
W = RNG.integers(0, 4, N).astype("float32")
CLASSES = (X[:, 0] + RNG.normal(size=N) > 0).astype(int) + (X[:, 1] > 1)
LABELS = np.stack([X[:, 0] > 0, X[:, 1] > RNG.normal(size=N), X[:, 2] > 0.5], axis=1).astype(int)
VALUES = (X[:, 0] * 2 + RNG.normal(size=N) + 50).astype("float32")
KINDS = {
    "classes": (CLASSES, lambda **kw: MLPClassifier(4, 3, **kw)),
    "labels": (LABELS, lambda **kw: MLPClassifier(4, 3, multilabel=True, **kw)),
    "values": (VALUES, lambda **kw: MLPRegressor(4, **kw)),
}
QUIET = {"progress_bar": False, "logger": None, "figures": False}


def seeded(make, **arguments):
    torch.manual_seed(0)
    return make(hidden=[8], **arguments)


@pytest.fixture(params=list(KINDS))
def problem(request):
    return KINDS[request.param]


def test_a_weight_is_a_number_of_copies(problem, make_trainer):
    """The same weights are learned, and the same is logged, as from samples that are repeated."""
    targets, make = problem
    copies = np.repeat(np.arange(N), W.astype(int))
    arguments = dict(normalize=False, batch_size="full", val_fraction=0.0, test_fraction=0.0)

    def fitted(data):
        model = seeded(make, optimizer="sgd", lr=0.001)
        trainer = make_trainer(max_epochs=3, limit_val_batches=0, num_sanity_val_steps=0)
        trainer.fit(model, datamodule=data)
        return model, {k: float(v) for k, v in trainer.callback_metrics.items()}

    weighted, logged = fitted(ArrayDataModule(X, targets, weights=W, **arguments))
    repeated, expected = fitted(ArrayDataModule(X[copies], targets[copies], **arguments))
    for mine, other in zip(weighted.parameters(), repeated.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
    assert logged == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("size", [1, 7, 30])
def test_the_gradient_of_an_epoch_does_not_depend_on_the_batch_size(problem, size):
    """In a batch of one, a mean by the batch's weights would forget the weight."""
    targets, make = problem
    model = seeded(make)
    targets = torch.from_numpy(targets)
    whole = model.loss(model(torch.from_numpy(X)), targets, torch.from_numpy(W))
    parts = [torch.from_numpy(a).split(size) for a in (X, W)]
    total = sum(
        model.loss(model(x), y, w) * len(x)
        for x, y, w in zip(parts[0], targets.split(size), parts[1], strict=True)
    )
    torch.testing.assert_close(total / N, whole)


def test_losses_against_a_loop():
    logits, weight = torch.randn(6, 3), torch.tensor([1.0, 2.0, 0.5])
    targets, w = torch.tensor([0, 1, 2, -100, 1, 0]), torch.rand(6)
    total, mass = 0.0, 0.0
    for z, y, s in zip(logits, targets.tolist(), w.tolist(), strict=True):
        if y >= 0:
            total += s * float(weight[y]) * float(-z.log_softmax(0)[y])
            mass += float(weight[y])
    found = cross_entropy(logits, targets, weight=weight, sample_weight=w)
    assert float(found) == pytest.approx(total / mass, rel=1e-5)
    soft = F.one_hot(targets.clamp(min=0), 3).float() * (targets >= 0)[:, None]
    found = cross_entropy(logits, soft, weight=weight, sample_weight=w)
    assert float(found) == pytest.approx(total / mass, rel=1e-5)
    labels = torch.randint(0, 2, (6, 3)).float()
    found = binary_cross_entropy(logits, labels, sample_weight=w)
    expected = [
        s * F.binary_cross_entropy_with_logits(z, y)
        for z, y, s in zip(logits, labels, w, strict=True)
    ]
    assert float(found) == pytest.approx(float(sum(expected)) / 6, rel=1e-5)


def by_scikit_learn(kind, target, prediction, w):
    """The scores by scikit-learn's own weights of samples."""
    if kind == "values":
        return {
            "rmse": metrics.mean_squared_error(target, prediction, sample_weight=w) ** 0.5,
            "mae": metrics.mean_absolute_error(target, prediction, sample_weight=w),
            "r2": metrics.r2_score(target, prediction, sample_weight=w),
        }
    if kind == "labels":
        pairs = [*zip(target.T, prediction.T, strict=True)]
        return {
            "accuracy": np.average((prediction >= 0.5) == target, weights=np.tile(w, (3, 1)).T),
            "f1": np.mean([metrics.f1_score(t, p >= 0.5, sample_weight=w) for t, p in pairs]),
            "auroc": np.mean([metrics.roc_auc_score(t, p, sample_weight=w) for t, p in pairs]),
            "average_precision": np.mean(
                [metrics.average_precision_score(t, p, sample_weight=w) for t, p in pairs]
            ),
        }
    guess = prediction.argmax(1)
    return {
        "accuracy": metrics.accuracy_score(target, guess, sample_weight=w),
        "f1": metrics.f1_score(target, guess, sample_weight=w, average="macro"),
        "calibration_error": weighted_calibration(target, prediction, w),
    }


def weighted_calibration(target, prediction, w):
    """Of samples repeated by their weights, which are whole, as torchmetrics has it."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    copies = np.repeat(np.arange(len(target)), w.astype(int))
    return float(
        multiclass_calibration_error(
            torch.from_numpy(prediction[copies]), torch.from_numpy(target[copies]), 3, n_bins=15
        )
    )


TASKS = {
    "classes": (lambda: MulticlassTask(3), CLASSES, RNG.dirichlet([1, 1, 1], N).astype("float32")),
    "labels": (lambda: MultilabelTask(3), LABELS, RNG.random((N, 3), dtype="float32")),
    "values": (RegressionTask, VALUES, VALUES + RNG.normal(size=N).astype("float32")),
}


@pytest.mark.parametrize("kind", list(TASKS))
def test_metrics_and_pooled_scores_are_those_of_scikit_learn(kind):
    make, target, prediction = TASKS[kind]
    task = make()
    task.weighted = True
    kept = task.make_metrics("val")
    columns = [torch.from_numpy(np.array(x)) for x in (prediction, target, W)]
    for batch in zip(*(column.split(25) for column in columns), strict=True):
        kept.update(*batch)
    expected = by_scikit_learn(kind, target, prediction, W)
    found = {name: float(value) for name, value in kept.compute().items()}
    assert found == pytest.approx(expected, abs=1e-5)
    table = PredictionTable(
        {"target": target, "prediction": prediction, "weight": W}, task=task.name
    )
    pooled = table.score()
    assert {name: pooled[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def on_a_rank():
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    for kind, (make, target, prediction) in TASKS.items():
        task = make()
        task.weighted = True
        kept = task.make_metrics("val")
        kept.update(*(torch.from_numpy(np.array(x))[rank::2] for x in (prediction, target, W)))
        found = {name: float(value) for name, value in kept.compute().items()}
        assert found == pytest.approx(by_scikit_learn(kind, target, prediction, W), abs=1e-5)
    torch.distributed.destroy_process_group()


def test_metrics_over_two_ranks():
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": forked.free_port(), "WORLD_SIZE": "2"}
    forked.run(on_a_rank, environments=[{**place, "RANK": str(i)} for i in range(2)])


@pytest.fixture(scope="module", params=list(KINDS))
def runs(request, tmp_path_factory):
    targets, make = KINDS[request.param]
    found = {}
    for engine in ("sequential", "vectorized"):
        data = ArrayDataModule(X, targets, weights=W, num_folds=3, test_fraction=0.2, batch_size=16)
        found[engine] = cross_validate(
            lambda: make(hidden=[8], lr=0.01),
            data,
            run_dir=tmp_path_factory.mktemp(engine),
            trainer={"max_epochs": 3, "accelerator": "cpu"},
            engine=engine,
            **QUIET,
        )
    return request.param, found


def test_both_engines_find_the_same(runs):
    _, found = runs
    first, second = (found[name] for name in ("sequential", "vectorized"))
    for row, other in zip(first.folds, second.folds, strict=True):
        names = [name for name in first.metrics if "/" in name]
        assert {n: row[n] for n in names} == pytest.approx(
            {n: other[n] for n in names}, rel=1e-3, abs=1e-4
        )


def test_scores_of_folds_pooled_scores_and_test(runs):
    kind, found = runs
    result = found["vectorized"]
    table = result.oof
    np.testing.assert_array_equal(table.weight, W[table.index])
    pooled = result.pooled()
    expected = by_scikit_learn(kind, table.target, table.prediction, table.weight)
    assert {n: pooled[n] for n in expected} == pytest.approx(expected, rel=1e-5, abs=1e-5)
    part = table[table.fold == 1]
    own = by_scikit_learn(kind, part.target, part.prediction, part.weight)
    logged = result.folds[1]
    assert {name: logged[f"val/{name}"] for name in own} == pytest.approx(own, rel=1e-5, abs=1e-5)
    scores = result.test(result.ensemble())
    name = "test/rmse" if kind == "values" else "test/accuracy"
    low, high = scores.interval(name)
    assert low < scores[name] < high
    assert "Wilson" not in str(scores)


def test_the_loss_of_validation_is_the_weighted_mean(make_trainer):
    data = ArrayDataModule(X, CLASSES, weights=W, val_fraction=0.3, test_fraction=0, batch_size=8)
    model = seeded(KINDS["classes"][1])
    trainer = make_trainer(max_epochs=1)
    trainer.fit(model, datamodule=data)
    (logged,) = trainer.validate(model, datamodule=data, verbose=False)
    inputs, targets, rows = data.arrays("val")
    with torch.no_grad():
        losses = F.cross_entropy(model(inputs), targets, reduction="none")
    expected = np.average(losses.numpy(), weights=W[rows])
    assert logged["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_batches_and_their_scale():
    data = ArrayDataModule(X, CLASSES, weights=W, num_folds=3, test_fraction=0.2, batch_size=16)
    data.setup("fit")
    rows = data.indices("train")
    found = torch.cat([batch[2] for batch in data.train_dataloader()])
    assert float(found.mean()) == pytest.approx(1, abs=1e-6)
    *_, weights = next(iter(data.val_dataloader()))
    first = data.indices("val")[:16]
    torch.testing.assert_close(weights, torch.from_numpy(W / W[rows].mean())[first])
    assert len(next(iter(data.predict_dataloader()))) == 3  # with the index, without weights
    assert data.source.fields["weights"].role == "other"


@pytest.mark.parametrize("targets", ["soft", "pair"])
def test_a_mixed_loss_is_that_of_both_samples_with_their_weights(targets, make_trainer):
    """The loss of the mix is the mean of λ w_i l_i + (1 - λ) w_j l_j."""
    images, w = torch.rand(8, 1, 6, 6), torch.arange(8.0)
    seen = []

    class Looks(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(36, 4)

        def training_step(self, batch, batch_idx):
            seen.append(batch)
            return self.layer(batch[0].flatten(1)).sum() * 0

        def validation_step(self, batch, batch_idx):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = ArrayDataModule(
        images, torch.arange(8) % 4, weights=w, val_fraction=0, test_fraction=0, batch_size=8,
        normalize=False, shuffle_seed=3,
    )  # fmt: skip
    mixer = MixUp(0.8, num_classes=4, targets=targets)
    make_trainer(max_epochs=1, callbacks=[mixer], limit_val_batches=0).fit(Looks(), datamodule=data)
    (mixed, mixed_targets, new), *_ = seen
    # The batch as it was, and what the callback drew: each input is λ x_i + (1 - λ) x_j.
    loader = data.train_dataloader()
    loader.sampler.set_epoch(0)
    x, y, v = next(iter(loader))
    mix = mixer.draw(x, mixer.generator(0, 0))
    torch.testing.assert_close(mixed, torch.lerp(x[mix.partner], x, mix.lam.view(-1, 1, 1, 1)))
    log_p = torch.randn(8, 4).log_softmax(1)
    own, other = (-log_p[torch.arange(8), labels] for labels in (y, y[mix.partner]))
    expected = mix.lam * v * own + (1 - mix.lam) * v[mix.partner] * other
    if targets == "soft":
        found = new * -(mixed_targets * log_p).sum(1)
    else:
        first, second = (-log_p[torch.arange(8), t] for t in mixed_targets[:2])
        found = new * (mixed_targets.lam * first + (1 - mixed_targets.lam) * second)
    torch.testing.assert_close(found, expected)


def test_other_callbacks_leave_weights_alone(make_trainer, tmp_path):
    images = torch.rand(32, 1, 8, 8)
    for engine in ("sequential", "vectorized"):
        result = cross_validate(
            lambda: CNNClassifier(1, 4, channels=[4], hidden=[]),
            ArrayDataModule(
                images, torch.arange(32) % 4, weights=torch.rand(32), num_folds=2, batch_size=8
            ),
            make_callbacks=lambda: [
                Augment(rotation=10),
                OneOf([MixUp(0.4), CutMix()], per_sample=True),
                LabelSmoothing(0.1),
            ],
            run_dir=tmp_path / engine,
            trainer={"max_epochs": 1, "accelerator": "cpu"},
            engine=engine,
            **QUIET,
        )
        assert np.isfinite(result.folds[0]["val/loss"])


def test_masks_of_weighted_samples_are_not_mixed(make_trainer):
    mixer = CutMix(num_classes=3)
    mixer.weights_key = 2
    images, masks = torch.rand(4, 1, 8, 8), torch.randint(0, 3, (4, 8, 8))
    with pytest.raises(ValueError, match="masks of samples that have weights"):
        mixer.apply([images, masks, torch.ones(4)], epoch=0, step=1, rank=0)


def table(**columns):
    frame = pd.DataFrame(X, columns=list("abcd"))
    return frame.assign(y=np.array(["no", "yes"])[(CLASSES > 0).astype(int)], **columns)


def test_a_column_of_a_table(tmp_path):
    path = tmp_path / "x.csv"
    table(importance=W).to_csv(path, index=False)
    data = TabularDataModule(path, "y", weights="importance", num_folds=3)
    assert data.feature_names == list("abcd")
    np.testing.assert_array_equal(data.weights_of("val"), W[data.indices("val")])
    assert data.summary().loc["importance", "kind"] == "weights"


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([-1.0] + [1.0] * (N - 1), r"weights is -1.0 in row 0; weights are numbers >= 0"),
        ([np.nan] + [1.0] * (N - 1), r"weights is nan in row 0"),
        ([0.0] * N, "weights are all 0"),
        ([1.0] * 3, f"weights has 3 entries for {N} samples"),
        (np.ones((N, 1)), r"weights has shape \(90, 1\); give one weight per sample"),
    ],
)
def test_wrong_weights(weights, said):
    with pytest.raises(ValueError, match=said):
        _ = ArrayDataModule(X, CLASSES, weights=weights).source


def test_wrong_columns(tmp_path):
    with pytest.raises(ValueError, match=r"row 2 of column 'w' is 'heavy'; weights are numbers"):
        _ = TabularDataModule(table(w=["1", "heavy", *["2"] * (N - 2)]), "y", weights="w").source
    with pytest.raises(ValueError, match="weights='v' is not a column"):
        _ = TabularDataModule(table(w=W), "y", weights="v").source
    with pytest.raises(ValueError, match="weights"):
        TabularDataModule("iris", weights="w")


def weighted_data(targets=CLASSES):
    return ArrayDataModule(X, targets, weights=W, val_fraction=0.3, test_fraction=0)


def test_weights_that_training_does_not_have(make_trainer):
    data = ArrayDataModule(X, CLASSES, num_folds=3, test_fraction=0)
    weights = np.zeros(N)
    weights[data.indices("val")] = 1
    data = ArrayDataModule(X, CLASSES, weights=weights, num_folds=3, test_fraction=0)
    with pytest.raises(ValueError, match="weights of all training samples are 0"):
        make_trainer(max_epochs=1).fit(seeded(KINDS["classes"][1]), datamodule=data)


def test_a_batch_without_weight_changes_nothing(make_trainer):
    weights = np.ones(N, dtype="float32")
    data = ArrayDataModule(X, CLASSES, weights=weights, val_fraction=0.3, test_fraction=0)
    data.setup("fit")
    weights[data.indices("val")[:20]] = 0
    data = ArrayDataModule(
        X, CLASSES, weights=weights, val_fraction=0.3, test_fraction=0, batch_size=10
    )
    model = seeded(KINDS["classes"][1])
    trainer = make_trainer(max_epochs=1)
    trainer.fit(model, datamodule=data)
    assert np.isfinite(float(trainer.callback_metrics["val/loss"]))


def test_what_takes_no_weights_is_named(make_trainer):
    class Own(Classifier):
        def loss(self, outputs, targets):
            return F.cross_entropy(outputs, targets)

    class OwnTask(Task):
        def loss(self, outputs, targets):
            return (outputs - targets).square().mean()

    trainer = make_trainer(max_epochs=1)
    with pytest.raises(ValueError, match="have weights, which loss does not take"):
        trainer.fit(Own(nn.Linear(4, 3), 3), datamodule=weighted_data())
    model = MLPClassifier(4, 3, metrics=["auroc"])
    with pytest.raises(ValueError, match="the metric 'auroc' does not take"):
        trainer.fit(model, datamodule=weighted_data())
    model = MLPRegressor(4)
    model.task = OwnTask()
    with pytest.raises(ValueError, match=r"OwnTask.loss does not take"):
        trainer.fit(model, datamodule=weighted_data(VALUES))
    with pytest.raises(ValueError, match="GradientBoosting gives samples weights of its own"):
        GradientBoosting(lambda: MLPRegressor(4), weighted_data(VALUES), num_stages=2).fit()


class WeightedShare(Metric):
    """A metric of a user's that takes weights."""

    def __init__(self):
        super().__init__()
        self.add_state("hits", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, predictions, targets, weights):
        self.hits += weights[predictions.argmax(1) == targets].sum()
        self.total += weights.sum()

    def compute(self):
        return self.hits / self.total


def test_a_metric_of_the_user_and_data_without_weights_afterwards(make_trainer):
    model = seeded(KINDS["classes"][1], metrics=[WeightedShare()])
    trainer = make_trainer(max_epochs=1)
    trainer.fit(model, datamodule=weighted_data())
    found = trainer.callback_metrics
    assert float(found["val/weighted_share"]) == pytest.approx(float(found["val/accuracy"]))
    plain = seeded(KINDS["classes"][1])
    trainer = make_trainer(max_epochs=1)
    trainer.fit(plain, datamodule=weighted_data())
    unweighted = ArrayDataModule(X, CLASSES, val_fraction=0.3, test_fraction=0)
    (logged,) = trainer.validate(plain, datamodule=unweighted, verbose=False)
    inputs, targets, _ = unweighted.arrays("val")
    right = (plain(inputs).argmax(1) == targets).float().mean()
    assert logged["val/accuracy"] == pytest.approx(float(right))


def test_bagging_is_scored_out_of_bag_by_the_weights(tmp_path):
    bagging = Bagging(
        lambda: MLPClassifier(4, 3, hidden=[8]), weighted_data(), num_members=5,
        run_dir=tmp_path / "bag", trainer={"max_epochs": 2, "accelerator": "cpu"}, **QUIET,
    )  # fmt: skip
    result = bagging.fit()
    oob = result.oob[result.oob.votes > 0]
    np.testing.assert_array_equal(oob.weight, W[oob.index])
    expected = metrics.accuracy_score(
        oob.target, oob.prediction.argmax(1), sample_weight=oob.weight
    )
    assert result.oob_score["oob/accuracy"] == pytest.approx(expected, abs=1e-6)
    shares = oob.prediction / oob.prediction.sum(1, keepdims=True)
    losses = metrics.log_loss(oob.target, shares, sample_weight=oob.weight, labels=[0, 1, 2])
    assert result.oob_score["oob/loss"] == pytest.approx(losses, rel=1e-4)
    assert json.loads((tmp_path / "bag" / "summary.json").read_text())


def test_other_weights_are_other_data(tmp_path):
    one, other = (
        ArrayDataModule(X, CLASSES, weights=weights).fingerprint() for weights in (W, W + 1)
    )
    assert one != other


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_balanced_class_weights_count_samples_by_their_weights(kind, make_trainer):
    """A sample of weight 3 is three samples of its class."""
    targets, make = KINDS[kind]
    copies = np.repeat(np.arange(N), W.astype(int))
    arguments = dict(batch_size=16, val_fraction=0.0, test_fraction=0.0)
    found = []
    for data in (
        ArrayDataModule(X, targets, weights=W, **arguments),
        ArrayDataModule(X[copies], targets[copies], **arguments),
    ):
        model = seeded(make, class_weights="balanced")
        trainer = make_trainer(max_epochs=1, limit_val_batches=0, num_sanity_val_steps=0)
        trainer.fit(model, datamodule=data)
        found.append(model.task.class_weight)
    torch.testing.assert_close(*found)


def test_loaders_without_their_datamodule_are_refused(make_trainer):
    data = weighted_data()
    data.setup("fit")
    model, trainer = seeded(KINDS["classes"][1]), make_trainer(max_epochs=1)
    with pytest.raises(ValueError, match="the loader has sample weights"):
        trainer.validate(model, dataloaders=data.val_dataloader(), verbose=False)
