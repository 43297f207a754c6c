"""Nested cross-validation of a multi-layer perceptron on the wine data.

178 wines of three growers, 13 measurements each. In each of five outer folds, learning rate and
width are chosen by five inner folds of its training samples alone, then a network of that choice is
trained on all of them and scored on the outer fold: what the whole procedure, the search included,
would score on new wines. The score that the choice had on its inner folds is printed beside it.

Result: accuracy 0.9776 ± 0.0233 over five outer folds (seed 0), where an RBF SVM that is chosen the
same way has 0.9830 ± 0.0155; the loss of what was chosen is 0.03 on the inner folds that chose it,
and 0.21 on the outer ones. 23 s for the 155 fits, the five inner folds of a point trained as one;
19 s by `--engine vectorized`, which measures nothing first, and 66 s by `--engine sequential` (one
run each, the same choices and scores; two CPU cores, torch 2.14, lightning 2.6.6).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from dlblocks.cli import run_recipe
from dlblocks.crossval import nested_cross_validate
from dlblocks.data import TabularDataModule
from dlblocks.models import MLPClassifier
from dlblocks.runs import is_rank_zero, next_run_dir


def main(
    num_folds: int = 5,
    inner_folds: int = 5,
    repeats: int = 1,
    engine: Literal["sequential", "vectorized", "auto"] = "auto",
    n_jobs: int = 1,
    lr: list[float] = [0.001, 0.01, 0.1],  # noqa: B006 - only read
    width: list[int] = [8, 64],  # noqa: B006 - only read
    max_epochs: int = 30,
    run_dir: str | None = None,
    logger: Literal["csv", "wandb", "tensorboard", "none"] = "csv",
    fast_dev_run: bool = False,
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str = "32-true",
    seed: int = 0,
) -> None:
    """Nested cross-validation of a multi-layer perceptron on the wine data.

    Args:
        num_folds: Number of outer folds, which score.
        inner_folds: Number of inner folds, which choose.
        repeats: How often to do it all, each time with other outer folds.
        engine: How the inner folds are run: one after another, as one fit, or as is faster.
        n_jobs: Inner folds side by side, each in a process of its own.
        lr: Learning rates to choose from.
        width: Widths of the hidden layer to choose from.
        max_epochs: Epochs at most; how many, the inner folds decide.
        run_dir: Where everything goes; by default runs/nested_kfold, or runs/nested_kfold-2 and so
            on. A run there that was killed is gone on with.
        logger: Where the model of each outer fold logs.
        fast_dev_run: One batch of everything, to see that it runs.
        accelerator: What to train on, as for Lightning's Trainer.
        devices: How many of them, as for Lightning's Trainer.
        precision: Numeric precision, as for Lightning's Trainer.
        seed: Seed of folds and initialisation.
    """
    datamodule = TabularDataModule(
        "wine", test_fraction=0.0, batch_size=32, split_seed=seed, shuffle_seed=seed
    )
    folder = run_dir or next_run_dir("runs/nested_kfold", resume=True)

    def make_model(lr: float, width: int) -> MLPClassifier:
        return MLPClassifier(
            in_features=13, num_classes=3, hidden=[width], optimizer="adamw", lr=lr
        )

    result = nested_cross_validate(
        make_model,
        datamodule,
        {"lr": lr, "width": width},
        num_folds=num_folds,
        inner_folds=inner_folds,
        repeats=repeats,
        engine=engine,
        n_jobs=n_jobs,
        trainer={
            "max_epochs": max_epochs,
            "accelerator": accelerator,
            "devices": devices,
            "precision": precision,
            "fast_dev_run": fast_dev_run,
        },
        monitor="val/loss",
        logger=logger,
        run_dir=folder,
        seed=seed,
    )
    if not is_rank_zero():
        return
    print(result.table())
    inner = np.mean([choice["mean"] for choice in result.choices])
    print(
        f"Loss of what was chosen: {inner:.4f} on the inner folds that chose it, "
        f"{result.mean('val/loss'):.4f} on the outer folds."
    )
    inner, scores = support_vector_machine(datamodule, num_folds, inner_folds, repeats)
    print(
        f"scikit-learn's RBF SVM, its C and gamma chosen on the same inner folds: accuracy "
        f"{np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f} (inner folds: {inner:.4f})"
    )
    print(f"A page with all of it: {result.report()}")
    print(
        f"Everything is in {folder}: summary.json, folds.csv, search.csv, oof.npz, fold-*/, "
        "figures/."
    )


def support_vector_machine(
    datamodule: TabularDataModule, num_folds: int, inner_folds: int, repeats: int
) -> tuple[float, list[float]]:
    """Nested cross-validation of an RBF SVM: its mean inner, and its outer accuracies."""
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    grid = {"svc__C": [0.1, 1, 10, 100], "svc__gamma": [0.001, 0.01, 0.1]}
    folds = StratifiedKFold(inner_folds, shuffle=True, random_state=datamodule.split_seed)
    inner, outer = [], []
    for repeat in range(repeats):
        for fold in range(num_folds):
            part = datamodule.for_fold(fold, num_folds, repeat=repeat)
            search = GridSearchCV(make_pipeline(StandardScaler(), SVC()), grid, cv=folds)
            inputs, targets, _ = part.arrays("train")
            search.fit(inputs.numpy(), targets.numpy())
            inner.append(search.best_score_)
            inputs, targets, _ = part.arrays("val")
            outer.append(search.score(inputs.numpy(), targets.numpy()))
    return float(np.mean(inner)), outer


if __name__ == "__main__":
    run_recipe(main)
