"""Lightning's CLI, with the subcommands and arguments of this package."""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from dlblocks import __version__, tracking
from dlblocks._errors import MAX_SEED, check_range, constructor_arguments
from dlblocks._files import PLAN, is_rank_zero, write_json
from dlblocks._quiet import isolated, quiet
from dlblocks.callbacks import ExactResume
from dlblocks.cli._crossval import (
    CONFIG,
    CROSS_VALIDATE,
    NESTED,
    Trainer,
    cross_validate_by,
    nested_cross_validate_by,
    without_run_dir,
)
from dlblocks.cli._parser import KNOWN_BY_DATA, Parser, add_mode_argument, class_at, is_our_model
from dlblocks.data import SplitDataModule
from dlblocks.models._predict_batches import gather, join_batches
from dlblocks.runs._monitor import checking_mode, resolve_mode, saying_what_was_logged
from dlblocks.runs.folder import check_new_run_dir, next_run_dir
from dlblocks.runs.predict_part import predict_part
from dlblocks.tasks import PredictionTable
from dlblocks.tracking._csv import csv_writers

LoggerName = Literal["csv", "wandb", "tensorboard", "none"]
# Subcommands for a trained model.
LOADS = ("validate", "test", "predict")
# Files of a finished run, of which a folder has one.
MARKS = (PLAN, "checkpoints", "metrics.csv")


