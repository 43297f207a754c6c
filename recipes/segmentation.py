"""One fit of a U-Net on scenes of handwritten digits: a class for each pixel, test, figures.

Result: mean IoU of the test scenes 0.9662 (seed 0) and 0.9558 (seed 1), one run each, 300 scenes
whose digits no training scene has; 201 s of CPU time on one thread (torch 2.14, lightning 2.6.6).
"""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback

from dlblocks.callbacks import Augment
from dlblocks.cli import run_recipe
from dlblocks.data import DigitScenesDataModule
from dlblocks.models import UNetSegmenter
from dlblocks.runs import fit_and_test, is_rank_zero, next_run_dir


def main(
    width: int = 16,
    depth: int = 3,
    loss: str = "cross_entropy+dice",
    num_scenes: int = 1600,
    augment: bool = False,
    max_epochs: int = 20,
    lr: float = 0.01,
    run_dir: str | None = None,
    logger: Literal["csv", "wandb", "tensorboard", "none"] = "csv",
    fast_dev_run: bool = False,
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str = "32-true",
    seed: int = 0,
) -> None:
    """One fit of a U-Net on scenes of handwritten digits: a class for each pixel, test, figures.

    Args:
        width: Channels of the first level.
        depth: How often the map is halved.
        loss: "cross_entropy", "dice", "focal", or a sum of them.
        num_scenes: Scenes for training and validation.
        augment: Small random shifts, rotations and scales; masks move along.
        max_epochs: Epochs.
        lr: Peak of the one-cycle learning rate.
        run_dir: Where everything goes; by default runs/segmentation, or runs/segmentation-2 and so
            on.
        logger: Where to log.
        fast_dev_run: One batch of everything, to see that it runs.
        accelerator: What to train on, as for Lightning's Trainer.
        devices: How many of them, as for Lightning's Trainer.
        precision: Numeric precision, as for Lightning's Trainer.
        seed: Seed of scenes, split, initialisation and augmentation.
    """
    seed_everything(seed, workers=True, verbose=False)
    folder = run_dir or next_run_dir("runs/segmentation")
    datamodule = DigitScenesDataModule(
        num_scenes=num_scenes,
        batch_size=16,
        val_fraction=0.1,
        seed=seed,
        split_seed=seed,
        shuffle_seed=seed,
    )
    model = UNetSegmenter(
        in_channels=1,
        num_classes=11,
        width=width,
        depth=depth,
        loss=loss,
        optimizer="adamw",
        lr=lr,
        weight_decay=0.01,
        lr_schedule="one_cycle",
    )
    model.to(memory_format=torch.channels_last)  # a quarter faster on the CPU
    callbacks: list[Callback] = []
    if augment:
        callbacks.append(Augment(translation=0.05, rotation=10.0, scale=(0.9, 1.1), seed=seed))
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
        monitor="val/iou",
        logger=logger,
        run_dir=folder,
    )
    if is_rank_zero():
        for name, value in metrics.items():
            print(f"{name:<24}{value:.4f}")
        print(f"Everything is in {folder}: summary.json, history.csv, checkpoints/, figures/.")


if __name__ == "__main__":
    run_recipe(main)
