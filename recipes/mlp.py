"""One fit of a multi-layer perceptron on handwritten digits: validation, test, figures.

Result: test accuracy 0.9777 (seed 0, one run, 359 test samples), 11 s (two CPU cores,
torch 2.15, lightning 2.6.6).
"""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping

from dlblocks.cli import run_recipe
from dlblocks.data import DigitsDataModule
from dlblocks.models import MLPClassifier
from dlblocks.runs import fit_and_test, is_rank_zero, next_run_dir


def main(
    hidden: list[int] = [256, 256],  # noqa: B006 - only read
    dropout: float = 0.3,
    max_epochs: int = 60,
    patience: int = 15,
    lr: float = 0.005,
    run_dir: str | None = None,
    logger: Literal["csv", "wandb", "tensorboard", "none"] = "csv",
    fast_dev_run: bool = False,
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str = "32-true",
    seed: int = 0,
) -> None:
    """One fit of a multi-layer perceptron on handwritten digits: validation, test, figures.

    Args:
        hidden: Widths of the hidden layers.
        dropout: Probability with which a hidden unit is dropped.
        max_epochs: Epochs at most.
        patience: Stop after so many epochs without a better validation loss.
        lr: Peak of the one-cycle learning rate.
        run_dir: Where everything goes; by default runs/mlp, or runs/mlp-2 and so on.
        logger: Where to log.
        fast_dev_run: One batch of everything, to see that it runs.
        accelerator: What to train on, as for Lightning's Trainer.
        devices: How many of them, as for Lightning's Trainer.
        precision: Numeric precision, as for Lightning's Trainer.
        seed: Seed of split, initialisation and augmentation.
    """
    seed_everything(seed, workers=True, verbose=False)
    folder = run_dir or next_run_dir("runs/mlp")
    datamodule = DigitsDataModule(split_seed=seed, shuffle_seed=seed)
    model = MLPClassifier(
        in_features=64,
        num_classes=10,
        hidden=hidden,
        norm="batch",
        dropout=dropout,
        optimizer="adamw",
        lr=lr,
        weight_decay=0.02,
        lr_schedule="one_cycle",
    )
    callbacks: list[Callback] = [EarlyStopping("val/loss", patience=patience)]
    metrics = fit_and_test(
        model,
        datamodule,
        callbacks=callbacks,
        trainer={
            "max_epochs": max_epochs,
            "accelerator": accelerator,
            "devices": devices,
            "precision": precision,
            "fast_dev_run": fast_dev_run,
        },
        logger=logger,
        run_dir=folder,
    )
    if is_rank_zero():
        for name, value in metrics.items():
            print(f"{name:<24}{value:.4f}")
        print(f"Everything is in {folder}: summary.json, history.csv, checkpoints/, figures/.")


if __name__ == "__main__":
    run_recipe(main)
