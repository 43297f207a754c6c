"""Results of `cross_validate` and `nested_cross_validate`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback

from dlblocks._errors import check_choice
from dlblocks._files import atomic_write, is_rank_zero, write_rows
from dlblocks._quiet import isolated
from dlblocks.crossval import _refit, _report
from dlblocks.crossval._scored_folds import ScoredFolds, forget_weights, said
from dlblocks.crossval.held_out import HeldOutScores
from dlblocks.data import SplitDataModule
from dlblocks.models import Model
from dlblocks.runs._tables import number


class CrossValidationResult(ScoredFolds):
    """The result of `cross_validate`.

    Attributes:
        run_dir: Where everything lies.
        folds: One row a fit: repeat, fold, epochs run, best epoch (from 1), samples, seconds,
            checkpoint, and the validation metrics of the best epoch's weights; `group` too, the
            name of what is left out, where the data name their folds.
        oof: Out-of-fold predictions, or None if the model gives none; `notes` says why.
        histories: One list of rows a fit, one row an epoch, of all that was logged.
        info: Monitor, seconds, configuration and versions, as in ``summary.json``.
    """

    def table(self) -> str:
        """Return the folds as text, with all metrics, the monitor first.

        Below them each metric's mean ± std, its 95 % interval (see `interval`), and its value over
        the pooled out-of-fold predictions. More metrics than 100 characters have room for follow
        in further blocks. The `notes` come last.
        """
        return _report.table(self)

    def report(self) -> Path:
        """Write ``report.html`` into `run_dir` and return its path.

        One page that needs no other file and no network: scores with their intervals, the folds,
        the figures that the run has drawn, configuration, versions and seeds.
        """
        path = self.run_dir / "report.html"
        with atomic_write(path) as part:
            part.write_text(_report.page(self), encoding="utf-8")
        return path

    def ensemble(
        self,
        classes: Iterable[type[Model]] = (),
        *,
        make_model: Callable[[], pl.LightningModule] | None = None,
        fit_temperature: bool = False,
    ) -> Model:
        """Average the fold models into one model.

        It returns probabilities for classes, else values. It takes raw inputs, in the units of the
        data's source: each member prepares them as in its own fold. It is saved by
        ``ensemble.save("model.ckpt")``, or by a Trainer, and loaded by `dlblocks.models.load`.
        Folds that have failed are no members. It holds the out-of-fold scores, so that
        ``dlblocks.load(…).predict(data, coverage=0.9)`` has prediction intervals or sets.

        Modules of your own that are no subclasses of ours are averaged by what their `predict_step`
        returns, or their `forward` if they have none. Such an ensemble is scored by metrics of its
        predictions, not by those of the module; see `dlblocks.models.VotingModule`.

        Args:
            classes: Your own subclasses of our models, if the folds have such.
            make_model: As for `cross_validate`: makes what the checkpoints cannot say, as a
                `Classifier` over a net of your own, or a LightningModule of your own; not needed
                on the result that `cross_validate` returned. Saved, such an ensemble is loaded by
                ``dlblocks.models.load(path, overrides={"members": [make_model() for _ in
                result.folds]})``, one of your own subclasses of our models by ``load(path,
                classes=[YourModel])``.

            fit_temperature: Divide the logits by the temperature that is best for the out-of-fold
                predictions (Guo et al. 2017), so that probabilities are less over-confident. It is
                ``ensemble.temperature``.

        Raises:
            ValueError: The fold models cannot predict, or predict classes, which have no average;
                there are no checkpoints; or the result was loaded and `make_model` or `classes` is
                missing.
        """
        with isolated():  # making a model draws its weights
            return _refit.ensemble(self, classes, make_model, fit_temperature=fit_temperature)

    def refit(
        self,
        make_model: Callable[[], pl.LightningModule] | None = None,
        datamodule: SplitDataModule | None = None,
        *,
        make_callbacks: Callable[[], Sequence[Callback]] | None = None,
        trainer: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> pl.LightningModule:
        """Train one new model on all development data.

        It is saved as ``refit/model.ckpt``. It is trained for the median of the epochs that the
        folds selected, under the learning-rate schedule that the folds had, without early stopping.
        Nothing is validated. The scores of this result describe the models of the folds, which had
        fewer samples: this one is likely to be a little better, and has no score of its own but on
        the test set.

        Args:
            make_model: As for `cross_validate`, like all that follow; not needed on the result
                that `cross_validate` returned.
            datamodule: The data.
            make_callbacks: Callbacks; early stopping is left out.
            trainer: Arguments of the Trainer.
            seed: The seed.

        Raises:
            ValueError: The result was loaded, and `make_model` or `datamodule` is missing; or the
                schedule is ``"plateau"``, which waits for validation.
        """
        given = self.given or {}
        arguments: dict[str, Any] = {
            "make_model": make_model or given.get("make_model"),
            "datamodule": datamodule or given.get("datamodule"),
            "make_callbacks": make_callbacks or given.get("make_callbacks"),
            "trainer": trainer or given.get("trainer"),
            "seed": given.get("seed", 0) if seed is None else seed,
        }
        for name in ("make_model", "datamodule"):
            if arguments[name] is None:
                raise ValueError(f"a result that was loaded does not know {name}; give {name}=.")
        return _refit.refit(self, **arguments)

    def test(
        self,
        model: pl.LightningModule,
        datamodule: SplitDataModule | None = None,
        *,
        trainer: Mapping[str, Any] | None = None,
        allow_shared: bool = False,
    ) -> HeldOutScores:
        """Test a model on the test set, which no fold has seen.

        Do it last, and once: a second call is refused.

        ``test.json`` holds the metrics and ``shared_with_training``: how many test samples are in
        the development set, too; null if that cannot be found out. A test set of somebody else's
        datamodule that has such samples is refused. Copies in the official test set of one of our
        datamodules are counted, and no more: it is the benchmark's.

        Args:
            model: `ensemble` or `refit`.
            datamodule: The data; not needed on the result that `cross_validate` returned.
            trainer: Arguments of the Trainer.
            allow_shared: Test in spite of samples that are in the development set, where the data
                really hold duplicates.

        Returns:
            Metric → value, with ``.interval("test/accuracy")`` from the test samples; ``print`` it
            for a table. Metrics of several test loaders are told apart by their names.

        Raises:
            FileExistsError: The test set was looked at before.
            ValueError: There is no test set, nothing is logged, `datamodule` is missing or not that
                of the run, or test samples are in the development set.
        """
        given = self.given or {}
        data = datamodule or given.get("datamodule")
        if data is None:
            raise ValueError("a result that was loaded does not know datamodule; give datamodule=.")
        trainer = trainer or given.get("trainer")
        return _refit.test_once(self, model, data, trainer=trainer, allow_shared=allow_shared)


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
        frame = type(super().to_pandas())  # raises if pandas is not installed
        return frame(self.rows() if what == "folds" else _flat(self.search))

    def table(self) -> str:
        """Return the outer folds as text, with each choice and its inner mean.

        The row of means averages the inner scores over the outer folds. How much better that is
        than the outer mean is the optimism of reporting a search's best score.
        """
        inner = [choice["mean"] for choice in self.choices]
        chosen = [said(choice["hyperparameters"]) for choice in self.choices]
        return _report.table(
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
        """Search on all development data, and fit the choice.

        The scores of this result describe models that were made in this way. The search is written
        to ``refit/search.json``, the model to ``refit/point-<number>/refit/model.ckpt``.

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
        return _refit.refit(
            best,
            self.given["search"].model_of(int(best.run_dir.name.rpartition("-")[2])),
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
