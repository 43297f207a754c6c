"""Metrics of the user's choice, and a task of the user's own, everywhere by its class alone."""

import json

import numpy as np
import pytest
import torch
import torchmetrics
from sklearn import metrics
from torch import nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from dlblocks.callbacks import MixUp
from dlblocks.cli import main
from dlblocks.crossval import CrossValidationResult, cross_validate
from dlblocks.data import ArrayDataModule, TabularDataModule
from dlblocks.ensembles import Bagging
from dlblocks.models import MLPClassifier, MLPRegressor, Model, VotingEnsemble, load
from dlblocks.nets import MLP
from dlblocks.tasks import MulticlassTask, MultilabelTask, RegressionTask, Task, find_task
from dlblocks.tasks._registry import task_names

QUIET = {"progress_bar": False, "logger": None}
TRAINER = {"max_epochs": 2, "accelerator": "cpu"}


class Misses(torchmetrics.Metric):
    """Somebody's own metric: how often the class is not the likeliest."""

    higher_is_better = False
    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("misses", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions, targets):
        self.misses += (predictions.argmax(1) != targets).sum()

    def compute(self):
        return self.misses


def chosen():
    return MLPClassifier(4, 3, hidden=[8], metrics=["auroc", "cohen_kappa", Misses()])


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_metrics_of_choice_are_scikit_learns(tmp_path, engine):
    result = cross_validate(
        chosen, TabularDataModule("iris"), num_folds=3, engine=engine, run_dir=tmp_path / "run",
        trainer=TRAINER, monitor="val/misses", figures=False, **QUIET,
    )  # fmt: skip
    assert result.info["mode"] == "min"  # the metric says so
    for fold, row in enumerate(result.folds):
        mine = result.oof.fold == fold
        target, prediction = result.oof.target[mine], result.oof.prediction[mine]
        guess = prediction.argmax(1)
        assert row["val/cohen_kappa"] == pytest.approx(metrics.cohen_kappa_score(target, guess))
        expected = metrics.roc_auc_score(
            np.eye(3)[target], prediction / prediction.sum(1, keepdims=True), average="macro"
        )
        assert row["val/auroc"] == pytest.approx(expected, abs=1e-6)
        assert row["val/misses"] == (guess != target).sum()
    assert "train/auroc" not in result.histories[0][0]


def test_metrics_of_choice_in_tests_and_ensembles(tmp_path, make_trainer):
    bag = Bagging(
        lambda: MLPClassifier(4, 3, metrics=["auroc"]), TabularDataModule("iris"), num_members=2,
        run_dir=tmp_path / "bag", trainer=TRAINER, figures=False, **QUIET,
    ).fit()  # fmt: skip
    oob = bag.oob[bag.oob.votes > 0]
    expected = metrics.roc_auc_score(oob["target"], oob["prediction"], multi_class="ovr")
    assert bag.oob_score["oob/auroc"] == pytest.approx(expected, abs=1e-6)
    model = MLPRegressor(10, hidden=[8], metrics=["pearson_corr_coef"])
    data = TabularDataModule("diabetes", test_fraction=0.3)
    trainer = make_trainer()
    trainer.fit(model, datamodule=data)
    (found,) = trainer.test(model, datamodule=data, verbose=False)
    inputs, target, _ = data.arrays("test")
    predicted = model.eval()(inputs).detach().ravel()
    expected = np.corrcoef(predicted, target)[0, 1]
    assert found["test/pearson_corr_coef"] == pytest.approx(expected, abs=1e-5)
    model.save(tmp_path / "a.ckpt")
    assert load(tmp_path / "a.ckpt").task.chosen == ["pearson_corr_coef"]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (["aurocc"], ValueError, "'aurocc', which is not known; did you mean 'auroc'"),
        (["auroc", "AUROC"], ValueError, "'auroc', twice"),
        (["confusion_matrix"], ValueError, "not known"),
        (["loss"], ValueError, "not known"),
        (["accuracy"], ValueError, "'accuracy', which is logged in any case"),
        (["eer"], ValueError, "not known"),
        ("auroc", (TypeError, ValueError), "list"),
        ([3], (TypeError, ValueError), "metrics"),
    ],
)
def test_metrics_that_cannot_be_are_refused(given, error, said):
    with pytest.raises(error, match=said):
        MLPClassifier(4, 3, metrics=given)


