"""Create loggers, and log settings, scores and figures of runs."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning
import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info

from dlblocks import __version__
from dlblocks._boxes import are_boxes, box_rows
from dlblocks._errors import check_choice
from dlblocks._files import is_rank_zero
from dlblocks.fields import kinds_of
from dlblocks.tracking._csv import go_on
from dlblocks.tracking._wandb import LenientWandbLogger, wandb_mode, wandb_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LoggerName = Literal["csv", "wandb", "tensorboard", "none"]
LOGGERS = ("csv", "wandb", "tensorboard", "none")


def make_logger(
    name: LoggerName | str | None,
    run_dir: str | os.PathLike[str],
    *,
    project: str | None = None,
    run_name: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    run_id: str | None = None,
    is_part: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Logger | None:
    """Create a logger that writes into `run_dir`.

    ``"csv"`` writes ``metrics.csv``, ``"tensorboard"`` the folder ``tensorboard``, ``"wandb"`` the
    folder ``wandb``. Each call begins a run of its own. End it with `finish_logger`.

    A W&B run is online if there are credentials and the server answers within 3 seconds. Otherwise
    it is offline, a message says so once, and ``wandb sync`` uploads it later. Set ``WANDB_MODE``
    to decide yourself. Losing W&B in mid-run never stops training; see `LenientWandbLogger`. An
    active W&B run of yours is neither used nor finished, but `wandb.log` logs into the new run
    until that is finished.

    ``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_DIR`` and ``WANDB_RUN_GROUP`` are respected. Under
    a sweep agent, which sets ``WANDB_RUN_ID``, the logger uses the agent's run: the active one if
    your function has begun it, else one with that id. W&B then names it.

    Args:
        name: ``"csv"``, ``"wandb"`` or ``"tensorboard"``; ``"none"`` or None for no logger.
        run_dir: Folder of the run. It is created when something is written.
        project: W&B project. The default is ``WANDB_PROJECT``, else ``"dlblocks"``.
        run_name: W&B name of the run.
        group: W&B group, such as all folds of a cross-validation. ``WANDB_RUN_GROUP`` overrides it.
        job_type: W&B job type, such as ``"fold"``.
        run_id: Resume the run with this id, in W&B and in ``metrics.csv``. None for a new run.
        is_part: The run is one of several, such as a fold, and never that of a sweep agent.
        config: Hyperparameters to log in addition to those of model, data and trainer.

    Raises:
        ValueError: The name is unknown.
    """
    name = "none" if name is None else name
    check_choice("logger", name, LOGGERS)
    # Absolute, because wandb's process keeps the working folder it was started in.
    folder = Path(run_dir).absolute()
    logger: Logger
    if name == "none":
        return None
    if name == "csv":
        logger = csv = CSVLogger(folder, name="", version="")
        if run_id is not None and is_rank_zero():
            go_on(csv)  # Lightning would delete the rows of the earlier process
    elif name == "tensorboard":
        logger = TensorBoardLogger(folder, name="tensorboard", version="")
    else:
        if is_rank_zero():
            folder.mkdir(parents=True, exist_ok=True)
        agents = None if is_part else os.environ.get("WANDB_RUN_ID")
        run_id = agents or run_id
        logger = LenientWandbLogger(
            is_part=is_part,
            lent=_active_run(agents),
            save_dir=Path(os.environ.get("WANDB_DIR") or folder).absolute(),
            name=None if agents else run_name,
            project=project or os.environ.get("WANDB_PROJECT") or "dlblocks",
            entity=os.environ.get("WANDB_ENTITY"),
            group=os.environ.get("WANDB_RUN_GROUP") or group,
            job_type=job_type,
            # For this run only. Lightning's offline=True would set WANDB_MODE for the process.
            mode=os.environ.get("WANDB_MODE") or wandb_mode(),
            id=run_id,
            resume=None if run_id is None else "allow",
            # Without it, wandb would return the active run of the process.
            reinit="create_new",
            settings=wandb_settings(),
        )
    if config:
        logger.log_hyperparams(dict(config))
    return logger


def _active_run(run_id: str | None) -> Any:
    """Return the active W&B run if it has this id, else None."""
    if run_id is None or not is_rank_zero():
        return None
    import wandb

    return wandb.run if wandb.run is not None and wandb.run.id == run_id else None


def finish_logger(logger: Logger | None) -> None:
    """End the run of `make_logger`, so that the next one is separate."""
    if isinstance(logger, LenientWandbLogger):
        logger.finish()
    elif isinstance(logger, WandbLogger) and is_rank_zero():
        logger.experiment.finish()
    elif isinstance(logger, TensorBoardLogger) and is_rank_zero():
        logger.experiment.close()


@contextlib.contextmanager
def finishing(logger: Logger | None) -> Iterator[None]:
    """Finish the logger at the end, also after an error."""
    try:
        yield
    finally:
        finish_logger(logger)


class LogTrainerSettings(Callback):
    """Log the Trainer's settings and package versions as hyperparameters."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        for logger in trainer.loggers:
            logger.log_hyperparams({"trainer": trainer_settings(trainer), "versions": versions()})


