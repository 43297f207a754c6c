"""What all tests share: one thread, no W&B account, and a quiet Trainer."""

import functools
import gc
import os
import re

# Before torch starts: many small nets are slower, and less repeatable, on several threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Lightning 2.6 calls what jsonargparse 4.5 has renamed.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
# W&B would list all installed packages in every run, which takes longer than many a fit here.
os.environ.setdefault("WANDB_X_SAVE_REQUIREMENTS", "false")

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities import registry
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)
# Each Trainer asks every installed package for callbacks, which takes longer than many a fit here.
registry.entry_points = functools.cache(registry.entry_points)
# No test loses power. A fit writes some ten files, and each would wait for the disk.
os.fsync = lambda handle: None


def no_address(value: object) -> str:
    """Name a test by a value; with its address, the processes of xdist would differ."""
    return re.sub(r" at 0x\w+", "", str(value))


def pytest_collection_modifyitems(items):
    """Begin with files whose tests share processes, then slow ones, so that all workers end soon.

    joblib's processes serve the next call of the same worker if that comes within five minutes. To
    start two of them takes ten seconds.
    """
    marks = ("processes", "slow")
    files = {mark: {i.path for i in items if i.get_closest_marker(mark)} for mark in marks}
    items.sort(key=lambda item: [item.path not in files[mark] for mark in marks])


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """Keep the garbage collector from the imported modules: a collection takes 0.4 s otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    """Each test works in a folder of its own and knows no W&B account."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "DLBLOCKS_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    torch.manual_seed(0)


@pytest.fixture
def make_trainer():
    """A Trainer that logs nothing and prints nothing."""

    def make(**arguments) -> pl.Trainer:
        settings = {
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_epochs": 1,
        }
        return pl.Trainer(**{**settings, **arguments})

    return make


class Plain(pl.LightningModule):
    """Somebody else's LightningModule: nothing of ours in it. Keeps the batches that it saw."""

    def __init__(self, net: nn.Module | None = None, num_classes: int | None = 3):
        super().__init__()
        self.net = net or nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        if num_classes is not None:
            self.num_classes = num_classes
        self.seen: list = []

    def _pair(self, batch):
        return (batch["x"], batch["y"]) if isinstance(batch, dict) else (batch[0], batch[1])

    def training_step(self, batch, batch_idx):
        x, y = self._pair(batch)
        self.seen.append((x.clone(), y.clone()))
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.fixture
def plain_module():
    return Plain
