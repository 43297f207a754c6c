"""Results of `cross_validate` and `nested_cross_validate`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm
from typing_extensions import Self

from dlblocks._errors import check_choice, did_you_mean
from dlblocks._files import (
    AGAIN,
    atomic_write,
    is_rank_zero,
    read_rows,
    reading,
    write_rows,
)
from dlblocks._quiet import isolated
from dlblocks.crossval import _refit, _report
from dlblocks.crossval._fold import difference, fold_folder, share_correct
from dlblocks.crossval._splits import NO_OOF
from dlblocks.crossval.held_out import HeldOutScores, check_data_of, score_once
from dlblocks.crossval.importance import Importance, named_columns, permutation_importance
from dlblocks.crossval.statistics import (
    Comparison,
    corrected_t_test,
    least_error,
    least_paired_error,
    mean_interval,
)
from dlblocks.data import DataModule, SplitDataModule
from dlblocks.metrics import Range, metric_range
from dlblocks.models import Model
from dlblocks.nets.preprocess import preprocess_of
from dlblocks.runs._figures import drawing, save_figures
from dlblocks.runs._result import Result
from dlblocks.runs._tables import number
from dlblocks.tasks import PredictionTable
from dlblocks.tasks.table import data_frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(repr=False)
class CrossValidationResult(Result):
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

    run_dir: Path
    folds: list[dict[str, Any]]
    oof: PredictionTable | None
    histories: list[list[dict[str, float]]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    # Arguments of `cross_validate`; None for a loaded result.
    given: dict[str, Any] | None = field(default=None, repr=False, compare=False)

    kind = "fold"
    columns = (
        "repeat", "fold", "group", "epochs", "best_epoch", "num_train", "num_selection", "num_val",
        "seconds", "checkpoint",
    )  # fmt: skip
    files = ("folds.csv", "oof.npz")

    @property
    def _rows(self) -> list[dict[str, Any]]:
        return self.folds

    @property
    def test_to_train(self) -> float:
        """Return validation over training samples of all fits.

        It is 1 / (K - 1) for K folds. Samples that select the epoch count as training samples: a
        fit depends on them too.
        """
        num_val = sum(row["num_val"] for row in self.folds)
        found: float = num_val / sum(
            row["num_train"] + row.get("num_selection", 0) for row in self.folds
        )
        return found

    def interval(self, metric: str, *, level: float = 0.95) -> tuple[float, float]:
        """Interval of a metric's expected value, corrected for shared training data.

        It is the mean ± t · error over the n fits. The error is √((1 / n + n_test / n_train) · s²)
        (Nadeau and Bengio 2003), but not less than that of the scored samples, if the metric has
        known bounds; t is Student's, with K - 1 degrees of freedom for K folds. Ends outside the
        metric's range are moved into it. The interval is about what the training procedure scores
        on average, on training sets of this size from the same population. It is not about one of
        the models, and an approximation; see `dlblocks.crossval.statistics`. NaN if a single fit
        has not failed, or if all scores of a metric without bounds are equal.
        """
        if len(self.folds) < 2:
            return math.nan, math.nan
        bounds = self._bounds(metric)
        with np.errstate(invalid="ignore"):
            return mean_interval(
                self.values(metric),
                self.test_to_train,
                level=level,
                least_error=least_error(self.mean(metric), bounds, self._num_scored),
                bounds=bounds,
                degrees_of_freedom=self._num_folds - 1,
            )

    def _bounds(self, metric: str) -> Range:
        """Return the known lowest and highest value of a metric."""
        known = self.info.get("ranges", {}).get(metric) or metric_range(metric)
        low, high = known
        # Somebody's accuracy may be in per cent.
        outside = any(
            (low is not None and value < low - 1e-6) or (high is not None and value > high + 1e-6)
            for value in self.values(metric)
        )
        return (None, None) if outside else (low, high)

    @property
    def _num_folds(self) -> int:
        """Number of folds in one repeat."""
        return len({row["fold"] for row in self.folds})

    @property
    def _num_scored(self) -> int:
        """Number of different samples that the folds have scored."""
        scored: dict[int, int] = {}
        for row in self.folds:
            scored[row["repeat"]] = scored.get(row["repeat"], 0) + row["num_val"]
        most = max(scored.values())
        # Folds of a splitter such as `ShuffleSplit` may share validation samples.
        return most if self.oof is None else min(most, len(np.unique(self.oof.index)))

    def pooled(self) -> dict[str, float]:
        """Metrics of the out-of-fold predictions of all folds at once, by scikit-learn.

        For classes ``accuracy`` and macro ``f1``, with probabilities also ``log_loss``,
        ``calibration_error``, and for two classes ``auc``; for values ``rmse``, ``mae``, ``r2``;
        see `dlblocks._scores.pooled_metrics`. Each is computed over the samples of one repeat and
        then averaged over the repeats. What is not a mean over samples, as F1, AUC, RMSE and R²,
        differs from the mean of the folds. AUC here also ranks samples of one fold against those
        of another, whose models may disagree in how sure they are (Forman and Scholz 2010).

        Raises:
            ValueError: There are no out-of-fold predictions, or they are of another kind, such as
                one number a sample for integer targets, of which any score would be a guess.
        """
        oof = self._predictions()
        task, repeats = oof.of_task(), np.unique(oof.repeat)
        found = [task.score(oof[oof.repeat == repeat]) for repeat in repeats]
        names = [name for name in found[0] if all(name in each for each in found)]
        return {name: float(np.mean([each[name] for each in found])) for name in names}

    @property
    def notes(self) -> list[str]:
        """Warnings of the run, and why there are no pooled metrics."""
        notes = list(self.info.get("notes") or [])
        if any(note.startswith(NO_OOF) for note in notes):
            return notes
        try:
            self._predictions()
        except ValueError as error:
            notes.append(f"no pooled metrics: {error}")
        return list(dict.fromkeys(notes))  # a result that was loaded has them all already

    def _predictions(self) -> PredictionTable:
        """Return the out-of-fold predictions if they can be scored, else raise."""
        if self.oof is None:
            notes = [n for n in self.info.get("notes") or [] if n.startswith(NO_OOF)]
            raise ValueError(
                notes[0]
                if notes
                else "the model gave no out-of-fold predictions; its predict_step must return one "
                "prediction a sample."
            )
        self.oof.of_task()
        return self.oof

    def worst(self, count: int = 20) -> PredictionTable:
        """Return the out-of-fold predictions with the largest loss, the worst first.

        See `PredictionTable.worst`.

        Args:
            count: Number of samples.
        """
        return self._predictions().worst(count)

    def show_results(
        self,
        table: PredictionTable | None = None,
        *,
        count: int = 12,
        datamodule: SplitDataModule | None = None,
    ) -> Figure:
        """Draw images with their targets and out-of-fold predictions.

        ``result.show_results(result.worst(12))`` draws the worst samples.

        Args:
            table: Rows of `oof`, of which the first `count` are drawn. None: some of all samples,
                at equal distances.
            count: Number of images.
            datamodule: The data; not needed on the result that `cross_validate` returned.

        Raises:
            AttributeError: Inputs are no images.
            ValueError: There are no out-of-fold predictions, or the data are not known.
        """
        data: Any = datamodule or (self.given or {}).get("datamodule")
        if data is None:
            raise ValueError("a result that was loaded does not know datamodule; give datamodule=.")
        if not isinstance(data, DataModule):
            raise ValueError(f"a {type(data).__name__} does not say what its images are.")
        title = ""
        if table is None:
            oof = self._predictions()
            table = oof[np.unique(np.linspace(0, len(oof) - 1, count).astype(int))]
            title = "Out-of-fold predictions"
        return data.show_results(table, count=count, title=title)

    def compare(self, other: CrossValidationResult, metric: str | None = None) -> Comparison:
        """Test whether a metric differs between two cross-validations on the same folds.

        The corrected resampled t-test (Nadeau and Bengio 2003) on the differences fold by fold; see
        `dlblocks.crossval.statistics.corrected_t_test`. ``print`` the answer for a sentence. The
        standard error is not less than what the predictions of all samples allow, if the metric has
        known bounds. If it has none and all differences are equal, p is NaN.

        Args:
            other: The result to compare with; `difference` is this one's mean minus the other's.
            metric: A metric that both have. None: the monitor of this result.

        Raises:
            ValueError: The folds, samples or targets are not the same, or cannot be known to be,
                since a model gave no out-of-fold predictions.
            KeyError: A result lacks the metric.
        """
        metric = metric or self.info.get("monitor", "val/loss")
        for whose, result in (("this result", self), ("the other result", other)):
            if metric not in result.metrics:
                shared = [name for name in self.metrics if name in other.metrics]
                raise KeyError(
                    f"metric={metric!r} was not logged in every fold of {whose}"
                    f"{did_you_mean(metric, shared) or ';'} give metric= one that both have: "
                    f"{', '.join(shared)}."
                )
        different = _what_differs(self, other)
        if different:
            raise ValueError(
                f"the two cross-validations cannot be compared fold by fold: {different}; run both "
                "with the same data, split_seed, num_folds and repeats."
            )
        first, second = self._bounds(metric), other._bounds(metric)
        return corrected_t_test(
            self.values(metric),
            other.values(metric),
            self.test_to_train,
            metric=metric,
            least_error=_least_difference_error(self, other, metric),
            bounds=(
                None if first[0] is None or second[1] is None else first[0] - second[1],
                None if first[1] is None or second[0] is None else first[1] - second[0],
            ),
            degrees_of_freedom=self._num_folds - 1,
        )

    def to_pandas(self, what: Literal["folds", "oof"] = "folds") -> Any:
        """A `pandas.DataFrame` of the folds, or of the out-of-fold predictions.

        Args:
            what: ``"folds"``, one row a fit as in `folds`; or ``"oof"``, one row a sample and
                repeat: ``repeat, fold, index, target, prediction``. For scores of classes
                `prediction` is the class of the highest, and ``probability_<class>`` follow;
                anything else is as the model gave it, and values in D columns are ``target_0``, …,
                ``prediction_0``, ….

        Raises:
            ModuleNotFoundError: pandas is not installed.
            ValueError: There are no out-of-fold predictions.
        """
        check_choice("what", what, ["folds", "oof"])
        if what == "folds":
            return data_frame(self.folds)
        if self.oof is None:
            raise ValueError("what='oof', but the model gave no out-of-fold predictions.")
        return self.oof.to_pandas(self.info.get("class_names"))

    def summary(self) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        return {
            "metrics": {
                name: {
                    "mean": self.mean(name),
                    "std": self.std(name),
                    "interval": list(self.interval(name)),
                    "folds": self.values(name),
                }
                for name in self.metrics
            },
            "pooled": self.pooled_or_none(),
            **self.info,
            "notes": self.notes,
        }

    def pooled_or_none(self) -> dict[str, float]:
        """`pooled`, or an empty dictionary where these predictions have no such metrics."""
        try:
            return self.pooled()
        except ValueError:
            return {}

    def write(self) -> None:
        """Write ``oof.npz``, ``folds.csv`` and, last, ``summary.json``."""
        self.write_parts()
        self.write_summary()

    def write_parts(self) -> None:
        """Write ``oof.npz`` and ``folds.csv``."""
        if self.oof is not None:
            self.oof = self.oof.write(self.run_dir / "oof.npz")
        write_rows(self.run_dir / "folds.csv", self.folds)

    @classmethod
    def load(cls, run_dir: str | PathLike[str]) -> Self:
        """Load a result from its run folder.

        Raises:
            FileNotFoundError: `run_dir` holds no finished cross-validation.
        """
        path = Path(run_dir)
        info, files = cls.read_summary(path, "cross-validation")
        with reading(path / "folds.csv", AGAIN):
            rows = read_rows(path / "folds.csv", texts=["group"])
            folders = [path / fold_folder(row) for row in rows]
        oof = None
        if "oof.npz" in files or (path / "oof.npz").is_file():
            oof = PredictionTable.read(path / "oof.npz", AGAIN, info.get("task"))
        histories = []
        for folder in folders:
            cure = f"delete {folder / 'fold.json'}, and the same call runs {folder.name} again"
            with reading(folder / "history.csv", cure):
                histories.append(read_rows(folder / "history.csv"))
        return cls(path, rows, oof, histories, info)

    def table(self) -> str:
        """Return the folds as text, with all metrics, the monitor first.

        Below them each metric's mean ± std, its 95 % interval (see `interval`), and its value over
        the pooled out-of-fold predictions. More metrics than 100 characters have room for follow
        in further blocks. The `notes` come last.
        """
        return _report.table(self.folds, self.summary())

    def report(self) -> Path:
        """Write ``report.html`` into `run_dir` and return its path.

        One page that needs no other file and no network: scores with their intervals, the folds,
        the figures that the run has drawn, configuration, versions and seeds.
        """
        path = self.run_dir / "report.html"
        num_predicted = 0 if self.oof is None else len(self.oof)
        page = _report.page(self.run_dir, self.folds, self.summary(), num_predicted)
        with atomic_write(path) as part:
            part.write_text(page, encoding="utf-8")
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
        load_member = partial(
            _refit.load_fold,
            classes=list(classes),
            make_model=make_model,
            given=(self.given or {}).get("make_model"),
        )
        with isolated():  # making a model draws its weights
            return _refit.average(
                self.run_dir,
                self.folds,
                load_member,
                self.info.get("task"),
                self.oof,
                fit_temperature=fit_temperature,
            )

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
        return _refit.refit(self.run_dir / "refit", self.refit_epochs, **arguments)

    @property
    def refit_epochs(self) -> int:
        """Number of epochs of `refit`, the median of the folds' best epochs."""
        found: int = max(1, round(statistics.median(row["best_epoch"] for row in self.folds)))
        return found

    def importance(
        self,
        datamodule: SplitDataModule | None = None,
        *,
        metric: str | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        repeats: int = 5,
        seed: int = 0,
        classes: Iterable[type[Model]] = (),
        make_model: Callable[[], pl.LightningModule] | None = None,
        progress_bar: bool = True,
    ) -> Importance:
        """Measure how much the fold models need each column of a table.

        Each model predicts its validation samples again, with the values of one column in another
        order. See `dlblocks.crossval.importance`. ``importance.csv`` and a figure are left in the
        run folder, and shown in the report.

        Args:
            datamodule: The data; not needed on the result that `cross_validate` returned.
            metric: A name of `pooled`, such as ``"accuracy"``; None for the loss: ``"log_loss"`` of
                classes, ``"rmse"`` of values.
            groups: Columns whose values change places together, such as ``{"place": ["city",
                "zip"]}``. The features of one column always do.
            repeats: Permutations of each column.
            seed: Seed of the permutations.
            classes: As for `ensemble`.
            make_model: As for `ensemble`.
            progress_bar: Show one after a second.

        Raises:
            ValueError: The inputs are no table, there are no out-of-fold predictions, or a name is
                not known.
        """
        data: Any = datamodule or (self.given or {}).get("datamodule")
        if data is None:
            raise ValueError("a result that was loaded does not know datamodule; give datamodule=.")
        if not isinstance(data, DataModule):
            raise ValueError(
                f"importance is of columns, and a {type(data).__name__} does not say what those "
                "are; use TabularDataModule or ArrayDataModule."
            )
        check_data_of(self.run_dir, data)
        columns = named_columns(data.column_features, groups)
        oof = self._predictions()
        model: Any = self.ensemble(classes, make_model=make_model)
        fits = [
            (
                member,
                preprocess_of(member) or model.own[k],
                oof[(oof.repeat == row["repeat"]) & (oof.fold == row["fold"])],
            )
            for k, (member, row) in enumerate(zip(model.net.members, self.folds, strict=True))
        ]
        total = len(fits) * len(columns)
        with tqdm(
            total=total, desc="importance", unit="column", disable=not progress_bar, delay=1
        ) as bar:
            found = permutation_importance(
                fits,
                data.raw_inputs("train"),
                columns,
                metric=metric,
                repeats=repeats,
                seed=seed,
                test_to_train=self.test_to_train,
                num_folds=self._num_folds,
                step=bar.update,
            )
        write_rows(self.run_dir / "importance.csv", found.rows())
        with drawing("importance") as figures:
            figures["importance"] = found.figure()
        save_figures(self.run_dir / "figures", figures)
        if (self.run_dir / "report.html").is_file():
            self.report()
        return found

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
        return score_once(
            self.run_dir,
            model,
            data,
            trainer=trainer or given.get("trainer"),
            allow_shared=allow_shared,
            task=self.info.get("task"),
        )


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


