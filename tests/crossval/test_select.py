"""`select=`: the epoch is selected on one part of the data, and the score is of another."""

import json

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MaxMetric
from wandb_offline import read_runs

from dlblocks.cli import main
from dlblocks.crossval import CrossValidationResult, cross_validate, nested_cross_validate
from dlblocks.data import ArrayDataModule, DigitsDataModule, FoldedDataModule
from dlblocks.models import MLPClassifier, load
from dlblocks.runs._history import name_of_selection

CPU = {"max_epochs": 6, "accelerator": "cpu"}
N = 80
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 4)).astype(np.float32)
Y = RNG.integers(0, 2, N)
FOLDS = np.arange(N) % 4


def make_model():
    return MLPClassifier(4, 2, hidden=[32], lr=0.05)


def data(targets=Y, folds=FOLDS):
    return ArrayDataModule(X, targets, split="predefined", folds=folds, batch_size=16)


def run(folder, datamodule=None, make=make_model, **arguments):
    settings = {"trainer": CPU, "progress_bar": False, "figures": False, "logger": None}
    return cross_validate(make, datamodule or data(), run_dir=folder, **{**settings, **arguments})


def weights(result):
    return [load(result.run_dir / row["checkpoint"]).state_dict() for row in result.folds]


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize(("select", "blind"), [("inner", True), ("last", True), ("fold", False)])
def test_the_scored_samples_decide_nothing(tmp_path, select, blind, engine):
    """With other labels for the samples that score a fold, its weights must be the same."""
    arguments = {"select": select, "engine": engine, "monitor": "val/accuracy"}
    folds = FOLDS % 2
    first = run(tmp_path / "first", data(folds=folds), mode="max", **arguments)
    changed = Y.copy()
    changed[folds == 1] = 1 - changed[folds == 1]
    second = run(tmp_path / "second", data(changed, folds), mode="max", **arguments)
    one, two = weights(first)[1], weights(second)[1]
    same = all(torch.equal(one[name], two[name]) for name in one)
    assert same == blind
    score = first.values("val/accuracy")[1]
    if blind:
        assert second.values("val/accuracy")[1] == pytest.approx(1 - score)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_a_fold_by_hand(tmp_path, engine):
    """Lightning alone, on the three parts: the same epoch, weights and scores."""
    result = run(
        tmp_path / "run",
        engine=engine,
        make_callbacks=lambda: [EarlyStopping("val/loss", patience=1)],
        trainer={**CPU, "max_epochs": 30},
    )
    for fold, row in enumerate(result.folds):
        part = data().for_fold(fold, None).with_selection(0.15)
        pl.seed_everything(fold, workers=True, verbose=False)
        model = make_model()
        best = ModelCheckpoint(tmp_path / f"hand-{fold}", monitor="val/loss")
        trainer = pl.Trainer(
            max_epochs=30, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[best, EarlyStopping("val/loss", patience=1)],
        )  # fmt: skip
        trainer.fit(model, datamodule=part)
        assert row["epochs"] == trainer.current_epoch
        assert row["best_epoch"] == torch.load(best.best_model_path)["epoch"] + 1
        part.validate_on = "val"
        (scores,) = trainer.validate(
            model, datamodule=part, ckpt_path=best.best_model_path, verbose=False
        )
        for name, value in scores.items():
            assert row[name] == pytest.approx(value, abs=1e-5), name
        assert (row["num_train"], row["num_selection"], row["num_val"]) == (51, 9, 20)


@pytest.mark.parametrize("select", ["inner", "last", "fold"])
def test_both_engines_agree(tmp_path, select):
    found = [
        run(tmp_path / engine, engine=engine, select=select)
        for engine in ("sequential", "vectorized")
    ]
    for name in found[0].metrics:
        np.testing.assert_allclose(found[0].values(name), found[1].values(name), atol=1e-5)
    np.testing.assert_allclose(found[0].oof.prediction, found[1].oof.prediction, atol=1e-5)
    keys = [[set(row) for row in result.histories[0]] for result in found]
    assert set.union(*keys[0]) == set.union(*keys[1])
    assert [row["best_epoch"] for row in found[0].folds] == [
        row["best_epoch"] for row in found[1].folds
    ]


