"""Cross-validations that are called again, that run side by side, or of which a fold fails."""

import json
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from conftest import no_address
from lightning.pytorch.callbacks import EarlyStopping
from wandb_offline import read_runs

from dlblocks.callbacks import Augment, CutMix, MixUp, OneOf
from dlblocks.crossval import CrossValidationResult, cross_validate
from dlblocks.crossval._splits import folding, plan_splits
from dlblocks.data import ArrayDataModule, DigitsDataModule
from dlblocks.models import Classifier, MLPClassifier, MLPRegressor, load
from dlblocks.runs.folder import next_run_dir
from dlblocks.tracking import plain_attributes


def run(folder, make_model=None, data=None, **arguments):
    settings = {
        "num_folds": 2,
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
        "progress_bar": False,
        "figures": False,
    }
    return cross_validate(
        make_model or (lambda: MLPClassifier(64, 10, hidden=[8])),
        data or DigitsDataModule(batch_size=300),
        run_dir=folder,
        **{**settings, **arguments},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that tests read."""
    folder = tmp_path_factory.mktemp("finished") / "a"
    run(folder, trainer={"max_epochs": 2, "accelerator": "cpu", "fast_dev_run": False})
    return folder


def test_a_finished_run_is_read_back(tmp_path):
    first = run(tmp_path / "a")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}

    class Untrainable(MLPClassifier):
        def training_step(self, batch, batch_idx):
            raise AssertionError("trained again")

    Untrainable.__name__ = "MLPClassifier"
    again = run(tmp_path / "a", lambda: Untrainable(64, 10, hidden=[8]))
    assert again.folds == first.folds
    assert again.summary()["metrics"] == first.summary()["metrics"]
    for name in ("index", "target", "prediction", "fold", "repeat"):
        np.testing.assert_array_equal(getattr(again.oof, name), getattr(first.oof, name))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == times
    assert CrossValidationResult.load(tmp_path / "a").folds == first.folds


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"make_model": lambda: MLPClassifier(64, 10, hidden=[8], lr=0.5)}, "model.lr was None"),
        ({"make_model": lambda: MLPClassifier(64, 10, hidden=[9])}, "model.hidden"),
        ({"data": DigitsDataModule(batch_size=299)}, "data.batch_size was 300 and is 299"),
        ({"data": DigitsDataModule(batch_size=300, split_seed=1)}, "split_seed was 0 and is 1"),
        ({"num_folds": 3}, "data or splits: num_folds was 2 and is 3"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"trainer": {"max_epochs": 3, "accelerator": "cpu"}}, "trainer.max_epochs was 2 and is 3"),
        ({"make_callbacks": lambda: [MixUp(0.3)]}, "callbacks"),
        ({"monitor": "val/score", "mode": "min"}, "monitor was 'val/loss' and is 'val/score'"),
        ({"resume": False}, "already holds a run"),
    ],
    ids=no_address,
)
def test_another_configuration_is_refused(finished, changed, message):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    arguments = {"trainer": {"max_epochs": 2, "accelerator": "cpu", "fast_dev_run": False}}
    if "trainer" in changed:
        changed = {"trainer": {**changed["trainer"], "fast_dev_run": False}}
    with pytest.raises(FileExistsError, match=message):
        run(finished, **{**arguments, **changed})
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_callbacks_that_a_callback_holds_are_part_of_the_configuration(tmp_path):
    def one_of(alpha):
        return {"make_callbacks": lambda: [OneOf([MixUp(alpha), CutMix()])]}

    first = run(tmp_path / "a", **one_of(0.2))
    assert run(tmp_path / "a", **one_of(0.2)).folds == first.folds
    message = r"callbacks\[0\].transforms\[0\].alpha was 0.2 and is 0.3"
    with pytest.raises(FileExistsError, match=message):
        run(tmp_path / "a", **one_of(0.3))
    data_keys = {"mask": "input"}
    assert plain_attributes(CutMix(data_keys=data_keys))["data_keys"] == data_keys


def test_other_data_are_refused(tmp_path):
    x, y = np.random.default_rng(0).random((60, 4)), np.arange(60) % 3

    def arguments(inputs):
        return {
            "make_model": lambda: MLPClassifier(4, 3, hidden=[4]),
            "data": ArrayDataModule(inputs, y),
        }

    run(tmp_path / "a", **arguments(x))
    other = x.copy()
    other[7, 2] += 1e-3
    with pytest.raises(FileExistsError, match="data or splits: fingerprint"):
        run(tmp_path / "a", **arguments(other))


def test_groups_are_reported_and_named_first_if_they_differ(tmp_path):
    x, y = np.random.default_rng(0).random((60, 4)), np.arange(60) / 7

    def grouped(groups, **arguments):
        data = ArrayDataModule(x, y, groups=groups, **arguments)
        return run(tmp_path / "a", lambda: MLPRegressor(4, 1, hidden=[4]), data)

    groups = np.arange(60) // 4
    result = grouped(groups)
    made = json.loads((tmp_path / "a" / "summary.json").read_text())["splits"]
    assert made == {"split": "kfold", "num_folds": 2, "repeats": 1, "split_seed": 0,
                    "groups": 15, "stratified_by": None}  # fmt: skip
    said = "Folds: split=kfold; 2 folds; 15 groups, each kept whole; not stratified."
    assert said in result.report().read_text()
    with pytest.raises(FileExistsError, match=r"kind: data or splits: groups was .*15.* is None;"):
        grouped(None)
    with pytest.raises(FileExistsError, match=r"kind: data or splits: groups\.sha256 was"):
        grouped(np.arange(60) % 15)
    path = tmp_path / "a" / "folds.json"
    old = json.loads(path.read_text())
    old.pop("groups")  # as earlier versions wrote it
    path.write_text(json.dumps(old))
    assert grouped(groups).folds == result.folds
    with pytest.raises(FileExistsError, match="kind: data or splits: fingerprint"):
        grouped(None)
    strata = plan_splits(ArrayDataModule(x, y, stratify=True), 2, 1)
    assert folding(ArrayDataModule(x, y, stratify=True), strata)["stratified_by"] == (
        "bins of values"
    )


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="already holds a run"):
        run(tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "left",
    [
        ["folds.json"],
        [".folds-x1y2z3a4.part.json"],
        ["folds.json", ".plan-abcdefg_.part.json"],
    ],
)
def test_a_folder_that_was_broken_off_at_the_start_is_new(tmp_path, left):
    (tmp_path / "a").mkdir()
    for name in left:
        (tmp_path / "a" / name).write_text("{")
    assert len(run(tmp_path / "a").folds) == 2


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_what_was_not_done_after_the_last_fold_is_done(tmp_path, n_jobs):
    first = run(tmp_path / "a", figures=True)
    (tmp_path / "a" / "summary.json").unlink()  # it is written last
    for path in (tmp_path / "a" / "figures").iterdir():
        path.unlink()
    again = run(tmp_path / "a", figures=True, n_jobs=n_jobs)
    assert again.folds == first.folds
    assert (tmp_path / "a" / "summary.json").is_file()
    assert (tmp_path / "a" / "figures" / "scores.png").is_file()
    assert run(tmp_path / "a", n_jobs=n_jobs).folds == first.folds


def test_a_kill_before_the_figures_is_made_up_for(tmp_path, monkeypatch):
    def fails(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("dlblocks.crossval._outcome.save_figures", fails)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "a", figures=True)
    assert not (tmp_path / "a" / "summary.json").exists()
    run(tmp_path / "a", figures=True)
    assert (tmp_path / "a" / "figures" / "scores.png").is_file()


def test_a_folder_behind_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    result = run(tmp_path / "link" / ".." / "link" / "a")
    for row in result.folds:
        assert row["checkpoint"] == f"fold-{row['fold']}/checkpoints/best.ckpt"
        assert (tmp_path / "real" / "a" / row["checkpoint"]).is_file()


class Remembers(pl.Callback):
    """As most callbacks that look for the best of something; equal to its like."""

    def __init__(self, patience=3):
        self.best, self.patience = float("inf"), patience

    def __eq__(self, other):
        return isinstance(other, Remembers)

    __hash__ = None


def test_callbacks_with_infinities_and_an_equality_of_their_own(tmp_path):
    first = run(tmp_path / "a", make_callbacks=lambda: [Remembers()])
    assert run(tmp_path / "a", make_callbacks=lambda: [Remembers()]).folds == first.folds
    with pytest.raises(FileExistsError, match=r"callbacks\[0\].patience was 3 and is 4"):
        run(tmp_path / "a", make_callbacks=lambda: [Remembers(4)])


class Infinite(MLPClassifier):
    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.log("val/inf", float("inf"))
        self.log("val/nan", float("nan"))


def test_metrics_that_are_not_finite_come_back(tmp_path):
    first = run(tmp_path / "a", lambda: Infinite(64, 10, hidden=[8]))
    again = run(tmp_path / "a", lambda: Infinite(64, 10, hidden=[8]))
    for result in (first, again):
        assert all(row["val/inf"] == float("inf") for row in result.folds)
        assert all(np.isnan(row["val/nan"]) for row in result.folds)


def test_modules_whose_shapes_are_not_known_yet(tmp_path):
    def make_model():
        return Classifier(
            torch.nn.Sequential(
                torch.nn.Flatten(),
                torch.nn.LazyLinear(10),
            ),
            10,
        )

    assert len(run(tmp_path / "a", make_model).folds) == 2


def test_the_same_model_twice_is_said_before_training_side_by_side(tmp_path):
    model = MLPClassifier(64, 10, hidden=[8])
    with pytest.raises(ValueError, match="same model for two folds"):
        run(tmp_path / "a", lambda: model, n_jobs=2)
    assert not list((tmp_path / "a").glob("fold-*"))


def test_one_fold_that_is_left_has_no_spread(tmp_path):
    (tmp_path / "fail").touch()
    result = run(tmp_path / "a", lambda: Fails(64, 10, hidden=[8]), on_error="continue",
                 figures=True)  # fmt: skip
    assert len(result.folds) == 1
    assert np.isnan(result.std("val/loss"))
    assert "1 of 2 folds" in result.table()
    page = result.report().read_text()
    assert "1 of 2 fits" in page
    assert "out of luck" in page


def test_next_run_dir_goes_on_with_what_has_not_ended(tmp_path):
    first = tmp_path / "cv"
    first.mkdir()
    (first / "plan.json").write_text("{}")
    assert next_run_dir(first, resume=True) == first
    assert next_run_dir(first) == tmp_path / "cv-2"
    (first / "summary.json").write_text("{}")
    assert next_run_dir(first, resume=True) == tmp_path / "cv-2"


class Fails(MLPClassifier):
    """Fails in one fold, as long as a file is there."""

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        # A worker may have the working folder of an earlier test.
        fail = Path(self.trainer.default_root_dir).parents[1] / "fail"
        if self.trainer.datamodule.fold == 1 and self.current_epoch == 1 and fail.exists():
            raise RuntimeError("out of luck")


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_the_others_go_on_and_the_call_again_runs_what_failed(tmp_path, capfd, n_jobs):
    (tmp_path / "fail").touch()
    arguments = {
        "make_model": lambda: Fails(64, 10, hidden=[8]),
        "num_folds": 3,
        "on_error": "continue",
        "n_jobs": n_jobs,
    }
    result = run(tmp_path / "a", **arguments)
    assert "fold 1 failed: RuntimeError('out of luck')" in capfd.readouterr().err
    assert [row["fold"] for row in result.folds] == [0, 2]
    assert result.oof is not None
    assert "2 of 3 folds" in result.table()
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["failed"] == [{"repeat": 0, "fold": 1, "error": "RuntimeError('out of luck')"}]
    (tmp_path / "fail").unlink()
    mended = run(tmp_path / "a", **arguments)
    assert [row["fold"] for row in mended.folds] == [0, 1, 2]
    assert "failed" not in json.loads((tmp_path / "a" / "summary.json").read_text())
    assert mended.folds[0] == result.folds[0]
    expected = run(tmp_path / "b", **{**arguments, "n_jobs": 1})
    assert mended.values("val/loss") == expected.values("val/loss")


# After the one above, whose worker processes end here.
@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.processes
def test_a_failing_fold_is_named(tmp_path, n_jobs):
    (tmp_path / "fail").touch()
    with pytest.raises(RuntimeError, match="fold 1: out of luck"):
        run(tmp_path / "a", lambda: Fails(64, 10, hidden=[8]), n_jobs=n_jobs, num_folds=3)
    assert not (tmp_path / "a" / "summary.json").exists()


def test_all_folds_failing_is_an_error(tmp_path):
    class Always(MLPClassifier):
        def training_step(self, batch, batch_idx):
            raise FloatingPointError("no luck at all")

    with pytest.raises(FloatingPointError, match="fold 0: no luck at all"):
        run(tmp_path / "a", lambda: Always(64, 10), on_error="continue")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_jobs": 0}, "n_jobs=0"),
        ({"n_jobs": 2, "trainer": {"devices": 2}}, "n_jobs=2 gives each fold a process"),
        ({"n_jobs": 2, "trainer": {"strategy": "ddp"}}, "strategy='ddp'"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "a", **arguments)
    assert not (tmp_path / "a").exists()


def test_the_summary_is_a_run_of_the_group(tmp_path):
    result = run(tmp_path / "cv", logger="wandb", figures=True, log_checkpoints=True)
    runs = {one["job_type"]: one for one in read_runs(tmp_path / "cv")}
    summary = runs["summary"]
    assert (summary["group"], summary["name"]) == ("cv", "cv-summary")
    assert summary["finished"]
    for metric in ("val/loss", "val/accuracy"):
        assert summary["summary"][f"{metric}/mean"] == pytest.approx(result.mean(metric))
        assert summary["summary"][f"{metric}/std"] == pytest.approx(result.std(metric))
    assert summary["summary"]["pooled/accuracy"] == pytest.approx(result.pooled()["accuracy"])
    logged = {key.split("/")[0] for row in summary["history"] for key in row}
    assert {"folds", "confusion_matrix", "learning_curves", "scores"} <= logged
    ids = {one["id"] for one in read_runs(tmp_path / "cv")}
    run_id = json.loads((tmp_path / "cv" / "plan.json").read_text())["run_id"]
    assert ids == {f"{run_id}-0-0", f"{run_id}-0-1", f"{run_id}-summary"}
    assert summary["config"]["model"]["hidden"] == [8]


def test_early_stopping_is_not_forgotten(tmp_path, monkeypatch):
    """A fold killed after its last epoch, before its result was written, trains no more."""
    monkeypatch.setattr("dlblocks.runs.fit.RESUME_SECONDS", 0.0)
    arguments = {
        "make_model": lambda: MLPClassifier(64, 10, hidden=[8], lr=0.5),
        "make_callbacks": lambda: [EarlyStopping("val/loss", patience=0)],
        "trainer": {"max_epochs": 30, "accelerator": "cpu"},
    }
    whole = run(tmp_path / "whole", **arguments)

    def fails(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("dlblocks.runs._run_config.predict_part", fails)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken", **arguments)
    mended = run(tmp_path / "broken", **arguments)
    for one, other in zip(whole.folds, mended.folds, strict=True):
        assert one["epochs"] == other["epochs"] < 30
        assert one["val/loss"] == other["val/loss"]
    assert whole.histories == mended.histories


def test_checkpoints_load_and_predict_the_out_of_fold_predictions(tmp_path):
    result = run(tmp_path / "a", make_callbacks=lambda: [Augment(rotation=5)])
    for row in result.folds:
        model = load(tmp_path / "a" / row["checkpoint"])
        data = DigitsDataModule().for_fold(row["fold"], 2).with_selection(0.15)
        images, _, rows = data.arrays("val")
        mine = result.oof.fold == row["fold"]
        with torch.no_grad():
            expected = model(images).softmax(1)
        order = rows.argsort()
        np.testing.assert_array_equal(result.oof.index[mine], rows[order])
        np.testing.assert_allclose(result.oof.prediction[mine], expected[order], atol=1e-5)
    assert isinstance(model, pl.LightningModule)
