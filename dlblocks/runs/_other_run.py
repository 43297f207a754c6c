"""Replace a run that had not trained yet, and refuse any other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from dlblocks import tracking
from dlblocks._files import LOCK, PLAN, OtherRunError, is_part, is_whole
from dlblocks.runs.folder import say

# Files that a run writes before it has trained anything; a fit that starts again writes them again.
EARLY = {PLAN, "folds.json", "samples.npz", "config.yaml", "hparams.yaml", "metrics.csv"}
LOGS = {"wandb", "tensorboard"}  # folders that stay


def replace_untrained(run_dir: Path, versions: Mapping[str, str], text: str) -> None:
    """Clear the folder of another run without training so far.

    Args:
        run_dir: The folder, locked.
        versions: Those of the run in the folder.
        text: How it differs from the new one.

    Raises:
        FileExistsError: It has trained.
    """
    if _remove_untrained(run_dir):
        say(f"{run_dir}: replaced another run, which had not trained yet: {text}.")
        return
    version, today = (v.get("dlblocks") for v in (versions, tracking.versions()))
    if version != today:
        raise OtherRunError(
            f"run_dir='{run_dir}' holds a run of an earlier or later version, dlblocks "
            f"{version}, which dlblocks {today} does not resume: {text}. Resume it with "
            "that version, or choose another run_dir. If it is finished, dlblocks.load "
            "opens its model, and dlblocks.crossval.load_result a cross-validation."
        )
    raise OtherRunError(
        f"run_dir='{run_dir}' holds a run of another kind: {text}. Choose another run_dir, "
        "or delete it first."
    )


def _remove_untrained(run_dir: Path) -> bool:
    """Remove the files of a run without finished fits or trained weights.

    The lock and what W&B and TensorBoard have logged stay.

    Args:
        run_dir: The folder, locked.

    Returns:
        False if there is any other file, and with several processes, as another may be reading.
        The folder is as it was then.
    """
    if int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) > 1:
        return False
    paths = [p for p in run_dir.rglob("*") if not LOGS & {*p.relative_to(run_dir).parts}]
    folders = [path for path in paths if path.is_dir() and not path.is_symlink()]
    files = [path for path in paths if path not in folders and path.name != LOCK]
    if not all(map(_is_early, files)):
        return False
    # Weights of the other run first: no new fit may start from them, even after a kill.
    for path in sorted(files, key=lambda path: path.suffix != ".ckpt"):
        path.unlink()
    for folder in sorted(folders, reverse=True):
        with contextlib.suppress(OSError):  # it holds a lock or logs
            folder.rmdir()
    return True


def _is_early(path: Path) -> bool:
    if path.is_symlink():
        return False
    if path.name != "last.ckpt":
        return path.name in EARLY or is_part(path.name)
    import torch

    if not is_whole(path):
        return False
    # Written before the first step, too.
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return bool(found["global_step"] == 0)