def test_curves_name_the_part_and_scores_are_of_the_fold(tmp_path):
    parts = {}
    for select in ("inner", "last", "fold"):
        result = run(tmp_path / select, select=select)
        parts[select] = {name.partition("/")[0] for name in result.histories[0][-1]} - {"epoch"}
        assert set(result.metrics) == {
            "val/loss", "val/accuracy", "val/f1", "val/calibration_error",
        }  # fmt: skip
        summary = json.loads((tmp_path / select / "summary.json").read_text())
        assert summary["select"] == select
        assert bool(summary["notes"]) == (select == "fold")
        again = CrossValidationResult.load(tmp_path / select)
        assert again.folds == result.folds
        # What is scored is what is predicted.
        right = result.oof.prediction.argmax(1) == result.oof.target
        assert right.mean() == pytest.approx(result.mean("val/accuracy"))
    assert parts == {"inner": {"train", "selection"}, "last": {"train"}, "fold": {"train", "val"}}


def test_folds_json_has_the_selection_part(tmp_path):
    run(tmp_path / "run")
    for fold in json.loads((tmp_path / "run" / "folds.json").read_text())["folds"]:
        part = data().for_fold(fold["fold"], None).with_selection(0.15)
        assert fold["selection"] == part.indices("selection").tolist()
        assert fold["num_train"] == len(part.indices("train"))


