"""Runs for the tests of `ExactResume`: of our parts and of somebody else's, killed and resumed."""

import contextlib
import random
import shutil
from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
import torch
import torchmetrics
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchvision.transforms import v2

from dlblocks.callbacks import Augment, ExactResume, MixUp
from dlblocks.data import DigitsDataModule
from dlblocks.models import MLPClassifier

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


class Copy(pl.Callback):
    """Copy the run's folder before some batches: what a process killed there leaves behind."""

    def __init__(self, folder, batches):
        self.folder, self.batches = folder, batches

    def _copy(self, when):
        if when in self.batches:
            shutil.copytree(self.folder, self.folder.with_name(f"killed-{when}"))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._copy(trainer.fit_loop.total_batch_idx)

    def on_train_end(self, trainer, pl_module):
        self._copy("end")


def put_back(folder, kill):
    """In place of a run's folder, put the copy of it: paths in a checkpoint must stay the same."""
    shutil.rmtree(folder)
    folder.with_name(f"killed-{kill}").rename(folder)


class FewDigits(DigitsDataModule):
    """Each eighth digit: a run of as many batches as those of 128 of them all, in less time."""

    def load(self):
        source = super().load()
        return replace(source, inputs=source.inputs[::8], targets=source.targets[::8])


class Own(pl.LightningModule):
    """Somebody else's module: dropout, a metric, logs of every kind, two schedulers."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 10)
        )
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=10)
        self.register_buffer("drawn", torch.zeros(2))

    def on_train_epoch_start(self):
        self.drawn[0] += torch.rand(())

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.drawn[1] += torch.rand(())

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        loss = F.cross_entropy(logits, y)
        size = len(y)
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=size)
        # Summed in a precision that depends on where it is logged first.
        self.log("single", loss.float(), on_step=False, on_epoch=True, batch_size=size)
        self.log("largest", loss, reduce_fx=max, on_step=False, on_epoch=True, batch_size=size)
        if batch_idx == 1:
            # Not logged again: its value at the epoch's end, and at each step, is this one.
            self.log("once", loss, on_step=True, on_epoch=True, batch_size=size)
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
                "frequency": self.trainer.check_val_every_n_epoch or 1,
            },
        ]


class Nudge(pl.Callback):
    """Somebody else's callback, which draws and changes weights wherever it can."""

    def on_train_start(self, trainer, pl_module):
        torch.rand(3)

    def _nudge(self, trainer, pl_module, *args):
        bias = pl_module.net[1].bias
        bias.data += 0.01 * torch.randn(bias.shape)

    on_train_epoch_start = on_train_epoch_end = on_train_batch_end = on_train_end = _nudge


class Frozen(Own):
    """Freezes at the start of the fit, and chooses anew in every epoch."""

    def on_train_start(self):
        self.net[1].requires_grad_(False)

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        self.net[1].requires_grad_(self.current_epoch >= 1)
        self.net[2].train(self.current_epoch != 1)


class Finetuned(Own):
    """For Lightning's `BackboneFinetuning`."""

    backbone = property(lambda self: self.net[:4])

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)


class Stream(IterableDataset):
    """Samples that come without a number of them."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return (self.data[i] for i in torch.randperm(len(self.data)).tolist())


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
        data = FewDigits(
            batch_size=16,
            num_workers=workers,
            train_transform=v2.RandomCrop(8, padding=1),
        )
        return model, {"datamodule": data}, [Augment(rotation=10, noise=0.05), MixUp(0.2)]
    digits = FewDigits()
    (x, y, _), (val_x, val_y, _) = digits.arrays("train"), digits.arrays("val")
    generator = torch.Generator().manual_seed(5) if kind == "generator" else None
    noisy = Noisy(x / 255, y)
    loader = DataLoader(
        Stream(noisy) if kind == "stream" else noisy,
        16,
        shuffle=None if kind == "stream" else True,
        num_workers=workers,
        persistent_workers=persistent,
        generator=generator,
    )
    loaders = {
        "train_dataloaders": {"a": loader, "b": DataLoader(TensorDataset(y), 38, shuffle=True)}
        if kind == "combined"
        else loader,
        "val_dataloaders": DataLoader(TensorDataset(val_x / 255, val_y), 16),
    }
    callbacks = [Nudge()]
    if kind == "finetuned":
        callbacks.append(
            BackboneFinetuning(unfreeze_backbone_at_epoch=1, train_bn=False, verbose=False)
        )
    models = {"combined": Pairs, "frozen": Frozen, "finetuned": Finetuned}
    return models.get(kind, Own)(), loaders, callbacks


class Pairs(Own):
    def training_step(self, batch, batch_idx):
        # The second loader is shorter and goes round several times an epoch.
        x, y = batch["a"]
        self.log("other", batch["b"][0].float().mean(), batch_size=1)
        return super().training_step((x, y), batch_idx)


def run(kind, folder, *, workers=0, persistent=False, kill=None, copy=(), resume=False, **settings):
    model, data, callbacks = setting(kind, workers, persistent)
    callbacks += [ExactResume(folder, every_n_train_steps=2), Copy(folder, copy)]
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
    with contextlib.suppress(Killed):
        trainer.fit(model, **data, ckpt_path="last")
    return model, log.rows
