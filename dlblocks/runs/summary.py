"""Summarize an experiment of several fits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dlblocks import tracking
from dlblocks._files import (
    SUMMARY,
    check_files,
    is_rank_zero,
    read_record,
    write_json,
    write_record,
    write_rows,
)
from dlblocks._plain import NOT_PLAIN, plain
from dlblocks.runs._figures import save_figures
from dlblocks.runs._text_table import block, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def mean_std(values: npt.ArrayLike) -> dict[str, float]:
    """Return mean and standard deviation of values.

    The denominator of the variance is n - 1, and NaN is left out. The standard deviation of one
    value is NaN, and so are both of none.

    Example:
        >>> mean_std([1.0, 3.0, float("nan")])
        {'mean': 2.0, 'std': 1.4142135623730951}
    """
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    with np.errstate(invalid="ignore"):  # infinity has no standard deviation
        return {
            "mean": float(known.mean()) if len(known) else math.nan,
            "std": float(known.std(ddof=1)) if len(known) > 1 else math.nan,
        }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as a table of text.

    All their keys are columns. Numbers have four decimals, a result of `mean_std` is ``mean ± std``
    and a tuple ``low … high``. NaN, None and missing keys are empty.

    Example:
        >>> print(table([{"net": "MLP", "loss": mean_std([1, 2])}, {"net": "CNN", "loss": 0.25}]))
        net  loss
        ────────────────────
        MLP  1.5000 ± 0.7071
        CNN  0.2500
        ────────────────────
    """
    columns = [
        [head, *(_cell(row.get(head)) for row in rows)]
        for head in dict.fromkeys(key for row in rows for key in row)
    ]
    return block(columns, len(rows))


def write_results(
    run_dir: str | PathLike[str],
    metrics: Mapping[str, Mapping[str, Any]],
    *,
    rows: Sequence[Mapping[str, Any]] = (),
    figures: Mapping[str, Figure] | None = None,
    **more: Any,
) -> None:
    """Write the results of an experiment into its run folder.

    These are ``summary.json`` with the versions, ``results.csv`` and ``figures/<name>.png``. Only
    rank 0 writes, and prints where they are.

    Args:
        run_dir: The run folder.
        metrics: Name of a variant → its numbers, with ``"mean"`` among them.
        rows: Rows of ``results.csv``, such as one a fit.
        figures: Name → figure.
        more: Further entries of ``summary.json``, such as ``config=…``.
    """
    if not is_rank_zero():
        return
    folder = Path(run_dir)
    if rows:
        write_rows(folder / "results.csv", rows)
    if figures:
        save_figures(folder / "figures", dict(figures))
    write_json(folder / SUMMARY, {"metrics": metrics, "versions": tracking.versions(), **more})
    say_where(folder)


def add_to_summary(
    run_dir: str | PathLike[str],
    metrics: Mapping[str, float | Mapping[str, Any]] | None = None,
    *,
    figures: Mapping[str, Figure] | None = None,
    **more: Any,
) -> None:
    """Add results to the run folder of a fit or cross-validation.

    ``summary.json`` gets the metrics and further entries, ``figures/<name>.png`` the figures. Only
    rank 0 writes, and prints where they are. If a value is refused, the run folder stays as it is.

    Args:
        run_dir: The run folder.
        metrics: Name → value, or its numbers, with ``"mean"`` among them. NaN becomes null.
        figures: Name → figure.
        more: Further entries, such as ``baselines=…``: numbers, texts, and lists and dictionaries
            of them.

    Raises:
        TypeError: JSON cannot hold a value, or a metric is not a number.
        ValueError: The name of an entry is one of ``summary.json`` itself.

    Example::

        scores = fit_and_test(model, data, run_dir="runs/mlp")
        add_to_summary("runs/mlp", baselines={"linear": {"test/accuracy": 0.96}})
    """
    if not is_rank_zero():
        return
    extend_summary(Path(run_dir), metrics or {}, more)
    save_figures(Path(run_dir) / "figures", dict(figures or {}))
    say_where(Path(run_dir))


def extend_summary(
    folder: Path, metrics: Mapping[str, float | Mapping[str, Any]], more: Mapping[str, Any]
) -> None:
    """Write metrics and further entries into ``summary.json``.

    All are checked before anything is written.
    """
    path = folder / SUMMARY
    scores = {name: _score(f"metrics[{name!r}]", value) for name, value in metrics.items()}
    entries = {name: _json(name, value) for name, value in more.items()}
    for name in ("files", "checksum"):
        if name in entries:
            raise ValueError(f"{name}= is an entry of {SUMMARY} itself; give it another name.")
    summary = read_record(path, "it is written by fit_and_test and cross_validate")
    summary["metrics"] |= scores
    check_files(path, summary, "a file of the run has changed; run it again")
    files = [folder / name for name in summary.pop("files", {})]
    write_record(path, {**summary, **entries}, files)


def say_where(folder: Path) -> None:
    """Print which results a run folder has."""
    kept = [
        path.name if path.is_file() else f"{path.name}/"
        for path in sorted(folder.iterdir())
        if path.name in ("checkpoints", "figures") or (path.is_file() and path.name[0] != ".")
    ]
    print(f"Everything is in {folder}: {', '.join(kept)}.", flush=True)


def _score(key: str, value: Any) -> dict[str, Any]:
    """Return the numbers of a metric."""
    found = _json(key, value)
    numbers: dict[str, Any] = found if isinstance(found, dict) else {"mean": found}
    if type(numbers.get("mean")) not in (int, float):
        raise TypeError(
            f"{key} is {value!r:.80}, which is not a number; give a number, or a dictionary of "
            "numbers with 'mean'."
        )
    return numbers


def _json(key: str, value: Any) -> Any:
    """Return a value of the kinds that JSON has."""
    found = plain(value, lists=True)
    try:
        if found is NOT_PLAIN:
            raise TypeError
        json.dumps(found)
    except TypeError:
        raise TypeError(
            f"{key} is {value!r:.80}, which {SUMMARY} cannot hold; give numbers, texts, and lists "
            "and dictionaries of them."
        ) from None
    return found


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ± ".join(filter(None, (_cell(value[key]) for key in ("mean", "std"))))
    if isinstance(value, tuple):
        return " … ".join(map(_cell, value))
    if isinstance(value, float):
        return "" if math.isnan(value) else number(value)
    return "" if value is None else str(value)
