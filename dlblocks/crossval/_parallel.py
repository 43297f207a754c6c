"""Folds side by side, each in a process of its own: by joblib, here or on a cluster."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from dlblocks._errors import check_choice, check_range
from dlblocks._files import LOCK, PLAN, is_rank_zero, locked
from dlblocks._quiet import isolated
from dlblocks.crossval._fold import FoldResult, FoldSpec, RunConfig, read_fold, run_fold
from dlblocks.data import SplitDataModule
from dlblocks.runs._history import VALIDATION, name_of_selection
from dlblocks.runs._trainer import new_callbacks, without_bars

# How often Ray runs a fold again whose machine has died.
LOST = 3
WATCH_SECONDS = 0.2
# By these a process finds out that it is one rank of many. A fold in a worker is a run of its own,
# whatever started the worker: srun, say, which has numbered the nodes of a Ray cluster.
RANKS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("SLURM_PROCID", "SLURM_NTASKS", "JSM_NAMESPACE_RANK", "TORCHELASTIC_RUN_ID"),
)
# Two folds in one process, as in the threads of a Dask worker, would share its random state.
_one_fold = threading.Lock()


@dataclass
class Task:
    """What a worker gets, wherever it is."""

    plan: RunConfig
    datamodule: SplitDataModule
    job: FoldSpec
    threads: int
    notes: Path
    parent: int
    is_child: bool = False  # whether the worker is a child of the process `parent`


def check_jobs(n_jobs: int, trainer: Mapping[str, Any], engine: str, on_error: str) -> None:
    """Raises a `ValueError` if folds cannot run side by side, or go on after an error."""
    check_choice("engine", engine, ["sequential", "vectorized", "auto"])
    check_choice("on_error", on_error, ["raise", "continue"])
    ranks = _count_ranks(trainer)
    if on_error == "continue" and n_jobs == 1 and ranks > 1:
        raise ValueError(
            f"on_error='continue' cannot be used with {ranks} devices: an error on one of them "
            "would leave the others waiting for it without end; use on_error='raise', or one "
            "device (trainer={'devices': 1})."
        )
    if engine == "vectorized" and n_jobs != 1:
        raise ValueError(
            f"n_jobs={n_jobs} has no effect with engine='vectorized', which runs all folds as one; "
            "leave one of the two out."
        )
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


def _count_ranks(trainer: Mapping[str, Any]) -> int:
    """Number of processes that run one fit together."""
    devices, accelerator = trainer.get("devices", "auto"), trainer.get("accelerator", "auto")
    if devices in ("auto", None, -1, "-1"):
        count = 1 if accelerator in ("cpu", "mps") else max(torch.cuda.device_count(), 1)
    elif isinstance(devices, str):
        count = int(devices) if devices.isdigit() else len(devices.strip(",").split(","))
    else:
        count = devices if isinstance(devices, int) else len(devices)
    return int(count * int(trainer.get("num_nodes", 1)))


def run_side_by_side(
    plan: RunConfig,
    make_data: Callable[[FoldSpec], SplitDataModule],
    jobs: Sequence[FoldSpec],
    n_jobs: int,
    progress: FoldProgress,
    on_error: str = "raise",
) -> Generator[tuple[FoldSpec, FoldResult | Exception], None, None]:
    """Runs fits in `n_jobs` processes; yields each as it ends, with its error if it failed.

    The processes share the cores out among them, and where there are several GPUs each fit has one
    of them. Under `joblib.parallel_config` the fits run where that says.

    Args:
        plan: What is the same for every fit.
        make_data: Returns a new datamodule set to the fold of a job.
        jobs: The fits.
        n_jobs: Number of processes; -1 for one a core.
        progress: The bar over all fits.
        on_error: ``"raise"``, or ``"continue"`` with the other fits when a process dies.
    """
    import joblib

    backend, _ = joblib.parallel.get_active_backend()
    is_ray = type(backend).__module__.startswith("ray.")
    processes = len(jobs) if is_ray else joblib.cpu_count()
    processes = min(processes if n_jobs == -1 else n_jobs, len(jobs))
    options = _ray_options(backend, plan) if is_ray else {}
    threads = max(1, int(options.get("num_cpus", torch.get_num_threads() // processes)))
    # The check is done, and not to be sent elsewhere, where the working folder may be another.
    plan = replace(
        plan,
        check=None,
        run_dir=plan.run_dir.absolute(),
        # Bars of several processes would overwrite each other.
        make_callbacks=partial(_without_bars, plan.make_callbacks),
    )
    with tempfile.TemporaryDirectory(prefix="dlblocks-") as folder:
        notes = Path(folder)
        # The first worker tries and warns for all.
        others = replace(plan, tried=True, warned=True)
        plans = {job: plan if job is jobs[0] else others for job in jobs}
        is_child = type(backend).__name__ == "LokyBackend"

        def make_task(job: FoldSpec) -> Task:
            return Task(
                plans[job], make_data(job), job, threads, notes, os.getpid(), is_child=is_child
            )

        if is_ray:
            outcomes = _on_ray(map(make_task, jobs), processes, options)
        else:
            outcomes = _on_joblib(make_task, jobs, processes, notes, on_error)
        with progress.watching(notes):
            try:
                for job, outcome in outcomes:
                    Notes(notes, job.number).end_fit(1.0)  # on another machine it could not
                    yield job, outcome
            finally:
                outcomes.close()


def _on_joblib(
    make_task: Callable[[FoldSpec], Task],
    jobs: Sequence[FoldSpec],
    processes: int,
    notes: Path,
    on_error: str,
) -> Generator[tuple[FoldSpec, FoldResult | Exception], None, None]:
    """Runs fits in joblib's processes.

    When one process dies, joblib ends all of them and does not say which fit was at fault. With
    ``on_error="continue"`` the fits that were running are resumed after the others, each alone. One
    whose process dies again has failed.
    """
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    todo, suspects = list(jobs), list[FoldSpec]()
    while todo or suspects:
        some = todo or [suspects.pop(0)]
        is_alone = not todo
        # Two, as one would be this process; with one fit the other is never started.
        parallel = joblib.Parallel(2 if is_alone else processes, return_as="generator_unordered")
        outcomes = parallel(joblib.delayed(_work)(make_task(job)) for job in list(some))
        try:
            for job, outcome in outcomes:
                some.remove(job)
                yield job, outcome
        except TerminatedWorkerError as error:
            begun = [job for job in some if _begun(notes, job).exists()]
            names = ", ".join(job.name for job in begun or some)
            died = RuntimeError(
                f"a worker process died, which ran one of: {names}. It was killed, crashed, or the "
                f"memory was short: use fewer n_jobs, or on_error='continue'. {error}"
            )
            if on_error == "raise":
                raise died from error
            if is_alone or not begun:
                yield from ((job, died) for job in some)
                todo = []
            else:
                suspects += begun
                todo = [job for job in some if job not in begun]
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that fits were broken off, as they should be
                outcomes.close()


def _begun(notes: Path, job: FoldSpec) -> Path:
    return notes / f"{job.number}.begun"


def _without_bars(make_callbacks: Callable[[], Sequence[Callback]]) -> list[Callback]:
    return without_bars(new_callbacks(make_callbacks))


def _ray_options(backend: Any, plan: RunConfig) -> dict[str, Any]:
    """What a fold needs of the cluster, which `ray_remote_args` of joblib's backend overrides."""
    import ray

    if not ray.is_initialized():
        ray.init()
    options: dict[str, Any] = {"num_cpus": 1, "max_retries": LOST, "scheduling_strategy": "SPREAD"}
    accelerator = plan.trainer.get("accelerator", "auto")
    if accelerator != "cpu" and ray.cluster_resources().get("GPU"):
        options["num_gpus"] = 1
    return {**options, **(backend.ray_remote_args or {})}


