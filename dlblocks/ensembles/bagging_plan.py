"""``samples.npz`` beside ``plan.json``: which rows each member is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlblocks.ensembles.bagging_result import SAMPLES
from dlblocks.ensembles.bootstrap import Rows
from dlblocks.files import check_new_run_dir, is_whole, remove_parts, whole_file
from dlblocks.plan import check_same_run, new_run, run_id_of


def begin(run_dir: Path, config: dict[str, Any], samples: Sequence[Rows], *, goes_on: bool) -> str:
    """Writes plan and samples into a new run folder, or finds those of the folder the same.

    Args:
        run_dir: The run folder.
        config: What `dlblocks.plan.describe` returned.
        samples: The rows that each member is trained on.
        goes_on: Whether the run in the folder is to be gone on with.

    Returns:
        An id for this run and all that go on with it.

    Raises:
        FileExistsError: The folder holds something else, or a run of another configuration.
        ValueError: ``plan.json`` is damaged.
    """
    if goes_on:
        check_same_run(run_dir, config)
        remove_parts(run_dir)
        run_id = run_id_of(run_dir)
    else:
        check_new_run_dir(run_dir)
        remove_parts(run_dir)
        run_id = new_run(run_dir, config)
    if not is_whole(run_dir / SAMPLES):  # a kill may have come between the two
        arrays: dict[str, Any] = {str(k): rows for k, rows in enumerate(samples)}
        with whole_file(run_dir / SAMPLES) as part:
            np.savez_compressed(part, **arrays)
    return run_id
