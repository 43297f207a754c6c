"""The command line of dlblocks.

``dlblocks fit | validate | test | predict | cross-validate --config …`` is Lightning's CLI with one
more subcommand. Each command writes everything into one run folder. ``dlblocks predict RUN --input
FILE`` predicts new data with a trained model.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import sys
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning.pytorch as pl
from jsonargparse import ArgumentParser, Namespace, auto_cli
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from dlblocks import __version__, data, models, tracking
from dlblocks._errors import MAX_SEED, check_range, constructor_arguments, did_you_mean
from dlblocks._files import is_rank_zero
from dlblocks._quiet import isolated, quiet
from dlblocks.callbacks import ExactResume
from dlblocks.crossval import cross_validate
from dlblocks.data import SplitDataModule
from dlblocks.loading import load
from dlblocks.models._checkpoints import is_ours
from dlblocks.models._predict import gather, join_batches
from dlblocks.runs._trainer import checking_mode, resolve_mode, saying_what_was_logged
from dlblocks.runs.fit import Select
from dlblocks.runs.folder import check_new_run_dir, next_run_dir, numbered
from dlblocks.runs.predictions import predict_part
from dlblocks.tasks import PredictionTable
from dlblocks.tracking._csv import csv_writers

LoggerName = Literal["csv", "wandb", "tensorboard", "none"]
CROSS_VALIDATE = "cross-validate"
# Arguments of models that follow from the data.
KNOWN_BY_DATA = (
    "in_features", "num_classes", "in_channels", "out_features", "image_size", "embeddings",
    "vocab_size", "source_vocab_size", "target_vocab_size",
)  # fmt: skip
# Subcommands for a trained model.
LOADS = ("validate", "test", "predict")


class Trainer(pl.Trainer):
    """Lightning's Trainer, with the subcommand's arguments of ``cross-validate``."""

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
        """
        raise RuntimeError("cross-validation runs many Trainers; use dlblocks.crossval.")


# LightningCLI looks a subcommand up by its name, and this name is not a Python identifier.
setattr(Trainer, CROSS_VALIDATE, Trainer.cross_validate)


UNKNOWN_KEY = re.compile(
    r"[Oo]ption '(?P<option>[\w.]+)' is not accepted"
    r"|[Kk]ey '?(?P<key>[\w.]+)'? is not expected"
    r"|not accept option '(?P<nested>[\w.]+)'"
    r"|[Uu]nrecognized arguments: --(?P<flag>[\w.-]+)"
)
CLASS_PATH = re.compile(r"class_path '(?P<path>[\w.]+)'")


# Lines of jsonargparse without information of their own.
FRAME = re.compile(
    r"Parser key \S+:$|Does not validate|Subtypes:|Errors:|Given value"
    r"|Problem with given class_path|Expected a <class 'NoneType'>|Expected a path but"
    r"|Import path .* does not correspond"
)
KEY = re.compile(r'Parser key "(?P<key>[\w.]+)"')
CHOICES = re.compile(
    r"Expected a typing\.Literal\[(?P<of>.+)\](?:\. Got value: (?P<value>.*))?"
    r"|invalid choice: '(?P<invalid>.*)' \(choose from (?P<from>.+)\)"
)
ATTRIBUTE = re.compile(r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>\w+)'")


