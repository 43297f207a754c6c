"""Print a cross-validation as a table, or as one HTML page.

`folds` are the rows of the fits, and `summary` is the content of ``summary.json``.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dlblocks._files import read_json
from dlblocks.crossval._fold_config import FoldSpec
from dlblocks.plots._style import write_png
from dlblocks.runs._run_config import fit_seed
from dlblocks.runs._text_table import GAP, block, number, width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TESTED = "test.json"

# Captions of figures, in the order of the page. Figures of other names follow.
CAPTIONS = {
    "scores": "Score of each fold: dots are folds, below them the mean and its 95 % interval.",
    "inner_and_outer": "What was chosen, as its inner folds scored it and as the outer fold did: "
    "how far the inner scores are better is the optimism of a search's best score.",
    "learning_curves": "Learning curves: a thin line a fold, thick their mean, the band one "
    "standard deviation, dots the selected epochs.",
    "confusion_matrix": "Out-of-fold predictions: true class in the row, predicted in the column.",
    "reliability": "Reliability: accuracy of the out-of-fold predictions by their confidence.",
    "predicted_vs_true": "Out-of-fold predictions over the true values.",
    "curve": "The samples and their out-of-fold predictions.",
    "importance": "Importance: how much worse the out-of-fold predictions are once the values of a "
    "column have changed places.",
    "hardest": "Hardest samples: the true class got the lowest out-of-fold probability, on average "
    "over the repeats.",
    "classes": "Out-of-fold scores of each class, over all pixels.",
    "worst": "Worst samples, with the lowest out-of-fold IoU: the mask and the predicted one.",
}


Rows = Sequence[Mapping[str, Any]]
Table = tuple[list[str], list[list[Any]]]


def page(run_dir: Path, folds: Rows, summary: Mapping[str, Any], num_predicted: int) -> str:
    """Make the page of a run with the figures in its folder."""
    repeats = len({row["repeat"] for row in folds})
    size = f"{len({row['fold'] for row in folds})} folds"
    size += f", {repeats} repeats" if repeats > 1 else ""
    failed = summary.get("failed", [])
    if failed:
        size = f"{len(folds)} of {len(folds) + len(failed)} fits; the others failed"
    facts = [
        size,
        *([f"{num_predicted // repeats} samples"] if num_predicted else []),
        *_selection(summary),
        *([f"{summary['seconds']:.1f} s"] if "seconds" in summary else []),
    ]
    config = summary.get("config", {})
    return _render(
        "_report.html",
        title=f"Cross-validation: {run_dir.absolute().name}",
        facts=facts,
        failed=failed,
        scores=_scores(summary),
        has_pooled=bool(summary["pooled"]),
        notes=summary["notes"],
        tested=_tested(run_dir / TESTED),
        folds=_folds(folds, summary),
        text_columns=1 + (repeats > 1) + any("group" in row for row in folds),
        search=_search(summary) if "search" in summary else None,
        figures=_figures(run_dir / "figures"),
        info={"data": summary.get("data")},
        origin=_origin(summary, len(folds) + len(failed)),
        config=json.dumps(config, indent=2, default=str, ensure_ascii=False) if config else "",
    )


def comparison_page(
    metric: str, rows: Table, explanation: str, notes: Sequence[str], figure: Figure
) -> str:
    """Make the page of several cross-validations, from the cells of their table."""
    drawn = io.BytesIO()
    write_png(figure, drawn, dpi=120)
    return _render(
        "_comparison.html",
        title=f"Comparison by {metric}",
        facts=f"{len(rows[1])} cross-validations on the same folds",
        rows=rows,
        explanation=explanation,
        notes=notes,
        caption="Left: dots are folds, below them the mean and its 95 % interval. Right: the "
        "difference from the best and its 95 % interval.",
        figure=base64.b64encode(drawn.getvalue()).decode(),
    )


def fragment(rows: Table, explanation: str) -> str:
    """Make a table with the text below it, for notebooks."""
    shown = _environment().get_template("_parts.html").module.table(*rows)  # type: ignore[attr-defined]
    return f"{shown}<p>{html.escape(explanation)}</p>"


def _render(name: str, **values: Any) -> str:
    return _environment().get_template(name).render(**values)


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("dlblocks.crossval", ""), autoescape=True, undefined=StrictUndefined
    )


def _tested(path: Path) -> dict[str, Any] | None:
    """Return the scores of the test set, if there are any."""
    if not path.is_file():
        return None
    found = read_json(path, f"delete {path.name}, and test again")
    intervals, rows = found.get("intervals", {}), list[list[str]]()
    for name, value in found["metrics"].items():
        low, high = intervals.get(name, (None, None))
        interval = "" if low is None else f"{number(low)} … {number(high)}"
        rows.append([name, "" if value is None else number(value), interval])
    return {
        "scores": (["metric", "value", "95 % interval"], rows),
        "model": found["model"],
        "notes": found.get("notes", []),
    }


def _selection(summary: Mapping[str, Any]) -> list[str]:
    """Say how the epochs were selected."""
    if summary.get("select") == "last":
        return ["weights of the last epoch"]
    if "monitor" not in summary:
        return []
    said = f"best epoch by {summary['monitor']} ({summary['mode']})"
    if summary.get("select") == "inner":
        said += f" on {100 * summary['selection_fraction']:g} % of the training samples"
    return [said]


def _scores(summary: Mapping[str, Any]) -> Table:
    others, rows = dict(summary["pooled"]), list[list[Any]]()
    for name, found in _metrics(summary).items():
        over_all = others.pop(name.removeprefix("val/"), None)
        rows.append([
            name,
            number(found["mean"]),
            number(found["std"]),
            _interval(found),
            "" if over_all is None else number(over_all),
        ])  # fmt: skip
    rows += [[name, "", "", "", number(value)] for name, value in others.items()]
    head = ["metric", "mean", "std", "95 % interval", *(["pooled"] if summary["pooled"] else [])]
    return head, [row[: len(head)] for row in rows]


def _folds(folds: Rows, summary: Mapping[str, Any]) -> Table:
    repeated = len({row["repeat"] for row in folds}) > 1
    named = any("group" in row for row in folds)
    selected = any(row.get("num_selection") for row in folds)
    chosen = _metrics(summary)
    head = [
        *(["repeat"] if repeated else []),
        "fold",
        *(["group"] if named else []),
        *chosen,
        *("epochs", "best", "training", *(["selection"] if selected else []), "validation"),
        *("seed", "seconds"),
    ]
    samples = ["num_train", *(["num_selection"] if selected else []), "num_val"]
    seed = summary.get("config", {}).get("seed")
    num_folds = summary.get("num_folds", 0)
    rows = [
        [
            *([row["repeat"]] if repeated else []),
            row["fold"],
            *([row.get("group", "")] if named else []),
            *(number(row[name]) for name in chosen),
            *(row[key] for key in ("epochs", "best_epoch", *samples)),
            "" if seed is None else fit_seed(seed, FoldSpec.of(row, num_folds).number),
            f"{row['seconds']:.1f}",
        ]
        for row in folds
    ]
    return head, rows


def _search(summary: Mapping[str, Any]) -> Table:
    """List every point of the grid with its inner mean."""
    repeated = len({row["repeat"] for row in summary["search"]}) > 1
    rows = [
        [
            *([row["repeat"]] if repeated else []),
            row["fold"],
            said(row["hyperparameters"]),
            *("" if row[key] is None else number(row[key]) for key in ("mean", "std")),
            row["epochs"],
            "chosen" if row["chosen"] else row.get("error", ""),
        ]
        for row in summary["search"]
    ]
    head = [*(["repeat"] if repeated else []), *("fold", "hyperparameters")]
    head += [f"inner {summary['monitor']}", "std", "epochs", ""]
    return head, rows


def said(point: Mapping[str, Any]) -> str:
    """Format a point of a grid, as ``"lr=0.1, hidden=[8]"``."""
    return ", ".join(f"{name}={value!r}" for name, value in point.items())


def _figures(folder: Path) -> list[tuple[str, str]]:
    order = list(CAPTIONS)
    paths = sorted(
        folder.glob("[!.]*.png"),
        key=lambda path: (order.index(path.stem) if path.stem in order else len(order), path.stem),
    )
    return [
        (
            CAPTIONS.get(path.stem, path.stem.replace("_", " ")),
            base64.b64encode(path.read_bytes()).decode(),
        )
        for path in paths
    ]


def _origin(summary: Mapping[str, Any], num_fits: int) -> list[str]:
    parts, config = [], summary.get("config", {})
    names = summary.get("class_names") or []
    if names != [str(i) for i in range(len(names))]:
        parts.append("Classes: " + ", ".join(f"{i} {name}" for i, name in enumerate(names)))
    if "splits" in summary:
        parts.append(_folding(summary["splits"]))
    if "seed" in config:
        seed, split = config["seed"], config.get("data", {}).get("split_seed")
        parts.append(
            f"Seeds: {fit_seed(seed, 0)} … {fit_seed(seed, num_fits - 1)} for the fits, in their "
            "order" + (f"; {split} for the split." if split is not None else ".")
        )
    if summary.get("versions"):
        parts.append("Versions: " + ", ".join(f"{k} {v}" for k, v in summary["versions"].items()))
    return parts


def _folding(splits: Mapping[str, Any]) -> str:
    """Say how the folds were made."""
    groups, by, repeats = (splits[name] for name in ("groups", "stratified_by", "repeats"))
    parts = [f"Folds: split={splits['split']}"]
    parts += [f"{name}={splits[name]}" for name in ("margin", "num_blocks") if splits.get(name)]
    parts.append(f"{splits['num_folds']} folds" + (f", {repeats} repeats" if repeats > 1 else ""))
    parts.append("no groups" if groups is None else f"{groups} groups, each kept whole")
    if splits["split"] == "kfold":  # a splitter's name says it
        parts.append(f"stratified by {by}" if by else "not stratified")
    return "; ".join(parts) + "."


WIDTH = 100
# The scores that people ask for first.
FIRST = ("val/accuracy", "val/f1", "val/rmse", "val/r2", "val/loss")


def table(
    folds: Rows, summary: Mapping[str, Any], beside: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Lay out the text of `CrossValidationResult.table`.

    Args:
        folds: The rows of the fits.
        summary: Content of ``summary.json``.
        beside: Further columns, before the metrics: a cell for each fold, and one for the means.
    """
    beside, others = beside or {}, dict(summary["pooled"])
    columns = []  # head, a cell for each fold, mean ± std, interval, pooled
    for name, found in _metrics(summary).items():
        over_all = others.pop(name.removeprefix("val/"), None)
        columns.append([
            name,
            *(number(row[name]) for row in folds),
            f"{number(found['mean'])} ± {number(found['std'])}",
            _interval(found),
            "" if over_all is None else number(over_all),
        ])  # fmt: skip
    times = [row["seconds"] for row in folds]
    seconds = ["seconds", *(f"{t:.1f}" for t in times), f"{sum(times):.1f} in all", "", ""]
    names = _names(folds, len(others) < len(summary["pooled"]))
    # Of a nested cross-validation, or without a selection, the last epoch is the one that counts.
    is_last = bool(beside) or summary.get("select") == "last"
    epochs = [
        str(row["epochs"]) if is_last else f"{row['epochs']} (best {row['best_epoch']})"
        for row in folds
    ]
    failed = len(summary.get("failed", []))
    missing = f"{len(folds)} of {len(folds) + failed} folds" if failed else ""
    lead = [["epochs", *epochs, missing, "", ""]]
    lead += [[name, *cells, "", ""] for name, cells in beside.items()]
    first, *more = _blocks(names, lead, columns, reserved=width(seconds) + len(GAP))
    blocks = [_block(part, len(folds)) for part in [[*first, seconds], *more]]
    pooled = ", ".join(f"{name} {number(value)}" for name, value in others.items())
    below = [f"pooled: {pooled}"] if others else []
    below += [f"note: {' '.join(note.split())}" for note in summary["notes"]]
    return "\n\n".join(blocks) + "".join(f"\n{line}" for line in below)


