import csv
import json
import random

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from few_digits import FewDigits
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from sklearn.metrics import accuracy_score
from sklearn.model_selection import StratifiedKFold
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassHingeLoss

from dlblocks.callbacks import Augment, ExactResume, MixUp
from dlblocks.crossval import CrossValidationResult, cross_validate
from dlblocks.data import ArrayDataModule, CurveDataModule, DataModule
from dlblocks.models import Classifier, MLPClassifier, MLPRegressor, load
from dlblocks.runs import fit_and_test

CPU = {"accelerator": "cpu", "max_epochs": 2}


def run(tmp_path, make_model=None, data=None, name="run", **arguments):
    settings = {"num_folds": 3, "trainer": CPU, "progress_bar": False, "figures": False,
                "run_dir": tmp_path / name}  # fmt: skip
    return cross_validate(
        make_model or (lambda: MLPClassifier(64, 10, hidden=[16], lr=0.01)),
        data or FewDigits(),
        **{**settings, **arguments},
    )


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_averaged_weights_validate_predict_and_are_saved(tmp_path):
    # A slow average after two epochs is far from the weights that were trained.
    result = run(
        tmp_path,
        make_callbacks=lambda: [EMAWeightAveraging(decay=0.97)],
        trainer={**CPU, "accelerator": "cpu"},
    )
    for row in result.folds:
        inside = result.oof.fold == row["fold"]
        target, prediction = result.oof.target[inside], result.oof.prediction[inside]
        loss = -np.log(prediction[np.arange(len(target)), target]).mean()
        assert loss == pytest.approx(row["val/loss"], rel=1e-4)
        data = FewDigits().for_fold(row["fold"], 3).with_selection(0.15)
        inputs, _, _ = data.arrays("val")
        model = load(tmp_path / "run" / row["checkpoint"]).eval()
        with torch.no_grad():
            expected = model(inputs).softmax(1)
        np.testing.assert_allclose(prediction, expected, atol=1e-6)


def test_files_and_result(tmp_path):
    result = run(tmp_path, figures=True)
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["num_folds"] == 3
    assert summary["config"]["model"]["hidden"] == [16]
    assert summary["config"]["data"]["class"] == "FewDigits"
    assert summary["config"]["trainer"]["max_epochs"] == 2
    assert {"dlblocks", "torch", "lightning", "python"} <= summary["versions"].keys()
    accuracy = summary["metrics"]["val/accuracy"]
    assert accuracy["folds"] == [row["val/accuracy"] for row in result.folds]
    assert accuracy["mean"] == pytest.approx(np.mean(accuracy["folds"]))
    assert accuracy["std"] == pytest.approx(np.std(accuracy["folds"], ddof=1))
    rows = rows_of(folder / "folds.csv")
    assert [float(row["val/loss"]) for row in rows] == result.values("val/loss")
    for name in ("learning_curves", "confusion_matrix", "hardest"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5000
    for fold in range(3):
        assert (folder / f"fold-{fold}" / "metrics.csv").is_file()
        history = rows_of(folder / f"fold-{fold}" / "history.csv")
        assert [row["epoch"] for row in history] == ["0", "1"]
        assert {"train/loss", "selection/loss", "selection/accuracy"} <= history[0].keys()
    assert not list(folder.rglob(".*"))  # no temporary file is left

    again = CrossValidationResult.load(folder)
    assert again.folds == result.folds
    for read, kept in zip(again.histories, result.histories, strict=True):
        assert read == [pytest.approx(row) for row in kept]
    np.testing.assert_array_equal(again.oof.prediction, result.oof.prediction)
    assert again.table() == result.table()


def test_out_of_fold_predictions_are_those_of_the_best_checkpoints(tmp_path):
    result = run(tmp_path)
    data, oof = FewDigits(), result.oof
    development = sorted([*data.arrays("train")[2].tolist(), *data.arrays("val")[2].tolist()])
    assert oof.index.tolist() == development  # each once, in order, and no test sample
    np.testing.assert_array_equal(oof.target, data.source.targets[oof.index])
    np.testing.assert_allclose(oof.prediction.sum(1), 1, rtol=1e-5)
    for row in result.folds:
        inside = oof.fold == row["fold"]
        fold = data.for_fold(row["fold"], 3).with_selection(0.15)
        inputs, targets, index = fold.arrays("val")
        np.testing.assert_array_equal(oof.index[inside], index)
        model = load(tmp_path / "run" / row["checkpoint"])
        with torch.no_grad():
            expected = model(inputs).softmax(1)
        np.testing.assert_allclose(oof.prediction[inside], expected, atol=1e-6)
        assert row["val/accuracy"] == pytest.approx(accuracy_score(targets, expected.argmax(1)))


def test_folds_are_scikit_learns(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)), np.arange(60) % 3
    result = run(
        tmp_path, lambda: MLPClassifier(4, 3), ArrayDataModule(x, y, split_seed=5), num_folds=4
    )
    splitter = StratifiedKFold(4, shuffle=True, random_state=5)
    for fold, (_, val) in enumerate(splitter.split(x, y)):
        np.testing.assert_array_equal(result.oof.index[result.oof.fold == fold], val)


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    def callbacks():
        return [Augment(rotation=10), MixUp(0.2)]

    results = [
        run(tmp_path, name=str(i), make_callbacks=callbacks, seed=seed)
        for i, seed in enumerate((0, 0, 1))
    ]
    first, second, other = [result.oof.prediction for result in results]
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_a_fold_does_not_depend_on_the_folds_before_it(tmp_path):
    whole = run(tmp_path, name="whole")
    data = FewDigits().for_fold(2, 3).with_selection(0.15)
    pl.seed_everything(0 + 2, workers=True, verbose=False)
    model = MLPClassifier(64, 10, hidden=[16], lr=0.01)
    trainer = pl.Trainer(
        **CPU, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ModelCheckpoint(tmp_path / "alone", monitor="val/loss", filename="best")],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    alone = load(tmp_path / "alone" / "best.ckpt").state_dict()
    folded = load(tmp_path / "whole" / whole.folds[2]["checkpoint"]).state_dict()
    for name, value in alone.items():
        assert torch.equal(value, folded[name])


