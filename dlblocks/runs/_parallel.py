"""Run fits side by side in processes, here or on a cluster."""

from __future__ import annotations

import contextlib
import os
import socket
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

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from dlblocks._errors import check_range
from dlblocks._files import LOCK, PLAN
from dlblocks._quiet import isolated
from dlblocks.data import SplitDataModule
from dlblocks.runs._fits import FitResult, read_fit, run_fit
from dlblocks.runs._progress import FitBar, FitProgress, Notes
from dlblocks.runs._run_config import FitSpec, RunConfig
from dlblocks.runs._trainer import new_callbacks, without_bars
from dlblocks.runs.folder import locked

LOST = 3  # how often Ray repeats a fit whose machine has died
WATCH_SECONDS = 0.2  # between looks at whether the process of the call lives
# These variables tell a process that it is one rank of many. A worker hides them, since its fit is
# a run of its own; srun, for example, sets them for the nodes of a Ray cluster.
RANKS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("SLURM_PROCID", "SLURM_NTASKS", "JSM_NAMESPACE_RANK", "TORCHELASTIC_RUN_ID"),
)
# Two fits in one process, as in the threads of a Dask worker, would share its random state.
_one_fit = threading.Lock()


def check_jobs(n_jobs: int, trainer: Mapping[str, Any], engine: str, on_error: str) -> None:
    """Raise a `ValueError` for arguments that cannot be combined."""
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