class _DidYouMean(ArgumentParser):
    """A parser whose errors are one sentence and suggest the nearest key."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        found = UNKNOWN_KEY.search(message)
        if found is not None and "is not known" not in message:
            whole = next(group for group in found.groups() if group)
            names = {part for action in self._actions for part in action.dest.split(".")}
            names |= inspect.signature(pl.Trainer.__init__).parameters.keys()
            for match in CLASS_PATH.finditer(message):
                cls = _class_at(match["path"])
                names = set(constructor_arguments(cls)) if cls else names
            parts = [part for part in whole.split(".") if part != "init_args"]
            key = next((part for part in parts if part not in names), parts[-1])
            place = f"--{whole}: " if found["flag"] else ""
            message = f"{message}\n{place}{key!r} is not known{did_you_mean(key, names) or '.'}"
        if self.exit_on_error and "JSONARGPARSE_DEBUG" not in os.environ:
            print(f"error: {_sentence(message)}", file=sys.stderr)
            self.exit(2)
        super().error(message, ex)


def _sentence(message: str) -> str:
    """Extract the essential line of jsonargparse's error, with its place."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    said = [line for line in lines if line and not FRAME.match(line)]
    if not said:
        return message
    found = next((line for line in said if " is not known" in line), said[0])
    choices, attribute = CHOICES.search(found), ATTRIBUTE.search(found)
    given = next((line for line in lines if line.startswith("Given value: ")), "")
    given = given.removeprefix("Given value: ")
    if choices is not None:
        value = choices["value"] or choices["invalid"] or given
        known = choices["of"] or choices["from"]
        names = re.findall(r"'([^']+)'", known) or re.findall(r"[\w.-]+", known)
        hint = did_you_mean(value, names) or "."
        found = f"{value!r} is not known{hint} Choose from: {', '.join(names)}."
    elif attribute is not None:
        found += did_you_mean(attribute["name"], dir(sys.modules[attribute["module"]])) or "."
    elif found.startswith("Expected a dot import path"):
        name = found.rpartition(" ")[2]
        hint = did_you_mean(name, [*models.__all__, *data.__all__]) or "."
        found = f"{name!r} is not known{hint} Give a class of dlblocks, or another as module.Class."
    elif found.startswith("Expected a "):
        kind = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", found.removeprefix("Expected a "))
        found = f"expected {kind}, got {given!r}."
    keys = ".".join(KEY.findall(message))
    # The first line may hold both a key and the reason.
    found = re.sub(KEY.pattern + ": *", "", found)
    return f"{keys}: {found}" if keys else found


class Parser(_DidYouMean, LightningArgumentParser):
    """Lightning's parser, with hints and without abbreviated names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def add_class_arguments(self, class_type: Any, *args: Any, **kwargs: Any) -> Any:
        """Make arguments of our models optional if the data know them.

        See `CLI.instantiate_classes`.
        """
        added = super().add_class_arguments(class_type, *args, **kwargs)
        for action in self._actions if _is_our_model(class_type) else ():
            if action.dest in added and action.dest.rpartition(".")[2] in KNOWN_BY_DATA:
                action.required, action.default = False, None
                # Older versions of jsonargparse list required arguments here.
                getattr(self, "required_args", set()).discard(action.dest)
                action.help = f"{action.help} Filled in from the data if it is not given."
        return added


def _is_our_model(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, models.Model) and is_ours(cls)


def _class_at(path: str) -> Any:
    """Return an imported class, or None."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


