"""Configure the fits of one run folder."""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn

from dlblocks import tracking
from dlblocks.data import SplitDataModule
from dlblocks.models._predict_batches import NoPredictions
from dlblocks.runs._trainer import new_callbacks, new_module
from dlblocks.runs.predict_part import predict_part
from dlblocks.tasks import PredictionTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Models and callbacks made in this process, by the key of their configuration.
_seen: dict[str, dict[int, weakref.ref[Any]]] = {}


@dataclass(frozen=True)
class FitSpec:
    """The number, name and folder of one of several fits.

    Attributes:
        number: From 0. It is added to the seed.
    """

    number: int

    @property
    def place(self) -> dict[str, int]:
        """First columns of its row, such as ``{"repeat": 0, "fold": 2}``."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """Its name in messages, such as ``"fold 2"``."""
        raise NotImplementedError

    @property
    def folder(self) -> str:
        """Its folder within the run folder, such as ``"fold-2"``."""
        raise NotImplementedError


Spec = TypeVar("Spec", bound=FitSpec)


def fit_seed(seed: int, number: int) -> int:
    """Add the number of a fit to the seed of its run."""
    return seed + number


@dataclass
class RunConfig:
    """Configuration that all fits of a run share.

    Most attributes are arguments of `cross_validate` and `Bagging`.
    """

    make_model: Callable[[], pl.LightningModule]
    make_callbacks: Callable[[], Sequence[Callback]]
    trainer: dict[str, Any]
    monitor: str
    mode: str
    logger: str | None
    run_dir: Path
    seed: int
    resume: bool
    check: Callable[[pl.LightningModule, Sequence[Callback]], None] | None = None
    run_id: str = ""
    tried: bool = False  # whether prediction was tried before a fit
    reason: NoPredictions | None = None  # why it does not work
    warned: bool = False
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    kind: ClassVar[str]  # "fold" or "member"
    part: ClassVar[str]  # the part that is predicted
    predictions_file: ClassVar[str]

    @property
    def checkpoint_name(self) -> str:
        """File name of the weights that a fit keeps."""
        return "best.ckpt"

    def sizes(self, datamodule: SplitDataModule) -> dict[str, Any]:
        """Numbers of samples, as columns of a row."""
        raise NotImplementedError

    def seed_of(self, spec: FitSpec) -> int:
        """Return the seed of a fit."""
        return fit_seed(self.seed, spec.number)

    def about(self, spec: FitSpec) -> dict[str, Any]:
        """Configuration that the logger of a fit shows."""
        return {**spec.place, "seed": self.seed_of(spec)}

    def new_model(self) -> pl.LightningModule:
        """Make a model that shares nothing with those made before."""
        model = new_module(self.make_model)
        self._check_new(model, "make_model", "model")
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._check_new(parameter, "make_model", f"parameter {name}")
        return model

    def new_callbacks(self) -> list[Callback]:
        """Make callbacks, and check that they are new."""
        callbacks = new_callbacks(self.make_callbacks)
        for callback in callbacks:
            self._check_new(callback, "make_callbacks", type(callback).__name__)
        return callbacks

    def _check_new(self, thing: Any, argument: str, what: str) -> None:
        # By identity: callbacks may have an equality of their own.
        seen = _seen.setdefault(self.key, {})
        if id(thing) in seen and seen[id(thing)]() is thing:
            raise ValueError(
                f"{argument} returned the same {what} for two {self.kind}s, which would carry one "
                f"{self.kind}'s training into the next; make it inside the function."
            )
        seen[id(thing)] = weakref.ref(thing)

    def forget(self) -> None:
        """Forget the models and callbacks that were made for this run."""
        _seen.pop(self.key, None)

    def predict(
        self, trainer: pl.Trainer, model: pl.LightningModule, datamodule: SplitDataModule
    ) -> PredictionTable | None:
        """Predict the scored part, or set `reason` and return None."""
        if self.reason is None and len(datamodule.indices(self.part)):
            try:
                return predict_part(trainer, model, datamodule, self.part)
            except NoPredictions as error:
                self.reason = error
                self.warn(error)
        return None

    def warn(self, reason: NoPredictions) -> None:
        """Warn once that a failing prediction leaves the result without `oof`."""
        if reason.failed and not self.warned:
            self.warned = True
            rank_zero_warn(f"result.oof will be None, and the fits go on: {reason}")

    def folder(self, spec: FitSpec) -> Path:
        """The folder of a fit."""
        return self.run_dir / spec.folder

    def new_logger(self, spec: FitSpec, **config: Any) -> Logger | None:
        """Make the logger of a fit.

        Its W&B run is one of the group named after the run folder.

        Args:
            spec: Which fit it is.
            **config: Further entries of its configuration.
        """
        return tracking.make_logger(
            self.logger,
            self.folder(spec),
            run_name=f"{self.run_dir.name}-{spec.folder}".replace("/", "-"),
            group=self.run_dir.name,
            job_type=self.kind,
            run_id="-".join(map(str, (self.run_id, *spec.place.values()))),
            is_part=True,
            config={**self.about(spec), **config},
        )

    def log_summary(
        self,
        config: Mapping[str, Any],
        values: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        figures: Mapping[str, Figure],
        checkpoints: Sequence[Path] = (),
    ) -> None:
        """Log the summary run of a W&B group.

        Other loggers get nothing.

        Args:
            config: Configuration of the run.
            values: Summary of the run, such as ``{"val/accuracy/mean": 0.98}``.
            rows: The table of all fits.
            figures: Figures, by name.
            checkpoints: Files of an artifact of type ``model``.
        """
        name = self.run_dir.name
        logger = tracking.make_logger(
            "wandb" if self.logger == "wandb" else None,
            self.run_dir,
            run_name=f"{name}-summary",
            group=name,
            job_type="summary",
            run_id=f"{self.run_id}-summary",
            config=config,
        )
        if logger is None:
            return
        with tracking.finishing(logger):
            tracking.log_summary(
                logger,
                values=values,
                rows=rows,
                figures=figures,
                checkpoints=checkpoints,
                table=f"{self.kind}s",
            )
