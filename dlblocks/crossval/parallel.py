"""Folds side by side, each in a process of its own, by joblib."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from dlblocks.crossval.fold import Fold, Job, Plan, run_fold
from dlblocks.crossval.progress import FoldBar, FoldProgress, Notes
from dlblocks.data import SplitDataModule
from dlblocks.errors import check_range
from dlblocks.quiet import quiet


def check_jobs(n_jobs: int, trainer: Mapping[str, Any]) -> None:
    """Raises a `ValueError` if folds cannot run side by side with these Trainer arguments."""
    if n_jobs == -1:
        return
    check_range("n_jobs", n_jobs, 1)
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
    several = nodes != 1 or devices not in ("auto", 1, "1", [0], None)
    if n_jobs > 1 and (several or str(trainer.get("strategy", "auto")) != "auto"):
        raise ValueError(
            f"n_jobs={n_jobs} gives each fold a process and a device of its own, but trainer has "
            f"strategy={trainer.get('strategy', 'auto')!r}, devices={devices!r}, "
            f"num_nodes={nodes!r}; leave these out, or use n_jobs=1."
        )


def run_side_by_side(
    plan: Plan,
    make_data: Callable[[Job], SplitDataModule],
    jobs: Sequence[Job],
    n_jobs: int,
    progress: FoldProgress,
) -> Generator[tuple[Job, Fold | Exception], None, None]:
    """Runs fits in `n_jobs` processes; yields each as it ends, with its error if it failed.

    The processes share the cores out among them, and where there are several GPUs each fit has one
    of them. Under `joblib.parallel_config` the fits run where that says.

    Args:
        plan: What is the same for every fit.
        make_data: Returns a new datamodule set to the fold of a job.
        jobs: The fits.
        n_jobs: Number of processes; -1 for one a core.
        progress: The bar over all fits.
    """
    import joblib

    processes = min(joblib.cpu_count() if n_jobs == -1 else n_jobs, len(jobs))
    threads = max(1, torch.get_num_threads() // processes)
    plan = replace(plan, check=None)  # done, and not to be sent elsewhere
    with tempfile.TemporaryDirectory(prefix="dlblocks-") as folder:
        notes = Path(folder)
        tasks = (joblib.delayed(_work)(plan, make_data(job), job, threads, notes) for job in jobs)
        parallel = joblib.Parallel(n_jobs=processes, return_as="generator_unordered")
        outcomes = parallel(tasks)
        with progress.watching(notes):
            try:
                # `yield from` would close them without the filter below.
                for outcome in outcomes:  # noqa: UP028
                    yield outcome
            finally:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that fits were broken off, as they should be
                    outcomes.close()


def _work(
    plan: Plan, datamodule: SplitDataModule, job: Job, threads: int, notes: Path
) -> tuple[Job, Fold | Exception]:
    """Runs one fit in this process."""
    torch.set_num_threads(threads)
    if torch.cuda.device_count() > 1 and plan.trainer.get("accelerator", "auto") != "cpu":
        mine = [job.number % torch.cuda.device_count()]
        plan = replace(plan, trainer={**plan.trainer, "devices": mine})
    bar = FoldBar(Notes(notes, job.number), job.number) if notes.is_dir() else None
    with isolate_rng(), quiet():
        try:
            return job, run_fold(plan, datamodule, job, bar)
        except Exception as error:
            return job, error