class RecipeParser(_DidYouMean):
    """A recipe's parser with hints, where ``--flag`` alone means ``--flag=true``."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        action = super().add_argument(*args, **kwargs)
        if kwargs.get("type") is bool:
            action.nargs, action.const = "?", True
        return action


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
                "description": __doc__,
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
        return {**LightningCLI.subcommands(), CROSS_VALIDATE: {"model", "datamodule"}}

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
        parser.add_argument(
            "--mode",
            type=Literal["min", "max"] | None,
            default=None,
            help="Which value of it is best; by default the metric's own direction.",
        )

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
        cls = _class_at(config.model.class_path)
        given = config.model.get("init_args") or {}
        missing = [name for name in KNOWN_BY_DATA if name in given and given[name] is None]
        if given.get("head") != "flatten":  # other heads take images of any size
            missing = [name for name in missing if name != "image_size"]
        if not missing or not _is_our_model(cls):
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
        files = config.config or []
        name = Path(str(files[-1])).stem if files else config.model.class_path.rpartition(".")[2]
        suffix = "" if self.subcommand == "fit" else f"-{self.subcommand}"
        base = Path("runs") / f"{name}{suffix}"
        # A cross-validation may resume an unfinished one in this folder, so it chooses later.
        return base if self.subcommand == CROSS_VALIDATE else next_run_dir(base)

    def fit(self, **kwargs: Any) -> None:
        """Fit, and print the run folder."""
        monitor = self.config.fit.monitor
        checked: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.mode is not None:
            checked = checking_mode(self.model, monitor, self.mode)
        with self._running(), saying_what_was_logged(self.trainer, monitor), checked:
            self.trainer.fit(**kwargs)
        self._say(f"Everything is in {self.run_dir}.")

    def validate(self, **kwargs: Any) -> None:
        """Validate, and print Lightning's table."""
        with self._running():
            self.trainer.validate(**kwargs)

    def test(self, **kwargs: Any) -> None:
        """Test, and print Lightning's table."""
        with self._running():
            self.trainer.test(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Predict, and write ``predictions.npz`` into the run folder."""
        with self._running():
            table = self._predict(**kwargs)
        if not self.trainer.is_global_zero:
            return
        path = self.run_dir / "predictions.npz"
        table.write(path)
        self._say(f"Predictions are in {path}: {table}.")

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

    def cross_validate(
        self,
        num_folds: int | None,
        repeats: int,
        engine: Literal["sequential", "vectorized", "auto"],
        n_jobs: int,
        on_error: Literal["raise", "continue"],
        select: Select,
        selection_fraction: float,
        task: str | None,
        log_checkpoints: bool,
        **kwargs: Any,
    ) -> None:
        """Cross-validate, with a new model and new callbacks for every fold."""
        config = self.config[CROSS_VALIDATE]
        own = ("callbacks", "logger", "default_root_dir", "enable_progress_bar")
        arguments = self.config_init[CROSS_VALIDATE].trainer

        def anew() -> Namespace:
            made: Namespace = self.parser.instantiate_classes(self.config)[CROSS_VALIDATE]
            return made

        if not isinstance(self.datamodule, SplitDataModule):
            raise TypeError(
                f"cross-validate needs a dlblocks DataModule, got {type(self.datamodule).__name__};"
                " wrap it in a FoldedDataModule."
            )
        run = partial(
            cross_validate,
            lambda: anew().model,
            self.datamodule,
            num_folds=num_folds,
            repeats=repeats,
            engine=engine,
            n_jobs=n_jobs,
            on_error=on_error,
            select=select,
            selection_fraction=selection_fraction,
            task=task,
            log_checkpoints=log_checkpoints,
            make_callbacks=lambda: anew().trainer.callbacks or [],
            trainer={k: v for k, v in vars(arguments).items() if k not in own and v is not None},
            monitor=config.monitor,
            mode=config.mode,
            logger=config.logger,
            seed=config.seed_everything,
            progress_bar=arguments.enable_progress_bar is not False,
        )
        if config.run_dir is None:
            result = numbered(self.run_dir, lambda path: run(run_dir=path), resume=True)
        else:
            result = run(run_dir=self.run_dir)
        self.run_dir = result.run_dir
        self._say(result.table())
        self._say(f"Everything is in {self.run_dir}.")

    @staticmethod
    def _say(text: str) -> None:
        if is_rank_zero():
            print(text, flush=True)


setattr(CLI, CROSS_VALIDATE, CLI.cross_validate)


class SaveConfig(SaveConfigCallback):
    """Save a fit's whole configuration as ``config.yaml`` in its folder.

    A resumed run keeps the configuration that it began with.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        began = (Path(trainer.log_dir or "") / self.config_filename).is_file()
        if self.config.ckpt_path is None or not trainer.strategy.broadcast(began):
            super().setup(trainer, pl_module, stage)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line, and restore the process's global state afterwards."""
    given = sys.argv[1:] if args is None else list(args)
    with _plain_errors(), isolated(), _classes_of_working_folder():
        if given[:1] == ["predict"] and _is_of_new_data(given[1:]):
            predict_file(given[1:])
        else:
            CLI(args)


def _is_of_new_data(args: Sequence[str]) -> bool:
    """Tell ``predict RUN --input FILE`` from ``predict --config …``."""
    named = any(arg.partition("=")[0] == "--input" for arg in args)
    return named or not args or not args[0].startswith("-") or args[0] in ("-h", "--help")


def predict_file(args: Sequence[str]) -> None:
    """Predict samples in files with a trained model, and write a table."""
    parser = RecipeParser(
        prog="dlblocks predict",
        description="Predict new data with a trained model. To predict the data set of a "
        "configuration, with its targets, use: dlblocks predict --config=FILE --ckpt_path=FILE.",
        allow_abbrev=False,
    )
    parser.add_argument("model", type=str, help="A run folder, a checkpoint, or a saved file.")
    parser.add_argument(
        "--input", type=str, nargs="+", required=True, help="A CSV file, a folder, images, or .npy."
    )
    parser.add_argument(
        "--output", type=str, default="predictions.csv", help="A .csv, .csv.gz or .npz file."
    )
    parser.add_argument(
        "--batch_size", type=int | None, default=None, help="By default that of the training."
    )
    parser.add_argument("--device", type=str, default="auto", help="Such as cpu or cuda:1.")
    parser.add_argument(
        "--id_column", type=str | None, default=None, help="A column that names the rows."
    )
    parser.add_argument(
        "--unseen",
        type=Literal["refuse", "missing"],
        default="refuse",
        help="Refuse categories that were not in the training data, or treat them as missing.",
    )
    parser.add_argument(
        "--module", type=str | None, default=None, help="Your LightningModule: package.Class."
    )
    parser.add_argument(
        "--preprocess",
        type=str | None,
        default=None,
        help="Your function that turns the input into a batch: package.function.",
    )
    parser.add_argument(
        "--coverage",
        type=float | None,
        default=None,
        help="Such as 0.9: add prediction intervals of values, or sets of classes.",
    )
    parser.add_argument("--progress_bar", type=bool, default=True, help="Show a progress bar.")
    given = parser.parse_args(list(args))
    predictor = load(
        given.model, module=_imported(given.module), preprocess=_imported(given.preprocess)
    )
    table = predictor.predict(
        given.input if len(given.input) > 1 else given.input[0],
        batch_size=given.batch_size,
        device=given.device,
        id_column=given.id_column,
        unseen=given.unseen,
        coverage=given.coverage,
        progress_bar=given.progress_bar,
    )
    if given.output.endswith(".npz"):
        table.write(Path(given.output))
    else:
        table.to_csv(given.output)
    print(f"{predictor}\nPredictions of {len(table)} samples are in {given.output}.", flush=True)


def _imported(path: str | None) -> Any:
    """Import the object that a dotted path names."""
    if path is None:
        return None
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path!r} cannot be imported ({error}); give package.name.") from error


