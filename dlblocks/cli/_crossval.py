"""``cross-validate`` and ``nested-cross-validate`` of the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from dlblocks._files import atomic_write, is_rank_zero
from dlblocks.crossval import CrossValidationResult, cross_validate, nested_cross_validate
from dlblocks.crossval._search import grid_points
from dlblocks.data import SplitDataModule
from dlblocks.runs.folder import numbered, writing_beside_plan

CONFIG = "config.yaml"
# Arguments of the Trainer that cross-validation sets by itself.
OWN = ("callbacks", "logger", "default_root_dir", "enable_progress_bar")


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
