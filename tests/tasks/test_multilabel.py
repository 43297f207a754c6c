"""Several labels a sample, from the data to the report, against torch and scikit-learn."""

import json
import warnings

import forked
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.datasets import make_multilabel_classification
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from dlblocks.callbacks import CutMix, LabelSmoothing, MixUp
from dlblocks.cli import main
from dlblocks.crossval import CrossValidationResult, HeldOutScores, cross_validate
from dlblocks.data import ArrayDataModule, DigitsDataModule, FoldedDataModule, TabularDataModule
from dlblocks.ensembles import AdaBoost, Bagging, GradientBoosting
from dlblocks.models import Classifier, MLPClassifier, MLPRegressor, load
from dlblocks.tasks import MultilabelTask, PredictionTable

X, Y = make_multilabel_classification(150, 8, n_classes=4, random_state=0)
X = X.astype("float32")
QUIET = {"progress_bar": False, "logger": None}
TRAINER = {"max_epochs": 2, "accelerator": "cpu"}


def data(**arguments):
    return ArrayDataModule(X, Y, class_names=["a", "b", "c", "d"], batch_size=64, **arguments)


def model(**arguments):
    return MLPClassifier(8, 4, multilabel=True, hidden=[8], lr=0.05, **arguments)


def macro(score, target, prediction):
    """The mean over the labels for which scikit-learn defines it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return np.mean([score(t, p) for t, p in zip(target.T, prediction.T, strict=True)])


def by_scikit_learn(target, prediction):
    return {
        "accuracy": ((prediction >= 0.5) == target).mean(),
        "f1": metrics.f1_score(target, prediction >= 0.5, average="macro"),
        "auroc": macro(metrics.roc_auc_score, target, prediction),
        "average_precision": macro(metrics.average_precision_score, target, prediction),
        "log_loss": np.mean([metrics.log_loss(t, p, labels=[0, 1])
                             for t, p in zip(target.T, prediction.T, strict=True)]),
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One cross-validation by each engine."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        engine: cross_validate(
            model, data(), num_folds=3, engine=engine, run_dir=folder / engine, trainer=TRAINER,
            figures=engine == "sequential", **QUIET,
        )
        for engine in ("sequential", "vectorized")
    }  # fmt: skip


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_folds_and_pooled_metrics_are_scikit_learns(runs, engine):
    result = runs[engine]
    oof = result.oof
    assert oof.prediction.shape == oof.target.shape == (150, 4)
    np.testing.assert_array_equal(oof.target, Y[oof.index])
    for fold, row in enumerate(result.folds):
        mine = oof.fold == fold
        expected = by_scikit_learn(oof.target[mine], oof.prediction[mine])
        expected["loss"] = expected.pop("log_loss")
        found = {name[4:]: value for name, value in row.items() if name.startswith("val/")}
        assert found == pytest.approx(expected, abs=1e-5)
    assert result.pooled() == pytest.approx(by_scikit_learn(oof.target, oof.prediction), abs=1e-5)


def test_the_engines_agree(runs):
    one, other = runs["sequential"], runs["vectorized"]
    np.testing.assert_allclose(one.oof.prediction, other.oof.prediction, atol=1e-5)


def test_files_tables_and_figures(runs):
    result = runs["sequential"]
    assert json.loads((result.run_dir / "summary.json").read_text())["task"] == "multilabel"
    assert (result.run_dir / "figures" / "labels.png").stat().st_size > 10_000
    again = CrossValidationResult.load(result.run_dir)
    assert again.pooled() == result.pooled()
    table = again.to_pandas("oof")
    names = [f"{what}_{name}" for what in ("target", "probability") for name in "abcd"]
    assert list(table.columns) == ["repeat", "fold", "index", *names]
    np.testing.assert_array_equal(table["target_c"], Y[:, 2])
    assert "average_precision" in result.report().read_text()


def test_the_fold_average_averages_probabilities(runs, tmp_path, make_trainer):
    result = runs["sequential"]
    together = result.ensemble()
    paths = [result.run_dir / row["checkpoint"] for row in result.folds]
    inputs = torch.from_numpy(X[:5])
    each = []
    for fold, path in enumerate(paths):
        train = X[data().for_fold(fold, len(paths)).with_selection(0.15).indices("train")]
        own = (X[:5] - train.mean(0)) / train.std(0)
        each.append(load(path).net(torch.from_numpy(own).float()).sigmoid())
    found = together(inputs).sigmoid()
    torch.testing.assert_close(found, torch.stack(each).mean(0))
    together.save(tmp_path / "a.ckpt")
    torch.testing.assert_close(load(tmp_path / "a.ckpt")(inputs).sigmoid(), found)
    (scores,) = make_trainer().validate(together, datamodule=data(), verbose=False)
    assert {"val/auroc", "val/f1"} <= scores.keys()
    with pytest.raises(ValueError, match="one class a sample"):
        together.uncertainty(inputs)


def test_bagging_and_its_out_of_bag_scores(tmp_path):
    bag = Bagging(
        model, data(), num_members=3, run_dir=tmp_path / "bag", trainer=TRAINER, figures=False,
        **QUIET,
    )  # fmt: skip
    result = bag.fit()
    oob = result.oob[result.oob.votes > 0]
    expected = by_scikit_learn(oob["target"], oob["prediction"])
    expected["loss"] = expected.pop("log_loss")
    found = {name[4:]: value for name, value in result.oob_score.items()}
    assert found == pytest.approx(expected, abs=1e-5)
    votes = Bagging(model, data(), num_members=3, voting="hard", run_dir=tmp_path / "hard",
                    trainer=TRAINER, figures=False, **QUIET).fit()  # fmt: skip
    shares = (votes.oob.prediction * votes.oob.votes[:, None])[votes.oob.votes > 0]
    np.testing.assert_allclose(shares, shares.round(), atol=1e-6)


def test_the_loss_is_torchs():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), torch.randint(0, 2, (6, 4))
    weight = torch.tensor([1.0, 2, 3, 4])
    task = MultilabelTask(4, label_smoothing=0.2, class_weights=weight.tolist())
    smooth = labels * 0.8 + 0.1
    expected = F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weight)
    torch.testing.assert_close(task.loss(logits, labels), expected)
    task.eval()
    expected = F.binary_cross_entropy_with_logits(logits, labels.float())
    torch.testing.assert_close(task.loss(logits, labels), expected)


def test_balanced_weights_are_of_the_training_part(make_trainer):
    net, source = model(class_weights="balanced"), data()
    make_trainer().fit(net, datamodule=source)
    train = Y[source.indices("train").numpy()]
    expected = (len(train) - train.sum(0)) / train.sum(0)
    np.testing.assert_allclose(net.task.class_weight, expected, rtol=1e-6)


def test_labels_that_nobody_or_everybody_has_are_left_out():
    target = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 1, 1]])
    prediction = torch.tensor([[0.1, 0.9, 0.8], [0.2, 0.9, 0.6], [0.1, 0.2, 0.3]])
    task = MultilabelTask(3)
    kept = task.make_metrics("val")
    for row in range(3):  # in batches, of which none has all labels
        kept.update(prediction[row : row + 1], target[row : row + 1])
    found = {name: float(value) for name, value in kept.compute().items()}
    t, p = target.numpy(), prediction.numpy()
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(t[:, 2], p[:, 2]))
    precision = [metrics.average_precision_score(t[:, i], p[:, i]) for i in (1, 2)]
    assert found["average_precision"] == pytest.approx(np.mean(precision))
    assert found["f1"] == pytest.approx(
        np.mean([metrics.f1_score(t[:, i], p[:, i] > 0.5) for i in (1, 2)])
    )
    assert PredictionTable({"target": t, "prediction": p}, task="multilabel").score()[
        "auroc"
    ] == pytest.approx(found["auroc"])


def two_ranks():
    """Each rank has other samples; the metrics are those of all."""
    rank = int(torch.distributed.get_rank())
    task = MultilabelTask(4)
    kept = task.make_metrics("val")
    prediction = torch.from_numpy(np.random.default_rng(0).random(Y.shape, dtype="float32"))
    kept.update(prediction[rank::2], torch.from_numpy(Y)[rank::2])
    found = {name: float(value) for name, value in kept.compute().items()}
    expected = by_scikit_learn(Y, prediction.numpy())
    expected.pop("log_loss")
    assert found == pytest.approx(expected, abs=1e-6)


def on_a_rank():
    torch.distributed.init_process_group("gloo")
    two_ranks()
    torch.distributed.destroy_process_group()


def test_metrics_over_two_ranks():
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": forked.free_port(), "WORLD_SIZE": "2"}
    forked.run(on_a_rank, environments=[{**place, "RANK": str(i)} for i in range(2)])


def test_mixing_mixes_the_labels(make_trainer):
    class Keeps(Classifier):
        def loss(self, outputs, targets):
            self.seen = targets
            return super().loss(outputs, targets)

    net = Keeps(nn.Linear(8, 4), 4, multilabel=True)
    make_trainer(callbacks=[MixUp(1.0)], limit_val_batches=0).fit(net, datamodule=data())
    assert net.seen.shape[1] == 4 and net.seen.is_floating_point()
    assert ((net.seen > 0) & (net.seen < 1)).any()


class Foreign(pl.LightningModule):
    """Somebody else's module, over dictionaries."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 4)

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(self.net(batch["x"]), batch["y"].float())

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx), batch_size=len(batch["x"]))

    def predict_step(self, batch, batch_idx):
        return self.net(batch["x"]).sigmoid()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


