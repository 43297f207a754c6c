"""What Weights & Biases gets of generative models."""

import numpy as np
import pytest
import wandb
from PIL import Image
from wandb_offline import read_runs

from dlblocks.crossval import cross_validate
from dlblocks.data import DigitsDataModule
from dlblocks.models import VAE
from dlblocks.runs import fit_and_judge

pytestmark = pytest.mark.filterwarnings("ignore:.*Exception ignored in.*yaml")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    yield
    wandb.teardown()


def vae(num_classes=None):
    return VAE(
        [1, 8, 8], levels=17, latent_dim=2, hidden=[8], importance_samples=2,
        num_classes=num_classes,
    )  # fmt: skip


def test_wandb_gets_the_bits_of_each_fold(tmp_path):
    result = cross_validate(
        vae,
        DigitsDataModule(batch_size=512),
        num_folds=2,
        trainer={"max_epochs": 1, "accelerator": "cpu"},
        run_dir=tmp_path / "cv",
        monitor="val/bits_per_dim",
        logger="wandb",
        figures=False,
    )
    wandb.teardown()
    found = {run["name"]: run for run in read_runs(result.run_dir)}
    assert list(found) == ["cv-fold-0", "cv-fold-1", "cv-summary"]
    for row in result.folds:
        history = found[f"cv-fold-{row['fold']}"]["history"]
        assert row["val/bits_per_dim"] in [each.get("val/bits_per_dim") for each in history]
    summary = found["cv-summary"]["summary"]
    assert summary["val/bits_per_dim/mean"] == pytest.approx(result.mean("val/bits_per_dim"))


def test_wandb_gets_the_samples_and_their_quality(tmp_path):
    scores = fit_and_judge(
        vae(num_classes=10),
        DigitsDataModule(batch_size=512, val_fraction=0.1),
        samplers={"drawn": {}, "means of pixels": {"noisy": False}},
        num_samples=30,
        trainer={"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        logger="wandb",
        run_dir=tmp_path / "run",
    )
    wandb.teardown()
    (run,) = read_runs(tmp_path / "run")
    logged = {
        name.removesuffix("/path"): row
        for row in run["history"]
        for name in row
        if name.endswith("/path")
    }
    assert {"train/batch", "least_likely", "drawn", "means_of_pixels"} == logged.keys()
    pictures = {}
    for name, row in logged.items():
        (file,) = (tmp_path / "run").glob(f"wandb/offline-run-*/files/{row[f'{name}/path']}")
        assert row[f"{name}/_type"] == "image-file"
        assert row[f"{name}/size"] == file.stat().st_size
        with Image.open(file) as image:
            assert image.size == (row[f"{name}/width"], row[f"{name}/height"])
            pictures[name] = np.asarray(image.convert("L").resize((200, 300)), dtype=float)
    for name, other in (("drawn", "means_of_pixels"), ("means_of_pixels", "drawn")):
        with Image.open(tmp_path / "run" / "figures" / f"{name}.png") as image:
            saved = np.asarray(image.convert("L").resize((200, 300)), dtype=float)
        assert np.ptp(saved) > 100  # it shows something
        same, others = (np.abs(pictures[key] - saved).mean() for key in (name, other))
        assert same < others / 3, (same, others)
    quality = {name: value for name, value in scores.items() if name.startswith("drawn/")}
    assert quality and quality == {name: run["summary"][name] for name in quality}
