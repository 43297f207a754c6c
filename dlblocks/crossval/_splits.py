"""Plan the splits of a cross-validation, write them, and note their flaws."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlblocks._files import atomic_write, read_json
from dlblocks.crossval._fold_config import FoldConfig, FoldSpec
from dlblocks.data import SplitDataModule
from dlblocks.data._fingerprint import fingerprint
from dlblocks.models._predict_batches import NoPredictions
from dlblocks.runs._plan import begin_run, differences
from dlblocks.runs._plan import describe as describe_arguments
from dlblocks.runs._plan import described as as_json

FOLDS = "folds.json"
NO_OOF = "no out-of-fold predictions: "


def plan_splits(
    data: SplitDataModule, num_folds: int | None, repeats: int, *, selection_fraction: float = 0.0
) -> dict[str, Any]:
    """Return the content of ``folds.json`` as plain values.

    Args:
        data: The data, not necessarily set to a fold.
        num_folds: Number of folds, or None for what the data say.
        repeats: Number of repeats.
        selection_fraction: Share of each training part that selects the epoch.

    Returns:
        ``split``, ``num_folds``, ``repeats``, ``split_seed``; ``groups``, their number and hash, or
        None; ``num_samples`` of the data and ``num_test`` of those held out; ``fingerprint``;
        ``folds``, one a fit: ``repeat``, ``fold``, ``num_train``, ``num_val`` and the validation
        rows, ``val``, with a `selection_fraction` also ``selection``, the rows that select the
        epoch; and ``test``, the rows held out. All other rows train. With ``"time_series"`` only
        those before `val` do, with ``"blocks"`` only
        those with the margin to `val`, and with a splitter object those that it returns, without
        its gap before `selection`.

    Raises:
        ValueError: `num_folds` is not what the data say, or repeats would all be the same.
    """
    repeats = data.count_repeats(repeats)
    num_folds = data.count_folds(num_folds)
    if selection_fraction:
        data = data.with_selection(selection_fraction)
    found = [
        (repeat, fold, rows)
        for repeat in range(repeats)
        for fold, rows in enumerate(data.splits(num_folds, repeat=repeat))
    ]
    test, groups = found[0][2]["test"], data.columns.groups
    return {
        "split": data.split_name,
        "num_folds": num_folds,
        "repeats": repeats,
        "split_seed": data.split_seed,
        "groups": None
        if groups is None
        else {"number": len(np.unique(groups)), "sha256": fingerprint({}, {"groups": groups})[:8]},
        "num_samples": data.columns.num_samples,
        "num_test": len(test),
        "fingerprint": data.fingerprint(),
        "folds": [
            {
                "repeat": repeat,
                "fold": fold,
                "num_train": len(rows["train"]),
                "num_val": len(rows["val"]),
                "val": rows["val"].tolist(),
                **({"selection": rows["selection"].tolist()} if "selection" in rows else {}),
            }
            for repeat, fold, rows in found
        ],
        "test": test.tolist(),
    }


def folding(data: SplitDataModule, splits: Mapping[str, Any]) -> dict[str, Any]:
    """Say how the folds were made, for ``summary.json``.

    Args:
        data: The data.
        splits: As `plan_splits` returns them.

    Returns:
        ``split``, ``num_folds``, ``repeats``, ``split_seed``; ``groups``, their number, or None;
        ``stratified_by``, ``"classes"``, ``"bins of values"`` or None; for blocks ``margin`` and
        ``num_blocks``.
    """
    strata, groups = data.strata(), splits["groups"]
    blocks = ("margin", "num_blocks") if data.split == "blocks" else ()
    kind = "classes" if data.is_classification else "bins of values"
    return {
        **{name: splits[name] for name in ("split", "num_folds", "repeats", "split_seed")},
        "groups": groups and groups["number"],
        "stratified_by": None if strata is None else kind,
        **{name: getattr(data, name) for name in blocks},
    }


def fold_specs(splits: Mapping[str, Any]) -> list[FoldSpec]:
    """Return the specs of all folds."""
    return [FoldSpec.of(one, splits["num_folds"]) for one in splits["folds"]]


def check_same(data: SplitDataModule, splits: Mapping[str, Any], number: int) -> None:
    """Raise a `ValueError` unless fit `number` has the same split in `data`."""
    written = splits["folds"][number]
    rows = data.splits(splits["num_folds"], repeat=written["repeat"])[written["fold"]]
    found = data.fingerprint(), rows["val"].tolist(), rows["test"].tolist()
    if found != (splits["fingerprint"], written["val"], splits["test"]):
        raise ValueError(
            f"the datamodule made for fit {number} has other data or splits them in another way "
            "than the first; the function that makes it must return the same every time."
        )


def describe(*args: Any, **settings: Any) -> dict[str, Any]:
    """Describe a run by `dlblocks.runs._plan.describe`, without fold numbers."""
    found = describe_arguments(*args, **settings)
    for key in ("fold", "num_folds"):
        found["data"].pop(key, None)
    return found


def begin(
    config: FoldConfig, described: Mapping[str, Any], splits: dict[str, Any], *progress: Any
) -> None:
    """Write ``folds.json`` and ``plan.json``, or check that the existing ones match.

    Args:
        config: Of the run; gets the run's id.
        described: What `describe` returned.
        splits: What `plan_splits` returned.
        *progress: As for `begin_run`.
    """
    path = config.run_dir / FOLDS

    def differ() -> list[str]:
        cure = "choose another run_dir, or delete this one: nothing says what its folds are"
        old = read_json(path, cure)
        # Earlier versions did not write the groups; they are in the fingerprint.
        new = {k: v for k, v in as_json(splits).items() if k != "groups" or k in old}
        found = differences(old, new)
        return [f"data or splits: {text}" for text in found]

    config.run_id = begin_run(
        config.run_dir,
        described,
        progress,
        resume=config.resume,
        others={FOLDS: lambda: _write_splits(path, splits)},
        more=differ,
    )


def duplicates_note(count: int | None, splits: Mapping[str, Any]) -> list[str]:
    """Note how many validation samples have a copy in training.

    Args:
        count: As `SplitDataModule.count_duplicates` finds it.
        splits: As `plan_splits` returns them.
    """
    if not count:
        return []
    total = sum(fold["num_val"] for fold in splits["folds"] if fold["repeat"] == 0)
    cure = 'keep copies together by groups="duplicates"'
    if splits["split"] == "blocks":  # which has no groups
        cure = "leave them out, unless they are empty tiles"
    return [
        f"{count} of {total} validation samples have an exact copy in the training part of their "
        f"fold; {cure}."
    ]


def margin_note(splits: Mapping[str, Any]) -> list[str]:
    """Note how many samples the margin between blocks keeps out of training.

    Args:
        splits: As `plan_splits` returns them.
    """
    if splits["split"] != "blocks":
        return []
    used = ("num_train", "num_val", "selection")
    left = [
        splits["num_samples"] - splits["num_test"]
        - sum(len(fold.get(n, [])) if n == "selection" else fold[n] for n in used)
        for fold in splits["folds"]
    ]  # fmt: skip
    each = 100 / splits["num_samples"]
    if each * max(left) < 0.5:
        return []
    return [
        f"blocks: {each * min(left):.0f} to {each * max(left):.0f} % of the samples are in no part "
        "of a fold, since they are nearer than the margin to samples held out."
    ]


def overlap_note(splits: Mapping[str, Any]) -> list[str]:
    """Note how many samples several folds of a repeat validate.

    Args:
        splits: As `plan_splits` returns them.
    """
    validated: dict[int, list[int]] = {}
    for fold in splits["folds"]:
        validated.setdefault(fold["repeat"], []).extend(fold["val"])
    counts = [np.unique(rows, return_counts=True)[1] for rows in validated.values()]
    most = max((int((count > 1).sum()), len(count)) for count in counts)
    if not most[0]:
        return []
    return [
        f"{most[0]} of {most[1]} validated samples are in several folds of this splitter, and "
        "pooled scores count each of their out-of-fold predictions."
    ]


def selection_note(splits: Mapping[str, Any], fraction: float) -> list[str]:
    """Note a selection part that whole groups make too large or small.

    Args:
        splits: As `plan_splits` returns them.
        fraction: The share that was asked for.
    """
    if not fraction:
        return []
    shares = [
        len(fold["selection"]) / (len(fold["selection"]) + fold["num_train"])
        for fold in splits["folds"]
    ]
    if all(fraction / 2 <= share <= 1.5 * fraction for share in shares):
        return []
    low, high = min(shares), max(shares)
    return [
        f"the selection part holds {100 * low:.0f} to {100 * high:.0f} % of a fold's training "
        f"samples, not {100 * fraction:.0f} %, as its groups are whole and the samples are few; "
        "select='last' needs no such part."
    ]


def limit_note(rows: Sequence[Mapping[str, Any]], splits: Mapping[str, Any]) -> list[str]:
    """Note that the Trainer has scored only some validation samples.

    Args:
        rows: Rows of the finished fits.
        splits: As `plan_splits` returns them.
    """
    sizes = {(fold["repeat"], fold["fold"]): fold["num_val"] for fold in splits["folds"]}
    scored = sum(row["num_val"] for row in rows)
    total = sum(sizes[row["repeat"], row["fold"]] for row in rows)
    if scored >= total:
        return []
    return [
        f"the Trainer limits validation to {scored} of {total} samples, and the scores are of "
        "these; out-of-fold predictions and pooled scores are of all, so that the two differ."
    ]


def predictions_note(reasons: Sequence[NoPredictions | None]) -> list[str]:
    """Note why a result has no out-of-fold predictions.

    Args:
        reasons: Of each fold, None where it has predictions.
    """
    found = [reason for reason in reasons if reason is not None]
    return [f"{NO_OOF}{found[0]}"] if found else []


def _write_splits(path: Path, description: dict[str, Any]) -> None:
    """Write ``folds.json`` with one line a fold."""
    lines = []
    for key, value in description.items():
        text = json.dumps(value)
        if key == "folds":
            text = "[\n    " + ",\n    ".join(json.dumps(fold) for fold in value) + "\n  ]"
        lines.append(f'  "{key}": {text}')
    with atomic_write(path) as part:
        part.write_text("{\n" + ",\n".join(lines) + "\n}\n")