def foreign(tmp_path, **arguments):
    rows = [{"x": x, "y": y} for x, y in zip(torch.from_numpy(X), torch.from_numpy(Y), strict=True)]
    return cross_validate(
        Foreign, FoldedDataModule(DataLoader(rows, 64), targets=Y), num_folds=2, run_dir=tmp_path,
        trainer=TRAINER, figures=False, **QUIET, **arguments,
    )  # fmt: skip


def test_somebody_elses_module_names_its_task(tmp_path):
    result = foreign(tmp_path / "named", task="multilabel")
    expected = by_scikit_learn(result.oof.target, result.oof.prediction)
    assert result.pooled() == pytest.approx(expected, abs=1e-5)
    nothing = foreign(tmp_path / "unnamed")
    assert nothing.pooled_or_none() == {}
    assert any("several labels" in note and "task='multilabel'" in note for note in nothing.notes)
    with pytest.raises(ValueError, match=r"task='multilable'.*did you mean 'multilabel'"):
        foreign(tmp_path / "wrong", task="multilable")


def test_the_command_line(tmp_path, capsys):
    np.save("x.npy", X)
    np.save("y.npy", Y)
    main([
        "cross-validate", "--model=MLPClassifier", "--model.in_features=8", "--model.num_classes=4",
        "--model.multilabel=true", "--data=ArrayDataModule", "--data.inputs=x.npy",
        "--data.targets=y.npy", "--num_folds=2", "--run_dir=run", "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    ])  # fmt: skip
    assert "auroc" in json.loads((tmp_path / "run" / "summary.json").read_text())["pooled"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: (MLPClassifier(8, 4), data()), r"several labels.*multilabel=True"),
        (lambda: (MLPRegressor(8, 4), data()), "are classes; use a Classifier"),
        (lambda: (MLPClassifier(8, 3, multilabel=True), data()), "has 4 labels; set num_classes=4"),
        (
            lambda: (MLPClassifier(64, 10, multilabel=True), DigitsDataModule()),
            "needs integers 0 and 1 .* or leave multilabel=True out",
        ),
    ],
)
def test_a_model_that_does_not_fit_the_data(make, said, make_trainer):
    net, source = make()
    with pytest.raises(ValueError, match=said):
        make_trainer().fit(net, datamodule=source)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ArrayDataModule(X, np.eye(4, dtype=int)[Y.argmax(1)]).setup(), r"argmax\(1\)"),
        (lambda: ArrayDataModule(X, Y, class_names=["a", "b"]).setup(), "2 names, .* 4 labels"),
        (lambda: ArrayDataModule(X, 2 * Y).setup(), "one-hot"),
        (
            lambda: ArrayDataModule(X, Y, test_inputs=X, test_targets=Y[:, :3]).setup(),
            "3 labels|4 names",
        ),
        (lambda: data(stratify=True).setup(), "several labels"),
        (lambda: MultilabelTask(4, class_weights=[1, 2]), "4 numbers >= 0, one a class"),
        (lambda: MultilabelTask(4, label_smoothing=1.0), "label_smoothing=1.0"),
        (
            lambda: GradientBoosting(lambda: MLPRegressor(8, 4), data(), num_stages=2,
                                     trainer=TRAINER, **QUIET).fit(),
            "does not boost",
        ),
        (
            lambda: AdaBoost(lambda: MLPClassifier(8, 4), data(), num_stages=2, trainer=TRAINER,
                             **QUIET).fit(),
            "does not boost",
        ),
        (
            lambda: cross_validate(model, data(), task="regression", run_dir="r", trainer=TRAINER,
                                   **QUIET),
            "task='regression', but MLPClassifier has the task 'multilabel'",
        ),
        (
            lambda: MultilabelTask(2).check_batch(torch.zeros(3, 2), torch.full((3, 2), 2)),
            r"lie in 2 … 2",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_label_smoothing_of_batches_is_refused(make_trainer):
    with pytest.raises(ValueError, match="use its label_smoothing="):
        make_trainer(callbacks=[LabelSmoothing(0.1)]).fit(model(), datamodule=data())


def test_a_small_test_set_may_have_one_label_in_each_row():
    rows = np.eye(4, dtype=int)[[0, 1, 2, 0]]
    source = ArrayDataModule(X, Y, test_inputs=X[:4], test_targets=rows)
    source.setup("test")
    assert source.source.test_targets.tolist() == rows.tolist()


def test_the_interval_of_accuracy_is_that_of_samples_with_several_labels():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, (100, 20))
    wrong = rng.random(target.shape) < 0.2
    prediction = np.where(wrong, 1 - target, target).astype(float)
    accuracy = 1 - wrong.mean()
    scores = HeldOutScores(
        {"test/accuracy": accuracy}, {"target": target, "prediction": prediction}, task="multilabel"
    )
    low, high = scores.interval("test/accuracy")
    error = (1 - wrong).mean(1).std(ddof=1) / 10  # of the mean over 100 samples
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_tables_are_of_one_target():
    assert not TabularDataModule("iris").is_multilabel and data().is_multilabel


