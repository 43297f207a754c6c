"""Scores of the folds with intervals and tests."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dlblocks._errors import check_choice, did_you_mean
from dlblocks.crossval import _report
from dlblocks.crossval._out_of_fold import difference, share_correct
from dlblocks.crossval._splits import NO_OOF
from dlblocks.crossval.statistics import (
    Comparison,
    corrected_t_test,
    least_error,
    least_paired_error,
    mean_interval,
)
from dlblocks.metrics import Range, metric_range
from dlblocks.runs._result import Result
from dlblocks.tasks import PredictionTable
from dlblocks.tasks.table import data_frame


@dataclass(repr=False)
class FoldScores(Result):
    """The scores of all folds, base of `CrossValidationResult`."""

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
            oof = self._predictions()
        except ValueError as error:
            notes.append(f"no pooled metrics: {error}")
        else:
            remark = oof.of_task().remark(oof)
            notes += [remark] if remark else []
        return list(dict.fromkeys(notes))  # a result that was loaded has them all already

    def _predictions(self) -> PredictionTable:
        """Return the out-of-fold predictions if they can be scored, else raise."""
        if self.oof is None:
            raise ValueError(self._why_no_predictions())
        self.oof.of_task()
        return self.oof

    def _why_no_predictions(self) -> str:
        notes = [n for n in self.info.get("notes") or [] if n.startswith(NO_OOF)]
        if notes:
            return str(notes[0])
        return (
            "the model gave no out-of-fold predictions; its predict_step must return one "
            "prediction a sample, and the targets must be known (FoldedDataModule: targets=)."
        )

    def worst(self, count: int = 20) -> PredictionTable:
        """Return the out-of-fold predictions with the largest loss, the worst first.

        See `PredictionTable.worst`.

        Args:
            count: Number of samples.
        """
        return self._predictions().worst(count)

    def compare(self, other: FoldScores, metric: str | None = None) -> Comparison:
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
            raise ValueError(f"what='oof': {self._why_no_predictions()}")
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

    def table(self) -> str:
        """Return the folds as text, with all metrics, the monitor first.

        Below them each metric's mean ± std, its 95 % interval (see `interval`), and its value over
        the pooled out-of-fold predictions. More metrics than 100 characters have room for follow
        in further blocks. The `notes` come last.
        """
        return _report.table(self.folds, self.summary())


def _what_differs(first: FoldScores, second: FoldScores) -> str:
    """Describe the first difference of the folds, or return ``""``."""
    fits = [[(row["repeat"], row["fold"]) for row in result.folds] for result in (first, second)]
    if fits[0] != fits[1]:
        counts = [f"{len({r for r, _ in fit})} × {len({f for _, f in fit})}" for fit in fits]
        return f"repeats × folds are {counts[0]} here and {counts[1]} there"
    if first.oof is None or second.oof is None:
        which = "this one" if first.oof is None else "the other"
        return f"{which} has no out-of-fold predictions, so its folds are not known"
    return difference(first.oof, second.oof)


def _least_difference_error(first: FoldScores, second: FoldScores, metric: str) -> float:
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
