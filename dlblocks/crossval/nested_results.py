"""The result of `nested_cross_validate`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np

from dlblocks._errors import check_choice
from dlblocks._files import is_rank_zero, write_rows
from dlblocks._quiet import isolated
from dlblocks.crossval import _refit, _report
from dlblocks.crossval.results import CrossValidationResult
from dlblocks.runs._text_table import number
from dlblocks.tasks.table import data_frame


class NestedResult(CrossValidationResult):
    """The result of `nested_cross_validate`, of the outer folds.

    In `folds`, ``best_epoch`` is the number of epochs that the inner folds have chosen. `ensemble`
    is of the models of the outer folds, each with its own hyperparameters.
    """

    kind = "outer fold"

    @property
    def search(self) -> list[dict[str, Any]]:
        """One row for each outer fit and point of the grid.

        ``repeat, fold, point``; ``hyperparameters``; ``scores``, the metric `monitor` of the inner
        folds, with their ``mean`` and ``std`` (n - 1 in the denominator); ``epochs``, the median of
        their best; ``chosen``; ``engine``, which has run them; and ``error``, with a mean of NaN,
        where an inner fit has failed.
        """
        nan = {"mean": math.nan, "std": math.nan}  # JSON has none
        return [
            {**row, **{key: nan[key] for key in nan if row[key] is None}}
            for row in self.info["search"]
        ]

    @property
    def choices(self) -> list[dict[str, Any]]:
        """The rows of `search` that were chosen, one an outer fit."""
        return [row for row in self.search if row["chosen"]]

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of `folds` with ``param_lr``, …, ``inner_mean`` of the choice."""
        return [
            {**row, **_parameters(choice), "inner_mean": choice["mean"]}
            for row, choice in zip(self.folds, self.choices, strict=True)
        ]

    def to_pandas(self, what: Literal["folds", "oof", "search"] = "folds") -> Any:
        """Return a `pandas.DataFrame` of folds, predictions or search.

        Args:
            what: ``"folds"``, as `rows`; ``"oof"``, as in `CrossValidationResult.to_pandas`; or
                ``"search"``, one row an outer fit and point, with its ``param_lr``, ….

        Raises:
            ModuleNotFoundError: pandas is not installed.
            ValueError: There are no out-of-fold predictions.
        """
        check_choice("what", what, ["folds", "oof", "search"])
        if what == "oof":
            return super().to_pandas(what)
        return data_frame(self.rows() if what == "folds" else _flat(self.search))

    def table(self) -> str:
        """Return the outer folds as text, each with its choice.

        The row of means averages the inner scores over the outer folds. How much better that is
        than the outer mean is the optimism of reporting a search's best score.
        """
        inner = [choice["mean"] for choice in self.choices]
        chosen = [_report.said(choice["hyperparameters"]) for choice in self.choices]
        return _report.table(
            self.folds,
            self.summary(),
            {
                "chosen": [*chosen, ""],
                f"inner {self.info['monitor']}": [number(x) for x in [*inner, np.mean(inner)]],
            },
        )

    def refit(self) -> pl.LightningModule:  # type: ignore[override]
        """Search on all development data, and fit the choice.

        The scores of this result describe models that were made in this way, so that there are no
        arguments. The search is written to ``refit/search.json``, the model to
        ``refit/point-<number>/refit/model.ckpt``.

        Raises:
            ValueError: The result was loaded.
        """
        if self.given is None:
            raise ValueError(
                "a result that was loaded does not know make_model and grid; call "
                "nested_cross_validate again as before, which reads a finished run back."
            )
        search, data = self.given["search"], self.given["datamodule"]
        with isolated():
            _, best = search.run(data, self.run_dir / "refit")
        if is_rank_zero():
            forget_weights(self.run_dir / "refit")
        return _refit.refit(
            best.run_dir / "refit",
            best.refit_epochs,
            search.model_of(int(best.run_dir.name.rpartition("-")[2])),
            data,
            make_callbacks=self.given["make_callbacks"],
            trainer=self.given["trainer"],
            seed=self.given["seed"],
        )

    def write_parts(self) -> None:
        """Write ``oof.npz``, ``folds.csv`` and ``search.csv``."""
        super().write_parts()
        write_rows(self.run_dir / "search.csv", _flat(self.search))


def _parameters(row: Mapping[str, Any]) -> dict[str, Any]:
    return {f"param_{name}": value for name, value in row["hyperparameters"].items()}


def _flat(search: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Flatten the rows of a search, one cell a value."""
    keys = ("repeat", "fold", "point")
    more = ("mean", "std", "epochs", "chosen", "engine")
    return [
        {
            **{key: row[key] for key in keys},
            **_parameters(row),
            **{key: row[key] for key in more},
            **{f"inner_{i}": score for i, score in enumerate(row["scores"])},
        }
        for row in search
    ]


def forget_weights(folder: Path) -> None:
    """Remove the checkpoints of inner fits, which nothing needs."""
    for path in folder.glob("point-*/fold-*/checkpoints/*.ckpt"):
        path.unlink()


def load_result(run_dir: str | PathLike[str]) -> CrossValidationResult:
    """Load the result of a run folder, nested or not.

    Raises:
        FileNotFoundError: `run_dir` holds no finished cross-validation.
    """
    nested = (Path(run_dir) / "search.csv").is_file()
    return (NestedResult if nested else CrossValidationResult).load(run_dir)