def _on_ray(
    tasks: Iterator[Task], count: int, options: Mapping[str, Any]
) -> Generator[tuple[FoldSpec, FoldResult | Exception], None, None]:
    """Runs `count` tasks at a time as Ray's own, not through joblib's pool for Ray.

    That pool (Ray 2.60) may put all its workers on one node, fails as a whole when a node dies, and
    gives nothing before all is done. A task of Ray's is run again, `LOST` times at most, if its
    node or process has died, and the others go on.
    """
    import ray

    work = ray.remote(**options)(_work)
    running: dict[Any, FoldSpec] = {}
    try:
        while True:
            for task in islice(tasks, count - len(running)):
                running[work.remote(task)] = task.job
            if not running:
                return
            (done,), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(done)
            outcome: tuple[FoldSpec, FoldResult | Exception]
            try:
                outcome = ray.get(done)
            except ray.exceptions.RayError as error:
                outcome = job, RuntimeError(f"Ray could not run it: {str(error).strip()}")
            yield outcome
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def wait_for_workers(plan: RunConfig, jobs: Sequence[FoldSpec]) -> None:
    """Waits for fits that workers of a killed call still run in this run folder.

    Workers on the machine of their call end within a second or two of it; those that a cluster
    has left behind may come to the end of their fold.
    """
    for job in jobs:
        folder = plan.folder(job)
        if (folder / LOCK).exists():
            with locked(folder, waiting=f"Waiting for a process that still runs {job.name}."):
                pass