class LogFirstBatch(Callback):
    """Log a picture of the first training batch to W&B and TensorBoard.

    The picture ``train/batch`` shows labels, masks or boxes and images as the model sees them,
    after augmentation and mixing. Batches other than ``[images, targets, …]`` are skipped. An error
    in drawing or sending never stops a run.

    Args:
        count: Number of images, at most those of one batch.
    """

    def __init__(self, count: int = 16) -> None:
        self.count = count

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step or batch_idx or trainer.current_epoch or not is_rank_zero():
            return
        if not any(
            isinstance(logger, (WandbLogger, TensorBoardLogger)) for logger in trainer.loggers
        ):
            return
        if not (isinstance(batch, (list, tuple)) and len(batch) >= 2):
            return
        images, targets = batch[:2]
        if (
            not isinstance(images, torch.Tensor)
            or images.ndim != 4
            or images.shape[1] not in (1, 3)
        ):
            return
        if not are_boxes(targets):
            if not isinstance(targets, torch.Tensor):
                return
            masks = targets.ndim > 2 and targets.shape[-2:] == images.shape[-2:]
            if not (targets.ndim < 3 or masks):
                return
        try:
            figure = self._draw(images[: self.count], targets[: self.count], trainer)
            log_figures(trainer.loggers, {"train/batch": figure})
        except Exception as error:
            rank_zero_info(f"LogFirstBatch skips the first batch: {error!r}")

    def _draw(self, images: torch.Tensor, targets: Any, trainer: pl.Trainer) -> Figure:
        from dlblocks import plots

        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        as_images = getattr(datamodule, "as_images", lambda images: images.float().cpu())
        names = getattr(datamodule, "class_names", None)
        if are_boxes(targets):
            rows = [each.cpu() for each in box_rows(targets)]
            return plots.boxes(as_images(images).numpy(), rows, class_names=names or [])
        targets = targets.cpu()
        return plots.batch(
            as_images(images).numpy(),
            (targets.float() if targets.is_floating_point() else targets).numpy(),
            names,
            values=None if getattr(datamodule, "is_classification", True) else True,
            ignore_index=getattr(kinds_of(datamodule).get("targets"), "ignore_index", 255),
        )


def trainer_settings(trainer: pl.Trainer) -> dict[str, Any]:
    """Return a Trainer's settings that affect the training, as plain values."""
    return {
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        "precision": str(trainer.precision),
        "accelerator": type(trainer.accelerator).__name__,
        "strategy": type(trainer.strategy).__name__,
        "devices": trainer.num_devices,
        "num_nodes": trainer.num_nodes,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": None
        if trainer.gradient_clip_algorithm is None
        else str(trainer.gradient_clip_algorithm.value),
        "callbacks": {
            type(callback).__name__: plain_attributes(callback)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if type(callback).__module__.startswith(("dlblocks.callbacks", "lightning.pytorch"))
        },
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return {
        "dlblocks": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "lightning": lightning.__version__,
    }


def plain_attributes(thing: Any) -> dict[str, Any]:
    """Return the public plain attributes of an object, such as a callback.

    Callbacks inside of it, as in `OneOf`, are described in the same way.
    """
    plain = (bool, int, float, str)
    found: dict[str, Any] = {}
    for key, value in vars(thing).items():
        if key.startswith("_"):
            continue
        is_list, is_map = isinstance(value, (list, tuple)), isinstance(value, Mapping)
        items = list(value.values() if is_map else value) if is_list or is_map else [value]
        if is_list and items and all(isinstance(item, Callback) for item in items):
            found[key] = [{"class": type(c).__name__, **plain_attributes(c)} for c in items]
        elif all(isinstance(item, plain) for item in items) and (items or is_list):
            found[key] = dict(value) if is_map else value
    return found


def log_scores(loggers: Iterable[Logger], scores: Mapping[str, float]) -> None:
    """Write the final scores of a fit into its W&B summary.

    Without this, the summary would be the last values of the curves.
    """
    for logger in loggers:
        if isinstance(logger, LenientWandbLogger) and is_rank_zero():
            with logger.unless_lost():
                logger.experiment.summary.update(dict(scores))


def log_summary(
    logger: Logger,
    *,
    values: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Figure],
    checkpoints: Sequence[Path] = (),
    table: str = "folds",
) -> None:
    """Log the joint results of several runs to another W&B run.

    Args:
        logger: From ``make_logger("wandb", …, job_type="summary")``. Other loggers are skipped.
        values: Summary of the run, such as ``{"val/accuracy/mean": 0.98}``.
        rows: Rows of the table, one for each run.
        figures: Figures by name.
        checkpoints: Files to log as one artifact of type ``model``.
        table: Name of the table.
    """
    if not (isinstance(logger, LenientWandbLogger) and is_rank_zero()):
        return
    import wandb

    columns: list[Any] = list(dict.fromkeys(key for row in rows for key in row))
    values_of = wandb.Table(columns=columns, data=[[row.get(c) for c in columns] for row in rows])
    logger.log_metrics({table: values_of})
    log_figures([logger], figures)
    if checkpoints:
        logger.log_checkpoints(checkpoints)
    with logger.unless_lost():
        logger.experiment.summary.update(dict(values))


def log_figures(loggers: Iterable[Logger], figures: Mapping[str, Figure]) -> None:
    """Log figures to W&B and TensorBoard."""
    for logger in loggers:
        if not is_rank_zero():
            return
        if isinstance(logger, WandbLogger):
            import wandb

            images: dict[str, Any] = {name: wandb.Image(figure) for name, figure in figures.items()}
            logger.log_metrics(images)
        elif isinstance(logger, TensorBoardLogger):
            for name, figure in figures.items():
                logger.experiment.add_figure(name, figure, close=False)
