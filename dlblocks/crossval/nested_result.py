"""What a nested cross-validation found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dlblocks.crossval import text
from dlblocks.crossval.final import refit
from dlblocks.crossval.result import CrossValidationResult
from dlblocks.crossval.search import forget_weights, said
from dlblocks.errors import check_choice
from dlblocks.files import is_rank_zero, write_rows
from dlblocks.quiet import isolated
from dlblocks.tables import number, one_line

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback

    from dlblocks.data import SplitDataModule


class NestedResult(CrossValidationResult):
    """The result of `nested_cross_validate`: a `CrossValidationResult` of the outer folds.

    In `folds`, ``best_epoch`` is for how many epochs the model was trained, which the inner folds
    have decided. `ensemble` is of the models of the outer folds, each with its own hyperparameters.
    """

    def __repr__(self) -> str:
        """One line, as of a `CrossValidationResult`."""
        return one_line(self, f"{len(self.folds)} outer folds", self.info.get("monitor"))

    @property
    def search(self) -> list[dict[str, Any]]:
        """One row an outer fit and point of the grid, in the order of the fits.

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
        """The rows of `folds`, each with what was chosen: ``param_lr``, …, ``inner_mean``."""
        return [
            {**row, **_parameters(choice), "inner_mean": choice["mean"]}
            for row, choice in zip(self.folds, self.choices, strict=True)
        ]

    def to_pandas(self, what: Literal["folds", "oof", "search"] = "folds") -> Any:
        """A `pandas.DataFrame` of the outer folds, of their predictions, or of the search.

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
        frame = type(super().to_pandas())  # or the error that says that there is no pandas
        return frame(self.rows() if what == "folds" else _flat(self.search))

    def table(self) -> str:
        """The outer folds as text, with what was chosen and its inner mean of `monitor`.

        In the row of means that inner score is the mean over outer folds; what it is better by than
        the outer one is the optimism of reporting a search's best score.
        """
        inner = [choice["mean"] for choice in self.choices]
        chosen = [said(choice["hyperparameters"]) for choice in self.choices]
        return text.table(
            self,
            {
                "chosen": [*chosen, ""],
                f"inner {self.info['monitor']}": [number(x) for x in [*inner, np.mean(inner)]],
            },
        )

    def refit(
        self,
        make_model: Callable[..., pl.LightningModule] | None = None,
        datamodule: SplitDataModule | None = None,
        *,
        make_callbacks: Callable[[], Sequence[Callback]] | None = None,
        trainer: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> pl.LightningModule:
        """One model for use: the search on all development data, and a fit of what it chooses.

        The scores of this result are about models that were made so. What was found lies in
        ``refit/search.json``, the model in ``refit/point-<number>/refit/model.ckpt``.

        Args:
            make_model: Here and below: another than the run had is refused.
            datamodule: See `make_model`.
            make_callbacks: See `make_model`.
            trainer: See `make_model`.
            seed: See `make_model`.

        Raises:
            ValueError: An argument was given, or the result was loaded.
        """
        arguments = (make_model, datamodule, make_callbacks, trainer, seed)
        if any(argument is not None for argument in arguments):
            raise ValueError(
                "refit of a nested cross-validation takes no arguments: its scores are about the "
                "procedure that they were given to."
            )
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
        return refit(
            best,
            self.given["search"].model_of(int(best.run_dir.name.rpartition("-")[2])),
            data,
            make_callbacks=self.given["make_callbacks"],
            trainer=self.given["trainer"],
            seed=self.given["seed"],
        )

    def write_parts(self) -> None:
        """Writes ``oof.npz``, ``folds.csv`` and ``search.csv``."""
        super().write_parts()
        write_rows(self.run_dir / "search.csv", _flat(self.search))


def _parameters(row: Mapping[str, Any]) -> dict[str, Any]:
    return {f"param_{name}": value for name, value in row["hyperparameters"].items()}


def _flat(search: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a search without nesting, one cell a value."""
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
