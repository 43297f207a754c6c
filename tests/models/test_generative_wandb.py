"""What Weights & Biases gets of generative models."""

import pytest
import wandb
from wandb_offline import read_runs

from dlblocks.crossval import cross_validate
from dlblocks.data import DigitsDataModule
from dlblocks.models import VAE


@pytest.mark.filterwarnings("ignore:.*Exception ignored in.*yaml")
def test_wandb_gets_the_bits_of_each_fold(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    result = cross_validate(
        lambda: VAE([1, 8, 8], levels=17, latent_dim=2, hidden=[8], importance_samples=2),
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
