"""``plan.json`` and ``samples.npz``: what a run of an ensemble is, written before its first fit.

A run folder that has them can be gone on with by the same configuration on the same data, and by
no other.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback

from dlblocks import tracking
from dlblocks.data import SplitDataModule
from dlblocks.ensembles.bagging_result import SAMPLES
from dlblocks.ensembles.bootstrap import Rows
from dlblocks.files import PLAN, OtherRunError, check_new_run_dir, whole_file, write_json
from dlblocks.fitting import configuration, without_bars
from dlblocks.models import Model

LONGEST = 200  # a difference in a message


def describe(
    model: Model,
    callbacks: Sequence[Callback],
    data: SplitDataModule,
    samples: Sequence[Rows],
    **settings: Any,
) -> dict[str, Any]:
    """All that decides what the members are, as plain values; what JSON lacks by its class.

    Args:
        model: One as every member gets it.
        callbacks: Likewise.
        data: The data.
        samples: The rows that each member is trained on.
        settings: Arguments of `Bagging`.
    """
    config = {
        **settings,
        **configuration(model, data),
        "callbacks": [
            {"class": type(c).__name__, **tracking.plain_attributes(c)}
            for c in without_bars(callbacks)
        ],
        "fingerprint": data.fingerprint(),
        "samples": hashlib.sha256(b"|".join(rows.tobytes() for rows in samples)).hexdigest(),
    }
    return plain(config)


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """The same as plain values, as JSON gives them back; what JSON lacks by its class."""
    found: dict[str, Any] = json.loads(
        json.dumps(config, default=lambda value: f"<{type(value).__name__}>")
    )
    return found


def begin(run_dir: Path, config: dict[str, Any], samples: Sequence[Rows], *, goes_on: bool) -> str:
    """Writes plan and samples into a new run folder, or finds those of the folder the same.

    Args:
        run_dir: The run folder.
        config: What `describe` returned.
        samples: The rows that each member is trained on.
        goes_on: Whether the run in the folder is to be gone on with.

    Returns:
        An id for this run and all that go on with it.

    Raises:
        FileExistsError: The folder holds something else, or a run of another configuration.
    """
    if not goes_on:
        check_new_run_dir(run_dir)
        run_id = new_run(run_dir, config)
        _write_samples(run_dir, samples)
        return run_id
    run_id = same_run(run_dir, config)
    if not (run_dir / SAMPLES).is_file():  # killed between the two
        _write_samples(run_dir, samples)
    return run_id


def new_run(run_dir: Path, config: dict[str, Any]) -> str:
    """Writes the plan of a new run; returns its id."""
    run_id = secrets.token_hex(4)
    plan = {"run_id": run_id, "config": config, "versions": tracking.versions()}
    write_json(run_dir / PLAN, plan)
    return run_id


def same_run(run_dir: Path, config: dict[str, Any]) -> str:
    """The id of the run in a folder, or a `FileExistsError` if it has another configuration."""
    before = json.loads((run_dir / PLAN).read_text())
    old = before["config"]
    names = [key for key in {**old, **config} if old.get(key) != config.get(key)]
    if names:
        shown = [f"{key} was {old.get(key)!r} and is {config.get(key)!r}" for key in names]
        shown = [text if len(text) < LONGEST else f"{text[:LONGEST]} …" for text in shown]
        raise OtherRunError(
            f"run_dir='{run_dir}' holds a run of another kind: {'; '.join(shown)}. Choose another "
            "run_dir, or delete it first."
        )
    return str(before["run_id"])


def _write_samples(run_dir: Path, samples: Sequence[Rows]) -> None:
    arrays: dict[str, Any] = {str(k): rows for k, rows in enumerate(samples)}
    with whole_file(run_dir / SAMPLES) as part:
        np.savez_compressed(part, **arrays)


def engine_of(run_dir: Path) -> str:
    """The engine of the run in a folder."""
    return str(json.loads((run_dir / PLAN).read_text())["config"].get("engine", "sequential"))