def test_exact_resume_may_be_among_the_callbacks_and_changes_nothing(tmp_path):
    plain = run(tmp_path, name="plain", num_folds=2)
    result = run(tmp_path, num_folds=2, make_callbacks=lambda: [ExactResume(every_n_train_steps=3)])
    assert result.values("val/loss") == plain.values("val/loss")
    scores = fit_and_test(
        MLPClassifier(64, 10, hidden=[16]),
        FewDigits(test_fraction=0.2),
        callbacks=[ExactResume()],
        trainer=CPU,
        run_dir=tmp_path / "single",
        progress_bar=False,
    )
    assert scores["test/loss"] > 0
    # A finished fold needs nothing to go on from.
    for folder, kept in (("run/fold-0", []), ("run/fold-1", []), ("single", ["last.ckpt"])):
        files = (tmp_path / folder / "checkpoints").iterdir()
        assert sorted(path.name for path in files) == ["best.ckpt", *kept]


def test_the_callers_random_state_is_left_as_it_was(tmp_path):
    def state():
        return random.random(), np.random.rand(), float(torch.rand(()))

    pl.seed_everything(3, verbose=False)
    expected = state()
    pl.seed_everything(3, verbose=False)
    run(tmp_path, num_folds=2)
    assert state() == expected


def test_training_sees_only_its_own_part(tmp_path):
    """Every training batch holds rows of the training part, and validation is never augmented."""
    n = 60
    x = torch.arange(n).float()[:, None].repeat(1, 3)
    y = torch.arange(n) % 2
    seen = {}

    class Spy(pl.Callback):
        def __init__(self):
            self.trained, self.validated, self.looked_at = set(), set(), set()
            seen[len(seen)] = self

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.trained |= set(batch[0][:, 0].tolist())

        def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, loader=0):
            self.looked_at |= set(batch[0][:, 0].tolist())
            if trainer.state.fn == "validate":  # the score, after the fit
                self.validated |= set(batch[0][:, 0].tolist())

    data = ArrayDataModule(x, y, normalize=False, test_fraction=0.2)
    run(tmp_path, lambda: MLPClassifier(3, 2), data, make_callbacks=lambda: [Spy()])
    test = set(map(float, data.arrays("test")[2].tolist()))
    assert len(seen) == 3
    for spy in seen.values():
        selected_on = spy.looked_at - spy.validated
        assert not spy.trained & spy.looked_at
        assert not (spy.trained | spy.looked_at) & test
        assert len(spy.trained | spy.looked_at) == 48
        assert len(selected_on) == 5
    validated = [v for spy in seen.values() for v in spy.validated]
    assert len(validated) == len(set(validated)) == 48


