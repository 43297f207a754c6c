import csv
import os
import time

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset
from wandb_offline import read_runs

from dlblocks.callbacks import MixUp
from dlblocks.cli import main
from dlblocks.crossval import cross_validate
from dlblocks.data import DigitsDataModule, TabularDataModule
from dlblocks.models import MLPClassifier
from dlblocks.plots import learning_curves
from dlblocks.tracking import (
    LogFirstBatch,
    LogTrainerSettings,
    finish_logger,
    log_figures,
    make_logger,
)
from dlblocks.tracking import _wandb as wandb_log


def fit(logger, max_epochs=2):
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=max_epochs, logger=logger, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.5,
        callbacks=[LogTrainerSettings(), LogFirstBatch(), MixUp(0.4)],
    )  # fmt: skip
    model = MLPClassifier(64, 10, hidden=[16], lr=0.01)
    trainer.fit(model, datamodule=DigitsDataModule(batch_size=300, split_seed=4))
    return trainer


@pytest.fixture(autouse=True)
def _say_again():
    wandb_log._said.clear()


def test_a_relative_folder_is_that_of_the_call_not_where_wandb_was_started(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        logger = make_logger("wandb", "run", run_name=name)
        logger.log_metrics({"x": 1.0}, step=0)
        finish_logger(logger)
        assert [run["name"] for run in read_runs(tmp_path / name)] == [name]


def test_wandb_offline_from_python(tmp_path, capfd):
    before = dict(os.environ)
    logger = make_logger("wandb", tmp_path / "a", run_name="one", group="g", job_type="fit")
    try:
        trainer = fit(logger)
        log_figures([logger], {"curves": learning_curves([[{"epoch": 0, "val/loss": 1.0}]])})
    finally:
        finish_logger(logger)
    second = make_logger("wandb", tmp_path / "b", run_name="two", config={"member": 3})
    try:
        fit(second, max_epochs=1)
    finally:
        finish_logger(second)

    one, two = read_runs(tmp_path)
    assert (one["name"], one["group"], one["job_type"]) == ("one", "g", "fit")
    assert one["project"] == "dlblocks"
    assert one["finished"]
    assert two["finished"]
    assert one["id"] != two["id"]
    losses = [row["val/loss"] for row in one["history"] if "val/loss" in row]
    assert len(losses) == 2
    assert losses[-1] == pytest.approx(float(trainer.callback_metrics["val/loss"]))
    assert len([row for row in two["history"] if "val/loss" in row]) == 1
    assert any(key.startswith("curves") for row in one["history"] for key in row)
    shown = [i for i, row in enumerate(one["history"]) if any("train/batch" in key for key in row)]
    assert shown == [0]
    assert len(list(tmp_path.glob("a/wandb/offline-*/files/media/images/train/batch*.png"))) == 1
    config = one["config"]
    assert config["hidden"] == [16]  # the model's
    assert config["split_seed"] == 4  # the data's
    assert config["trainer"]["max_epochs"] == 2
    assert config["trainer"]["gradient_clip_val"] == 1.5
    assert config["trainer"]["callbacks"]["MixUp"]["alpha"] == 0.4
    assert "torch" in config["versions"]
    assert two["config"]["member"] == 3

    said = capfd.readouterr().err
    assert said.count("no credentials") == 1
    changed = {k for k in os.environ.keys() | before.keys() if os.environ.get(k) != before.get(k)}
    assert "WANDB_MODE" not in changed


def test_wandb_from_the_command_line(tmp_path):
    main([
        "fit", "--model=MLPClassifier", "--model.in_features=64", "--model.num_classes=10",
        "--data=DigitsDataModule", "--data.batch_size=300", "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--logger=wandb",
        "--trainer.enable_model_summary=false", f"--run_dir={tmp_path / 'run'}",
    ])  # fmt: skip
    (run,) = read_runs(tmp_path)
    assert run["finished"]
    assert run["config"]["in_features"] == 64
    assert run["config"]["batch_size"] == 300
    assert run["config"]["trainer"]["max_epochs"] == 1
    assert any("train/batch" in key for key in run["history"][0])


def test_a_run_for_each_fold(tmp_path):
    result = cross_validate(
        lambda: MLPClassifier(64, 10, hidden=[16]), DigitsDataModule(batch_size=300), num_folds=2,
        trainer={"max_epochs": 1, "accelerator": "cpu"}, logger="wandb", figures=False,
        progress_bar=False, run_dir=tmp_path / "cv",
    )  # fmt: skip
    runs = [run for run in read_runs(tmp_path) if run["job_type"] == "fold"]
    assert [run["config"]["fold"] for run in runs] == [0, 1]
    assert {run["group"] for run in runs} == {"cv"}
    assert {run["job_type"] for run in runs} == {"fold"}
    for run, loss in zip(runs, result.values("val/loss"), strict=True):
        assert run["summary"]["val/loss"] == pytest.approx(loss)
        assert any("train/batch" in key for key in run["history"][0])
        assert run["finished"]


def test_no_network_is_found_in_time(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    started = time.monotonic()
    assert wandb_log.wandb_mode() == "offline"
    assert time.monotonic() - started < 10
    assert "does not answer at 127.0.0.1" in capfd.readouterr().err


def test_credentials_in_netrc_count(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    path = tmp_path / "netrc"
    path.write_text("machine 127.0.0.1\n login user\n password " + "0" * 40)
    path.chmod(0o600)
    assert not wandb_log._in_netrc("127.0.0.1")
    monkeypatch.setenv("NETRC", str(path))
    assert wandb_log._in_netrc("127.0.0.1")
    assert not wandb_log._in_netrc("example.org")


def test_csv_and_tensorboard(tmp_path):
    logger = make_logger("csv", tmp_path / "csv", config={"note": "hello"})
    fit(logger)
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row["val/loss"]]) == 2
    hparams = yaml.safe_load((tmp_path / "csv" / "hparams.yaml").read_text())
    assert hparams["lr"] == 0.01
    assert hparams["split_seed"] == 4
    assert hparams["trainer"]["max_epochs"] == 2
    assert hparams["note"] == "hello"

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = make_logger("tensorboard", tmp_path / "tb")
    fit(logger)
    log_figures([logger], {"curves": learning_curves([[{"epoch": 0, "val/loss": 1.0}]])})
    finish_logger(logger)
    events = EventAccumulator(str(tmp_path / "tb" / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("val/loss")) == 2
    assert set(events.Tags()["images"]) == {"train/batch", "curves"}
    assert [event.step for event in events.Images("train/batch")] == [0]


def test_batches_without_images_are_passed_over(tmp_path):
    logger = make_logger("tensorboard", tmp_path)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=logger, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[LogFirstBatch()],
    )  # fmt: skip
    trainer.fit(MLPClassifier(13, 3), datamodule=TabularDataModule("wine"))
    finish_logger(logger)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("drawable", [True, False])
def test_the_picture_of_a_batch_never_stops_a_run(tmp_path, drawable):
    class Data(pl.LightningDataModule):
        class_names = ("a", "b")

        def train_dataloader(self):
            targets = torch.tensor([0, 1, -100, 7])
            return DataLoader(TensorDataset(torch.rand(4, 1, 4, 4), targets), 4)

        def as_images(self, images):
            return images if drawable else images.nonsense()

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch, batch_idx):
            return self.weight * batch[0].mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    logger = make_logger("tensorboard", tmp_path)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=logger, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[LogFirstBatch()],
        log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(Model(), datamodule=Data())
    finish_logger(logger)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert trainer.global_step == 1
    assert events.Tags()["images"] == (["train/batch"] if drawable else [])


def test_no_logger_and_unknown_logger(tmp_path):
    assert make_logger(None, tmp_path) is None
    assert make_logger("none", tmp_path) is None
    finish_logger(None)
    with pytest.raises(ValueError, match="did you mean 'wandb'"):
        make_logger("wandbb", tmp_path)
