"""Rank several cross-validations on the same folds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dlblocks._errors import check_choice, did_you_mean, named
from dlblocks._files import atomic_write
from dlblocks.crossval import _report
from dlblocks.crossval.results import CrossValidationResult
from dlblocks.crossval.statistics import Comparison, holm
from dlblocks.plots import comparison, save
from dlblocks.runs._monitor import resolve_mode
from dlblocks.runs._text_table import block, number
from dlblocks.tasks.table import data_frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mode = Literal["min", "max"]


@dataclass(frozen=True, repr=False)
class Ranking:
    """Several cross-validations, sorted by the mean of a metric.

    ``print`` it for a table.

    Attributes:
        metric: Its name.
        mode: ``"min"`` or ``"max"``: which mean is best.
        results: Name → result, the best first.
        tests: Name → its comparison with the best; the best has none.
        p_holm: Name → p-value of that comparison, adjusted for all pairs (Holm 1979).
        notes: What makes the runs hard to compare.
    """

    metric: str
    mode: str
    results: dict[str, CrossValidationResult]
    tests: dict[str, Comparison]
    p_holm: dict[str, float]
    notes: list[str]

    def rows(self) -> list[dict[str, Any]]:
        """Return rank, scores and difference from the best of each run."""
        found = []
        for rank, (name, result) in enumerate(self.results.items(), 1):
            low, high = result.interval(self.metric)
            row: dict[str, Any] = {"rank": rank, "run": name, "mean": result.mean(self.metric)}
            row |= {"std": result.std(self.metric), "interval_low": low, "interval_high": high}
            if name in self.tests:
                test = self.tests[name]
                low, high = test.interval
                row |= {"difference": test.difference, "difference_low": low}
                row |= {"difference_high": high, "p": test.p, "p_holm": self.p_holm[name]}
            found.append(row)
        return found

    def to_pandas(self) -> Any:
        """Return `rows` as a `pandas.DataFrame`.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return data_frame(self.rows())

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the head and the rows of the table, as text."""
        head = ["rank", "run", self.metric, "95 % interval"]
        head += ["difference", "95 % interval", "p (Holm)"]
        rows = []
        for row in self.rows():
            cells = [str(row["rank"]), row["run"]]
            cells += [f"{number(row['mean'])} ± {number(row['std'])}"]
            cells += [f"{number(row['interval_low'])} … {number(row['interval_high'])}"]
            if "difference" in row:
                low, high = (f"{number(row[f'difference_{end}'])}" for end in ("low", "high"))
                cells += [number(row["difference"]), f"{low} … {high}", f"{row['p_holm']:.3g}"]
            else:
                cells += ["the best", "", ""]
            rows.append(cells)
        return head, rows

    def explanation(self) -> str:
        """Say what the numbers of the table are."""
        pairs = len(self.results) * (len(self.results) - 1) // 2
        adjusted = f", adjusted for all {pairs} pairs (Holm 1979)" if pairs > 1 else ""
        return (
            "Mean ± standard deviation over the folds. Differences are from the best run, fold by "
            "fold, with the interval and p of the corrected resampled t-test (Nadeau and Bengio "
            f"2003); p is that of no difference{adjusted}."
        )

    def __str__(self) -> str:
        head, rows = self.cells()
        columns = [list(column) for column in zip(head, *rows, strict=True)]
        lines = [block(columns, len(rows)), self.explanation()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def __repr__(self) -> str:
        return f"<Ranking by {self.metric}: {', '.join(self.results)}>"

    def _repr_html_(self) -> str:
        """Return the table, for notebooks."""
        return _report.fragment(self.cells(), self.explanation())

    def figure(self) -> Figure:
        """Draw the folds of each run, and its difference from the best."""
        return comparison(
            {name: result.values(self.metric) for name, result in self.results.items()},
            {name: (test.difference, test.interval) for name, test in self.tests.items()},
            intervals={n: result.interval(self.metric) for n, result in self.results.items()},
            metric=self.metric,
        )

    def write(self, path: str | PathLike[str]) -> Path:
        """Write a page with table and figure, or the figure alone.

        Args:
            path: ``.html`` for the page, which needs no other file; ``.png``, ``.svg`` or ``.pdf``
                for the figure. An existing file is replaced.

        Raises:
            ValueError: The ending is another one.
        """
        path = Path(path)
        check_choice("ending", path.suffix, [".html", ".png", ".svg", ".pdf"])
        if path.suffix == ".html":
            page = _report.comparison_page(
                self.metric, self.cells(), self.explanation(), self.notes, self.figure()
            )
            with atomic_write(path) as part:
                part.write_text(page, encoding="utf-8")
        else:
            save(self.figure(), path)
        return path


def compare(
    results: Sequence[CrossValidationResult] | Mapping[str, CrossValidationResult],
    metric: str | None = None,
    *,
    mode: Mode | None = None,
) -> Ranking:
    """Rank cross-validations on the same folds, and test each against the best.

    Each pair is compared as by `CrossValidationResult.compare`. Which run is best is seen in the
    same folds, and several runs give more chances of a false difference. So p-values are adjusted
    for all pairs by Holm's method (1979), not only for those with the best. Intervals are of one
    comparison each, and not adjusted.

    Args:
        results: Two results or more; without names they have those of their run folders.
        metric: A metric that all have. None: the monitor that all share.
        mode: Whether ``"min"`` or ``"max"`` is best. None: as the runs or the metric's name say.

    Raises:
        ValueError: There is one result only, two have the same name, a metric or its direction is
            not known, or two cannot be compared fold by fold.

    References:
        - Holm: A simple sequentially rejective multiple test procedure. Scandinavian Journal of
          Statistics 6, 1979.

    Example:
        >>> import tempfile
        >>> from dlblocks.crossval import cross_validate
        >>> from dlblocks.data import TabularDataModule
        >>> from dlblocks.models import MLPClassifier
        >>> ranking = compare({
        ...     str(lr): cross_validate(
        ...         lambda: MLPClassifier(4, 3, hidden=[8], lr=lr), TabularDataModule("iris"),
        ...         num_folds=2, trainer={"max_epochs": 2, "accelerator": "cpu"},
        ...         progress_bar=False, figures=False, logger=None, run_dir=tempfile.mkdtemp(),
        ...     )
        ...     for lr in (1e-5, 0.1)
        ... }, "val/accuracy")
        >>> list(ranking.results)
        ['0.1', '1e-05']
    """
    given = dict(results) if isinstance(results, Mapping) else _by_name(results)
    if len(given) < 2:
        raise ValueError(f"compare needs two results at least, got {len(given)}.")
    metric = metric or _shared_monitor(given)
    for name, result in given.items():
        if metric not in result.metrics:
            every = [other.metrics for other in given.values()]
            shared = [known for known in result.metrics if all(known in one for one in every)]
            raise ValueError(
                f"metric={metric!r} was not logged in every fold of {name}"
                f"{did_you_mean(metric, shared) or ';'} all have: {', '.join(shared)}."
            )
    mode = resolve_mode(metric, mode or _mode_of(metric, given.values()), argument="metric")
    sign = 1 if mode == "min" else -1
    means = {name: sign * result.mean(metric) for name, result in given.items()}
    order = sorted(given, key=lambda name: (math.isnan(means[name]), means[name]))
    tests = {}
    for best, other in itertools.combinations(order, 2):
        try:
            tests[best, other] = given[other].compare(given[best], metric)
        except ValueError as error:
            raise named(error, f"{other} and {best}") from error
    adjusted = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
    return Ranking(
        metric,
        mode,
        {name: given[name] for name in order},
        {name: tests[order[0], name] for name in order[1:]},
        {name: adjusted[order[0], name] for name in order[1:]},
        _notes(given),
    )


def _by_name(results: Sequence[CrossValidationResult]) -> dict[str, CrossValidationResult]:
    """Name results by their run folders, as shortly as possible."""
    parts = [result.run_dir.absolute().parts for result in results]
    twice = next((path for path in parts if parts.count(path) > 1), None)
    if twice is not None:
        raise ValueError(f"'{Path(*twice)}' is given twice; give results of other run folders.")
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            return dict(zip(names, results, strict=True))
    return {}


def _shared_monitor(results: Mapping[str, CrossValidationResult]) -> str:
    monitors = {name: result.info.get("monitor", "val/loss") for name, result in results.items()}
    if len(set(monitors.values())) > 1:
        said = ", ".join(f"{monitor} of {name}" for name, monitor in monitors.items())
        raise ValueError(f"the runs have different monitors ({said}); give metric=.")
    return str(next(iter(monitors.values())))


def _mode_of(metric: str, results: Iterable[CrossValidationResult]) -> Mode | None:
    """Return the direction of a metric, if the runs agree."""
    said = {r.info["mode"] for r in results if r.info.get("monitor") == metric and "mode" in r.info}
    return said.pop() if len(said) == 1 else None


def _notes(results: Mapping[str, CrossValidationResult]) -> list[str]:
    """Note what makes the runs unequal."""
    # The scores of outer folds have no such bias, whatever the inner folds do.
    ways = {n: r.info.get("select") for n, r in results.items() if "search" not in r.info}
    optimistic = [name for name, select in ways.items() if select == "fold"]
    if not optimistic or len(optimistic) == len(results):
        return []
    return [
        f"{', '.join(optimistic)}: the epoch was selected on the scored samples, so these scores "
        "are optimistic and the others are not."
    ]
