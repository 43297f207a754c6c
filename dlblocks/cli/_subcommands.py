"""The arguments of the subcommands that Lightning's Trainer lacks."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl

from dlblocks.runs.fit import Select

CROSS_VALIDATE, NESTED = "cross-validate", "nested-cross-validate"


class Trainer(pl.Trainer):
    """Lightning's Trainer, whose methods are the subcommands with their arguments."""

    def cross_validate(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule | None = None,
        num_folds: int | None = None,
        repeats: int = 1,
        engine: Literal["sequential", "vectorized", "auto"] = "sequential",
        n_jobs: int = 1,
        on_error: Literal["raise", "continue"] = "raise",
        select: Select = "inner",
        selection_fraction: float = 0.15,
        task: str | None = None,
        log_checkpoints: bool = False,
        refit: bool = False,
    ) -> None:
        """Fit and score a new model for each fold of the data.

        After a kill, the same command resumes where it stopped.

        Args:
            model: Created again for every fold.
            datamodule: Created again for every fold.
            num_folds: Number of folds; by default that of the datamodule, else 5.
            repeats: How often to cross-validate, each time with other folds.
            engine: ``"sequential"``, ``"vectorized"`` (all folds as one fit) or ``"auto"``.
            n_jobs: Number of folds that run at the same time, each in its own process.
            on_error: What to do when a fold fails.
            select: How to choose the epoch: on a part of the training samples (``"inner"``), always
                the last (``"last"``), or on the fold itself, which makes its scores optimistic
                (``"fold"``).
            selection_fraction: Share of a fold's training samples that chooses the epoch.
            task: What a model of another package predicts: ``"multiclass"``, ``"multilabel"`` or
                ``"regression"``.
            log_checkpoints: Send the best checkpoints to W&B as an artifact.
            refit: Train one more model on all development data, as long as the folds say.
        """
        raise RuntimeError("cross-validation runs many Trainers; use dlblocks.crossval.")

    def nested_cross_validate(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule | None = None,
        grid: dict[str, list[Any]] | list[dict[str, list[Any]]] | None = None,
        num_folds: int | None = None,
        inner_folds: int | None = None,
        repeats: int = 1,
        engine: Literal["sequential", "vectorized", "auto"] = "sequential",
        n_jobs: int = 1,
        on_error: Literal["raise", "continue"] = "raise",
        select: Select = "fold",
        selection_fraction: float = 0.15,
        task: str | None = None,
        log_checkpoints: bool = False,
        refit: bool = False,
    ) -> None:
        """Choose hyperparameters on inner folds and score them on outer ones.

        After a kill, the same command resumes where it stopped.

        Args:
            model: Created again for every fit.
            datamodule: Created again for every fit.
            grid: Arguments of the model and their values, such as ``{lr: [0.1, 0.01], hidden:
                [[8], [16, 16]]}``; or a list of such grids. Required.
            num_folds: Number of outer folds; by default that of the datamodule, else 5.
            inner_folds: Number of inner folds; by default 5.
            repeats: How often to do it all, each time with other outer folds.
            engine: How the inner folds run: ``"sequential"``, ``"vectorized"`` (all as one fit) or
                ``"auto"``.
            n_jobs: Number of inner folds that run at the same time, each in its own process.
            on_error: What to do when a fit fails.
            select: How an inner fit chooses its epoch: on its inner fold (``"fold"``), on a part of
                its training samples (``"inner"``), or always the last (``"last"``). The outer
                folds score without bias in any case.
            selection_fraction: Share of the training samples that chooses the epoch.
            task: What a model of another package predicts: ``"multiclass"``, ``"multilabel"`` or
                ``"regression"``.
            log_checkpoints: Send the models of the outer folds to W&B as an artifact.
            refit: Search on all development data, and train the choice on them.
        """
        raise RuntimeError("nested cross-validation runs many Trainers; use dlblocks.crossval.")


# LightningCLI looks a subcommand up by its name, and these names are not Python identifiers.
setattr(Trainer, CROSS_VALIDATE, Trainer.cross_validate)
setattr(Trainer, NESTED, Trainer.nested_cross_validate)
