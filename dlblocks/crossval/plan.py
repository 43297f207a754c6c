"""``plan.json``: what a cross-validation is, written before its first fit and held against later.

A run folder that has one can be gone on with, by the same configuration on the same data and splits
(``folds.json``), and by no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlblocks import plan
from dlblocks.crossval.splits import write_splits
from dlblocks.files import LOCK, PLAN, check_new_run_dir, is_part, read_json, remove_parts
from dlblocks.plan import check_same_run, described, differences, new_run, run_id_of

FOLDS = "folds.json"


def describe(*args: Any, **settings: Any) -> dict[str, Any]:
    """Describe a run as `dlblocks.plan.describe` does, without what differs between folds."""
    found = plan.describe(*args, **settings)
    for key in ("fold", "num_folds"):
        found["data"].pop(key, None)
    return found


def begin(run_dir: Path, config: Mapping[str, Any], splits: dict[str, Any], *, resume: bool) -> str:
    """Writes the plan into a new run folder, or finds that of the folder the same.

    Returns:
        An id for this run and all that go on with it.

    Raises:
        FileExistsError: The folder holds something else, or another configuration or other data,
            whose differences are listed; or `resume` is off.
        ValueError: A file of the folder is damaged.
    """
    if not (resume and (run_dir / PLAN).is_file()):
        if not _broken_off(run_dir):
            check_new_run_dir(run_dir)
        remove_parts(run_dir)
        write_splits(run_dir / FOLDS, splits)
        return new_run(run_dir, config)
    old = read_json(
        run_dir / FOLDS,
        "choose another run_dir, or delete this one: nothing says what its folds are",
    )
    other = [f"data or splits: {text}" for text in differences(old, described(splits))]
    check_same_run(run_dir, config, other)
    remove_parts(run_dir)
    return run_id_of(run_dir)


def _broken_off(run_dir: Path) -> bool:
    """Whether the folder holds no more than what a kill right here leaves."""
    names = [path.name for path in run_dir.iterdir()] if run_dir.is_dir() else []
    return all(name in (FOLDS, LOCK) or is_part(name) for name in names)