def _what_differs(first: CrossValidationResult, second: CrossValidationResult) -> str:
    """Describe the first difference of the folds, or return ``""``."""
    fits = [[(row["repeat"], row["fold"]) for row in result.folds] for result in (first, second)]
    if fits[0] != fits[1]:
        counts = [f"{len({r for r, _ in fit})} × {len({f for _, f in fit})}" for fit in fits]
        return f"repeats × folds are {counts[0]} here and {counts[1]} there"
    if first.oof is None or second.oof is None:
        which = "this one" if first.oof is None else "the other"
        return f"{which} has no out-of-fold predictions, so its folds are not known"
    return difference(first.oof, second.oof)


def _least_difference_error(
    first: CrossValidationResult, second: CrossValidationResult, metric: str
) -> float:
    """Floor of the standard error of a difference, 0.0 without known bounds.

    For classes it comes from the samples that one model alone predicts right. For other predictions
    it is that of independent samples.
    """
    errors = [
        least_error(result.mean(metric), result._bounds(metric), result._num_scored)
        for result in (first, second)
    ]
    if not all(errors):
        return 0.0
    correct = [None if oof is None else share_correct(oof) for oof in (first.oof, second.oof)]
    low, high = first._bounds(metric)
    if correct[0] is None or correct[1] is None or low is None or high is None:
        return math.hypot(*errors)
    return (high - low) * least_paired_error(correct[0] - correct[1])