@contextlib.contextmanager
def _classes_of_working_folder() -> Iterator[None]:
    """Find modules of the working folder, as ``python -m dlblocks`` does."""
    before = list(sys.path)
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def run_recipe(function: Callable[..., None]) -> None:
    """Run a recipe's function with arguments from the command line.

    The function's signature defines the arguments.
    """
    with _plain_errors():
        auto_cli(function, as_positional=False, parser_class=RecipeParser)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Print a mistake of the user in one line, without a traceback.

    This is only for errors that this package raises on purpose, or the construction of a requested
    class. All others keep their traceback.
    """
    try:
        yield
    except (
        ValueError, TypeError, OSError, FloatingPointError, ModuleNotFoundError,
        MisconfigurationException,
    ) as error:  # fmt: skip
        frames = traceback.extract_tb(error.__traceback__)
        raisers = ("/dlblocks/", "/jsonargparse/", "/lightning/pytorch/trainer/connectors/")
        if not any(raiser in frames[-1].filename.replace("\\", "/") for raiser in raisers):
            raise
        # For an argument with several types, the class's own message is buried among others.
        said = re.findall(r"^ *- (?!Expected a )(.+)$", str(error), flags=re.MULTILINE)
        print(f"error: {said[0] if said else error}", file=sys.stderr)
        raise SystemExit(2) from None
