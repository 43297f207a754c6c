"""Arguments and work of ``cross-validate`` and ``nested-cross-validate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from dlblocks._files import atomic_write, is_rank_zero
from dlblocks.crossval import CrossValidationResult, cross_validate, nested_cross_validate
from dlblocks.crossval._search import grid_points
from dlblocks.data import SplitDataModule
from dlblocks.runs.fit import Select
from dlblocks.runs.folder import numbered, writing_beside_plan

CROSS_VALIDATE, NESTED = "cross-validate", "nested-cross-validate"
CONFIG = "config.yaml"
# Arguments of the Trainer that cross-validation sets by itself.
OWN = ("callbacks", "logger", "default_root_dir", "enable_progress_bar")


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


class ParsedCLI(Protocol):
    """The part of the CLI that this file needs."""

    subcommand: Any
    config: Any
    config_init: Any
    datamodule: Any
    run_dir: Path

    def _parser(self, subcommand: str | None) -> LightningArgumentParser: ...

    def say(self, text: str) -> None: ...


def cross_validate_by(cli: ParsedCLI, given: dict[str, Any]) -> None:
    """Cross-validate, with a new model and new callbacks for every fold."""
    config = cli.config[cli.subcommand]
    _run(cli, given, partial(cross_validate, lambda: _make(cli, model=config.model).model))


def nested_cross_validate_by(cli: ParsedCLI, given: dict[str, Any]) -> None:
    """Search on inner folds and score on outer ones."""
    grid = given.pop("grid")
    if grid is None:
        raise ValueError(
            "nested-cross-validate needs a grid; give --grid='{lr: [0.01, 0.1]}', with arguments "
            "of the model."
        )
    for point in grid_points(grid):
        _with_arguments(cli, point)  # so that a wrong name or value is an error at once

    def make_model(**point: Any) -> pl.LightningModule:
        made: pl.LightningModule = _make(cli, model=_with_arguments(cli, point)).model
        return made

    _run(cli, given, partial(nested_cross_validate, make_model, grid=grid))


def without_run_dir(config: Namespace) -> Namespace:
    """Return the configuration without the run folder.

    As a file it then repeats the run in a new folder, instead of loading the finished one.
    """
    found: Namespace = config.clone()
    found.run_dir = None
    return found


def _with_arguments(cli: ParsedCLI, point: Mapping[str, Any]) -> Namespace:
    """Return the model's configuration with the arguments of a point, checked."""
    config = cli.config[cli.subcommand].clone()
    for name, value in point.items():
        config.model.init_args[name] = value
    checked: Namespace = cli._parser(cli.subcommand).parse_object(config.as_dict()).model
    return checked


def _make(cli: ParsedCLI, **parts: Namespace) -> Namespace:
    """Create parts of the configuration anew."""
    made: Namespace = cli._parser(cli.subcommand).instantiate_classes(Namespace(**parts))
    return made


def _run(cli: ParsedCLI, given: dict[str, Any], run: Callable[..., CrossValidationResult]) -> None:
    """Run, and write config.yaml and the report.

    Args:
        cli: The command line.
        given: Arguments of the subcommand.
        run: The function, with the arguments that are its own.
    """
    config, arguments = cli.config[cli.subcommand], cli.config_init[cli.subcommand].trainer
    if not isinstance(cli.datamodule, SplitDataModule):
        raise TypeError(
            f"{cli.subcommand} needs a dlblocks DataModule, got {type(cli.datamodule).__name__};"
            " wrap it in a FoldedDataModule."
        )
    refit = given.pop("refit")
    given = {name: value for name, value in given.items() if name not in ("model", "datamodule")}
    callbacks = Namespace(callbacks=config.trainer.callbacks)
    run = partial(
        run,
        datamodule=cli.datamodule,
        make_callbacks=lambda: _make(cli, trainer=callbacks).trainer.callbacks or [],
        trainer={k: v for k, v in vars(arguments).items() if k not in OWN and v is not None},
        monitor=config.monitor,
        mode=config.mode,
        logger=config.logger,
        seed=config.seed_everything,
        progress_bar=arguments.enable_progress_bar is not False,
        **given,
    )
    text = cli._parser(cli.subcommand).dump(without_run_dir(config), skip_none=False)
    with writing_beside_plan(CONFIG, partial(_write, text=text)):
        if config.run_dir is None:
            result = numbered(cli.run_dir, lambda path: run(run_dir=path), resume=True)
        else:
            result = run(run_dir=cli.run_dir)
    cli.run_dir = result.run_dir
    if is_rank_zero():
        result.report()
    cli.say(result.table())
    if refit:
        result.refit()
        (path,) = result.run_dir.glob("refit/**/model.ckpt")
        cli.say(f"The model of all development data is {path}.")
    cli.say(f"The report is {cli.run_dir / 'report.html'}.")
    cli.say(f"Everything is in {cli.run_dir}.")


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as part:
        part.write_text(text)