@pytest.mark.parametrize("name", ["auroc", "average_precision"])
def test_ranked_metrics_of_weighted_samples_are_those_of_scikit_learn(name):
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, (60, 3))
    prediction = rng.integers(0, 8, target.shape) / 7  # with many equal scores
    weights = rng.integers(0, 4, (5, 60)).astype(float)
    found = MultilabelTask.weighted_metrics(target, prediction)[name](weights)
    score = {
        "auroc": metrics.roc_auc_score,
        "average_precision": metrics.average_precision_score,
    }[name]
    for value, w in zip(found, weights, strict=True):
        each = [
            score(target[:, i], prediction[:, i], sample_weight=w) for i in range(target.shape[1])
        ]
        assert value == pytest.approx(np.mean(each))
    # A label that no sample with weight has does not count.
    target[:, 2] = 0
    some = MultilabelTask.weighted_metrics(target, prediction)[name](weights)
    two = MultilabelTask.weighted_metrics(target[:, :2], prediction[:, :2])[name](weights)
    np.testing.assert_allclose(some, two)


def test_ranked_metrics_of_a_test_have_intervals(runs):
    oof = runs["vectorized"].oof
    values = {f"test/{name}": value for name, value in oof.score().items()}
    scores = HeldOutScores(values, oof, task="multilabel")
    for name in ("test/auroc", "test/average_precision"):
        low, high = scores.interval(name)
        assert low < scores[name] < high


def test_cutmix_mixes_the_labels_by_the_area(make_trainer):
    images, labels = torch.rand(6, 1, 8, 8), torch.randint(0, 2, (6, 3))
    mixer = CutMix()
    inputs, targets = mixer.apply([images, labels], epoch=0, step=3, rank=0)
    mix = mixer.draw(images, mixer.generator(3, 0))
    changed = (inputs != images).float().mean((1, 2, 3))
    expected = labels + changed[:, None] * (labels[mix.partner] - labels)
    torch.testing.assert_close(targets, expected)


@pytest.mark.processes
def test_folds_in_processes_are_the_same(runs, tmp_path):
    other = cross_validate(
        model, data(), num_folds=3, run_dir=tmp_path, trainer=TRAINER, n_jobs=2, figures=False,
        **QUIET,
    )  # fmt: skip
    assert other.pooled() == pytest.approx(runs["sequential"].pooled(), rel=1e-5)
