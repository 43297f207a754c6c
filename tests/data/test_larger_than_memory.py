"""Data three times as large as the memory that a process may still take."""

import json
import os

import forked
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="needs Linux's account of memory"
)

MARGIN = 128 * 2**20

# RLIMIT_DATA bounds private writable memory: what is allocated, not what is mapped from a file.
LIMITED = f"""
import json, os, resource, warnings
import numpy as np, torch, lightning.pytorch as pl
from torch import nn
from torch.nn import functional as F
from dlblocks.callbacks import Augment
from dlblocks.data import ArrayDataModule, ImageFolderDataModule

warnings.simplefilter("ignore")
torch.set_num_threads(1)
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # each thread takes a stack


class Model(pl.LightningModule):
    def __init__(self, channels, classes):
        super().__init__()
        self.net = nn.Sequential(
            nn.AvgPool2d(4), nn.Conv2d(channels, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, classes),
        )

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(data, **limits):
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Augment(horizontal_flip=0.5)], **limits,
    )
    trainer.fit(Model(data.in_channels, data.num_classes), datamodule=data)
    return float(trainer.callback_metrics["val/loss"])


def memory(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


# What the first fit of a process takes for good is no part of the margin.
fit(ArrayDataModule(np.zeros((8, 1, 8, 8), np.uint8), np.arange(8) % 2, batch_size=4))
before = memory("VmData")
resource.setrlimit(resource.RLIMIT_DATA, (before + {MARGIN}, before + {MARGIN}))
anonymous, said = memory("RssAnon"), {{}}


def report():
    said["grown"] = memory("RssAnon") - anonymous
    with open("said.json", "w") as file:
        json.dump(said, file)
"""


def run(folder, script):
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        forked.run(exec, LIMITED + script + "\nreport()", {"__name__": "limited"})
    return json.loads((folder / "said.json").read_text())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of images, one of images with the channels last, one of floats; mostly holes."""
    folder = tmp_path_factory.mktemp("files")
    random, count = np.random.default_rng(0), 3 * MARGIN // (3 * 32 * 32)
    np.save(folder / "targets.npy", np.arange(count) % 3)
    for name, shape in (("nchw", (count, 3, 32, 32)), ("nhwc", (count, 32, 32, 3))):
        array = np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=shape
        )
        array[::50] = random.integers(0, 256, (len(array[::50]), *shape[1:]), dtype=np.uint8)
    array = np.lib.format.open_memmap(
        folder / "nan.npy", mode="w+", dtype=np.float32, shape=(count, 3 * 32 * 32 // 4)
    )
    array[count - 7, 5] = np.nan
    return folder


def test_a_fit_on_an_array_file_stays_within_the_limit(files):
    said = run(
        files,
        """
try:  # the limit is one
    ArrayDataModule(np.load("nchw.npy"), "targets.npy").source
except MemoryError:
    said["whole"] = "too large"
said["loss"] = fit(ArrayDataModule("nchw.npy", "targets.npy"), limit_train_batches=20)
turned = np.load("nhwc.npy", mmap_mode="r").transpose(0, 3, 1, 2)
said["turned"] = fit(ArrayDataModule(turned, "targets.npy"), limit_train_batches=20)
""",
    )
    assert said["whole"] == "too large"
    assert 0.5 < said["loss"] < 3
    assert 0.5 < said["turned"] < 3
    assert said["grown"] < MARGIN


def test_the_search_for_a_nan_stays_within_the_limit(files):
    said = run(
        files,
        """
try:
    ArrayDataModule("nan.npy", "targets.npy").setup()
except ValueError as error:
    said["error"] = str(error)
""",
    )
    row = 3 * MARGIN // (3 * 32 * 32) - 7
    assert (
        f"1 value(s) that are not finite, the first (nan) in row {row}, column 5" in said["error"]
    )


def test_decoding_into_a_cache_stays_within_the_limit(tmp_path):
    side = 512
    count = 3 * MARGIN // (3 * side * side)
    for i in range(count):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i % 256, i // 256, 7)).save(path)
    said = run(
        tmp_path,
        f"""
arguments = dict(size={side}, batch_size=2)
try:  # the limit is one
    ImageFolderDataModule("images", **arguments).source
except MemoryError:
    said["whole"] = "too large"
data = ImageFolderDataModule("images", cache="cache", **arguments)
said["loss"] = fit(data, limit_train_batches=5, limit_val_batches=5)
said["pixels"] = [image[:, 400, 400].tolist() for image in data.source.inputs]
""",
    )
    assert said["whole"] == "too large"
    order = [i for part in (0, 1) for i in sorted(range(part, count, 2), key=lambda i: f"{i}.png")]
    assert said["pixels"] == [[i % 256, i // 256, 7] for i in order]
    assert said["grown"] < MARGIN