def test_a_model_that_memorises_scores_at_chance(tmp_path):
    """Random labels can be learned by heart, but not predicted: a leak would show."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 30)), rng.integers(0, 2, 400)
    result = run(
        tmp_path,
        lambda: MLPClassifier(30, 2, hidden=[128], lr=0.01),
        ArrayDataModule(x, y),
        trainer={**CPU, "max_epochs": 20},
        monitor="train/accuracy",
        mode="max",
    )
    assert all(h[-1]["train/accuracy"] > 0.95 for h in result.histories)
    correct = (result.oof.prediction.argmax(1) == result.oof.target).sum()
    assert abs(correct - 200) < 40  # four standard deviations


def test_early_stopping_keeps_the_best_epoch(tmp_path):
    result = run(
        tmp_path,
        lambda: MLPClassifier(64, 10, hidden=[64], optimizer="adam", lr=0.05),
        make_callbacks=lambda: [EarlyStopping("val/loss", patience=2)],
        trainer={**CPU, "max_epochs": 40},
    )
    for row, history in zip(result.folds, result.histories, strict=True):
        losses = [h["selection/loss"] for h in history]
        assert row["epochs"] == len(losses) < 40
        assert row["best_epoch"] == 1 + int(np.argmin(losses))
    assert "best" in result.table()


class ScoreOfNaN(MLPClassifier):
    """Logs a validation loss and accuracy of NaN in its first epoch."""

    def compute_metrics(self, stage):
        found = super().compute_metrics(stage)
        if stage == "val" and self.trainer.current_epoch == 0 and self.trainer.state.fn == "fit":
            found = {name: value * torch.nan for name, value in found.items()}
        return found


@pytest.mark.parametrize("monitor", ["val/loss", "val/accuracy"])
def test_an_epoch_whose_score_is_no_number_is_not_the_best(tmp_path, monitor):
    result = run(tmp_path, lambda: ScoreOfNaN(64, 10, hidden=[8]), monitor=monitor)
    for row, history in zip(result.folds, result.histories, strict=True):
        assert np.isnan(history[0][monitor.replace("val/", "selection/")])
        saved = torch.load(tmp_path / "run" / row["checkpoint"], weights_only=True)
        assert row["best_epoch"] == saved["epoch"] + 1 > 1


def test_repeats_have_other_folds(tmp_path):
    result = run(tmp_path, num_folds=2, repeats=2)
    assert [(r["repeat"], r["fold"]) for r in result.folds] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    oof = result.oof
    per_repeat = [oof.index[oof.repeat == r] for r in (0, 1)]
    np.testing.assert_array_equal(*per_repeat)
    assert (oof.fold[oof.repeat == 0] != oof.fold[oof.repeat == 1]).any()
    assert (tmp_path / "run" / "repeat-1" / "fold-1" / "history.csv").is_file()
    assert len(result.values("val/loss")) == 4


def test_values(tmp_path):
    result = run(
        tmp_path,
        lambda: MLPRegressor(1, hidden=[16], lr=0.01),
        CurveDataModule(num_samples=200),
        figures=True,
    )
    assert result.oof.prediction.shape == result.oof.target.shape == (160, 1)
    assert result.mean("val/rmse") > 0
    for name in ("learning_curves", "predicted_vs_true", "curve"):
        assert (tmp_path / "run" / "figures" / f"{name}.png").is_file()


def test_somebody_elses_module(tmp_path, plain_module):
    class Theirs(plain_module):
        def validation_step(self, batch, batch_idx):
            self.log("loss_of_mine", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    data = ArrayDataModule(np.random.default_rng(0).random((60, 4)), np.arange(60) % 3)
    result = run(tmp_path, Theirs, data, monitor="loss_of_mine", logger=None)
    assert result.metrics == ["loss_of_mine"]


class OwnLoss(MLPClassifier):
    """A loss of its own, of which nobody knows how low it goes."""

    def loss(self, outputs, targets):
        return super().loss(outputs, targets) - 5


def test_ranges_are_kept_with_the_result(tmp_path):
    result = run(tmp_path, num_folds=2)
    unit = [0, 1]
    known = {"val/loss": [0, None], "val/accuracy": unit, "val/f1": unit,
             "val/calibration_error": unit}  # fmt: skip
    assert CrossValidationResult.load(result.run_dir).info["ranges"] == known
    assert run(tmp_path, num_folds=2).info["ranges"].keys() == known.keys()  # read back
    other = run(tmp_path, lambda: OwnLoss(64, 10, hidden=[8]), num_folds=2, name="other")
    assert "val/loss" not in other.info["ranges"]
    assert other.interval("val/loss")[0] < -1


def test_mode_is_the_metrics_own(tmp_path):
    result = run(tmp_path, monitor="val/accuracy", trainer={**CPU, "max_epochs": 3})
    assert result.info["mode"] == "max"
    for row, history in zip(result.folds, result.histories, strict=True):
        scores = [epoch["selection/accuracy"] for epoch in history]
        assert row["best_epoch"] == 1 + int(np.argmax(scores))
    assert run(tmp_path, name="other").info["mode"] == "min"


class Scored(pl.LightningModule):
    """Somebody else's: logs torchmetrics objects under names that say nothing."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.val_score = MulticlassAccuracy(3)
        self.others = MetricCollection({"it": MulticlassHingeLoss(3)}, prefix="val/")
        self.seen = MulticlassAccuracy(3)
        self.trained = 0

    def training_step(self, batch, batch_idx):
        self.trained += 1
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        outputs = self.net(batch[0]).softmax(1)
        self.val_score(outputs, batch[1])
        self.others(outputs, batch[1])
        self.seen(outputs, batch[1])
        self.log("val/score", self.val_score)
        self.log("what", self.seen)
        self.log_dict(self.others)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("monitor", "right", "wrong"),
    [("val/score", "max", "min"), ("val/it", "min", "max"), ("what", "max", "min")],
)
def test_direction_of_a_metric_object_that_is_logged(tmp_path, monitor, right, wrong):
    """Said before the first training step; its name alone says nothing."""
    made = []

    def make():
        made.append(Scored())
        return made[-1]

    data = ArrayDataModule(np.random.default_rng(0).random((60, 4)), np.arange(60) % 3)
    with pytest.raises(ValueError, match=f"monitor='{monitor}'.* is best .* set mode='{right}'"):
        run(tmp_path, make, data, monitor=monitor, mode=wrong)
    assert made and not any(model.trained for model in made)
    good = run(tmp_path, make, data, name="good", monitor=monitor, mode=right, logger=None)
    assert good.info["mode"] == right
    assert "log" not in vars(made[-1])
    if monitor != "what":  # an attribute, or an entry of a collection
        assert run(tmp_path, make, data, name="none", monitor=monitor).info["mode"] == right


