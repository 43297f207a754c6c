"""K-fold cross-validation of a CNN on real handwritten digits.

All 1,797 scanned digits of 8×8 pixels are split into stratified folds. For each fold a new CNN is
trained with small random shifts, rotations and scales. 15 % of its training samples decide when to
stop and which moving average of the weights is kept; the fold's own samples score that once.

Result: accuracy 0.9928 ± 0.0037 over five folds (seed 0), 95 % interval 0.986 … 1. An RBF SVM has
0.9883 ± 0.0050 on the same folds. With `--select fold` the epoch is selected on the scored samples,
as is usual, and the number is 0.9978 ± 0.0036: optimistic, but also from CNNs that train on all of
their samples. About 50 s for the folds (two CPU cores, torch 2.14, lightning 2.6.6). Settings were
chosen by several tries on these folds, with other draws of the augmentation.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging

from dlblocks.callbacks import Augment, CutMix, MixUp
from dlblocks.cli import run_recipe
from dlblocks.crossval import cross_validate
from dlblocks.data import DigitsDataModule
from dlblocks.models import CNNClassifier
from dlblocks.runs import is_rank_zero, next_run_dir, write_json


def main(
    num_folds: int = 5,
    repeats: int = 1,
    n_jobs: int = 1,
    mix: Literal["none", "mixup", "cutmix"] = "none",
    select: Literal["inner", "last", "fold"] = "inner",
    baseline: bool = False,
    max_epochs: int = 30,
    patience: int = 12,
    lr: float = 0.01,
    run_dir: str | None = None,
    logger: Literal["csv", "wandb", "tensorboard", "none"] = "csv",
    fast_dev_run: bool = False,
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str = "32-true",
    seed: int = 0,
) -> None:
    """K-fold cross-validation of a CNN on real handwritten digits.

    Args:
        num_folds: Number of folds.
        repeats: How often to cross-validate, each time with other folds.
        n_jobs: Folds side by side, each in a process of its own.
        mix: Mix pairs of training images, by MixUp or CutMix, or not.
        select: How each fold's epoch is selected: on a part of its training samples, not at all,
            or, with optimistic scores, on the fold itself.
        baseline: Score scikit-learn's RBF support vector machine on the same folds too.
        max_epochs: Epochs at most.
        patience: Stop a fold after so many epochs without a better validation loss.
        lr: Peak of the one-cycle learning rate.
        run_dir: Where everything goes; by default runs/kfold, or runs/kfold-2 and so on. A run
            there that was killed is gone on with.
        logger: Where each fold logs.
        fast_dev_run: One batch of everything, to see that it runs.
        accelerator: What to train on, as for Lightning's Trainer.
        devices: How many of them, as for Lightning's Trainer.
        precision: Numeric precision, as for Lightning's Trainer.
        seed: Seed of folds, initialisation and augmentation.
    """
    datamodule = DigitsDataModule(test_fraction=0.0, split_seed=seed, shuffle_seed=seed)
    folder = run_dir or next_run_dir("runs/kfold", resume=True)

    def make_model() -> CNNClassifier:
        return CNNClassifier(
            in_channels=1,
            num_classes=10,
            channels=[32, 64],
            convs_per_block=2,
            head="flatten",
            image_size=8,
            optimizer="adamw",
            lr=lr,
            weight_decay=0.02,
            lr_schedule="one_cycle",
        )

    def make_callbacks() -> list[Callback]:
        mixers: dict[str, list[Callback]] = {
            "none": [],
            "mixup": [MixUp(alpha=0.2, seed=seed)],
            "cutmix": [CutMix(alpha=1.0, p=0.5, seed=seed)],
        }
        return [
            Augment(translation=0.1, rotation=10.0, scale=(0.9, 1.1), seed=seed),
            *mixers[mix],
            EMAWeightAveraging(decay=0.98),
            *([] if select == "last" else [EarlyStopping("val/loss", patience=patience)]),
        ]

    result = cross_validate(
        make_model,
        datamodule,
        num_folds=num_folds,
        repeats=repeats,
        n_jobs=n_jobs,
        make_callbacks=make_callbacks,
        trainer={
            "max_epochs": max_epochs,
            "accelerator": accelerator,
            "devices": devices,
            "precision": precision,
            "fast_dev_run": fast_dev_run,
        },
        select=select,
        logger=logger,
        run_dir=folder,
        seed=seed,
    )
    if not is_rank_zero():
        return
    print(result.table())
    if baseline:
        scores = [
            support_vector_machine(
                datamodule.for_fold(row["fold"], num_folds, repeat=row["repeat"])
            )
            for row in result.folds
        ]
        mean, std = float(np.mean(scores)), float(np.std(scores, ddof=1))
        print(f"scikit-learn's RBF SVM on the same folds: accuracy {mean:.4f} ± {std:.4f}")
        beside = {"SVM": {"val/accuracy": {"mean": mean, "std": std, "folds": scores}}}
        write_json(result.run_dir / "summary.json", {**result.summary(), "baselines": beside})
    print(f"A page with all of it: {result.report()}")
    print(f"Everything is in {folder}: summary.json, folds.csv, oof.npz, fold-*/, figures/.")


def support_vector_machine(datamodule: DigitsDataModule) -> float:
    """Validation accuracy of an RBF SVM (C=10, gamma=0.001 on pixels 0 … 16) on one fold."""
    from sklearn.svm import SVC

    inputs, targets, _ = datamodule.arrays("train")
    machine = SVC(C=10, gamma=0.001).fit(inputs.flatten(1).numpy() / 255 * 16, targets.numpy())
    inputs, targets, _ = datamodule.arrays("val")
    return float(machine.score(inputs.flatten(1).numpy() / 255 * 16, targets.numpy()))


if __name__ == "__main__":
    run_recipe(main)