def _work(task: Task) -> tuple[FoldSpec, FoldResult | Exception]:
    """Runs one fit in this process."""
    plan, job = task.plan, task.job
    _end_with(task.parent, is_child=task.is_child)
    if task.notes.is_dir():
        _begun(task.notes, job).touch()
    if torch.cuda.device_count() > 1 and plan.trainer.get("accelerator", "auto") != "cpu":
        mine = [job.number % torch.cuda.device_count()]
        plan = replace(plan, trainer={**plan.trainer, "devices": mine})
    bar = FoldBar(Notes(task.notes, job.number), job.number) if task.notes.is_dir() else None
    folder, waiting = plan.folder(job), f"Waiting for a process that still runs {job.name}."
    with _one_fold, _alone(), isolated():
        torch.set_num_threads(task.threads)
        try:
            if not (plan.run_dir / PLAN).is_file():
                raise FileNotFoundError(
                    f"run_dir='{plan.run_dir}' is not the same folder on {socket.gethostname()}; "
                    "folds on a cluster need one that all machines share."
                )
            with locked(folder, waiting=waiting):
                # Where a machine was lost from sight, not dead, it may have come to the end.
                found = read_fold(folder, plan.run_id) if plan.resume else None
                return job, found or run_fold(plan, task.datamodule, job, bar)
        except Exception as error:
            return job, error


