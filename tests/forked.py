"""Processes that tests may kill, without the seconds that importing torch and Lightning takes.

They are forked from one that has imported them and done nothing else (`multiprocessing`'s fork
server), so they share nothing with the process of the tests.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([
    "dlblocks.callbacks", "dlblocks.crossval", "dlblocks.models",
    "sklearn.datasets", "sklearn.model_selection", "joblib",  # which a run imports late
])  # fmt: skip


def start(function, *arguments, environment=None, said="said.txt"):
    """Starts a function of a test module in a process of its own, in this working folder.

    Args:
        function: At the top of its module.
        arguments: Its arguments.
        environment: Variables to set first; by these a process may be one rank of several.
        said: The file to which goes what it says.
    """
    process = CONTEXT.Process(
        target=_run,
        args=(
            os.getcwd(), said, {**os.environ, **(environment or {})},
            multiprocessing.get_start_method(), function, arguments,
        ),
    )  # fmt: skip
    # The server, which begins with the first process, would not look where this process does.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):
        process.start()
    return process


def run(function, *arguments, code=0, environments=({},), timeout=300):
    """Runs a function in a process for each environment; an error unless all end with `code`."""
    processes = [
        start(function, *arguments, environment=environment, said=f"said-{i}.txt")
        for i, environment in enumerate(environments)
    ]
    try:
        for process in processes:
            process.join(timeout)
        said = []
        for i in range(len(processes)):
            with open(f"said-{i}.txt") as file:
                said.append(file.read())
        assert [process.exitcode for process in processes] == [code] * len(processes), said
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()


def script(path, *flags):
    """Runs a script in a process of its own, and gives back how it ended and what it printed."""
    process = start(_script, str(path), *map(str, flags))
    process.join(300)
    out, err = Path("stdout.txt").read_text(), Path("stderr.txt").read_text()
    return subprocess.CompletedProcess(flags, process.exitcode, out, err)


def _script(path, *flags):
    for stream, number in (("stdout", 1), ("stderr", 2)):
        with open(f"{stream}.txt", "w") as file:
            os.dup2(file.fileno(), number)
    sys.argv = [path, *flags]
    sys.path[0] = str(Path(path).parent)
    try:
        runpy.run_path(path, run_name="__main__")
    except Exception:
        sys.excepthook(*sys.exc_info())  # as the interpreter does
        sys.exit(1)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def ranks(count):
    """The environments of processes that Lightning takes for the ranks of one training."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [{**place, "LOCAL_RANK": str(rank)} for rank in range(count)]


def torchrun(function, *arguments, nodes=1, processes=2):
    """Runs a function in the processes that torchrun starts on each of some nodes, all here."""
    port = free_port()
    run(
        _torchrun, nodes, processes, port, function, arguments,
        environments=[{"NODE": str(node)} for node in range(nodes)],
    )  # fmt: skip


def _torchrun(nodes, processes, port, function, arguments):
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=nodes, max_nodes=nodes, nproc_per_node=processes, run_id="none",
        rdzv_backend="static", rdzv_endpoint=f"127.0.0.1:{port}",
        rdzv_configs={"rank": int(os.environ["NODE"])}, start_method="fork", max_restarts=0,
    )  # fmt: skip
    elastic_launch(config, _work)(function, arguments)


def _work(function, arguments):
    know_rank()
    function(*arguments)


def know_rank():
    """What Lightning does when it is imported."""
    from lightning.fabric.utilities import rank_zero

    rank_zero.rank_zero_only.rank = rank_zero._get_rank() or 0


def _run(folder, said, environment, start_method, function, arguments):
    import torch

    # That of a fork server is to start the workers of loaders by another one, which imports anew.
    multiprocessing.set_start_method(start_method, force=True)
    os.chdir(folder)
    with open(said, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    know_rank()
    torch.set_num_threads(1)
    function(*arguments)
