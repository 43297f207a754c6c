"""``plan.json``: what a cross-validation is, written before its first fit and held against later.

A run folder that has one can be gone on with, by the same configuration on the same data and splits
(``folds.json``), and by no other.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch.nn.parameter import UninitializedParameter

from dlblocks import tracking
from dlblocks.crossval.splits import write_splits
from dlblocks.files import LOCK, PLAN, OtherRunError, check_new_run_dir, write_json
from dlblocks.fitting import configuration, without_bars
from dlblocks.plain import NOT_PLAIN, plain

FOLDS = "folds.json"
SHOWN = 8  # differences in a message


def describe(
    model: pl.LightningModule,
    callbacks: Sequence[Callback],
    datamodule: pl.LightningDataModule,
    **settings: Any,
) -> dict[str, Any]:
    """All that decides what the fits are, as plain values.

    Args:
        model: One as every fold gets it.
        callbacks: Likewise.
        datamodule: Likewise; what differs between folds is left out.
        settings: Arguments of `cross_validate`, such as ``seed``.
    """
    found = configuration(model, datamodule)
    for key in ("fold", "num_folds"):
        found["data"].pop(key, None)
    shapes = {
        name: list(p.shape)
        for name, p in model.named_parameters()
        if not isinstance(p, UninitializedParameter)
    }
    transform = getattr(datamodule, "train_transform", None)
    if transform is not None:
        # Without the addresses of functions.
        found["data"]["train_transform"] = re.sub(" at 0x[0-9a-f]+", "", repr(transform.transform))
    found["data"].setdefault("batch_size", getattr(datamodule, "batch_size", None))
    described = {
        **settings,
        **found,
        "parameters": shapes,
        "callbacks": [
            {"class": type(c).__name__, **tracking.plain_attributes(c)}
            for c in without_bars(callbacks)
        ],
    }
    plain: dict[str, Any] = _plain(described)
    return plain


def begin(run_dir: Path, config: Mapping[str, Any], splits: dict[str, Any], *, resume: bool) -> str:
    """Writes the plan into a new run folder, or finds that of the folder the same.

    Returns:
        An id for this run and all that go on with it.

    Raises:
        FileExistsError: The folder holds something else, or another configuration or other data,
            whose differences are listed; or `resume` is off.
    """
    path = run_dir / PLAN
    if not (resume and path.is_file()):
        if not _broken_off(run_dir):
            check_new_run_dir(run_dir)
        run_id = secrets.token_hex(4)
        write_splits(run_dir / FOLDS, splits)
        write_json(path, {"run_id": run_id, "config": config, "versions": tracking.versions()})
        return run_id
    old = json.loads(path.read_text())
    old_splits = json.loads((run_dir / FOLDS).read_text())
    different = _differences(old["config"], _plain(config))
    different += [f"data or splits: {text}" for text in _differences(old_splits, _plain(splits))]
    if different:
        more = f", and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        raise OtherRunError(
            f"run_dir='{run_dir}' holds a cross-validation of another kind: "
            f"{'; '.join(different[:SHOWN])}{more}. Choose another run_dir, or delete it first."
        )
    return str(old["run_id"])


def engine_of(run_dir: Path) -> str | None:
    """The engine of the run in a folder, or None if there is no run."""
    path = run_dir / PLAN
    if not path.is_file():
        return None
    return str(json.loads(path.read_text())["config"].get("engine", "sequential"))


def _broken_off(run_dir: Path) -> bool:
    """Whether the folder holds no more than what a kill right here leaves."""
    parts = (f".{Path(FOLDS).stem}-", f".{Path(PLAN).stem}-")
    names = [path.name for path in run_dir.iterdir()] if run_dir.is_dir() else []
    return all(name in (FOLDS, LOCK) or name.startswith(parts) for name in names)


def _plain(value: Any) -> Any:
    """The value as JSON gives it back; what JSON lacks is named by its class."""
    if (found := plain(value, lists=True)) is not NOT_PLAIN:
        value = found
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        finite = not isinstance(value, float) or math.isfinite(value)
        return json.loads(json.dumps(value)) if finite else str(value)
    return f"<{type(value).__name__}>"


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What differs between two plain values, in words: ``model.lr was 0.01 and is 0.02``."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in {**old, **new}:
            where = f"{name}.{key}" if name else key
            if key not in old or key not in new:
                found.append(f"{where} is {'new' if key not in old else 'gone'}")
            else:
                found += _differences(old[key], new[key], where)
        return found
    if all(isinstance(v, list) and v and isinstance(v[0], dict) for v in (old, new)):
        if len(old) == len(new):
            pairs = enumerate(zip(old, new, strict=True))
            return [text for i, (a, b) in pairs for text in _differences(a, b, f"{name}[{i}]")]
        return [f"{name} had {len(old)} entries and has {len(new)}"]
    if old == new:
        return []
    short = all(len(repr(value)) <= 60 for value in (old, new))
    return [f"{name} was {old!r} and is {new!r}" if short else f"{name} differs"]