@pytest.mark.parametrize(("every", "epochs"), [(1, [0]), (2, [0, 1])])
def test_a_monitor_that_is_never_logged(tmp_path, plain_module, every, epochs):
    """It is found after the first validation: no further epoch is spent."""
    begun = []

    class Theirs(plain_module):
        def on_train_epoch_start(self):
            begun.append(self.current_epoch)

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    data = ArrayDataModule(np.random.default_rng(0).random((60, 4)), np.arange(60) % 3)
    settings = {"max_epochs": 6, "accelerator": "cpu", "check_val_every_n_epoch": every}
    with pytest.raises(ValueError, match=r"monitor='val/loss'.*did you mean 'val_loss'\? There"):
        run(tmp_path, Theirs, data, trainer=settings)
    assert begun == epochs


@pytest.mark.parametrize(
    ("every", "name", "best"), [(1, "loss", min), (3, "loss", min), (3, "accuracy", max)]
)
def test_a_metric_of_training_chooses_the_epoch_whose_weights_are_kept(tmp_path, every, name, best):
    """Lightning judges by it at a validation, where it is that of the epoch before."""
    result = run(
        tmp_path, lambda: MLPClassifier(64, 10, hidden=[16], lr=0.1, optimizer="sgd"),
        monitor=f"train/{name}",
        trainer={"max_epochs": 5, "accelerator": "cpu", "check_val_every_n_epoch": every},
    )  # fmt: skip
    for row in result.folds:
        folder = tmp_path / "run" / f"fold-{row['fold']}"
        kept = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
        scores = [float(epoch[f"train/{name}"]) for epoch in rows_of(folder / "history.csv")]
        assert len(scores) == 5
        assert kept["epoch"] + 1 == row["best_epoch"] == 1 + scores.index(best(scores))