class Theirs(pl.LightningModule):
    """Somebody else's module, with names of their own; it logs by itself, too."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 2)
        self.validated = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        seen.append(batch[0][:, 0].tolist())
        loggers.append(self.loggers)
        outputs = self(batch[0])
        self.log("valid_loss", F.cross_entropy(outputs, batch[1]))
        self.log("acc", (outputs.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.1)


seen, loggers = [], []


def theirs(folder, **arguments):
    seen.clear(), loggers.clear()
    samples = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    folded = FoldedDataModule(samples, split="predefined", folds=FOLDS)
    settings = {"monitor": "valid_loss", "mode": "min", **arguments}
    return run(folder, folded, Theirs, **settings)


def test_somebody_elses_module_validates_on_the_selection_part(tmp_path):
    result = theirs(tmp_path / "run", trainer={**CPU, "num_sanity_val_steps": 0})
    assert set(result.histories[0][-1]) >= {"selection_loss", "selection/acc"}
    assert not any(name.startswith("val") or name == "acc" for name in result.histories[0][-1])
    assert {"valid_loss", "acc"} <= set(result.metrics)
    column = X[:, 0].tolist()
    for fold in range(4):
        mine = [set(values) for values in seen[7 * fold : 7 * fold + 7]]
        scored = {column[i] for i in np.flatnonzero(fold == FOLDS)}
        assert mine[6] == scored  # once, and last
        assert all(not part & scored and part == mine[0] for part in mine[:6])


def test_without_selection_the_fold_is_validated_once(tmp_path):
    result = theirs(tmp_path / "run", select="last")
    assert [len(values) for values in seen] == [20] * 4
    assert [row["best_epoch"] for row in result.folds] == [6] * 4


@pytest.mark.parametrize("logger", ["csv", "tensorboard", "wandb", None])
def test_the_module_sees_the_users_logger_alone(tmp_path, logger):
    theirs(tmp_path / "run", logger=logger)
    kinds = {tuple(type(one).__name__ for one in found) for found in loggers}
    name = {
        "csv": "CSVLogger", "tensorboard": "TensorBoardLogger", "wandb": "LenientWandbLogger",
        None: "NoLogger",
    }[logger]  # fmt: skip
    assert kinds == {(name,)}


def test_loggers_get_curves_of_the_selection_part_and_the_score(tmp_path):
    result = run(tmp_path / "run", logger="wandb", engine="vectorized")
    other = run(tmp_path / "other", logger="wandb")
    for found in (result, other):
        runs = read_runs(found.run_dir)
        for row, one in zip(found.folds, [r for r in runs if r["job_type"] == "fold"], strict=True):
            curves = [step for step in one["history"] if "selection/loss" in step]
            assert len(curves) == 6 and not any("val/loss" in step for step in curves)
            assert one["summary"]["val/loss"] == pytest.approx(row["val/loss"], abs=1e-6)


def test_an_optimistic_score_ends_as_the_summary_of_its_run(tmp_path):
    result = run(tmp_path / "run", select="fold", logger="wandb")
    folds = [r for r in read_runs(result.run_dir) if r["job_type"] == "fold"]
    for row, one in zip(result.folds, folds, strict=True):
        assert one["summary"]["val/loss"] == pytest.approx(row["val/loss"], abs=1e-6)


def plateau():
    return MLPClassifier(4, 2, lr=0.05, lr_schedule="plateau")


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize(
    ("make", "callbacks", "message"),
    [
        (make_model, lambda: [EarlyStopping("val/loss")], "EarlyStopping monitors 'val/loss'"),
        (plateau, list, "a plateau schedule monitors 'val/loss'"),
    ],
)
def test_what_waits_for_validation_is_refused(tmp_path, make, callbacks, message, engine):
    with pytest.raises(ValueError, match=f"select='last'.*{message}.*select='inner'"):
        run(tmp_path / "run", make=make, make_callbacks=callbacks, select="last", engine=engine)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_early_stopping_by_training_needs_no_validation(tmp_path, engine):
    result = run(
        tmp_path / "run",
        make_callbacks=lambda: [
            EarlyStopping("train/loss", stopping_threshold=0.6, check_on_train_epoch_end=True)
        ],
        trainer={**CPU, "max_epochs": 50},
        select="last",
        engine=engine,
    )
    assert all(row["epochs"] == row["best_epoch"] < 50 for row in result.folds)


def test_too_few_samples_are_said_before_any_fit(tmp_path):
    with pytest.raises(ValueError, match="select='last'"):
        run(tmp_path / "run", ArrayDataModule(X[:8], np.repeat([0, 1], [6, 2])), num_folds=2)
    assert not (tmp_path / "run").exists()
    result = run(
        tmp_path / "run", ArrayDataModule(X[:8], np.repeat([0, 1], [6, 2])), num_folds=2,
        select="last",
    )  # fmt: skip
    assert len(result.folds) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"select": "best"}, "select='best'"),
        ({"selection_fraction": 0}, "selection_fraction=0"),
        ({"selection_fraction": 1.0}, "selection_fraction=1.0"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", **arguments)


def test_another_selection_is_another_run(tmp_path):
    run(tmp_path / "run")
    for arguments in ({"select": "last"}, {"selection_fraction": 0.3}):
        with pytest.raises(FileExistsError, match="select"):
            run(tmp_path / "run", **arguments)


def test_refit_trains_for_the_median_selected_epoch(tmp_path):
    result = run(tmp_path / "run", trainer={**CPU, "max_epochs": 10})
    epochs = [row["best_epoch"] for row in result.folds]
    model = result.refit()
    assert model.trainer.current_epoch == round(float(np.median(epochs)))


@pytest.mark.parametrize("select", ["fold", "inner", "last"])
def test_inner_fits_of_a_nested_search_take_select(tmp_path, select):
    result = nested_cross_validate(
        lambda lr: MLPClassifier(4, 2, hidden=[8], lr=lr),
        ArrayDataModule(X, Y),
        {"lr": [0.01, 0.1]},
        num_folds=2,
        inner_folds=2,
        select=select,
        trainer={**CPU, "max_epochs": 1},
        run_dir=tmp_path / "run",
        progress_bar=False,
        figures=False,
        logger=None,
    )
    inner = CrossValidationResult.load(tmp_path / "run" / "fold-0" / "point-0")
    assert inner.info["select"] == select
    assert [row["num_selection"] for row in inner.folds] == [3 if select == "inner" else 0] * 2
    assert "notes" not in result.info or not result.info["notes"]


def test_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr("dlblocks.crossval._outcome.save_figures", lambda *args: None)
    arguments = [
        "cross-validate", "--model=MLPClassifier", "--model.in_features=64",
        "--model.num_classes=10", "--data=DigitsDataModule", "--num_folds=2",
        "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--logger=none",
    ]  # fmt: skip
    main([*arguments, "--select=fold", f"--run_dir={tmp_path / 'fold'}"])
    assert json.loads((tmp_path / "fold" / "summary.json").read_text())["select"] == "fold"
    main([*arguments, "--selection_fraction=0.3", f"--run_dir={tmp_path / 'inner'}"])
    result = CrossValidationResult.load(tmp_path / "inner")
    total = len(DigitsDataModule().for_fold(0, 2).indices("train"))
    assert result.folds[0]["num_selection"] == round(0.3 * total)


class Remembers(Theirs):
    """Logs the best accuracy so far, kept in a metric and in an attribute."""

    def __init__(self):
        super().__init__()
        self.best = MaxMetric()
        self.highest = 0.0

    def validation_step(self, batch, batch_idx):
        self.right = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("val/acc", self.right)

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.best.update(self.right)
            self.highest = max(self.highest, float(self.right))
            self.log("val/acc_best", self.best.compute())
            self.log("val/acc_highest", self.highest)


def remembered(folder, make):
    samples = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    folded = FoldedDataModule(DataLoader(samples, 100), split="predefined", folds=FOLDS)
    return run(folder, folded, make, monitor="val/acc")


def test_what_a_module_remembers_of_the_fit_is_not_its_score(tmp_path):
    result = remembered(tmp_path / "run", Remembers)
    for name in ("val/acc_best", "val/acc_highest"):
        assert result.values(name) == pytest.approx(result.values("val/acc"))


class Learns(Remembers):
    """Learns in an attribute, too, which no checkpoint holds."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return super().training_step(batch, batch_idx)

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.log("val/steps", float(self.steps))