def run_side_by_side(
    config: RunConfig,
    make_data: Callable[[Any], SplitDataModule],
    specs: Sequence[Any],
    n_jobs: int,
    progress: FitProgress,
    on_error: str = "raise",
) -> Generator[tuple[Any, FitResult | Exception], None, None]:
    """Run fits in `n_jobs` processes, and yield each as it ends.

    A failed fit comes with its error. Each process gets its share of the cores. With several GPUs,
    each fit has one of them. `joblib.parallel_config` chooses another place to run.

    Args:
        config: Configuration of the run.
        make_data: Returns a new datamodule set to a fit.
        specs: The fits.
        n_jobs: Number of processes; -1 for one a core.
        progress: The bar over all fits.
        on_error: ``"raise"``, or ``"continue"`` with the other fits when a process dies.
    """
    import joblib

    backend, _ = joblib.parallel.get_active_backend()
    is_ray = type(backend).__module__.startswith("ray.")
    processes = len(specs) if is_ray else joblib.cpu_count()
    processes = min(processes if n_jobs == -1 else n_jobs, len(specs))
    options = _ray_options(backend, config) if is_ray else {}
    threads = max(1, int(options.get("num_cpus", torch.get_num_threads() // processes)))
    # Absolute: on another machine the working folder may be another.
    config = replace(
        config,
        run_dir=config.run_dir.absolute(),
        # Bars of several processes would overwrite each other.
        make_callbacks=partial(_without_bars, config.make_callbacks),
    )
    with tempfile.TemporaryDirectory(prefix="dlblocks-") as folder:
        notes = Path(folder)
        # The first worker tries and warns for all.
        others = replace(config, tried=True, warned=True)
        configs = {spec: config if spec is specs[0] else others for spec in specs}
        is_child = type(backend).__name__ == "LokyBackend"

        def make_task(spec: FitSpec) -> _Task:
            return _Task(
                configs[spec], make_data(spec), spec, threads, notes, os.getpid(), is_child=is_child
            )

        if is_ray:
            outcomes = _on_ray(map(make_task, specs), processes, options)
        else:
            outcomes = _on_joblib(make_task, specs, processes, notes, on_error)
        with progress.watching(notes):
            try:
                for spec, outcome in outcomes:
                    Notes(notes, spec.number).end_fit(1.0)  # on another machine it could not
                    yield spec, outcome
            finally:
                outcomes.close()


def wait_for_workers(config: RunConfig, specs: Sequence[FitSpec]) -> None:
    """Wait for workers of a killed call that still run.

    Workers on the machine of their call end a second or two after it. Workers on a cluster may
    finish their fit.
    """
    for spec in specs:
        folder = config.folder(spec)
        if (folder / LOCK).exists():
            with locked(folder, waiting=f"Waiting for a process that still runs {spec.name}."):
                pass


def _count_ranks(trainer: Mapping[str, Any]) -> int:
    """Count the processes that run one fit."""
    devices, accelerator = trainer.get("devices", "auto"), trainer.get("accelerator", "auto")
    if devices in ("auto", None, -1, "-1"):
        count = 1 if accelerator in ("cpu", "mps") else max(torch.cuda.device_count(), 1)
    elif isinstance(devices, str):
        count = int(devices) if devices.isdigit() else len(devices.strip(",").split(","))
    else:
        count = devices if isinstance(devices, int) else len(devices)
    return int(count * int(trainer.get("num_nodes", 1)))


@dataclass
class _Task:
    """Arguments of a worker."""

    config: RunConfig
    datamodule: SplitDataModule
    spec: FitSpec
    threads: int
    notes: Path
    parent: int
    is_child: bool = False  # whether the worker is a child of the process `parent`


def _on_joblib(
    make_task: Callable[[FitSpec], _Task],
    specs: Sequence[FitSpec],
    processes: int,
    notes: Path,
    on_error: str,
) -> Generator[tuple[FitSpec, FitResult | Exception], None, None]:
    """Run fits in joblib's processes.

    When one process dies, joblib ends all of them and does not say which fit failed. With
    ``on_error="continue"`` the fits that were running are resumed after the others, each alone. One
    whose process dies again has failed.
    """
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    todo, suspects = list(specs), list[FitSpec]()
    while todo or suspects:
        some = todo or [suspects.pop(0)]
        is_alone = not todo
        # Two, as one would be this process; with one fit the other is never started.
        parallel = joblib.Parallel(2 if is_alone else processes, return_as="generator_unordered")
        outcomes = parallel(joblib.delayed(_work)(make_task(spec)) for spec in list(some))
        try:
            for spec, outcome in outcomes:
                some.remove(spec)
                yield spec, outcome
        except TerminatedWorkerError as error:
            begun = [spec for spec in some if _begun(notes, spec).exists()]
            names = ", ".join(spec.name for spec in begun or some)
            died = RuntimeError(
                f"a worker process died, which ran one of: {names}. It was killed, crashed, or the "
                f"memory was short: use fewer n_jobs, or on_error='continue'. {error}"
            )
            if on_error == "raise":
                raise died from error
            if is_alone or not begun:
                yield from ((spec, died) for spec in some)
                todo = []
            else:
                suspects += begun
                todo = [spec for spec in some if spec not in begun]
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that fits were broken off, as they should be
                outcomes.close()


def _ray_options(backend: Any, config: RunConfig) -> dict[str, Any]:
    """Return the Ray options of a fit.

    joblib's `ray_remote_args` override them.
    """
    import ray

    if not ray.is_initialized():
        ray.init()
    options: dict[str, Any] = {"num_cpus": 1, "max_retries": LOST, "scheduling_strategy": "SPREAD"}
    accelerator = config.trainer.get("accelerator", "auto")
    if accelerator != "cpu" and ray.cluster_resources().get("GPU"):
        options["num_gpus"] = 1
    return {**options, **(backend.ray_remote_args or {})}


def _on_ray(
    tasks: Iterator[_Task], count: int, options: Mapping[str, Any]
) -> Generator[tuple[FitSpec, FitResult | Exception], None, None]:
    """Run `count` fits at a time as Ray tasks.

    Ray repeats a task whose node or process has died, at most `LOST` times. joblib's own pool for
    Ray (2.60) may put all workers on one node, fails as a whole when a node dies, and returns
    nothing before all fits have ended.
    """
    import ray

    work = ray.remote(**options)(_work)
    running: dict[Any, FitSpec] = {}
    try:
        while True:
            for task in islice(tasks, count - len(running)):
                running[work.remote(task)] = task.spec
            if not running:
                return
            (done,), _ = ray.wait(list(running), num_returns=1)
            spec = running.pop(done)
            outcome: tuple[FitSpec, FitResult | Exception]
            try:
                outcome = ray.get(done)
            except ray.exceptions.RayError as error:
                outcome = spec, RuntimeError(f"Ray could not run it: {str(error).strip()}")
            yield outcome
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _work(task: _Task) -> tuple[FitSpec, FitResult | Exception]:
    """Run one fit in this process."""
    config, spec = task.config, task.spec
    _end_with(task.parent, is_child=task.is_child)
    if task.notes.is_dir():
        _begun(task.notes, spec).touch()
    if torch.cuda.device_count() > 1 and config.trainer.get("accelerator", "auto") != "cpu":
        mine = [spec.number % torch.cuda.device_count()]
        config = replace(config, trainer={**config.trainer, "devices": mine})
    bar = FitBar(Notes(task.notes, spec.number), spec.number) if task.notes.is_dir() else None
    folder, waiting = config.folder(spec), f"Waiting for a process that still runs {spec.name}."
    with _one_fit, _alone(), isolated():
        torch.set_num_threads(task.threads)
        try:
            if not (config.run_dir / PLAN).is_file():
                raise FileNotFoundError(
                    f"run_dir='{config.run_dir}' is not the same folder on {socket.gethostname()}; "
                    "folds on a cluster need one that all machines share."
                )
            with locked(folder, waiting=waiting):
                # A machine that the cluster had lost may have finished it.
                found = (
                    read_fit(type(config), config.run_dir, spec, config.run_id)
                    if config.resume
                    else None
                )
                return spec, found or run_fit(config, task.datamodule, spec, bar)
        except Exception as error:
            return spec, error


def _begun(notes: Path, spec: FitSpec) -> Path:
    return notes / f"{spec.number}.begun"


def _without_bars(make_callbacks: Callable[[], Sequence[Callback]]) -> list[Callback]:
    return without_bars(new_callbacks(make_callbacks))


def _end_with(parent: int, *, is_child: bool) -> None:
    """End this process soon after `parent`, if that started it.

    Else a worker would outlive a killed call. It ends abruptly too, and its fit is resumed from its
    last checkpoint.

    Args:
        parent: The process of the call.
        is_child: Whether `parent` has started this process. If not, the cluster ends its workers.
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
    """Hide from Lightning that this process is another run's rank."""
    hidden = {name: os.environ.pop(name) for name in RANKS if name in os.environ}
    said: Any = rank_zero_only  # Lightning keeps the rank there
    rank, said.rank = said.rank, 0
    try:
        yield
    finally:
        os.environ.update(hidden)
        said.rank = rank
