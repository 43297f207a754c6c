"""The base of the results of cross-validation and bagging."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dlblocks._errors import did_you_mean
from dlblocks._files import AGAIN, SUMMARY, check_files, read_record, write_record
from dlblocks.runs._text_table import number


class Result:
    """Several fits, with a row of metrics for each.

    Attributes:
        run_dir: The run folder.
        info: Further entries of ``summary.json``.
        kind: Name of a fit, such as ``"fold"``.
        columns: Columns of a row that are not metrics.
        files: Files of the run folder that the summary has checksums of.
    """

    run_dir: Path
    info: dict[str, Any]
    kind: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    files: ClassVar[tuple[str, ...]]

    @property
    def _rows(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def table(self) -> str:
        """Return the fits as text."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Return run folder, fits and the monitor's mean ± std."""
        said, monitor = f"{len(self._rows)} {self.kind}s", self.info.get("monitor")
        if monitor in self.metrics:
            said += f", {monitor} {number(self.mean(monitor))} ± {number(self.std(monitor))}"
        return f"<{type(self).__name__} {self.run_dir.absolute().name!r}: {said}>"

    def _repr_html_(self) -> str:
        """Return the table, for notebooks."""
        return f"<pre>{html.escape(self.table())}</pre>"

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that every fit has."""
        names = [name for name in self._rows[0] if name not in self.columns]
        return [name for name in names if all(name in row for row in self._rows)]

    def values(self, metric: str) -> list[float]:
        """Return a metric of each fit."""
        if metric not in self.metrics:
            raise KeyError(
                f"metric={metric!r} was not logged in every {self.kind}"
                f"{did_you_mean(metric, self.metrics)} There are: {', '.join(self.metrics)}."
            )
        return [row[metric] for row in self._rows]

    def mean(self, metric: str) -> float:
        """Return the mean of a metric over the fits."""
        return float(np.mean(self.values(metric)))

    def std(self, metric: str) -> float:
        """Return the standard deviation of a metric over the fits.

        The denominator is n - 1. It describes how far the fits are apart. It is not the standard
        error of the mean: folds share training data (Bengio and Grandvalet 2004). NaN of a single
        fit.
        """
        if len(self._rows) < 2:
            return math.nan
        with np.errstate(invalid="ignore"):  # of an infinite score, which has none
            return float(np.std(self.values(metric), ddof=1))

    @staticmethod
    def read_summary(run_dir: Path, what: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Read ``summary.json`` without what is computed from the rows.

        Args:
            run_dir: The run folder.
            what: What has ended there, for the message.

        Returns:
            The content, and the checksums of the other files by their names.

        Raises:
            FileNotFoundError: There is none.
        """
        path = run_dir / SUMMARY
        if not path.is_file():
            raise FileNotFoundError(
                f"run_dir='{run_dir}' has no {SUMMARY}: no {what} has ended there."
            )
        info = read_record(path, AGAIN)
        check_files(path, info, AGAIN)
        for key in ("metrics", "pooled"):
            info.pop(key, None)
        return info, info.pop("files", {})

    def write_summary(self) -> None:
        """Write ``summary.json``, the sign of a finished run."""
        files = [self.run_dir / name for name in self.files]
        write_record(self.run_dir / SUMMARY, self.summary(), files)
