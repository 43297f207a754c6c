"""Search a grid of hyperparameters by cross-validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback

from dlblocks._errors import named
from dlblocks._files import is_rank_zero, write_json
from dlblocks.crossval._fold_config import FoldConfig, FoldSpec
from dlblocks.crossval._report import said
from dlblocks.crossval._splits import describe
from dlblocks.crossval.cross_validate import cross_validate
from dlblocks.crossval.results import CrossValidationResult
from dlblocks.data import SplitDataModule
from dlblocks.engine._support import NotVectorizable
from dlblocks.engine.member import optimizers_of, plateau_monitors
from dlblocks.engine.run_fits import engine_for
from dlblocks.runs._trainer import (
    check_needs_no_validation,
    new_callbacks,
    new_datamodule,
    new_module,
)
from dlblocks.runs.folder import from_rank_zero

SEARCHED = "search.json"
# Words of the error for schedules that need validation.
TRAINED_AGAIN = {
    "who": "what was chosen is trained again, which",
    "cure": "use another schedule, or let it monitor a metric of training",
}
Grid = Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]]


def grid_points(grid: Grid) -> list[dict[str, Any]]:
    """Return all points of a grid, in the order of scikit-learn's `ParameterGrid`.

    Args:
        grid: Name → list of values, or a list of such grids, whose points follow each other.

    Raises:
        TypeError: It is nothing of the kind, or the values of a name are not a list.
        ValueError: It is empty, or has a point twice.

    Example:
        >>> grid_points({"lr": [0.1, 0.01], "hidden": [[8]]})
        [{'hidden': [8], 'lr': 0.1}, {'hidden': [8], 'lr': 0.01}]
    """
    from sklearn.model_selection import ParameterGrid

    points: list[dict[str, Any]] = []
    for found in ParameterGrid(grid):
        # Numbers of NumPy would end in checkpoints, which then need more than plain values.
        point = {name: _plain(value) for name, value in found.items()}
        if any(_equal(point, other) for other in points):
            raise ValueError(
                f"grid has {said(point)} twice; a value that is a list is written [[8, 8], [16]]."
            )
        points.append(point)
    if points in ([], [{}]):
        raise ValueError("grid is empty; give names and lists of values: {'lr': [0.1, 0.01]}.")
    return points


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def _plateau_monitors(model: pl.LightningModule) -> list[str | None]:
    """Return what plateau schedules monitor, if that needs no Trainer."""
    try:
        return plateau_monitors(optimizers_of(model)[1])
    except Exception:  # modules raise many, and `refit` looks again
        return []


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    # True and 1 are equal in Python, and not to a model.
    return one.keys() == other.keys() and all(
        type(one[name]) is type(other[name]) and bool(one[name] == other[name]) for name in one
    )


@dataclass
class Search:
    """The search of every outer fold.

    See `nested_cross_validate`.

    Attributes:
        make_model: Called with a point.
        points: The points of the grid.
        make_callbacks: As for `cross_validate`.
        num_folds: Number of inner folds, or None for what the data say.
        monitor: The metric whose mean over the inner folds chooses.
        mode: ``"min"`` or ``"max"``.
        on_error: ``"continue"`` leaves a point out of the choice if one of its fits fails.
        arguments: Further arguments of `cross_validate`.
    """

    make_model: Callable[..., pl.LightningModule]
    points: list[dict[str, Any]]
    make_callbacks: Callable[[], Sequence[Callback]] | None
    num_folds: int | None
    monitor: str
    mode: str
    on_error: str
    arguments: dict[str, Any]

    @property
    def engine(self) -> str:
        """The engine of the inner folds."""
        return str(self.arguments["engine"])

    def model_of(self, number: int) -> Callable[[], pl.LightningModule]:
        """Return the function that makes a model of a point."""
        return partial(self.make_model, **self.points[number])

    def describe(
        self, config: FoldConfig, data: SplitDataModule, **settings: Any
    ) -> dict[str, Any]:
        """Describe the fits as plain values, with a model of each point.

        Raises:
            TypeError: `make_model` does not take a point, or returned no LightningModule.
            ValueError: It returned the same model twice, or one that refitting cannot train.
        """
        callbacks = new_callbacks(self.make_callbacks or list)
        described: dict[str, Any] = {}
        found, before = [], None
        for number, point in enumerate(self.points):
            try:
                model = new_module(self.model_of(number), "lambda lr: MLPClassifier(64, 10, lr=lr)")
            except Exception as error:
                raise named(error, f"make_model({said(point)})") from error
            self._check(model, before)
            described = describe(model, callbacks, data, grid=self.points, **settings)
            hyperparameters = described.pop("grid")[number]
            of_model = {key: described.pop(key) for key in ("model", "parameters")}
            found.append({"hyperparameters": hyperparameters, **of_model})
            before = model
            config.know(model)
            check_needs_no_validation((), _plateau_monitors(model), **TRAINED_AGAIN)
        return {**described, "inner_folds": self.num_folds, "points": found}

    def check_engine(
        self, datamodule: SplitDataModule | Callable[[], SplitDataModule], outer: FoldConfig
    ) -> None:
        """Raise an error before training if a point cannot be run.

        Args:
            datamodule: The training samples of an outer fold, or their function.
            outer: The configuration of the outer folds.

        Raises:
            NotVectorizable: The engine must be ``"vectorized"`` and cannot be.
        """
        if self.engine != "vectorized":
            return
        data = new_datamodule(datamodule, outer.seed)
        num_folds = data.count_folds(self.num_folds)
        specs = [FoldSpec(fold, 0, fold) for fold in range(2)]
        for number, point in enumerate(self.points):
            config = replace(outer, make_model=self.model_of(number), num_folds=num_folds)
            make_data = partial(config.data_of, data)
            try:
                engine_for(self.engine, config, make_data, specs)
            except NotVectorizable as error:
                raise named(error, said(point)) from error
            finally:
                config.forget()

    def _check(self, model: Any, before: pl.LightningModule | None) -> None:
        if model is before:
            raise ValueError(
                "make_model returned the same model for two points of grid; make it inside the "
                "function."
            )
        if getattr(model, "lr_schedule", None) == "plateau":
            raise ValueError(
                "lr_schedule='plateau' lowers the rate by the validation loss, and what was chosen "
                "is trained again without validation; use another schedule."
            )

    def run(
        self,
        datamodule: SplitDataModule | Callable[[], SplitDataModule],
        folder: Path,
        tell: Callable[[str, int], None] = lambda text, fits: None,
    ) -> tuple[list[dict[str, Any]], CrossValidationResult]:
        """Cross-validate every point on the same folds, and write the scores.

        Args:
            datamodule: The data that may be seen.
            folder: Gets ``point-0``, ``point-1``, …, one run folder each, and ``search.json``.
            tell: Called with a text before each point, and then with the number of its fits.

        Returns:
            One row a point, and the result of that with the best mean; the first of equal ones.
        """
        rows: list[dict[str, Any]] = []
        results: dict[int, CrossValidationResult] = {}
        for number, point in enumerate(self.points):
            tell(said(point), 0)
            result, error = self._score(datamodule, folder, number)
            failed = [] if result is None else result.info.get("failed", [])
            whole = result is not None and not failed
            rows.append(
                {
                    "point": number,
                    "hyperparameters": point,
                    "mean": result.mean(self.monitor) if result and whole else math.nan,
                    "std": result.std(self.monitor) if result and whole else math.nan,
                    "scores": result.values(self.monitor) if result and whole else [],
                    "epochs": result.refit_epochs if result and whole else 0,
                    "chosen": False,
                    "engine": result.info["engine"] if result else "",
                    **({} if whole else {"error": error or failed[0]["error"]}),
                }
            )
            if result is not None:
                results[number] = result
            tell(said(point), len(result.folds) + len(failed) if result else 0)
        means = np.array([row["mean"] for row in rows])
        if np.isnan(means).all():
            why = next((f" ({row['error']})" for row in rows if "error" in row), "")
            raise ValueError(
                f"no point of grid has a mean of monitor={self.monitor!r} that is a number{why}."
            )
        best = int(np.nanargmin(means) if self.mode == "min" else np.nanargmax(means))
        rows[best]["chosen"] = True
        if is_rank_zero():
            write_json(folder / SEARCHED, rows)
        return rows, results[best]

    def _score(
        self,
        datamodule: SplitDataModule | Callable[[], SplitDataModule],
        folder: Path,
        number: int,
    ) -> tuple[CrossValidationResult | None, str]:
        """Cross-validate one point.

        Returns None and the reason if that fails.
        """
        try:
            result = cross_validate(
                self.model_of(number),
                datamodule,
                num_folds=self.num_folds,
                make_callbacks=self.make_callbacks,
                monitor=self.monitor,
                mode=self.mode,  # type: ignore[arg-type]
                on_error=self.on_error,  # type: ignore[arg-type]
                logger=None,
                run_dir=folder / f"point-{number}",
                progress_bar=False,
                figures=False,
                **self.arguments,
            )
        except (FileExistsError, BlockingIOError):  # of another run
            raise
        except Exception as error:
            if self.on_error == "raise":
                raise named(error, said(self.points[number])) from error
            return None, repr(error)
        if self.monitor not in result.metrics:
            raise ValueError(
                f"monitor={self.monitor!r} is not logged in validation, by which points are "
                f"compared; choose from: {', '.join(result.metrics)}."
            )
        # Models whose metrics are not synchronised must not part the ranks.
        result.folds = from_rank_zero(result.folds)
        return result, ""