@pytest.mark.filterwarnings("ignore:Metric `SpearmanCorrcoef` will save")
def test_every_metric_that_is_offered_gives_one_number():
    from dlblocks.tasks._choose_metrics import _classes

    shares = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.5, 0.3, 0.2]])
    classes, labels = torch.tensor([0, 1, 2, 1]), torch.tensor([[1, 0, 1], [0, 1, 0]] * 2)
    values = torch.linspace(0.1, 1, 8).reshape(4, 2)
    cases = [
        ("multiclass", MulticlassTask, 3, "Multiclass", (shares, classes)),
        ("multilabel", MultilabelTask, 3, "Multilabel", (shares, labels)),
        ("one value", RegressionTask, 1, "", (values[:, :1], values[:, 1:])),
        ("values", RegressionTask, 2, "", (values, values.square())),
    ]
    for name, task, size, kind, given in cases:
        sizes = {"num_classes": size, "num_labels": size}
        tried = 0
        for metric in _classes(kind, sizes):
            if metric in task.standard:
                continue
            try:
                kept = task(size, metrics=[metric]).make_metrics("val")
            except ValueError as error:
                assert "does not give one number for 2" in str(error), (name, metric)
                continue
            kept.update(*given)
            assert kept.compute()[metric].ndim == 0, (name, metric)
            tried += 1
        assert tried > 8, name


def test_metrics_from_yaml(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "model:\n  class_path: MLPClassifier\n  init_args:\n    in_features: 4\n"
        "    num_classes: 3\n    metrics:\n    - auroc\n"
        "    - class_path: torchmetrics.classification.MulticlassFBetaScore\n"
        "      init_args: {beta: 0.5, num_classes: 3}\n"
        "data:\n  class_path: TabularDataModule\n  init_args: {data: iris}\n"
    )
    main([
        "cross-validate", "--config=config.yaml", "--num_folds=2", "--run_dir=run",
        "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ])  # fmt: skip
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    assert {"val/auroc", "val/fbeta_score"} <= found.keys()


class OrdinalTask(Task):
    """Ordered classes 0 … C-1 by C - 1 logits of "more than c" (Frank and Hall 2001)."""

    name = "ordinal"
    shown = ("distance",)
    loss_range = (0.0, None)

    def loss(self, outputs, targets):
        above = targets[:, None] > torch.arange(outputs.shape[1], device=targets.device)
        return F.binary_cross_entropy_with_logits(outputs, above.to(outputs.dtype))

    def make_metrics(self, stage):
        return MetricCollection({"distance": torchmetrics.MeanAbsoluteError()})

    def for_metrics(self, outputs, targets, stage):
        return (outputs > 0).sum(1).float(), targets.float()

    def predict(self, outputs, targets=None):
        return outputs.sigmoid()

    def outputs_of(self, predictions):
        return predictions.clamp(1e-6, 1 - 1e-6).logit()

    @classmethod
    def score(cls, table):
        return {"distance": float(np.abs((table.prediction > 0.5).sum(1) - table.target).mean())}

    @classmethod
    def figures(cls, table, *, title, scores=None):
        from dlblocks import plots

        guess = (table.prediction > 0.5).sum(1).astype(float)
        return {"steps": lambda: plots.predicted_vs_true(table.target.astype(float), guess)}


def ordinal():
    return Model(MLP(6, 3, hidden=[8]), OrdinalTask(), lr=0.05)


def ordinal_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 6)).astype("float32")
    y = np.digitize(x[:, 0] + 0.3 * x[:, 1], [-0.8, 0, 0.8])
    return ArrayDataModule(x, y, batch_size=32)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_a_task_of_ones_own_needs_one_class_only(tmp_path, engine):
    result = cross_validate(
        ordinal, ordinal_data(), num_folds=3, engine=engine, run_dir=tmp_path / "run",
        trainer={**TRAINER, "max_epochs": 8}, make_callbacks=lambda: [], **QUIET,
    )  # fmt: skip
    oof = result.oof
    guess = (oof.prediction > 0.5).sum(1)
    for fold, row in enumerate(result.folds):
        mine = oof.fold == fold
        assert row["val/distance"] == pytest.approx(np.abs(guess - oof.target)[mine].mean())
    assert result.pooled() == {"distance": pytest.approx(np.abs(guess - oof.target).mean())}
    assert result.pooled()["distance"] < np.abs(np.median(oof.target) - oof.target).mean()
    assert (tmp_path / "run" / "figures" / "steps.png").is_file()
    again = CrossValidationResult.load(tmp_path / "run")
    assert again.pooled() == result.pooled()
    assert again.info["task"] == "ordinal"
    together = result.ensemble()
    inputs = torch.randn(4, 6)
    each = [member(inputs).sigmoid() for member in together.net.members]
    torch.testing.assert_close(together(inputs).sigmoid(), torch.stack(each).mean(0))
    assert result.report().stat().st_size