def test_a_datamodule_may_come_from_a_function(tmp_path):
    made = []

    def make() -> DataModule:
        made.append(FewDigits())
        return made[-1]

    result = run(tmp_path, data=make)
    assert len(made) == 3
    assert len(result.oof) == 360


def test_fast_dev_run(tmp_path):
    result = run(tmp_path, trainer={"fast_dev_run": True, "accelerator": "cpu"}, figures=True)
    assert len(result.folds) == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_folds": 1}, ValueError, "num_folds=1"),
        ({"num_folds": 2.5}, ValueError, "num_folds=2.5 must be a whole number"),
        ({"num_folds": "5"}, TypeError, "num_folds='5' must be a whole number"),
        ({"repeats": 0}, ValueError, "repeats=0"),
        ({"monitor": "val/accuracy", "mode": "min"}, ValueError, "is highest.*set mode='max'"),
        ({"mode": "max"}, ValueError, "monitor='val/loss' is best where it is lowest.*'min'"),
        ({"monitor": "val/score"}, ValueError, "monitor='val/score' does not say .*set mode='min'"),
        ({"trainer": pl.Trainer(logger=False)}, TypeError, "trainer is a Trainer; give the arg"),
        ({"trainer": {"max_epochs": "3"}}, ValueError, "'max_epochs': '3'} must be a whole number"),
        ({"make_callbacks": [MixUp()]}, TypeError, "make_callbacks=.* is not a function"),
        ({"make_callbacks": MixUp}, TypeError, "make_callbacks returned <.*MixUp.* expected a li"),
        ({"make_callbacks": lambda: [MixUp]}, TypeError, "make_callbacks returned .* expected a"),
        ({"mode": "lowest"}, ValueError, "mode='lowest'"),
        ({"logger": "wandbb"}, ValueError, "did you mean 'wandb'"),
        ({"trainer": {"max_epoch": 3}}, ValueError, "did you mean 'max_epochs'"),
        ({"trainer": {"callbacks": []}}, ValueError, "place of its own"),
        ({"trainer": {"strategy": "ddp_spawn"}}, ValueError, "use strategy='ddp'"),
        ({"make_callbacks": lambda: [ModelCheckpoint()]}, ValueError, "set monitor= and mode="),
        ({"make_model": nn.Linear(2, 2)}, TypeError, "make_model is a Linear, not a function"),
        ({"make_model": lambda: nn.Linear(2, 2)}, TypeError, "must return a LightningModule"),
        ({"data": 3}, TypeError, "callable|DataModule"),
    ],
)
def test_bad_input(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        run(tmp_path, **arguments)


def test_a_model_used_twice_is_refused(tmp_path):
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 10)
    with pytest.raises(ValueError, match="same model for two folds"):
        run(tmp_path, lambda: model)
    stopper = EarlyStopping("val/loss")
    with pytest.raises(ValueError, match="same EarlyStopping for two folds"):
        run(tmp_path, name="other", make_callbacks=lambda: [stopper])


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_models_that_share_what_is_trained_are_refused(tmp_path, engine):
    shared = nn.Linear(64, 16)

    def make_model():
        return Classifier(nn.Sequential(nn.Flatten(), shared, nn.ReLU(), nn.Linear(16, 10)), 10)

    with pytest.raises(ValueError, match=r"same parameter net\.1\.weight for two folds"):
        run(tmp_path, make_model, engine=engine)
    shared.requires_grad_(False)  # of a net that was trained before, and is not now
    assert len(run(tmp_path, make_model, name="frozen", engine=engine).folds) == 3


def test_a_run_folder_is_never_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another run_dir"):
        run(tmp_path)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_unknown_metrics_and_folders_are_said(tmp_path):
    result = run(tmp_path, num_folds=2)
    with pytest.raises(KeyError, match="did you mean 'val/accuracy'"):
        result.mean("val/acuracy")
    with pytest.raises(FileNotFoundError, match=r"no summary\.json"):
        CrossValidationResult.load(tmp_path / "nothing")
