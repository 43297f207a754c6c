"""Search, fit and score one outer fold."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from dlblocks import tracking
from dlblocks._errors import named
from dlblocks._files import is_rank_zero, read_json, write_rows
from dlblocks.crossval._fold_config import FoldConfig, FoldSpec
from dlblocks.crossval._refit import refit
from dlblocks.crossval._report import said
from dlblocks.crossval._search import SEARCHED, TRAINED_AGAIN, Search
from dlblocks.crossval.nested_results import forget_weights
from dlblocks.data import SplitDataModule
from dlblocks.runs._fits import FitResult, finish_fit, read_fit
from dlblocks.runs._history import History
from dlblocks.runs._trainer import new_datamodule, quiet_trainer

Data = SplitDataModule | Callable[[], SplitDataModule]


class OuterFolds:
    """Run outer folds.

    Args:
        search: The search within each.
        given: The data, or a function that makes them.
        data: The data.
        config: Configuration of the run.
    """

    def __init__(
        self, search: Search, given: Data, data: SplitDataModule, config: FoldConfig
    ) -> None:
        self.search, self.given, self.data, self.config = search, given, data, config

    def training_part(self, spec: FoldSpec) -> Data:
        """Return the training samples of an outer fold, or their function."""
        rows = self.data.splits(self.config.num_folds, repeat=spec.repeat)[spec.fold]["train"]
        if isinstance(self.given, SplitDataModule):
            return self.data.subset(rows)
        return lambda: new_datamodule(self.given, self.config.seed).subset(rows)

    def count_inner(self, spec: FoldSpec) -> int:
        """Count the inner folds, or raise a `ValueError` if there are none."""
        rows = self.data.splits(self.config.num_folds, repeat=spec.repeat)[spec.fold]["train"]
        try:
            inner = self.data.subset(rows)
            if self.config.selection_fraction:
                inner = inner.with_selection(self.config.selection_fraction)
            return len(inner.splits(self.search.num_folds))
        except ValueError as error:
            what = f"inner_folds={self.search.num_folds} of the {len(rows)} training samples of"
            raise named(error, f"{what} outer {spec.name}") from error

    def read(self, spec: FoldSpec, run_id: str) -> tuple[FitResult, list[dict[str, Any]]] | None:
        """Load an outer fold, or return None if it is not finished."""
        folder = self.config.folder(spec)
        fold = read_fit(FoldConfig, self.config.run_dir, spec, run_id)
        if fold is None:
            return None
        cure = f"delete {folder / 'fold.json'}, and the same call runs {folder.name} again"
        return fold, read_json(folder / SEARCHED, cure)

    def run(self, spec: FoldSpec, bar: tqdm) -> tuple[FitResult, list[dict[str, Any]]]:
        """Search on the training samples, train the choice, and score it once."""
        started = time.monotonic()
        config, folder = self.config, self.config.folder(spec)

        def tell(point: str, fits: int) -> None:
            bar.set_description_str(f"outer {spec.name} | {point}", refresh=sys.stderr.isatty())
            bar.update(fits)

        part = self.training_part(spec)
        rows, best = self.search.run(part, folder, tell)
        (choice,) = (row for row in rows if row["chosen"])
        tell(f"training: {said(choice['hyperparameters'])}", 0)
        history = History()
        if is_rank_zero():
            (folder / "metrics.csv").unlink(missing_ok=True)  # of a killed fit
        logger = config.new_logger(
            spec,
            chosen=choice["hyperparameters"],
            **{f"inner/{config.monitor}": choice["mean"]},
        )
        try:
            model = refit(
                best.run_dir / "refit",
                best.refit_epochs,
                self.search.model_of(choice["point"]),
                part,
                make_callbacks=self.search.make_callbacks,
                trainer=config.trainer,
                seed=config.seed_of(spec),
                logger=logger,
                history=history,
                words=TRAINED_AGAIN,
            )
            steps, epochs = model.trainer.global_step, model.trainer.current_epoch
            outer = self.data.for_fold(spec.fold, config.num_folds, repeat=spec.repeat)
            scorer = quiet_trainer(folder, config.trainer)
            (scores,) = scorer.validate(model, datamodule=outer, verbose=False)
            metrics = {name: float(value) for name, value in scores.items()}
            predicted = config.predict(scorer, model, outer)
            if logger is not None:
                logger.log_metrics(metrics, step=steps)
                logger.save()
        finally:
            tracking.finish_logger(logger)
        if scorer.is_global_zero:
            forget_weights(folder)
            write_rows(folder / "history.csv", history.rows)
        result = finish_fit(
            config,
            spec,
            outer,
            epochs=epochs,
            best_epoch=epochs,
            metrics=metrics,
            seconds=time.monotonic() - started,
            checkpoint=str((best.run_dir / "refit" / "model.ckpt").relative_to(folder)),
            predicted=predicted,
            history=history.rows,
        )
        return result, rows
