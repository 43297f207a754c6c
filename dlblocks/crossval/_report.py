"""A cross-validation as a table of text, and as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dlblocks.crossval._scored_folds import ScoredFolds
from dlblocks.runs._tables import GAP, block, number, width

# What a figure shows, in the order of the page; those of other names follow.
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
    "hardest": "Hardest samples: the true class got the lowest out-of-fold probability, on average "
    "over the repeats.",
}


def page(result: ScoredFolds) -> str:
    """The page of a result, with the figures that lie in its run folder."""
    info, name = result.info, result.run_dir.absolute().name
    repeats = len({row["repeat"] for row in result.folds})
    folds = len({row["fold"] for row in result.folds})
    size = f"{folds} folds" + (f", {repeats} repeats" if repeats > 1 else "")
    failed = info.get("failed", [])
    if failed:
        size = f"{len(result.folds)} of {len(result.folds) + len(failed)} fits; the others failed"
    said = [
        size,
        *([f"{len(result.oof) // repeats} samples"] if result.oof is not None else []),
        *_selection(info),
        *([f"{info['seconds']:.1f} s"] if "seconds" in info else []),
    ]
    environment = Environment(
        loader=PackageLoader("dlblocks.crossval", ""), autoescape=True, undefined=StrictUndefined
    )
    config = info.get("config", {})
    pooled = result.pooled_or_none()
    return environment.get_template("_report.html").render(
        name=name,
        facts=said,
        failed=failed,
        scores=_scores(result, pooled),
        has_pooled=bool(pooled),
        notes=result.notes,
        folds=_folds(result),
        search=_search(result) if "search" in info else None,
        figures=_figures(result.run_dir / "figures"),
        info={"data": info.get("data")},
        origin=_origin(result, config),
        config=json.dumps(config, indent=2, default=str, ensure_ascii=False) if config else "",
    )


def _selection(info: Mapping[str, Any]) -> list[str]:
    """Say how the epochs were selected."""
    if info.get("select") == "last":
        return ["weights of the last epoch"]
    if "monitor" not in info:
        return []
    said = f"best epoch by {info['monitor']} ({info['mode']})"
    if info.get("select") == "inner":
        said += f" on {100 * info['selection_fraction']:g} % of the training samples"
    return [said]


Table = tuple[list[str], list[list[Any]]]


def _scores(result: ScoredFolds, pooled: Mapping[str, float]) -> Table:
    others, rows = dict(pooled), list[list[Any]]()
    for name in table_metrics(result):
        over_all = others.pop(name.removeprefix("val/"), None)
        rows.append([
            name,
            number(result.mean(name)),
            number(result.std(name)),
            said_interval(result, name),
            "" if over_all is None else number(over_all),
        ])  # fmt: skip
    rows += [[name, "", "", "", number(value)] for name, value in others.items()]
    head = ["metric", "mean", "std", "95 % interval", *(["pooled"] if pooled else [])]
    return head, [row[: len(head)] for row in rows]


def _folds(result: ScoredFolds) -> Table:
    repeated = len({row["repeat"] for row in result.folds}) > 1
    named = any("group" in row for row in result.folds)
    selected = any(row.get("num_selection") for row in result.folds)
    chosen = table_metrics(result)
    head = [
        *(["repeat"] if repeated else []),
        "fold",
        *(["group"] if named else []),
        *chosen,
        *("epochs", "best", "training", *(["selection"] if selected else []), "validation"),
        *("seed", "seconds"),
    ]
    samples = ["num_train", *(["num_selection"] if selected else []), "num_val"]
    seed = result.info.get("config", {}).get("seed")
    num_folds = result.info.get("num_folds", 0)
    rows = [
        [
            *([row["repeat"]] if repeated else []),
            row["fold"],
            *([row.get("group", "")] if named else []),
            *(number(row[name]) for name in chosen),
            *(row[key] for key in ("epochs", "best_epoch", *samples)),
            "" if seed is None else seed + row["repeat"] * num_folds + row["fold"],
            f"{row['seconds']:.1f}",
        ]
        for row in result.folds
    ]
    return head, rows


def _search(result: ScoredFolds) -> Table:
    """Of a nested cross-validation: every point of the grid, with the mean of its inner folds."""
    info = result.info
    repeated = len({row["repeat"] for row in result.folds}) > 1
    rows = [
        [
            *([row["repeat"]] if repeated else []),
            row["fold"],
            ", ".join(f"{name}={value!r}" for name, value in row["hyperparameters"].items()),
            *("" if row[key] is None else number(row[key]) for key in ("mean", "std")),
            row["epochs"],
            "chosen" if row["chosen"] else row.get("error", ""),
        ]
        for row in info["search"]
    ]
    head = [*(["repeat"] if repeated else []), *("fold", "hyperparameters")]
    head += [f"inner {info['monitor']}", "std", "epochs", ""]
    return head, rows


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


def _origin(result: ScoredFolds, config: Mapping[str, Any]) -> list[str]:
    info = result.info
    parts = []
    names = info.get("class_names") or []
    if names != [str(i) for i in range(len(names))]:
        parts.append("Classes: " + ", ".join(f"{i} {name}" for i, name in enumerate(names)))
    if "seed" in config:
        seed, split = config["seed"], config.get("data", {}).get("split_seed")
        last = seed + len(result.folds) + len(info.get("failed", [])) - 1
        parts.append(
            f"Seeds: {seed} … {last} for the fits, in their order"
            + (f"; {split} for the split." if split is not None else ".")
        )
    if info.get("versions"):
        parts.append("Versions: " + ", ".join(f"{k} {v}" for k, v in info["versions"].items()))
    return parts


WIDTH = 100
# The scores that people ask for first.
FIRST = ("val/accuracy", "val/f1", "val/rmse", "val/r2", "val/loss")


def table(result: ScoredFolds, beside: Mapping[str, Sequence[str]] | None = None) -> str:
    """What `ScoredFolds.table` returns.

    Args:
        result: The result.
        beside: Further columns, before the metrics: a cell for each fold, and one for the means.
    """
    beside, pooled = beside or {}, result.pooled_or_none()
    shown = set()
    columns = []  # head, a cell for each fold, mean ± std, interval, pooled
    for name in table_metrics(result):
        over_all = pooled.get(name.removeprefix("val/"))
        if over_all is not None:
            shown.add(name.removeprefix("val/"))
        columns.append([
            name,
            *(number(row[name]) for row in result.folds),
            f"{number(result.mean(name))} ± {number(result.std(name))}",
            said_interval(result, name),
            "" if over_all is None else number(over_all),
        ])  # fmt: skip
    times = [row["seconds"] for row in result.folds]
    seconds = ["seconds", *(f"{t:.1f}" for t in times), f"{sum(times):.1f} in all", "", ""]
    names = _names(result, bool(shown))
    # Of a nested cross-validation, or without a selection, the last epoch is the one that counts.
    is_last = bool(beside) or result.info.get("select") == "last"
    epochs = [
        str(row["epochs"]) if is_last else f"{row['epochs']} (best {row['best_epoch']})"
        for row in result.folds
    ]
    lead = [["epochs", *epochs, _missing(result), "", ""]]
    lead += [[name, *cells, "", ""] for name, cells in beside.items()]
    first, *more = _blocks(names, lead, columns, reserved=width(seconds) + len(GAP))
    blocks = [_block(part, len(result.folds)) for part in [[*first, seconds], *more]]
    others = {name: value for name, value in pooled.items() if name not in shown}
    said = ", ".join(f"{name} {number(value)}" for name, value in others.items())
    below = [f"pooled: {said}"] if others else []
    return "\n\n".join(blocks) + "".join(f"\n{line}" for line in [*below, *noted(result)])


def _names(result: ScoredFolds, any_pooled: bool) -> list[list[str]]:
    """The columns that say which row it is."""
    folds = result.folds
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


def _missing(result: ScoredFolds) -> str:
    """``"4 of 5 folds"`` where folds have failed."""
    failed = result.info.get("failed", [])
    return f"{len(result.folds)} of {len(result.folds) + len(failed)} folds" if failed else ""


def noted(result: ScoredFolds) -> list[str]:
    """The notes of a result, a line each."""
    return [f"note: {' '.join(note.split())}" for note in result.notes]


def said_interval(result: ScoredFolds, metric: str) -> str:
    """``"0.8911 … 0.9534"``."""
    low, high = result.interval(metric)
    return f"{number(low)} … {number(high)}"


def table_metrics(result: ScoredFolds) -> list[str]:
    """All metrics of the folds, the monitor first, then those of `FIRST`."""
    names = result.metrics
    monitor = result.info.get("monitor")
    return [n for n in dict.fromkeys([monitor, *FIRST, *names]) if n in names]
