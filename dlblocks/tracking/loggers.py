"""Where runs are logged: CSV, TensorBoard, Weights & Biases; and what is logged about them."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info

from dlblocks import __version__
from dlblocks._errors import check_choice
from dlblocks._files import is_rank_zero
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
    """Makes a logger that writes into `run_dir`.

    ``"csv"`` writes ``metrics.csv``, ``"tensorboard"`` the folder ``tensorboard``, ``"wandb"`` the
    folder ``wandb``. A W&B run is online if there are credentials and its server answers within 3
    seconds; otherwise it is offline, which is said once, and ``wandb sync`` uploads it later. Set
    ``WANDB_MODE`` to decide yourself. Losing W&B in mid-run never stops training; see
    `LenientWandbLogger`. Every call is a run of its own; end it by `finish_logger`. An active W&B
    run of yours is neither used nor finished; until then `wandb.log` logs into the new run.

    ``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_DIR`` and ``WANDB_RUN_GROUP`` are respected. Under
    a sweep agent, which sets ``WANDB_RUN_ID``, the run is the agent's: the active one if your
    function has begun it, else one of that id. It is then named by W&B.

    Args:
        name: ``"csv"``, ``"wandb"``, ``"tensorboard"``, or ``"none"`` or None for no logger.
        run_dir: The run's folder; made when something is written.
        project: W&B project; by default ``WANDB_PROJECT``, else ``"dlblocks"``.
        run_name: W&B name of the run.
        group: W&B group, such as all folds of a cross-validation; ``WANDB_RUN_GROUP`` overrides it.
        job_type: W&B job type, such as ``"fold"``.
        run_id: A run of this id that was begun before is gone on with, in W&B and in
            ``metrics.csv``. None for a new one.
        is_part: The run is one of several, such as a fold, and never that of a sweep agent.
        config: Hyperparameters to log beside those of model, data and trainer.

    Raises:
        ValueError: There is no such logger.
    """
    name = "none" if name is None else name
    check_choice("logger", name, LOGGERS)
    # Absolute: the process of wandb stays in the folder where it was started.
    folder = Path(run_dir).absolute()
    logger: Logger
    if name == "none":
        return None
    if name == "csv":
        logger = csv = CSVLogger(folder, name="", version="")
        if run_id is not None and is_rank_zero():
            go_on(csv)  # Lightning would delete what the run has written
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
            # Given to the run alone; Lightning's offline=True would set WANDB_MODE for the process.
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
    """The active W&B run if it has this id, else None."""
    if run_id is None or not is_rank_zero():
        return None
    import wandb

    return wandb.run if wandb.run is not None and wandb.run.id == run_id else None


def finish_logger(logger: Logger | None) -> None:
    """Ends what `make_logger` began, so that the next run of this process is another one."""
    if isinstance(logger, LenientWandbLogger):
        logger.finish()
    elif isinstance(logger, WandbLogger) and is_rank_zero():
        logger.experiment.finish()
    elif isinstance(logger, TensorBoardLogger) and is_rank_zero():
        logger.experiment.close()


@contextlib.contextmanager
def finishing(logger: Logger | None) -> Iterator[None]:
    """Finishes the logger at the end, whatever happens inside."""
    try:
        yield
    finally:
        finish_logger(logger)


class LogTrainerSettings(Callback):
    """Logs the Trainer's settings and versions as hyperparameters, beside model's and data's."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        for logger in trainer.loggers:
            logger.log_hyperparams({"trainer": trainer_settings(trainer), "versions": versions()})


class LogFirstBatch(Callback):
    """Sends a picture of the first training batch to the loggers that can show it.

    The images are as the model sees them, after augmentation and mixing, with their labels. W&B
    and TensorBoard get it as ``train/batch``. Batches that are not ``[images, targets, …]`` are
    passed over, as is what cannot be drawn or sent: a picture must never stop a run.

    Args:
        count: How many images, at most a batch.
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
        if not all(isinstance(entry, torch.Tensor) for entry in (images, targets)):
            return
        if images.ndim != 4 or images.shape[1] not in (1, 3) or targets.ndim not in (1, 2):
            return
        try:
            figure = self._draw(images[: self.count], targets[: self.count].cpu(), trainer)
            log_figures(trainer.loggers, {"train/batch": figure})
        except Exception as error:
            rank_zero_info(f"LogFirstBatch passes the first batch over: {error!r}")

    def _draw(self, images: torch.Tensor, targets: torch.Tensor, trainer: pl.Trainer) -> Figure:
        from dlblocks import plots

        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        as_images = getattr(datamodule, "as_images", lambda images: images.float().cpu())
        return plots.batch(
            as_images(images).numpy(),
            (targets.float() if targets.is_floating_point() else targets).numpy(),
            getattr(datamodule, "class_names", None),
            values=None if getattr(datamodule, "is_classification", True) else True,
        )


def trainer_settings(trainer: pl.Trainer) -> dict[str, Any]:
    """What decides how a Trainer trains, as plain values."""
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
    """Versions of what a result depends on."""
    return {
        "dlblocks": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "lightning": pl.__version__,
    }


def plain_attributes(thing: Any) -> dict[str, Any]:
    """The public attributes of an object that are plain values, such as a callback's settings.

    Callbacks that it holds, as `OneOf` does, are described likewise.
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
    """Makes the final scores of a fit the summary of its W&B run, whatever its curves end with."""
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
    """Sends what several runs have found together to a W&B run of its own.

    Args:
        logger: Made by ``make_logger("wandb", …, job_type="summary")``; another is passed over.
        values: Becomes the summary of the run, such as ``{"val/accuracy/mean": 0.98}``.
        rows: One row a run, logged as the table named `table`.
        figures: Logged by their names.
        checkpoints: Files, logged as one artifact of type ``model``.
        table: The name of the table.
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
    """Sends figures to the loggers that can show them: W&B and TensorBoard."""
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
