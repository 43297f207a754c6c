"""What a cross-validation found, and the files that hold it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dlblocks.errors import did_you_mean
from dlblocks.files import read_rows, whole_file, write_json, write_rows

# Columns of a row of `folds` that are not metrics.
ROW_KEYS = (
    "repeat",
    "fold",
    "epochs",
    "best_epoch",
    "num_train",
    "num_val",
    "seconds",
    "checkpoint",
)


@dataclass
class OutOfFold:
    """Predictions for each development sample by the model of the fold that did not train on it.

    Rows are sorted by (repeat, index).

    Attributes:
        index: The sample's row in its data set, int64 of shape (M,).
        target: Its target, shape (M,) or (M, D).
        prediction: Probabilities (M, C) for classes; values of the target's shape otherwise.
        fold: The fold that predicted it, int64 of shape (M,).
        repeat: The repeat, int64 of shape (M,).
    """

    index: npt.NDArray[np.int64]
    target: npt.NDArray[Any]
    prediction: npt.NDArray[np.floating]
    fold: npt.NDArray[np.int64]
    repeat: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)


@dataclass
class CrossValidationResult:
    """The result of `cross_validate`.

    Attributes:
        run_dir: Where everything lies.
        folds: One row a fit: repeat, fold, epochs run, best epoch (from 1), samples, seconds,
            checkpoint, and the validation metrics of the best epoch's weights.
        oof: Out-of-fold predictions, or None if the model has no `predict_step` that gives them.
        histories: One list of rows a fit, one row an epoch, of all that was logged.
        info: Monitor, seconds, configuration and versions, as in ``summary.json``.
    """

    run_dir: Path
    folds: list[dict[str, Any]]
    oof: OutOfFold | None
    histories: list[list[dict[str, float]]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)

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
        return statistics.fmean(self.values(metric))

    def std(self, metric: str) -> float:
        """Standard deviation of a metric over the fits, with n - 1 in the denominator.

        It describes the spread between folds. It is not the standard error of the mean: the folds
        share training data (Bengio and Grandvalet 2004).
        """
        return statistics.stdev(self.values(metric))

    def table(self) -> str:
        """The folds as text: fold, epochs, the metrics, seconds; then mean ± std."""
        chosen = _table_metrics(self.metrics)
        repeated = len({row["repeat"] for row in self.folds}) > 1
        head = [*(["repeat"] if repeated else []), "fold", "epochs", *chosen, "seconds"]
        rows = [
            [
                *([str(row["repeat"])] if repeated else []),
                str(row["fold"]),
                f"{row['epochs']} (best {row['best_epoch']})",
                *(_number(row[name]) for name in chosen),
                f"{row['seconds']:.1f}",
            ]
            for row in self.folds
        ]
        seconds = sum(row["seconds"] for row in self.folds)
        last = [
            *([""] if repeated else []),
            "mean ± std",
            "",
            *(f"{_number(self.mean(name))} ± {_number(self.std(name))}" for name in chosen),
            f"{seconds:.1f} in all",
        ]
        widths = [max(len(line[i]) for line in [head, *rows, last]) for i in range(len(head))]

        def line(cells: Sequence[str]) -> str:
            return "  ".join(f"{c:<{w}}" for c, w in zip(cells, widths, strict=True)).rstrip()

        rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([line(head), rule, *map(line, rows), rule, line(last)])

    # Files

    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` holds."""
        return {
            "metrics": {
                name: {
                    "mean": self.mean(name),
                    "std": self.std(name),
                    "folds": self.values(name),
                }
                for name in self.metrics
            },
            **self.info,
        }

    def write(self) -> None:
        """Writes ``oof.npz``, ``folds.csv`` and, last, ``summary.json`` into `run_dir`."""
        if self.oof is not None:
            with whole_file(self.run_dir / "oof.npz") as part:
                np.savez_compressed(part, **vars(self.oof))
        write_rows(self.run_dir / "folds.csv", self.folds)
        write_json(self.run_dir / "summary.json", self.summary())

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
        info = json.loads((path / "summary.json").read_text())
        info.pop("metrics")
        rows = read_rows(path / "folds.csv")
        oof = None
        if (path / "oof.npz").is_file():
            with np.load(path / "oof.npz") as arrays:
                oof = OutOfFold(**arrays)
        histories = [read_rows(fold_dir(path, row) / "history.csv") for row in rows]
        return cls(path, rows, oof, histories, info)


def fold_dir(run_dir: Path, row: Mapping[str, Any]) -> Path:
    """The folder of one fit: ``fold-0``, or ``repeat-1/fold-0`` after the first repeat."""
    name = f"fold-{row['fold']}"
    return run_dir / f"repeat-{row['repeat']}" / name if row["repeat"] else run_dir / name


def _number(value: float) -> str:
    """Four decimals, or four digits where that would say too little or too much."""
    small = value != 0 and abs(value) < 1e-3
    return f"{value:.2e}" if small else f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"


def _table_metrics(names: Sequence[str]) -> list[str]:
    """The metrics worth a column: the score that people ask for, and the loss."""
    first = [n for n in ("val/accuracy", "val/f1", "val/rmse", "val/r2", "val/loss") if n in names]
    return first or list(names)[:4]