def _names(folds: Rows, any_pooled: bool) -> list[list[str]]:
    """Make the columns that say which row it is."""
    below = ["mean ± std", "95 % interval", "pooled" if any_pooled else ""]
    columns = [["fold", *(str(row["fold"]) for row in folds), *below]]
    if len({row["repeat"] for row in folds}) > 1:
        columns.insert(0, ["repeat", *(str(row["repeat"]) for row in folds), "", "", ""])
    if any("group" in row for row in folds):
        groups = (_shortened(row.get("group", "")) for row in folds)
        columns.append(["group", *groups, "", "", ""])
    return columns


def _blocks(
    names: list[list[str]], lead: list[list[str]], columns: list[list[str]], reserved: int
) -> list[list[list[str]]]:
    """Put the columns into blocks of at most `WIDTH` characters.

    Each block begins with `names`. The first has `lead` too, and room for `reserved` characters.
    """
    blocks = [[*names, *lead]]
    for column in columns:
        room = WIDTH - (reserved if len(blocks) == 1 else 0)
        used = sum(width(c) + len(GAP) for c in blocks[-1])
        if used + width(column) > room and len(blocks[-1]) > len(names):
            blocks.append([*names])
        blocks[-1].append(column)
    return blocks


def _block(columns: list[list[str]], num_folds: int) -> str:
    lines = block(columns, num_folds).split("\n")
    if lines[-1].strip() == "pooled":  # of other blocks
        lines.pop()
    return "\n".join(lines)


def _shortened(name: str, length: int = 24) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _interval(found: Mapping[str, Any]) -> str:
    """``"0.8911 … 0.9534"``."""
    low, high = found["interval"]
    return f"{number(low)} … {number(high)}"


def _metrics(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    names = table_metrics(summary["metrics"], summary.get("monitor", ""))
    return {name: summary["metrics"][name] for name in names}


def table_metrics(metrics: Collection[str], monitor: str) -> list[str]:
    """Sort metrics with the monitor and `FIRST` at the beginning."""
    return [name for name in dict.fromkeys([monitor, *FIRST, *metrics]) if name in metrics]