def test_what_training_has_changed_is_kept(tmp_path):
    result = remembered(tmp_path / "run", Learns)
    assert result.values("val/steps") == [6.0] * 4
    assert result.values("val/acc_best") == pytest.approx(result.values("val/acc"))


class LogsLoss(Theirs):
    def training_step(self, batch, batch_idx):
        # Best in the second epoch, by a name that does not say of which part it is.
        value = [5.0, 1.0, 2.0, 3.0, 4.0, 6.0][self.current_epoch]
        self.log("own", value, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("select", ["inner", "fold"])
def test_a_metric_of_training_of_any_name_selects_the_epoch(tmp_path, select):
    samples = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    folded = FoldedDataModule(samples, split="predefined", folds=FOLDS)
    result = run(tmp_path / "run", folded, LogsLoss, monitor="own", mode="min", select=select)
    for row in result.folds:
        kept = torch.load(result.run_dir / row["checkpoint"], weights_only=True)
        assert row["best_epoch"] == kept["epoch"] + 1 == 2


@pytest.mark.parametrize("every", [1, 2])
def test_a_validation_metric_of_any_name_is_refused_without_validation(tmp_path, every):
    with pytest.raises(ValueError, match=r"select='last'.*'acc' is monitored"):
        theirs(
            tmp_path / "run",
            select="last",
            make_callbacks=lambda: [EarlyStopping("acc", mode="max")],
            trainer={**CPU, "check_val_every_n_epoch": every},
        )


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_early_stopping_by_training_works_with_rare_validation(tmp_path, engine):
    result = run(
        tmp_path / "run",
        make_callbacks=lambda: [EarlyStopping("train/loss", stopping_threshold=0.6)],
        trainer={**CPU, "max_epochs": 50, "check_val_every_n_epoch": 2},
        select="last",
        engine=engine,
    )
    assert all(row["epochs"] < 50 for row in result.folds)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_a_share_of_the_batches_leaves_one_of_the_selection_part(tmp_path, engine):
    result = run(tmp_path / "run", trainer={**CPU, "limit_val_batches": 0.5}, engine=engine)
    assert all("selection/loss" in row for row in result.histories[0])
    assert [row["num_val"] for row in result.folds] == [16] * 4  # one of two batches


def test_names_of_the_selection_part():
    names = {
        "val/loss": "selection/loss", "loss/val": "loss/selection", "acc_valid": "acc_selection",
        "auroc": "selection/auroc", "value/x": "selection/value/x",
    }  # fmt: skip
    assert {name: name_of_selection(name) for name in names} == names


def test_large_groups_are_said(tmp_path):
    groups = np.repeat([0, 1, 2, 3], [10, 20, 30, 20])
    result = run(tmp_path / "run", ArrayDataModule(X, Y, groups=groups), num_folds=4)
    assert any("selection part holds" in note for note in result.notes)
    assert not any("selection part holds" in note for note in run(tmp_path / "b").notes)
