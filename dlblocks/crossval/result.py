"""What a cross-validation found, and the files that hold it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dlblocks.crossval import text
from dlblocks.crossval.notes import NO_OOF
from dlblocks.crossval.out_of_fold import OutOfFold
from dlblocks.crossval.statistics import (
    Comparison,
    corrected_t_test,
    least_error,
    least_paired_error,
    mean_interval,
)
from dlblocks.errors import check_choice, did_you_mean
from dlblocks.files import (
    AGAIN,
    check_files,
    read_arrays,
    read_record,
    read_rows,
    reading,
    whole_file,
    write_record,
    write_rows,
)
from dlblocks.metrics import Range, metric_range
from dlblocks.quiet import isolated
from dlblocks.scores import kind_of, pooled_metrics
from dlblocks.tables import as_html, one_line

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback

    from dlblocks.crossval.held_out import HeldOutScores
    from dlblocks.data import SplitDataModule
    from dlblocks.models import Model

# Columns of a row of `folds` that are not metrics.
ROW_KEYS = (
    "repeat",
    "fold",
    "group",
    "epochs",
    "best_epoch",
    "num_train",
    "num_selection",
    "num_val",
    "seconds",
    "checkpoint",
)


@dataclass(repr=False)
class CrossValidationResult:
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
    oof: OutOfFold | None
    histories: list[list[dict[str, float]]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    # What `cross_validate` was given; a result that was loaded has it not.
    given: dict[str, Any] | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        """One line: run folder, fits, and the monitor's mean ± std."""
        return one_line(self, f"{len(self.folds)} folds", self.info.get("monitor"))

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        return as_html(self.table())

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that every fold has."""
        names = [name for name in self.folds[0] if name not in ROW_KEYS]
        return [name for name in names if all(name in row for row in self.folds)]

    def values(self, metric: str) -> list[float]:
        """The metric of each fit, in the order of `folds`."""
        if metric not in self.metrics:
            raise KeyError(
                f"metric={metric!r} was not logged in every fold"
                f"{did_you_mean(metric, self.metrics)} There are: {', '.join(self.metrics)}."
            )
        return [row[metric] for row in self.folds]

    def mean(self, metric: str) -> float:
        """Mean of a metric over the fits."""
        return float(np.mean(self.values(metric)))

    def std(self, metric: str) -> float:
        """Standard deviation of a metric over the fits, with n - 1 in the denominator.

        It describes the spread between folds. It is not the standard error of the mean: the folds
        share training data (Bengio and Grandvalet 2004). NaN if a single fit has not failed.
        """
        if len(self.folds) < 2:
            return math.nan
        with np.errstate(invalid="ignore"):  # of an infinite score, which has none
            return float(np.std(self.values(metric), ddof=1))

    @property
    def test_to_train(self) -> float:
        """Validation over training samples, over all fits: 1 / (K - 1) for K folds.

        Samples that select the epoch count as training samples: a fit depends on them too.
        """
        num_val = sum(row["num_val"] for row in self.folds)
        return num_val / sum(row["num_train"] + row.get("num_selection", 0) for row in self.folds)

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
        """The lowest and highest value of a metric, where they are known."""
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
        return max(scored.values())

    def pooled(self) -> dict[str, float]:
        """Metrics of the out-of-fold predictions of all folds at once, by scikit-learn.

        For classes ``accuracy`` and macro ``f1``, with probabilities also ``log_loss``,
        ``calibration_error``, and for two classes ``auc``; for values ``rmse``, ``mae``, ``r2``;
        see `dlblocks.scores.pooled_metrics`. Each is computed over the samples of one repeat and
        then averaged over the repeats. What is not a mean over samples, as F1, AUC, RMSE and R²,
        differs from the mean of the folds. AUC here also ranks samples of one fold against those
        of another, whose models may disagree in how sure they are (Forman and Scholz 2010).

        Raises:
            ValueError: There are no out-of-fold predictions, or they are of another kind, such as
                one number a sample for integer targets, of which any score would be a guess.
        """
        oof = self._predictions()
        repeats = [oof.repeat == repeat for repeat in np.unique(oof.repeat)]
        found = [pooled_metrics(oof.target[one], oof.prediction[one]) for one in repeats]
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

    def _predictions(self) -> OutOfFold:
        """Return the out-of-fold predictions if they can be scored, else raise."""
        if self.oof is None:
            notes = [n for n in self.info.get("notes") or [] if n.startswith(NO_OOF)]
            raise ValueError(
                notes[0]
                if notes
                else "the model gave no out-of-fold predictions; its predict_step must return one "
                "prediction a sample."
            )
        kind_of(self.oof.target, self.oof.prediction)
        return self.oof

    def compare(self, other: CrossValidationResult, metric: str | None = None) -> Comparison:
        """Tests whether a metric differs between two cross-validations on the same folds.

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
        try:
            pandas = importlib.import_module("pandas")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "to_pandas needs pandas, which dlblocks does not install: pip install pandas."
            ) from error
        if what == "folds":
            return pandas.DataFrame(self.folds)
        if self.oof is None:
            raise ValueError("what='oof', but the model gave no out-of-fold predictions.")
        return pandas.DataFrame(self.oof.columns(self.info.get("class_names")))

    def report(self) -> Path:
        """Writes ``report.html`` into `run_dir` and returns its path.

        One page that needs no other file and no network: scores with their intervals, the folds,
        the figures that the run has drawn, configuration, versions and seeds.
        """
        from dlblocks.crossval.page import page

        path = self.run_dir / "report.html"
        with whole_file(path) as part:
            part.write_text(page(self), encoding="utf-8")
        return path

    # Models

    def ensemble(
        self,
        classes: Iterable[type[Model]] = (),
        *,
        make_model: Callable[[], pl.LightningModule] | None = None,
    ) -> Model:
        """The average of the fold models, as one model: probabilities for classes, else values.

        Its `forward` takes raw inputs, in the units of the data's source: each member gets them
        normalised as in its own fold. Under a Trainer with one of our datamodules it understands
        the datamodule's batches, whatever they are normalised by. It is saved by
        ``ensemble.save("model.ckpt")``, or by a Trainer, and loaded by `dlblocks.models.load`.
        Folds that have failed are no members. Missing values of raw inputs are not filled in, and
        `counts` and `embed` of a table are not applied: the datamodule does that, by the training
        part of its own split. These inputs then differ from those of each member's fold, which a
        warning says.

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

        Raises:
            ValueError: The fold models cannot predict, or predict classes, which have no average;
                there are no checkpoints; or the result was loaded and `make_model` or `classes` is
                missing.
        """
        from dlblocks.crossval.final import ensemble

        with isolated():  # making a model draws its weights
            return ensemble(self, classes, make_model)

    def refit(
        self,
        make_model: Callable[[], pl.LightningModule] | None = None,
        datamodule: SplitDataModule | None = None,
        *,
        make_callbacks: Callable[[], Sequence[Callback]] | None = None,
        trainer: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> pl.LightningModule:
        """One new model, trained on all development data; saved as ``refit/model.ckpt``.

        It is trained for the median of the epochs that the folds selected, under the learning-rate
        schedule that the folds had, without early stopping. Nothing is validated. The scores of
        this result describe the models of the folds, which had fewer samples: this one is likely
        to be a little better, and has no score of its own but on the test set.

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
        from dlblocks.crossval.final import refit

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
        return refit(self, **arguments)

    def test(
        self,
        model: pl.LightningModule,
        datamodule: SplitDataModule | None = None,
        *,
        trainer: Mapping[str, Any] | None = None,
        allow_shared: bool = False,
    ) -> HeldOutScores:
        """Metrics of a model on the test set, which no fold has seen; written to ``test.json``.

        To be done last, and once: a second call is refused.

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
        from dlblocks.crossval.final import test_once

        given = self.given or {}
        data = datamodule or given.get("datamodule")
        if data is None:
            raise ValueError("a result that was loaded does not know datamodule; give datamodule=.")
        trainer = trainer or given.get("trainer")
        return test_once(self, model, data, trainer=trainer, allow_shared=allow_shared)

    def table(self) -> str:
        """The folds as text, with all metrics, the monitor first.

        Below them each metric's mean ± std, its 95 % interval (see `interval`), and its value over
        the pooled out-of-fold predictions. More metrics than 100 characters have room for follow
        in further blocks. The `notes` come last.
        """
        return text.table(self)

    # Files

    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` holds."""
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
        """Writes ``oof.npz``, ``folds.csv`` and, last, ``summary.json`` into `run_dir`."""
        self.write_parts()
        self.write_summary()

    def write_parts(self) -> None:
        """Writes ``oof.npz`` and ``folds.csv``."""
        if self.oof is not None:
            with whole_file(self.run_dir / "oof.npz") as part:
                np.savez_compressed(part, **vars(self.oof))
        write_rows(self.run_dir / "folds.csv", self.folds)

    def write_summary(self) -> None:
        """Writes ``summary.json``, by which a run is known to have ended."""
        files = [self.run_dir / name for name in ("folds.csv", "oof.npz")]
        write_record(self.run_dir / "summary.json", self.summary(), files)

    @classmethod
    def load(cls, run_dir: str | PathLike[str]) -> CrossValidationResult:
        """Reads a result back from its run folder.

        Raises:
            FileNotFoundError: `run_dir` holds no finished cross-validation.
        """
        path = Path(run_dir)
        if not (path / "summary.json").is_file():
            raise FileNotFoundError(
                f"run_dir='{run_dir}' has no summary.json: no cross-validation has ended there."
            )
        info = read_record(path / "summary.json", AGAIN)
        check_files(path / "summary.json", info, AGAIN)
        for key in ("metrics", "pooled"):  # computed from the folds
            info.pop(key, None)
        files = info.pop("files", {})
        with reading(path / "folds.csv", AGAIN):
            rows = read_rows(path / "folds.csv", texts=["group"])
            folders = [fold_dir(path, row) for row in rows]
        oof = None
        if "oof.npz" in files or (path / "oof.npz").is_file():
            oof = OutOfFold(**read_arrays(path / "oof.npz", AGAIN))
        histories = []
        for folder in folders:
            cure = f"delete {folder / 'fold.json'}, and the same call runs {folder.name} again"
            with reading(folder / "history.csv", cure):
                histories.append(read_rows(folder / "history.csv"))
        return cls(path, rows, oof, histories, info)


def fold_dir(run_dir: Path, row: Mapping[str, Any]) -> Path:
    """The folder of one fit: ``fold-0``, or ``repeat-1/fold-0`` after the first repeat."""
    name = f"fold-{row['fold']}"
    return run_dir / f"repeat-{row['repeat']}" / name if row["repeat"] else run_dir / name


def _what_differs(first: CrossValidationResult, second: CrossValidationResult) -> str:
    """Says the first thing in which the folds of two results differ, or nothing."""
    fits = [[(row["repeat"], row["fold"]) for row in result.folds] for result in (first, second)]
    if fits[0] != fits[1]:
        counts = [f"{len({r for r, _ in fit})} × {len({f for _, f in fit})}" for fit in fits]
        return f"repeats × folds are {counts[0]} here and {counts[1]} there"
    if first.oof is None or second.oof is None:
        which = "this one" if first.oof is None else "the other"
        return f"{which} has no out-of-fold predictions, so its folds are not known"
    return first.oof.difference(second.oof)


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
    correct = [None if oof is None else oof.correct() for oof in (first.oof, second.oof)]
    low, high = first._bounds(metric)
    if correct[0] is None or correct[1] is None or low is None or high is None:
        return math.hypot(*errors)
    return (high - low) * least_paired_error(correct[0] - correct[1])