class CLI(LightningCLI):
    """Lightning's CLI with ``--run_dir``, ``--logger``, ``--monitor`` and ``--mode``."""

    mode: Literal["min", "max"] | None = None  # of a fit that keeps its best epoch

    def __init__(self, args: Sequence[str] | None = None) -> None:
        given = sys.argv[1:] if args is None else args
        every = self.subcommands()
        if given and given[0] in every:
            # Creating the parsers of the other subcommands would take a third of a second.
            vars(self)["subcommands"] = lambda: {given[0]: every[given[0]]}
        super().__init__(
            model_class=pl.LightningModule,
            datamodule_class=pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=Trainer,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={
                "prog": "dlblocks",
                "description": "Train, test and cross-validate models.",
                "version": __version__,
            },
            auto_configure_optimizers=False,
            # Our models save plain hyperparameters themselves, the same in Python and here.
            # Lightning's substitute would also freeze those of the first fold.
            load_from_checkpoint_support=False,
            args=list(args) if args is not None else None,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        ours = {name: {"model", "datamodule"} for name in (CROSS_VALIDATE, NESTED)}
        return {**LightningCLI.subcommands(), **ours}

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        for action in parser._actions:
            if action.dest in ("refit", "log_checkpoints"):  # `--refit` alone means true
                action.nargs, action.const = "?", True
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder of the run; by default runs/<name of the config file>.",
        )
        parser.add_argument(
            "--logger", type=LoggerName, default="csv", help="Where metrics are logged."
        )
        parser.add_argument(
            "--monitor", type=str, default="val/loss", help="Metric that chooses the best epoch."
        )
        add_mode_argument(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with warnings.catch_warnings():
            # A program with its own command line may call `main(args)`.
            warnings.filterwarnings("ignore", "LightningCLI's args parameter")
            super().parse_arguments(parser, args)
        seed = self.config[self.config.subcommand].seed_everything
        if not isinstance(seed, bool) and seed is not None:
            check_range("--seed_everything", seed, 0, MAX_SEED)

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as given.

        Lightning would silently override the flags with the checkpoint's hyperparameters, and
        import the class that the checkpoint names. We compare hyperparameters when the weights are
        loaded.
        """

    def before_instantiate_classes(self) -> None:
        """Refuse to test, validate or predict with random weights.

        ``--ckpt_path=none`` is for a model with weights of its own, such as pretrained ones.
        """
        if self.subcommand not in LOADS:
            return
        config = self.config[self.subcommand]
        given = config.ckpt_path
        if given == "none":
            config.ckpt_path = None
        elif given in (None, "last", "best"):
            name = Path(str((config.config or ["<name>"])[-1])).stem
            said = "" if given is None else f", and --ckpt_path={given} is not one"
            raise ValueError(
                f"dlblocks {self.subcommand} needs the checkpoint of a fit{said}: without it the "
                f"weights are random. Give --ckpt_path=runs/{name}/checkpoints/best.ckpt, or "
                "--ckpt_path=none for a model that has trained weights already."
            )
        elif "://" not in str(given) and not Path(given).exists():
            raise FileNotFoundError(f"--ckpt_path={given} is not a file.")
        elif Path(given).is_file() and not zipfile.is_zipfile(given):
            raise ValueError(f"--ckpt_path={given} is not a checkpoint, or it is truncated.")

    def instantiate_classes(self) -> None:
        """Create datamodule, model and Trainer.

        Missing arguments of our models are filled in from the data.
        """
        read = self._fill_in()
        super().instantiate_classes()
        if read is not None:
            self.datamodule = read  # so that the data are not read twice

    def _fill_in(self) -> SplitDataModule | None:
        """Fill in missing arguments of the model from the data.

        Returns:
            The datamodule if it was created for this, else None.
        """
        config = self.config[self.subcommand]
        cls = class_at(config.model.class_path)
        given = config.model.get("init_args") or {}
        missing = [name for name in KNOWN_BY_DATA if name in given and given[name] is None]
        if given.get("head") != "flatten":  # other heads take images of any size
            missing = [name for name in missing if name != "image_size"]
        if not missing or not is_our_model(cls):
            return None
        with isolated():
            only = Namespace(data=config.data)
            datamodule = self._parser(self.subcommand).instantiate_classes(only).data
            knows = isinstance(datamodule, SplitDataModule)
            if knows and is_rank_zero():
                datamodule.prepare_data()
            known = {name: getattr(datamodule, name, None) for name in missing if knows}
        for name in missing:
            value = known.get(name) or constructor_arguments(cls)[name].default
            if value is inspect.Parameter.empty:
                raise ValueError(
                    f"{cls.__name__} needs {name}, which {type(datamodule).__name__} does not "
                    f"have; give --model.{name}=…, or choose another model."
                )
            given[name] = list(value) if isinstance(value, tuple) else value
        return datamodule if knows else None

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self.config[self.subcommand]
        self.run_dir = self._run_dir(config)
        given = config.trainer
        if given.logger is None:
            logger = tracking.make_logger(config.logger, self.run_dir, run_name=self.run_dir.name)
            kwargs["logger"] = logger or False
        if given.default_root_dir is None:
            kwargs["default_root_dir"] = str(self.run_dir)
        callbacks = list(self.config_init[self.subcommand].trainer.callbacks or [])
        callbacks += [tracking.LogTrainerSettings(), tracking.LogFirstBatch()]
        keeps = (
            self.subcommand == "fit"
            and given.enable_checkpointing is not False
            and not given.fast_dev_run
        )
        if keeps:
            self.mode = resolve_mode(config.monitor, config.mode, lambda: self.model)
        resumable = any(isinstance(c, ExactResume) for c in callbacks)
        if keeps and sum(isinstance(c, ModelCheckpoint) for c in callbacks) == resumable:
            callbacks.append(
                ModelCheckpoint(
                    self.run_dir / "checkpoints",
                    filename="best",
                    monitor=config.monitor,
                    mode=self.mode or "min",
                    save_last=not resumable,
                    enable_version_counter=False,
                )
            )
        with quiet():
            trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        if self.subcommand == "fit" and config.ckpt_path is not None:
            csv_writers(trainer)  # append: Lightning would delete the rows of the killed run
        return trainer

    def _run_dir(self, config: Namespace) -> Path:
        if config.run_dir is None and self.subcommand == "fit" and config.ckpt_path == "last":
            raise ValueError("--ckpt_path=last resumes a run; say which with --run_dir.")
        if config.run_dir is not None:
            # Only a fit needs a new folder. The others may add files to that of their model.
            fills = self.subcommand == "fit" and is_rank_zero()
            resumes = config.get("ckpt_path") is not None
            return (
                check_new_run_dir(config.run_dir) if fills and not resumes else Path(config.run_dir)
            )
        base = _base(config, self.subcommand)
        # A cross-validation may resume an unfinished one in this folder, so it chooses later.
        return base if self.subcommand in (CROSS_VALIDATE, NESTED) else next_run_dir(base)

    def fit(self, **kwargs: Any) -> None:
        """Fit, and print the run folder."""
        monitor = self.config.fit.monitor
        checked: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.mode is not None:
            checked = checking_mode(self.model, monitor, self.mode)
        with self._running(), saying_what_was_logged(self.trainer, monitor), checked:
            self.trainer.fit(**kwargs)
        self.say(f"Everything is in {self.run_dir}.")

    def validate(self, **kwargs: Any) -> None:
        """Validate, print Lightning's table, and write ``validate.json`` into the run folder."""
        self._score(self.trainer.validate, **kwargs)

    def test(self, **kwargs: Any) -> None:
        """Test, print Lightning's table, and write ``test.json`` into the run folder."""
        self._score(self.trainer.test, **kwargs)

    def _score(self, run: Callable[..., Any], **kwargs: Any) -> None:
        with self._running():
            scored = run(**kwargs)
        if not self.trainer.is_global_zero or self.config[self.subcommand].trainer.fast_dev_run:
            return
        # Of several DataLoaders Lightning names the metrics apart.
        metrics = {name: {"mean": float(value)} for each in scored for name, value in each.items()}
        path = self.run_dir / f"{self.subcommand}.json"
        checkpoint = self.config[self.subcommand].ckpt_path
        write_json(path, {"metrics": metrics, "checkpoint": checkpoint})
        self.say(f"Metrics are in {path}.")

    def predict(self, **kwargs: Any) -> None:
        """Predict, and write ``predictions.npz`` into the run folder."""
        with self._running():
            table = self._predict(**kwargs)
        if not self.trainer.is_global_zero:
            return
        path = self.run_dir / "predictions.npz"
        table.write(path)
        self.say(f"Predictions are in {path}: {table}.")

    def _predict(self, **kwargs: Any) -> PredictionTable:
        data = self.datamodule
        if isinstance(data, SplitDataModule):
            data.trainer = self.trainer  # `setup` may use it
            data.setup("predict")
            return predict_part(
                self.trainer,
                self.model,
                data,
                data.predicted_part(),
                targets=False,
                ckpt_path=kwargs.get("ckpt_path"),
            )
        return PredictionTable(join_batches(gather(self.trainer.predict(**kwargs) or [])))

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        try:
            with quiet():
                yield
        finally:
            for logger in self.trainer.loggers:
                tracking.finish_logger(logger)

    def cross_validate(self, **given: Any) -> None:
        """Cross-validate; see `dlblocks.cli._crossval`."""
        cross_validate_by(self, given)

    def nested_cross_validate(self, **given: Any) -> None:
        """Search and score; see `dlblocks.cli._crossval`."""
        nested_cross_validate_by(self, given)

    @staticmethod
    def say(text: str) -> None:
        if is_rank_zero():
            print(text, flush=True)


setattr(CLI, CROSS_VALIDATE, CLI.cross_validate)
setattr(CLI, NESTED, CLI.nested_cross_validate)


def _base(config: Namespace, subcommand: str | None) -> Path:
    """Return the run folder where none is given: ``runs/<name>-<subcommand>``.

    The name is that of the last configuration file, or of the model. A fit has no suffix. A run's
    own ``config.yaml`` stands for the run's folder, so that an unfinished run resumes there and a
    finished one is repeated beside it.
    """
    name, runs, suffix = config.model.class_path.rpartition(".")[2], Path("runs"), f"-{subcommand}"
    if subcommand == "fit":
        suffix = ""
    if config.config:
        file = Path(str(config.config[-1]))
        folder, name = file.parent, file.stem
        is_of_run = file.name == CONFIG and any((folder / mark).exists() for mark in MARKS)
        if is_of_run and folder.name:
            name, runs = folder.name, folder.parent
            if (folder / PLAN).is_file() and subcommand in (CROSS_VALIDATE, NESTED):
                suffix = ""
    return runs / f"{name}{suffix}"


class SaveConfig(SaveConfigCallback):
    """Save a fit's whole configuration as ``config.yaml`` in its folder.

    A resumed run keeps the configuration that it began with. The run folder is left out, so that
    the file repeats the run in a new one.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        super().__init__(parser, without_run_dir(config), **kwargs)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        began = (Path(trainer.log_dir or "") / self.config_filename).is_file()
        if self.config.ckpt_path is None or not trainer.strategy.broadcast(began):
            super().setup(trainer, pl_module, stage)
