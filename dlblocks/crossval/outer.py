"""One outer fold of a nested cross-validation: the search, a fit of what it chose, its score."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
from tqdm import tqdm

from dlblocks import tracking
from dlblocks.crossval.final import refit
from dlblocks.crossval.fold import FINISHED, Fold, Job, Plan, group_of, read_fold, write_fold
from dlblocks.crossval.notes import count_scored
from dlblocks.crossval.out_of_fold import OutOfFold
from dlblocks.crossval.search import SEARCHED, Search, forget_weights, said
from dlblocks.crossval.splits import new_datamodule
from dlblocks.data import SplitDataModule
from dlblocks.files import is_rank_zero, read_json, write_rows
from dlblocks.fitting import NoLogger
from dlblocks.history import History
from dlblocks.predictions import NoPredictions, predict_part

Data = SplitDataModule | Callable[[], SplitDataModule]


class Outer:
    """Runs outer folds.

    Args:
        search: The search within each.
        given: The data, or what makes them.
        data: The data.
        plan: What is the same for every fold.
    """

    def __init__(self, search: Search, given: Data, data: SplitDataModule, plan: Plan) -> None:
        self.search, self.given, self.data, self.plan = search, given, data, plan

    def training_part(self, job: Job) -> Data:
        """The data of an outer fold's training samples, or what makes them."""
        rows = self.data.splits(self.plan.num_folds, repeat=job.repeat)[job.fold]["train"]
        if isinstance(self.given, SplitDataModule):
            return self.data.for_rows(rows)
        return lambda: new_datamodule(self.given, self.plan.seed).for_rows(rows)

    def count_inner(self, job: Job) -> int:
        """The number of inner folds; raises a `ValueError` if there can be none."""
        rows = self.data.splits(self.plan.num_folds, repeat=job.repeat)[job.fold]["train"]
        try:
            inner = self.data.for_rows(rows)
            if self.plan.selection_fraction:
                inner = inner.with_selection(self.plan.selection_fraction)
            return len(inner.splits(self.search.num_folds))
        except ValueError as error:
            raise ValueError(
                f"inner_folds={self.search.num_folds} of the {len(rows)} training samples of outer "
                f"{job.name}: {error}"
            ) from error

    def read(self, job: Job, run_id: str) -> tuple[Fold, list[dict[str, Any]]] | None:
        """What a finished outer fold has left, or None if it is not finished."""
        folder = self.plan.folder(job)
        fold = read_fold(folder, run_id)
        if fold is None:
            return None
        cure = f"delete {folder / FINISHED}, and the same call runs {folder.name} again"
        return fold, read_json(folder / SEARCHED, cure)

    def run(self, job: Job, bar: tqdm) -> tuple[Fold, list[dict[str, Any]]]:
        """Searches on the training samples, trains what was chosen, and scores it once."""
        started = time.monotonic()
        plan, folder = self.plan, self.plan.folder(job)

        def tell(point: str, fits: int) -> None:
            bar.set_description_str(f"outer {job.name} | {point}", refresh=sys.stderr.isatty())
            bar.update(fits)

        part = self.training_part(job)
        rows, best = self.search.run(part, folder, tell)
        (choice,) = (row for row in rows if row["chosen"])
        tell(f"training: {said(choice['hyperparameters'])}", 0)
        history = History()
        if is_rank_zero():
            (folder / "metrics.csv").unlink(missing_ok=True)  # of a fit that was killed
        place = {"fold": job.fold, "repeat": job.repeat}
        logger = tracking.make_logger(
            plan.logger,
            folder,
            run_name=f"{plan.run_dir.name}-{folder.relative_to(plan.run_dir)}".replace("/", "-"),
            group=plan.run_dir.name,
            job_type="fold",
            run_id=f"{plan.run_id}-{job.repeat}-{job.fold}",
            is_part=True,
            config={
                **place,
                "num_folds": plan.num_folds,
                "seed": plan.seed + job.number,
                "chosen": choice["hyperparameters"],
                f"inner/{plan.monitor}": choice["mean"],
            },
        )
        try:
            model = refit(
                best,
                self.search.model_of(choice["point"]),
                part,
                make_callbacks=self.search.make_callbacks,
                trainer=plan.trainer,
                seed=plan.seed + job.number,
                logger=logger,
                history=history,
            )
            steps, epochs = model.trainer.global_step, model.trainer.current_epoch
            outer = self.data.for_fold(job.fold, plan.num_folds, repeat=job.repeat)
            scorer = pl.Trainer(
                **{"enable_progress_bar": False, **plan.trainer},
                logger=NoLogger(folder),
                default_root_dir=folder,
                enable_checkpointing=False,
            )
            (scores,) = scorer.validate(model, datamodule=outer, verbose=False)
            metrics = {name: float(value) for name, value in scores.items()}
            predicted, reason = None, None
            try:
                predicted = predict_part(scorer, model, outer, "val")
            except NoPredictions as error:
                reason = error
                plan.warn(reason)
            if logger is not None:
                logger.log_metrics(metrics, step=steps)
                logger.save()
        finally:
            tracking.finish_logger(logger)
        checkpoint = (best.run_dir / "refit" / "model.ckpt").relative_to(plan.run_dir)
        row: dict[str, Any] = {
            "repeat": job.repeat,
            "fold": job.fold,
            **group_of(outer),
            "epochs": epochs,
            "best_epoch": epochs,
            "num_train": len(outer.indices("train")),
            "num_selection": 0,
            "num_val": count_scored(outer, plan.trainer),
            **metrics,
            "seconds": round(time.monotonic() - started, 3),
            "checkpoint": str(checkpoint),
        }
        oof = None
        if predicted is not None:
            size = len(predicted["index"])
            oof = OutOfFold(**predicted, **{key: np.full(size, n) for key, n in place.items()})
        if scorer.is_global_zero:
            forget_weights(folder)
            write_rows(folder / "history.csv", history.rows)
            write_fold(folder, row, oof, getattr(outer, "normalisation", None), reason, plan=plan)
        return Fold(row, oof, history.rows, reason), rows
