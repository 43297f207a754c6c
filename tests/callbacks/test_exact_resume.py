"""A run that was killed, and resumed in new objects, against the run that was not."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dlblocks.callbacks import Augment, ExactResume, MixUp
from dlblocks.data import DigitsDataModule
from dlblocks.models import MLPClassifier

pytestmark = [
    # Shuffling loaders of the user's own, on purpose.
    pytest.mark.filterwarnings("ignore:You called .self.log.'.*'., batch_size"),
    pytest.mark.filterwarnings("ignore:.*ckpt_path=.last.. is set, but there is no last"),
]
EPOCHS, BATCHES = 3, 9


class Rows(Logger):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.rows = []

    @property
    def name(self):
        return "rows"

    @property
    def version(self):
        return 0

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, {key: float(value) for key, value in metrics.items()}))


class Killed(Exception):
    pass


class Kill(pl.Callback):
    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise Killed


class Own(pl.LightningModule):
    """Somebody else's module: dropout, a metric, logs of every kind, two schedulers."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 10)
        )
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=10)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        loss = F.cross_entropy(logits, y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("largest", loss, reduce_fx="max", on_step=False, on_epoch=True)
        self.accuracy(logits, y)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val", F.cross_entropy(self.net(x), y))

    def configure_optimizers(self):
        adam = torch.optim.Adam(self.parameters(), lr=0.01)
        one_cycle = torch.optim.lr_scheduler.OneCycleLR(adam, 0.01, total_steps=200)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, patience=0, threshold=10.0)
        return [adam], [
            {"scheduler": one_cycle, "interval": "step"},
            {
                "scheduler": plateau,
                "monitor": "val",
                "frequency": self.trainer.check_val_every_n_epoch,
            },
        ]