def _end_with(parent: int, *, is_child: bool) -> None:
    """Makes this process end soon after the one that started it, where that is `parent`.

    A worker that outlived a killed call would go on for nobody. It ends as abruptly, and its fold
    goes on from its last checkpoint likewise.

    Args:
        parent: The process that has made the call.
        is_child: Whether it has started this process itself. If not, as on a cluster, others see to
            it that workers end.
    """
    if os.getpid() == parent:
        return  # joblib runs a single fit in the process of the call
    if os.getppid() != parent:
        if is_child:
            os._exit(1)  # it has ended while this process was starting
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    name = f"dlblocks-ends-with-{parent}"
    if all(thread.name != name for thread in threading.enumerate()):
        threading.Thread(target=watch, name=name, daemon=True).start()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hides from Lightning that this process may be a rank of something else."""
    hidden = {name: os.environ.pop(name) for name in RANKS if name in os.environ}
    said: Any = rank_zero_only  # Lightning keeps the rank there
    rank, said.rank = said.rank, 0
    try:
        yield
    finally:
        os.environ.update(hidden)
        said.rank = rank


SHOW_EVERY_SECONDS = 0.2
LATER = 1e-3  # seconds
WATCH_EVERY_SECONDS = 0.5


class FoldProgress:
    """The bar over all fits of a cross-validation. Its `callback` goes into each fold's Trainer.

    The total is an estimate: a fold that stops early makes the folds still to come as long as the
    mean of those that have ended.
    """

    def __init__(self, num_fits: int, *, show: bool = True) -> None:
        self.num_fits = num_fits
        self.ended: list[float] = []
        self.bar: tqdm | None = None
        if show and is_rank_zero():
            self.bar = tqdm(
                total=float(num_fits),
                bar_format="{desc} {bar} {percentage:3.0f}% | {elapsed} elapsed, {remaining} left",
                file=sys.stderr,
                dynamic_ncols=True,
                mininterval=0.1 if sys.stderr.isatty() else 10.0,
                smoothing=0.05,
                # Drawn at the first update: a bar among the callbacks may take its place.
                delay=LATER,
            )

    def callback(self, fit: int) -> ProgressBar:
        """The progress bar of fit number `fit`, 0 … num_fits - 1."""
        return FoldBar(self, fit)

    def update(self, fit: int, share: float, text: str) -> None:
        """Shows fit number `fit` as done to `share` of its epochs."""
        if self.bar is None:
            return
        whole = sum(self.ended) / len(self.ended) if self.ended else 1.0
        self.bar.total = sum(self.ended) + max(share, whole) + whole * (self.num_fits - fit - 1)
        self.bar.set_description_str(f"fold {fit + 1}/{self.num_fits} | {text}", refresh=False)
        self.bar.update(sum(self.ended) + share - self.bar.n)

    def end_fit(self, share: float) -> None:
        self.ended.append(share)

    def update_together(self, count: int, share: float, text: str) -> None:
        """Shows `count` fits that are run as one as done to `share` of their epochs."""
        if self.bar is not None:
            self.bar.set_description_str(f"{count} folds at once | {text}", refresh=False)
            self.bar.update(sum(self.ended) + count * share - self.bar.n)

    def end_together(self, count: int) -> None:
        """Counts fits that have ended together."""
        self.ended += [1.0] * count

    def skip(self, count: int) -> None:
        """Counts fits that were finished before this run."""
        self.ended += [1.0] * count

    @contextlib.contextmanager
    def watching(self, notes: Path) -> Iterator[None]:
        """Shows what fits in other processes write into the folder `notes`, until the end."""
        before, over = len(self.ended), threading.Event()

        def show() -> None:
            while not over.wait(WATCH_EVERY_SECONDS):
                found = {int(path.stem): path.read_text() for path in notes.glob("[0-9]*.json")}
                running = []
                shares = 0.0
                for fit, note in sorted(found.items()):
                    share, text = json.loads(note)
                    shares += 1.0 if text is None else share
                    if text is not None:
                        running.append(f"{fit + 1}: {text}")
                if self.bar is not None:
                    said = f"folds of {self.num_fits}, {before} before | " if before else "folds "
                    self.bar.set_description_str(said + " | ".join(running), refresh=False)
                    self.bar.update(before + shares - self.bar.n)

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def close(self) -> None:
        if self.bar is not None:
            if self.bar.n:
                self.bar.total = self.bar.n  # what early stopping saved is done, not missing
                self.bar.refresh()
            self.bar.close()


class Notes:
    """Stands in for `FoldProgress` in another process: writes down what that one reads.

    Args:
        folder: The folder of the notes, one a fit.
        fit: Number of the fit.
    """

    def __init__(self, folder: Path, fit: int) -> None:
        self.path = folder / f"{fit}.json"

    def update(self, fit: int, share: float, text: str | None) -> None:
        self._write([share, text])

    def end_fit(self, share: float) -> None:
        self._write([share, None])

    def _write(self, note: list[Any]) -> None:
        part = self.path.with_suffix(".part")  # not by `write_json`, which waits for the disk
        part.write_text(json.dumps(note))
        os.replace(part, self.path)


class FoldBar(ProgressBar):
    """Reports one Trainer's progress to the bar over all folds."""

    def __init__(self, progress: FoldProgress | Notes, fit: int) -> None:
        super().__init__()
        self.progress, self.fit = progress, fit
        self._shown = 0.0
        self._share = 0.0

    def disable(self) -> None:
        """Nothing to disable: only rank 0 has a bar."""

    def enable(self) -> None:
        """Nothing to enable: see `disable`."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        if now - self._shown > SHOW_EVERY_SECONDS:
            self._shown = now
            self._show(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._show(trainer)
        self.progress.end_fit(self._share)

    def _show(self, trainer: pl.Trainer) -> None:
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        if epochs is None and trainer.max_steps > 0:
            self._share = trainer.global_step / trainer.max_steps
        elif epochs is not None:
            progress: Any = trainer.fit_loop.epoch_progress.current
            batches = trainer.num_training_batches
            # In mid-epoch the epoch counts as far as it has come.
            part = 0.0
            if progress.ready > progress.processed and batches not in (0, float("inf")):
                part = min(1.0, (trainer.fit_loop.batch_idx + 1) / batches)
            self._share = min(1.0, (progress.processed + part) / epochs)
        started = min(trainer.current_epoch + 1, epochs or sys.maxsize)
        epoch = f"epoch {started}" + (f"/{epochs}" if epochs else "")
        metrics = self.get_metrics(trainer, trainer.lightning_module)
        if getattr(trainer.datamodule, "validate_on", None) == "selection":  # type: ignore[attr-defined]
            metrics = {
                name_of_selection(name) if VALIDATION.match(name) else name: value
                for name, value in metrics.items()
            }
        shown = [f"{k} {v:.4g}" for k, v in metrics.items() if isinstance(v, float)][:2]
        self.progress.update(self.fit, self._share, " | ".join([epoch, *shown]))