def test_a_task_of_ones_own_in_bagging_and_with_mixing_refused(tmp_path, make_trainer):
    result = Bagging(
        ordinal, ordinal_data(), num_members=3, run_dir=tmp_path / "bag", trainer=TRAINER, **QUIET
    ).fit()
    oob = result.oob[result.oob.votes > 0]
    expected = np.abs((oob["prediction"] > 0.5).sum(1) - oob["target"]).mean()
    assert result.oob_score["oob/distance"] == pytest.approx(expected)
    result.model.save(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="over a net of your own"):
        load(tmp_path / "a.ckpt")
    again = load(tmp_path / "a.ckpt", overrides={"members": [ordinal() for _ in range(3)]})
    inputs = torch.randn(4, 6)
    assert torch.equal(again(inputs), result.model(inputs))
    with pytest.raises((ValueError, RuntimeError, IndexError)):  # soft targets are not for it
        make_trainer(callbacks=[MixUp(0.5, num_classes=4)]).fit(
            ordinal(), datamodule=ordinal_data()
        )


class Squares(MulticlassTask):
    """A loss and a score of one's own beside all that a task of ours has."""

    def loss(self, outputs, targets):
        return 7 * outputs.square().mean()

    @classmethod
    def score(cls, table):
        return {"own": 1.0}


def test_what_a_subclass_of_our_task_changes_counts_in_both_engines(tmp_path):
    found = [
        cross_validate(
            lambda: Model(MLP(6, 4, hidden=[8]), Squares(4), lr=0.05), ordinal_data(), num_folds=2,
            engine=engine, run_dir=tmp_path / engine, trainer=TRAINER, figures=False, **QUIET,
        )
        for engine in ("sequential", "vectorized")
    ]  # fmt: skip
    for one, other in zip(found[0].folds, found[1].folds, strict=True):
        assert one["val/loss"] == pytest.approx(other["val/loss"], rel=1e-4)
    assert found[0].info["task"] == "Squares"
    assert CrossValidationResult.load(tmp_path / "vectorized").pooled() == {"own": 1.0}


class Doubled(MLPRegressor):
    def prediction(self, outputs):
        return outputs.float() * 2


def test_a_prediction_of_ones_own_has_the_shape_of_the_targets(tmp_path):
    result = cross_validate(
        lambda: Doubled(10, hidden=[4]), TabularDataModule("diabetes"), num_folds=2,
        run_dir=tmp_path / "run", trainer=TRAINER, figures=False, **QUIET,
    )  # fmt: skip
    assert result.oof.prediction.shape == result.oof.target.shape
    expected = np.sqrt(
        np.mean((result.oof.prediction - result.oof.target)[result.oof.fold == 0] ** 2)
    )
    assert result.folds[0]["val/rmse"] == pytest.approx(expected, rel=1e-5)


def test_an_ensemble_keeps_nothing_of_the_training_of_its_members():
    weighted = MLPClassifier(6, 2, class_weights="balanced", label_smoothing=0.1)
    assert VotingEnsemble([weighted]).task.class_weight is None
    assert not [
        name for name in VotingEnsemble([weighted]).state_dict() if name.startswith("task.")
    ]
    scaled = MLPRegressor(6, standardize_targets=True)
    scaled.task.target_std.fill_(10.0)
    together = VotingEnsemble([scaled])
    loss = together.loss(torch.tensor([[1.0]]), torch.tensor([3.0]))
    assert float(loss) == 4.0  # in the target's units