class Noisy(Dataset):
    """Draws from torch's and Python's global generators, as users' transforms do."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        noise = 0.1 * torch.randn(self.x[i].shape) + 0.01 * random.random()
        return self.x[i] + noise, self.y[i]


def setting(kind, workers, persistent):
    pl.seed_everything(1, verbose=False)
    if kind == "ours":
        model = MLPClassifier(64, 10, hidden=[16], dropout=0.3, lr=0.01, lr_schedule="one_cycle")
        data = {"datamodule": DigitsDataModule(batch_size=128, num_workers=workers)}
        return model, data, [Augment(rotation=10), MixUp(0.2)]
    digits = DigitsDataModule()
    (x, y, _), (val_x, val_y, _) = digits.arrays("train"), digits.arrays("val")
    generator = torch.Generator().manual_seed(5) if kind == "generator" else None
    loader = DataLoader(
        Noisy(x / 255, y),
        128,
        shuffle=True,
        num_workers=workers,
        persistent_workers=persistent,
        generator=generator,
    )
    loaders = {
        "train_dataloaders": {"a": loader, "b": DataLoader(TensorDataset(y), 300, shuffle=True)}
        if kind == "combined"
        else loader,
        "val_dataloaders": DataLoader(TensorDataset(val_x / 255, val_y), 128),
    }
    return Pairs() if kind == "combined" else Own(), loaders, []


class Pairs(Own):
    def training_step(self, batch, batch_idx):
        # The second loader is shorter and goes round several times an epoch.
        x, y = batch["a"]
        self.log("other", batch["b"][0].float().mean(), batch_size=1)
        return super().training_step((x, y), batch_idx)


def run(kind, folder, *, workers=0, persistent=False, kill=None, resume=False, **settings):
    model, data, callbacks = setting(kind, workers, persistent)
    callbacks += [ExactResume(folder, every_n_train_steps=2)]
    if kill is not None:
        callbacks.append(Kill(kill))
    log = Rows()
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        callbacks=callbacks,
        logger=log,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **settings,
    )
    if resume:  # a new process would be in another state, too
        torch.manual_seed(777), np.random.seed(778), random.seed(779)
    try:
        trainer.fit(model, **data, ckpt_path="last")
    except Killed:
        pass
    return model, log.rows


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("ours", {}),
        ("ours", {"workers": 2}),
        ("ours", {"accumulate_grad_batches": 2, "val_check_interval": 0.5}),
        ("own", {}),
        ("own", {"workers": 2}),
        ("own", {"workers": 2, "persistent": True}),
        ("own", {"accumulate_grad_batches": 2}),
        ("own", {"val_check_interval": 3}),
        ("own", {"limit_train_batches": 5, "check_val_every_n_epoch": 2}),
        ("generator", {}),
        ("combined", {}),
    ],
    ids=str,
)
def test_resumed_run_is_the_run_that_was_not_killed(kind, settings, tmp_path):
    model, rows = run(kind, tmp_path / "whole", **settings)
    # In the first epoch; in mid-epoch; the first, the last batch of an epoch; in the last epoch.
    per_epoch = settings.get("limit_train_batches", BATCHES)
    for kill in (1, 4, per_epoch - 1, per_epoch, per_epoch + 5, 3 * per_epoch - 1):
        folder = tmp_path / f"killed-{kill}"
        run(kind, folder, kill=kill, **settings)
        resumed, later = run(kind, folder, resume=True, **settings)
        for (name, a), b in zip(
            model.state_dict().items(), resumed.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), (kill, name)
        assert 0 < len(later) <= len(rows)
        assert str(later) == str(rows[-len(later) :]), kill


def test_the_check_can_fail(tmp_path):
    """Without ExactResume, by Lightning's own checkpoint at the same step, weights differ."""

    def fit(folder, kill, ckpt_path):
        model, data, _ = setting("own", 0, False)
        checkpoint = pl.callbacks.ModelCheckpoint(
            folder, save_last=True, save_top_k=0, every_n_train_steps=2
        )
        trainer = pl.Trainer(
            max_epochs=2,
            callbacks=[checkpoint, Kill(kill)],
            logger=False,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(model, **data, ckpt_path=ckpt_path)
        except Killed:
            pass
        return model

    whole = fit(tmp_path / "a", -1, None)
    fit(tmp_path / "b", 5, None)
    with pytest.warns(UserWarning, match="ended before the epoch ended"):
        resumed = fit(tmp_path / "b", -1, "last")
    assert not torch.equal(whole.net[1].weight, resumed.net[1].weight)


def test_kept_states_are_plain_values(tmp_path):
    run("own", tmp_path, kill=6)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    (state,) = checkpoint["callbacks"]["ExactResume"]["ranks"]
    assert state["batches"] == 6 and checkpoint["global_step"] == 6
    assert list(tmp_path.iterdir()) == [tmp_path / "last.ckpt"]


def test_the_file_can_be_resumed_without_the_callback(tmp_path, make_trainer):
    """At an epoch's start Lightning's own counters would make it skip that epoch."""
    run("own", tmp_path, kill=BATCHES)  # written before the first batch of the second epoch
    model, data, _ = setting("own", 0, False)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(model, **data, ckpt_path=tmp_path / "last.ckpt")
    assert trainer.global_step == 2 * BATCHES


def test_a_checkpoint_without_states_is_said(tmp_path, make_trainer, plain_module):
    data = DataLoader(TensorDataset(torch.randn(8, 4), torch.arange(8) % 3), 4)
    trainer = make_trainer()
    trainer.fit(plain_module(), data)
    trainer.save_checkpoint(tmp_path / "plain.ckpt", weights_only=False)
    trainer = make_trainer(
        max_epochs=2, enable_checkpointing=True, callbacks=[ExactResume(tmp_path / "new")]
    )
    with pytest.warns(UserWarning, match="written without ExactResume"):
        trainer.fit(plain_module(), data, ckpt_path=tmp_path / "plain.ckpt")


def test_default_folder_is_found_again_by_a_new_trainer(tmp_path, make_trainer, plain_module):
    data = DataLoader(TensorDataset(torch.randn(8, 4), torch.arange(8) % 3), 4)
    for epochs in (1, 3):
        trainer = make_trainer(
            max_epochs=epochs,
            enable_checkpointing=True,
            logger=True,
            log_every_n_steps=1,
            default_root_dir=tmp_path,
            callbacks=[ExactResume()],
        )
        trainer.fit(plain_module(), data, ckpt_path="last")
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert trainer.global_step == 6


def test_best_checkpoint_stays_the_users(tmp_path, make_trainer):
    model, data, _ = setting("own", 0, False)
    best = pl.callbacks.ModelCheckpoint(tmp_path / "best", monitor="val")
    trainer = make_trainer(
        max_epochs=2,
        enable_checkpointing=True,
        callbacks=[ExactResume(tmp_path / "last"), best],
    )
    trainer.fit(model, **data)
    assert trainer.checkpoint_callback is best and Path(best.best_model_path).exists()


def test_wrong_interval_is_refused():
    with pytest.raises(ValueError, match="every_n_train_steps=0"):
        ExactResume(every_n_train_steps=0)


def test_private_parts_of_lightning_that_it_stands_on():
    """Named here, so that a new Lightning that renames them fails in one clear place."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert trainer.fit_loop._data_fetcher is None
    assert hasattr(trainer.fit_loop.epoch_loop, "_results")
    assert hasattr(torchmetrics.MeanMetric(), "_update_count")


SCRIPT = """
import json, os, signal, sys
import lightning.pytorch as pl, torch
from dlblocks.callbacks import Augment, ExactResume, MixUp
from dlblocks.data import DigitsDataModule
from dlblocks.models import MLPClassifier

folder, kill, devices, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

class Kill(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == kill:
            os.kill(os.getpid(), signal.SIGKILL)

class Rows(pl.Callback):
    rows = []
    def on_train_epoch_end(self, trainer, pl_module):
        self.rows.append({k: v.item() for k, v in trainer.callback_metrics.items()})

if kill >= 0:
    pl.seed_everything(1, workers=True, verbose=False)
model = MLPClassifier(64, 10, hidden=[16], dropout=0.3, lr=0.01, lr_schedule="one_cycle")
trainer = pl.Trainer(
    max_epochs=2, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto",
    logger=False, enable_progress_bar=False, enable_model_summary=False,
    accumulate_grad_batches=2,
    callbacks=[Augment(rotation=10), MixUp(0.2), ExactResume(folder, every_n_train_steps=1), Kill(),
               Rows()],
)
trainer.fit(model, datamodule=DigitsDataModule(batch_size=64, num_workers=workers),
            ckpt_path="last")
if trainer.is_global_zero:
    torch.save(model.state_dict(), f"{folder}/weights.pt")
    with open(f"{folder}/rows.json", "w") as file:
        json.dump(Rows.rows, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices, workers", [(1, 2), (2, 0)])
def test_kill_9(devices, workers, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def start(folder, kill):
        return subprocess.run(
            [sys.executable, script, folder, str(kill), str(devices), str(workers)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )

    whole = start("whole", 1000)
    assert whole.returncode == 0, whole.stderr
    assert start("killed", 13 if devices == 2 else 27).returncode == -signal.SIGKILL
    # Not seeded this time: everything must come from the file.
    resumed = start("killed", -1)
    assert resumed.returncode == 0, resumed.stderr
    a, b = (torch.load(tmp_path / name / "weights.pt") for name in ("whole", "killed"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    rows = [json.loads((tmp_path / name / "rows.json").read_text()) for name in ("whole", "killed")]
    assert rows[1] and rows[1] == rows[0][-len(rows[1]) :]
