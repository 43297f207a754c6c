"""The base of gradient boosting and AdaBoost, and their run folder."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from tqdm import tqdm

from dlblocks import tracking
from dlblocks._errors import (
    CheckedConstructor,
    check_function,
    check_range,
    check_whole,
    checked,
    did_you_mean,
)
from dlblocks._files import (
    PLAN,
    SUMMARY,
    atomic_write,
    is_whole,
    write_json,
    write_rows,
)
from dlblocks._lightning import quick_gpu_check
from dlblocks._quiet import isolated
from dlblocks.data import DataModule
from dlblocks.ensembles._stages import Stages, Task, seed_all, self_fitting
from dlblocks.models import Model
from dlblocks.models import _checkpoints as checkpoints
from dlblocks.optim.factory import optimizer_spec
from dlblocks.runs._plan import begin_run, describe
from dlblocks.runs._trainer import plain_trainer, shows_bar
from dlblocks.runs.folder import in_run_dir
from dlblocks.tracking._csv import go_on

LoggerName = Literal["csv", "wandb", "tensorboard", "none"]
# Methods of a learner that a stage does not call.
HOOKS = ("configure_optimizers", "training_step")
# Precisions that the weights of the learners have, too.
TRUE_PRECISIONS = ("64", "64-true", "bf16-true")
# Arguments of the Trainer that mean for a stage what they mean for a fit.
TRAINER = (
    "max_epochs", "gradient_clip_val", "gradient_clip_algorithm", "accelerator", "devices",
    "precision", "deterministic", "benchmark", "detect_anomaly",
)  # fmt: skip
DEFAULT_EPOCHS = 10
SHOWN = ("/loss", "/accuracy")  # in the progress bar


@dataclass
class BoostingResult:
    """The result of boosting.

    Attributes:
        model: The ensemble, one model, in evaluation mode: for ``Trainer.test``, ``predict``,
            ``staged_predict(inputs)``. Like any model, it takes raw inputs.
        history: One row a stage: its number from 1, the losses or accuracies of the ensemble after
            it, and what was found of its learner.
        best_stage: The stage of the best validation score, or the last one without validation.
        stopped: Why there are fewer stages than were asked for, or "".
        seconds: Duration of the fit.
        checkpoint: The model's checkpoint, for `dlblocks.models.load`.
    """

    model: Model
    history: list[dict[str, float]]
    best_stage: int
    stopped: str
    seconds: float
    checkpoint: Path


class Stagewise(CheckedConstructor):
    """Fit an ensemble stage by stage.

    `GradientBoosting` and `AdaBoost` define what a stage learns. Arguments are those of
    `GradientBoosting`.
    """

    kind: type[Model]  # of the learners
    base: str  # the run folder, where none is given
    monitor: str
    mode: Literal["min", "max"]

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
        name = type(self).__name__
        check_function("make_learner", make_learner, "lambda: MLPRegressor(10, 1)")
        if not isinstance(datamodule, DataModule):
            raise TypeError(
                f"datamodule is a {type(datamodule).__name__}; {name} needs a "
                "dlblocks.data.DataModule, such as ArrayDataModule(inputs, targets)."
            )
        check_whole("num_stages", num_stages, 1)
        check_whole("seed", seed, 0)
        if patience is not None:
            check_whole("patience", patience, 1)
        self.make_learner, self.datamodule = make_learner, datamodule
        self.num_stages, self.patience, self.seed = num_stages, patience, seed
        self.trainer = _check_trainer(trainer)
        self.logger = logger
        self.run_dir, self._is_numbered = Path(run_dir or self.base), not run_dir
        self.progress_bar = shows_bar(progress_bar, trainer)
        self.resume = resume
        self.settings: dict[str, Any] = {}

    # Defined by the kinds of boosting

    def prepare(self) -> None:
        """Check the data, and prepare the first stage."""
        raise NotImplementedError

    def width(self) -> tuple[int, ...]:
        """Return the allowed numbers of outputs of a learner."""
        raise NotImplementedError

    def wrap(self, net: nn.Module) -> Model:
        """Make a learner over a bare net."""
        raise NotImplementedError

    def begin_stage(self, stage: int) -> Task | None:
        raise NotImplementedError

    def batch_loss(
        self, learner: Any, outputs: Tensor, targets: Tensor, weights: Tensor | None
    ) -> Tensor:
        raise NotImplementedError

    def add(self, stage: int, outputs: dict[str, Tensor]) -> dict[str, float] | None:
        """Add the learner of a stage, or return None to refuse it."""
        raise NotImplementedError

    def make_model(self, num_stages: int) -> Model:
        """Make the ensemble of the first stages."""
        raise NotImplementedError

    # The fit

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
        if data.weights_of("train") is not None:
            raise ValueError(
                f"{type(self).__name__} gives samples weights of its own and does not heed those "
                f"of {type(data).__name__}; leave weights= out, or use Bagging."
            )
        if data.is_multilabel:
            raise ValueError(
                f"{type(data).__name__} has several labels a sample, which "
                f"{type(self).__name__} does not boost; use Bagging or DeepEnsemble of classifiers "
                "with multilabel=True."
            )
        if data.balanced_sampling:
            raise ValueError(
                f"balanced_sampling=True has no effect on {type(self).__name__}, which decides by "
                "its own weights what a learner sees; leave it out, or use Bagging."
            )
        if self.patience is not None and not len(data.indices("val")):
            raise ValueError(
                f"patience={self.patience} needs validation samples, and {type(data).__name__} has "
                "none; set val_fraction, or leave patience out."
            )
        seed_all(self.seed)
        self.learners: list[Model] = []  # of the ensemble
        self._made: list[Model] = []
        self.history: list[dict[str, float]] = []
        self.stopped, self._out_of_patience = "", False
        self._first: Model | None = self._new_learner()
        self._check_width(self._first)
        self.prepare()

    def _fit_in(self, path: Path) -> BoostingResult:
        started = time.monotonic()
        self.run_dir = path
        self._files = _StageFiles(path, resume=self.resume)
        self._run(path)
        return self._finish(path, started)

    def _finish(self, path: Path, started: float) -> BoostingResult:
        best = self._best_stage()
        # Early stopping keeps the best stages; without it all that were asked for are kept.
        kept = best if self.patience is not None else len(self.learners)
        model = self.make_model(kept).eval()
        model.preprocess.set(**self.datamodule.preprocess.statistics())
        model.data_spec = self.datamodule.encoder.to_plain()
        if str(self.trainer.get("precision")) in TRUE_PRECISIONS:
            model = model.to(torch.get_default_dtype())  # as it is loaded, for inputs as they come
        ended = self._files.seconds()
        seconds = time.monotonic() - started if ended is None else ended
        checkpoint = path / "checkpoints" / "best.ckpt"
        if ended is not None and is_whole(checkpoint):  # the folder may be read-only
            return BoostingResult(model, self.history, best, self.stopped, seconds, checkpoint)
        checkpoints.write_checkpoint(checkpoint, model, epoch=max(kept - 1, 0), global_step=kept)
        write_rows(path / "history.csv", self.history)
        row = next((r for r in self.history if r["stage"] == kept), {})
        write_json(
            path / "summary.json",
            {
                "metrics": {name: {"mean": value} for name, value in row.items() if "/" in name},
                "num_stages": kept,
                "best_stage": best,
                "stopped": self.stopped,
                "seconds": seconds,
                "config": self._configuration(),
                "versions": tracking.versions(),
            },
        )
        return BoostingResult(model, self.history, best, self.stopped, seconds, checkpoint)

    def _run(self, path: Path) -> None:
        ended = self._files.seconds() is not None  # maybe after fewer stages
        done = self.num_stages if ended else self._files.finished()
        run_id = begin_run(
            path, self._plan(), (done, self.num_stages, "stages"), resume=self.resume
        )
        arguments = dict(self.trainer)
        stages = Stages(
            self,
            self.datamodule,
            epochs=arguments.pop("max_epochs"),
            clip=arguments.pop("gradient_clip_val", None) or 0.0,
            clip_by_value=arguments.pop("gradient_clip_algorithm", None) == "value",
            seed=self.seed,
        )
        self.log = tracking.make_logger(
            None if self._files.seconds() is not None else self.logger,
            path,
            run_name=path.name,
            job_type="boosting",
            run_id=run_id,
            config=self._configuration() | {"versions": tracking.versions()},
        )
        # Rows that a killed fit has logged are not logged again; a CSV file is written again.
        self._logged = self._files.finished() or -1
        if isinstance(self.log, CSVLogger):
            go_on(self.log).keep(0)
            self._logged = -1
        self.bar = tqdm(
            total=self.num_stages, unit="stage", dynamic_ncols=True, disable=not self.progress_bar
        )
        try:
            fitter = pl.Trainer(
                **arguments,
                max_epochs=self.num_stages,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=path,
            )
            with warnings.catch_warnings(), quick_gpu_check():
                # Each learner has its own optimizer.
                warnings.filterwarnings("ignore", "`LightningModule.configure_optimizers` returned")
                fitter.fit(stages, train_dataloaders=stages.passes())
        finally:
            self.bar.close()
            tracking.finish_logger(self.log)
        if self.stopped and not self._out_of_patience:  # which was asked for
            rank_zero_warn(f"{type(self).__name__} stopped: {self.stopped}")

    def fitted(self, stage: int) -> Mapping[str, Any] | None:
        return self._files.read(stage)

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
        self.record({"stage": stage + 1, **row})
        self._files.keep(stage, self.learners[-1])
        self.bar.update()
        best = self._best_stage()
        if self.patience is not None and not self.stopped and stage + 1 - best >= self.patience:
            self._out_of_patience = True
            self.stopped = (
                f"{self.monitor} has not improved for {self.patience} stages, since stage {best}."
            )
        return not self.stopped

    def record(self, row: dict[str, float]) -> None:
        """Keep and log the row of a stage."""
        self.history.append(row)
        shown = {name: f"{value:.4g}" for name, value in row.items() if name.endswith(SHOWN)}
        self.bar.set_postfix(shown, refresh=False)
        if self.log is not None and row["stage"] > self._logged:
            metrics = {name: value for name, value in row.items() if name != "stage"}
            self.log.log_metrics(metrics, step=int(row["stage"]))
            self.log.save()

    def _best_stage(self) -> int:
        scored = [row for row in self.history if self.monitor in row]
        if not scored:
            return len(self.learners)
        pick = min if self.mode == "min" else max
        return int(pick(scored, key=lambda row: row[self.monitor])["stage"])

    # Learners

    def next_learner(self) -> Model:
        """Return a new learner; the first was made for checks."""
        learner = self._first if self._first is not None else self._new_learner()
        self._first = None
        mine = {id(p) for p in (*learner.parameters(), learner, learner.net)}
        if any(mine & {id(p) for p in (*m.parameters(), m, m.net)} for m in self._made):
            raise ValueError(
                "make_learner returned the same object, or the same weights, twice; build a new "
                "learner in it at each call."
            )
        self._made.append(learner)
        return learner

    def _new_learner(self) -> Model:
        made = self.make_learner()
        if not isinstance(made, nn.Module):
            raise TypeError(
                f"make_learner returned a {type(made).__name__}; expected a {self.kind.__name__}, "
                "or a net."
            )
        if isinstance(made, pl.LightningModule) and not isinstance(made, Model):
            raise ValueError(
                f"make_learner returned a {type(made).__name__}, whose training_step and "
                f"configure_optimizers would not be called; give a {self.kind.__name__}, such as "
                f"{self.kind.__name__}(net, …) over its net, or the bare net."
            )
        learner = made if isinstance(made, Model) else self.wrap(made)
        if not isinstance(learner, self.kind):
            raise ValueError(
                f"make_learner returned a {type(made).__name__}; {type(self).__name__} needs a "
                f"{self.kind.__name__} here, such as an MLP{self.kind.__name__}."
            )
        if learner.preprocess.is_set:
            raise ValueError(
                f"make_learner returned a {type(learner).__name__} with statistics of its inputs "
                "(preprocess), as a trained model has; the stages use those of the datamodule. "
                "Make a new one."
            )
        for hook in HOOKS:
            if getattr(type(learner), hook) is not getattr(Model, hook):
                raise ValueError(
                    f"{type(learner).__name__}.{hook} is its own, and would not be called: a stage "
                    "takes the learner's optimizer, lr, … and the loss of boosting; leave it out."
                )
        if learner.lr_schedule == "plateau":
            raise ValueError(
                "lr_schedule='plateau' watches validation, which learners do not have; use "
                "'constant', 'step', 'cosine' or 'one_cycle'."
            )
        if issubclass(optimizer_spec(learner.optimizer_name).cls, torch.optim.LBFGS):
            raise ValueError(
                f"optimizer={learner.optimizer_name!r} computes the loss of a batch several "
                "times a step, which the stages of boosting do not; use another."
            )
        self.check_learner(learner)
        return learner

    def check_learner(self, learner: Any) -> None:
        """Raise a `ValueError` if settings of a learner would have no effect."""

    def _check_width(self, learner: Model) -> None:
        if self_fitting(learner) is not None:
            return  # it may not know before
        data = self.datamodule
        inputs = data.transform(data.raw_inputs("train")[data.indices("train")[:2]])
        learner.eval()
        with torch.no_grad():
            shape = tuple(learner(inputs).shape[1:])
        if shape not in [(width,) for width in self.width()]:
            wanted = " or ".join(str(width) for width in self.width())
            raise ValueError(
                f"make_learner returned a {type(learner).__name__} that puts out values of shape "
                f"(N{''.join(f', {size}' for size in shape)}); the targets of "
                f"{type(data).__name__} need (N, {wanted})."
            )

    def _plan(self) -> dict[str, Any]:
        """Describe the configuration for ``plan.json``."""
        assert self._first is not None  # for the type checker
        config = self._configuration()
        return describe(
            self._first,
            [],
            self.datamodule,
            **config["boosting"],
            trainer=config["trainer"],
            fingerprint=self.datamodule.fingerprint(),
        )

    def _configuration(self) -> dict[str, Any]:
        learner = self._first or self._made[0]
        own = {"num_stages": self.num_stages, "patience": self.patience, "seed": self.seed}
        data = self.datamodule
        return {
            "boosting": {"class": type(self).__name__, **own, **self.settings},
            "learner": {"class": type(learner).__name__, **dict(learner.hparams)},
            "trainer": self.trainer,
            "data": {"class": type(data).__name__, **dict(data.hparams_initial)},
        }


def _check_trainer(trainer: Mapping[str, Any] | None) -> dict[str, Any]:
    """Copy the Trainer arguments of stages, and check them."""
    arguments = plain_trainer(trainer)
    arguments.pop("enable_progress_bar", None)
    for name, value in arguments.items():
        if name not in TRAINER:
            hint = did_you_mean(name, TRAINER) or "."
            raise ValueError(
                f"trainer={{{name!r}: {value!r}}} has no meaning for the stages of boosting{hint} "
                f"There are: {', '.join(TRAINER)}."
            )
    epochs = arguments.setdefault("max_epochs", DEFAULT_EPOCHS)
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(
            f"trainer={{'max_epochs': {epochs!r}}} must be at least 1: the passes of each learner "
            "over its samples."
        )
    if arguments.setdefault("devices", 1) not in (1, "1", [0], "auto"):
        raise ValueError(
            f"trainer={{'devices': {arguments['devices']!r}}}, but boosting fits one learner after "
            "another on one device; use devices=1."
        )
    arguments["devices"] = 1 if arguments["devices"] == "auto" else arguments["devices"]
    if str(arguments.get("precision", "")) in ("16", "16-mixed", "16-true"):
        raise ValueError(
            f"trainer={{'precision': {arguments['precision']!r}}} needs its gradients scaled, "
            "which boosting does not do; use 'bf16-mixed' or '32-true'."
        )
    check_range("gradient_clip_val", arguments.get("gradient_clip_val") or 0.0, 0)
    return arguments


class _StageFiles:
    """Keep the weights of each learner, to resume a fit.

    A resumed fit runs the finished learners instead of training them. All else that a stage needs
    follows from their outputs, so that the fit is bit for bit that without a kill. A finished fit
    is loaded in the same way.

    Args:
        run_dir: The run folder.
        resume: Continue a run in it; else no file of a stage is written.
    """

    def __init__(self, run_dir: Path, *, resume: bool) -> None:
        self.run_dir, self.resume = run_dir, resume
        self.resumes = resume and (run_dir / PLAN).is_file()

    def finished(self) -> int:
        """Count the finished stages of the fit to resume."""
        count = 0
        while self.resumes and self._path(count).is_file():
            count += 1
        return count

    def read(self, stage: int) -> Mapping[str, Any] | None:
        """Load the weights of stage 0, 1, …; None if unfinished."""
        path = self._path(stage)
        if not (self.resumes and path.is_file()):
            return None
        if not is_whole(path):
            path.unlink()  # it is trained again
            return None
        found: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return found

    def keep(self, stage: int, learner: Model) -> None:
        """Write the weights of a stage's learner, unless they exist."""
        if self.resume and not self._path(stage).is_file():
            with atomic_write(self._path(stage)) as part:
                torch.save(learner.state_dict(), part)

    def seconds(self) -> float | None:
        """Return the duration of a finished fit, else None."""
        path = self.run_dir / SUMMARY
        if not (self.resumes and path.is_file()):
            return None
        try:
            return float(json.loads(path.read_text())["seconds"])
        except (ValueError, KeyError, TypeError):
            return None  # damaged; it is written again

    def _path(self, stage: int) -> Path:
        return self.run_dir / "checkpoints" / f"stage-{stage + 1}.ckpt"
