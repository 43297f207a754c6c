"""The base of gradient boosting and AdaBoost, and their run folder."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from dlblocks import tracking
from dlblocks._errors import ArgumentError, CheckedConstructor, check_function, check_range, checked
from dlblocks._files import (
    AGAIN,
    SUMMARY,
    DamagedFileError,
    atomic_write,
    is_whole,
    read_record,
    write_record,
    write_rows,
)
from dlblocks._lightning import quick_gpu_check
from dlblocks._quiet import isolated
from dlblocks.data import DataModule
from dlblocks.ensembles._stages import (
    OF_LEARNERS,
    Booster,
    Stages,
    check_stage_trainer,
    self_fitting,
)
from dlblocks.ensembles.results import BoostingResult
from dlblocks.models import Model
from dlblocks.models._checkpoints import write_checkpoint
from dlblocks.runs._plan import begin_run, describe
from dlblocks.runs._progress import FitProgress
from dlblocks.runs._trainer import shows_bar
from dlblocks.runs.folder import in_run_dir
from dlblocks.tasks import Task
from dlblocks.tracking._csv import go_on

LoggerName = Literal["csv", "wandb", "tensorboard", "none"]


class Stagewise(CheckedConstructor, Booster):
    """Fit an ensemble stage by stage.

    `GradientBoosting` and `AdaBoost` define what a stage learns. Arguments are those of
    `GradientBoosting`.
    """

    base: str  # the run folder, where none is given
    kind: str  # the usual class of a learner, for messages
    monitor: str
    mode: Literal["min", "max"]
    task: Task  # of a learner

    @checked
    def __init__(
        self,
        make_learner: Callable[[], nn.Module],
        datamodule: DataModule,
        *,
        num_stages: int = 50,
        patience: int | None = None,
        trainer: Mapping[str, Any] | None = None,
        seed: int = 0,
        logger: LoggerName | None = "csv",
        run_dir: str | PathLike[str] | None = None,
        resume: bool = True,
        progress_bar: bool = True,
    ) -> None:
        check_function("make_learner", make_learner, "lambda: MLPRegressor(10, 1)")
        if not isinstance(datamodule, DataModule):
            raise TypeError(
                f"datamodule is a {type(datamodule).__name__}; {type(self).__name__} needs a "
                "dlblocks.data.DataModule, such as ArrayDataModule(inputs, targets)."
            )
        check_range("num_stages", num_stages, 1)
        if patience is not None:
            check_range("patience", patience, 1)
        self.make_learner, self.datamodule = make_learner, datamodule
        self.num_stages, self.patience, self.seed = num_stages, patience, seed
        self.trainer = check_stage_trainer(trainer)
        self.logger, self.resume = logger, resume
        self.run_dir, self._is_numbered = Path(run_dir or self.base), not run_dir
        self.progress_bar = shows_bar(progress_bar, trainer)
        self.settings: dict[str, Any] = {}

    # Defined by the kinds of boosting, with `begin_stage` and `batch_loss`

    def make_task(self, first: nn.Module, outputs: Tensor | None) -> Task:
        """Make the task that all learners must have.

        Args:
            first: The first learner, or its bare net.
            outputs: Its outputs for two samples; None if it fits itself.
        """
        raise NotImplementedError

    def wrap(self, net: nn.Module) -> Model:
        """Make a learner over a bare net."""
        raise NotImplementedError

    def check_learner(self, task: Any) -> None:
        """Raise a `ValueError` for task settings without effect."""

    def prepare(self) -> None:
        """Check the data, and prepare the first stage."""
        raise NotImplementedError

    def add(self, stage: int, outputs: dict[str, Tensor]) -> dict[str, float] | None:
        """Add the learner of a stage and return its row, or None."""
        raise NotImplementedError

    def make_model(self, num_stages: int) -> Model:
        """Make the ensemble of the first stages."""
        raise NotImplementedError

    def fit(self) -> BoostingResult:
        """Fit all stages.

        Finished stages of a killed fit are loaded, as is a finished fit. The global state of the
        caller is as before afterwards; see `cross_validate`.

        Raises:
            ValueError: The learners or targets do not fit, before anything is trained.
            FileExistsError: `run_dir` holds something else, or a run of another configuration.
            BlockingIOError: Another process works in `run_dir`.
            FloatingPointError: The loss of a learner, or what it puts out, is not finite.
        """
        with isolated():
            self._prepare()
            run_dir = None if self._is_numbered else self.run_dir
            result = in_run_dir(run_dir, self.base, self._fit_in, resume=self.resume)
        self._is_numbered = False  # a further fit is one of this run
        return result

    def _prepare(self) -> None:
        """Check the data and the first learner, before the run folder exists."""
        data = self.datamodule
        data.prepare_data()
        data.setup("fit")
        if data.weights_of("train") is not None or data.balanced_sampling:
            argument = "balanced_sampling" if data.balanced_sampling else "weights"
            raise ValueError(
                f"{type(self).__name__} gives samples weights of its own and does not heed "
                f"{argument}= of {type(data).__name__}; leave it out, or use Bagging."
            )
        if data.is_multilabel:
            raise ValueError(
                f"{type(data).__name__} has several labels a sample, which "
                f"{type(self).__name__} does not boost; use Bagging or DeepEnsemble of classifiers "
                "with multilabel=True."
            )
        if self.patience is not None and not len(data.indices("val")):
            raise ValueError(
                f"patience={self.patience} needs validation samples, and {type(data).__name__} has "
                "none; set val_fraction, or leave patience out."
            )
        pl.seed_everything(self.seed, verbose=False)
        self.learners: list[Model] = []  # of the ensemble
        self.history: list[dict[str, float]] = []
        self.stopped, self._out_of_patience = "", False
        self._seen: set[object] = set()  # learners, nets and weights
        first, outputs = self._made(), None
        if self_fitting(first) is None:  # else it may not know before
            if None in data.input_shape:
                raise ValueError(
                    f"{type(self).__name__} needs inputs of one shape, but the sequences of "
                    f"{type(data).__name__} have unequal lengths; use cross_validate or bagging."
                )
            inputs = data.transform(data.raw_inputs("train")[data.indices("train")[:2]])
            with torch.no_grad():
                outputs = first.eval()(inputs)
        self.task = self.make_task(first, outputs)
        self._first: Model | None = self._checked(first)
        if outputs is not None:
            self.task.check_batch(outputs, torch.zeros_like(outputs))
        self.prepare()
        self._described = describe(
            self._first,
            [],
            data,
            **{"class": type(self).__name__},
            num_stages=self.num_stages,
            patience=self.patience,
            seed=self.seed,
            **self.settings,
            trainer=self.trainer,
            fingerprint=data.fingerprint(),
        )

    def _fit_in(self, path: Path) -> BoostingResult:
        """Run `fit` in a folder that it holds."""
        started = time.monotonic()
        self.run_dir = path
        try:
            ended = read_record(path / SUMMARY, AGAIN)
        except DamagedFileError:  # or missing
            ended = {}
        self._run(has_ended=bool(ended))
        best = self._best_stage()
        # Early stopping keeps the best stages; without it all that were asked for are kept.
        kept = best if self.patience is not None else len(self.learners)
        model = self.make_model(kept).eval()
        model.preprocess.set(**self.datamodule.preprocess.statistics())
        model.data_spec = self.datamodule.encoder.to_plain()
        # With these precisions the weights of learners have another dtype.
        if str(self.trainer.get("precision")) in ("64", "64-true", "bf16-true"):
            model = model.to(torch.get_default_dtype())  # as it is loaded, for inputs as they come
        result = BoostingResult(
            model=model,
            history=self.history,
            best_stage=best,
            stopped=self.stopped,
            seconds=ended.get("seconds", time.monotonic() - started),
            checkpoint=path / "checkpoints" / "best.ckpt",
        )
        if not (ended and is_whole(result.checkpoint)):  # a finished run may be read-only
            self._write(result, kept)
        return result

    def _run(self, *, has_ended: bool) -> None:
        """Fit the stages, or load them."""
        path = self.run_dir
        finished = 0
        while self._checkpoint(finished).is_file():
            finished += 1
        done = self.num_stages if has_ended else finished  # maybe after fewer stages
        run_id = begin_run(
            path, self._described, (done, self.num_stages, "stages"), resume=self.resume
        )
        self.log = tracking.make_logger(
            None if has_ended else self.logger,
            path,
            run_name=path.name,
            job_type="boosting",
            run_id=run_id,
            config={**self._described, "versions": tracking.versions()},
        )
        # Rows that a killed fit has logged are not logged again; a CSV file is written again.
        self._logged = finished or -1
        if isinstance(self.log, CSVLogger):
            go_on(self.log).keep(0)
            self._logged = -1
        self.progress = FitProgress(self.num_stages, "stage", show=self.progress_bar)
        with tracking.finishing(self.log), warnings.catch_warnings(), quick_gpu_check():
            # Each learner has its own optimizer.
            warnings.filterwarnings("ignore", "`LightningModule.configure_optimizers` returned")
            fitter = pl.Trainer(
                **{k: v for k, v in self.trainer.items() if k not in OF_LEARNERS},
                max_epochs=self.num_stages,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=path,
            )
            try:
                fitter.fit(Stages(self))
            finally:
                self.progress.close()
        if self.stopped and not self._out_of_patience:  # which was asked for
            rank_zero_warn(f"{type(self).__name__} stopped: {self.stopped}")

    def _write(self, result: BoostingResult, kept: int) -> None:
        """Write checkpoint, history and summary of `kept` stages."""
        history, epoch = self.run_dir / "history.csv", max(kept - 1, 0)
        write_checkpoint(result.checkpoint, result.model, epoch=epoch, global_step=kept)
        write_rows(history, self.history)
        row = next((r for r in self.history if r["stage"] == kept), {})
        summary = {
            "metrics": {name: {"mean": value} for name, value in row.items() if "/" in name},
            "num_stages": kept,
            "best_stage": result.best_stage,
            "stopped": result.stopped,
            "seconds": result.seconds,
            "config": {"logger": self.logger, **self._described},
            "versions": tracking.versions(),
        }
        write_record(self.run_dir / SUMMARY, summary, [result.checkpoint, history])

    def fitted(self, stage: int) -> Mapping[str, Any] | None:
        path = self._checkpoint(stage)
        if not is_whole(path):
            path.unlink(missing_ok=True)  # it is trained again
            return None
        found: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return found

    def end_stage(self, stage: int, outputs: dict[str, Tensor]) -> bool:
        for part, values in outputs.items():
            if not values.isfinite().all():
                raise FloatingPointError(
                    f"the learner of stage {stage + 1} puts out values for the {part} samples that "
                    "are not finite; lower lr, clip gradients, or see to its fit_samples."
                )
        row = self.add(stage, outputs)
        if row is None:
            return False
        self.learners.append(self._learner)
        self.record({"stage": stage + 1, **row})
        # A resumed fit runs finished learners instead of training them. All else that a stage needs
        # follows from their outputs, so that the fit is bit for bit that without a kill.
        if self.resume and not self._checkpoint(stage).is_file():
            with atomic_write(self._checkpoint(stage)) as file:
                torch.save(self._learner.state_dict(), file)
        best = self._best_stage()
        if self.patience is not None and not self.stopped and stage + 1 - best >= self.patience:
            self._out_of_patience = True
            self.stopped = (
                f"{self.monitor} has not improved for {self.patience} stages, since stage {best}."
            )
        return not self.stopped

    def record(self, row: dict[str, float]) -> None:
        """Keep, show and log the row of a stage."""
        self.history.append(row)
        number = int(row["stage"])
        if number:
            ends = ("/loss", "/accuracy")
            shown = [f"{name} {value:.4g}" for name, value in row.items() if name.endswith(ends)]
            self.progress.update(number - 1, 1.0, " | ".join(shown))
            self.progress.end_fit(1.0)
        if self.log is not None and number > self._logged:
            metrics = {name: value for name, value in row.items() if name != "stage"}
            self.log.log_metrics(metrics, step=number)
            self.log.save()

    def _checkpoint(self, stage: int) -> Path:
        return self.run_dir / "checkpoints" / f"stage-{stage + 1}.ckpt"

    def _best_stage(self) -> int:
        scored = [row for row in self.history if self.monitor in row]
        if not scored:
            return len(self.learners)
        pick = min if self.mode == "min" else max
        return int(pick(scored, key=lambda row: row[self.monitor])["stage"])

    def next_learner(self) -> Model:
        """Return a new learner, at first the one made for checks."""
        learner = self._checked(self._made()) if self._first is None else self._first
        self._first, self._learner = None, learner
        mine: set[object] = {learner, learner.net, *learner.parameters()}
        if mine & self._seen:
            raise ValueError(
                "make_learner returned the same object, or the same weights, twice; build a new "
                "learner in it at each call."
            )
        self._seen |= mine
        return learner

    def _made(self) -> nn.Module:
        """Make a learner, or a bare net."""
        made = self.make_learner()
        is_bare = isinstance(made, nn.Module) and not isinstance(made, pl.LightningModule)
        if not is_bare and not isinstance(getattr(made, "task", None), Task):
            raise ArgumentError(
                f"make_learner returned a {type(made).__name__}; expected a net, or a {self.kind} "
                "over it. A training_step and configure_optimizers of its own would not be called."
            )
        return made

    def _checked(self, made: nn.Module) -> Model:
        """Return the learner, with `made` as its net if that is bare."""
        learner: Any = made if isinstance(made, pl.LightningModule) else self.wrap(made)
        name = type(learner).__name__
        if different := self.task.difference(learner.task):
            raise ValueError(
                f"make_learner returned a {name}, but {type(self).__name__} needs a {self.kind} "
                f"for {type(self.datamodule).__name__}; they have {different}."
            )
        if learner.preprocess.is_set:
            raise ValueError(
                f"make_learner returned a {name} with statistics of its inputs (preprocess), as a "
                "trained model has; the stages use those of the datamodule. Make a new one."
            )
        for hook in ("configure_optimizers", "training_step"):
            if getattr(type(learner), hook) is not getattr(Model, hook):
                raise ValueError(
                    f"{name}.{hook} is its own, and would not be called: a stage takes the "
                    "learner's optimizer, lr, … and the loss of boosting; leave it out."
                )
        if learner.lr_schedule == "plateau":
            raise ValueError(
                "lr_schedule='plateau' watches validation, which learners do not have; use "
                "'constant', 'step', 'cosine' or 'one_cycle'."
            )
        self.check_learner(learner.task)
        return cast(Model, learner)