def test_a_model_without_a_task_or_a_loss_says_so(make_trainer):
    with pytest.raises(NotImplementedError, match="needs a task, or its own method loss"):
        make_trainer().fit(Model(nn.Linear(6, 3)), datamodule=ordinal_data())


def test_tasks_are_found_by_name_or_without_doubt():
    values, classes = np.array([0.5, 1.5]), np.array([0, 1])
    shares = np.array([[0.9, 0.1], [0.4, 0.6]])
    assert find_task(values, values) is RegressionTask
    assert find_task(classes, shares).name == "multiclass"
    assert find_task(classes, values, "regression") is RegressionTask
    with pytest.raises(ValueError, match="one number a sample for integer targets"):
        find_task(classes, values)
    with pytest.raises(ValueError, match="several labels are targets of 0 and 1"):
        find_task(classes, shares, "multilabel")
    with pytest.raises(ValueError, match="floating-point targets"):
        find_task(values, values, "multiclass")


def test_checkpoints_from_before_tasks_load(tmp_path):
    """Tensors of the task were the model's own, and a vote had another name."""
    model = MLPRegressor(4, standardize_targets=True)
    model.task.target_mean.fill_(3.0)
    model.save(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    saved["state_dict"] = {k.replace("task.", ""): v for k, v in saved["state_dict"].items()}
    torch.save(saved, tmp_path / "old.ckpt")
    assert float(load(tmp_path / "old.ckpt").task.target_mean) == 3.0


class FastOrdinal(OrdinalTask):
    """The task of a user with a fast loss of its own."""

    name = "fast_ordinal"
    calls = 0

    def loss(self, outputs, targets):
        return super().loss(outputs, targets)

    def stacked_loss(self, outputs, targets, weights=None):
        type(self).calls += 1
        above = targets[..., None] > torch.arange(outputs.shape[2])
        losses = F.binary_cross_entropy_with_logits(
            outputs, above.to(outputs.dtype), reduction="none"
        )
        return losses.mean((1, 2))


class Halved(FastOrdinal):
    """Another loss, for which the fast one of the parent is wrong."""

    name = "halved"

    def loss(self, outputs, targets):
        return super().loss(outputs, targets) / 2


def test_a_fast_loss_of_a_user_is_used_for_its_own_loss_alone(tmp_path):
    found = {}
    for task in (OrdinalTask, FastOrdinal, Halved):
        FastOrdinal.calls = Halved.calls = 0
        result = cross_validate(
            lambda task=task: Model(MLP(6, 3, hidden=[8]), task(), lr=0.0), ordinal_data(),
            num_folds=2, engine="vectorized", run_dir=tmp_path / task.__name__,
            trainer={"max_epochs": 1, "accelerator": "cpu"}, progress_bar=False, logger=None,
            figures=False,
        )  # fmt: skip
        found[task] = result.values("val/loss"), task.calls if task is not OrdinalTask else 0
    np.testing.assert_allclose(found[FastOrdinal][0], found[OrdinalTask][0], rtol=1e-5)
    np.testing.assert_allclose(found[Halved][0], np.array(found[OrdinalTask][0]) / 2, rtol=1e-5)
    assert found[FastOrdinal][1] > 0 and found[Halved][1] == 0


def test_two_classes_of_one_name_are_refused(monkeypatch):
    """The second would score the predictions of the first."""
    monkeypatch.setattr("dlblocks.tasks._registry._tasks", dict(task_names()))

    def define(module, qualname, **values):
        return type(Task)(
            "Twin", (Task,), {"__module__": module, "__qualname__": qualname, **values}
        )

    first = define("one", "Twin")
    assert task_names()["Twin"] is first
    with pytest.raises(ValueError, match=r"two tasks are named 'Twin': one\.Twin and two\.Twin"):
        define("two", "Twin")
    with pytest.raises(ValueError, match=r"named 'multiclass': dlblocks\.tasks\.multiclass"):
        define("two", "Own", name="multiclass")
    assert task_names()["Twin"] is first
    for module in ("one", "__main__", "one"):  # a cell again, or a script that is imported, too
        again = define(module, "Twin")
        assert task_names()["Twin"] is again
    define("two", "Twin", name="other twin")
