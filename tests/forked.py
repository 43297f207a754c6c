"""Processes that tests may kill, without the seconds that importing torch and Lightning takes.

They are forked from one that has imported them and done nothing else (`multiprocessing`'s fork
server), so they share nothing with the process of the tests.
"""

import multiprocessing
import os

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["dlblocks.callbacks", "dlblocks.crossval", "dlblocks.models"])


def start(function, *arguments):
    """Starts a function of a test module in a process of its own, in this working folder.

    What it says goes to the file ``said.txt`` there.
    """
    process = CONTEXT.Process(target=_run, args=(os.getcwd(), function, arguments))
    process.start()
    return process


def run(function, *arguments, code=0):
    """Runs a function in a process of its own; an error unless it ends with this exit code."""
    process = start(function, *arguments)
    try:
        process.join(120)
        with open("said.txt") as file:
            assert process.exitcode == code, file.read()
    finally:
        process.kill()
        process.join()
        process.close()


def _run(folder, function, arguments):
    import torch

    os.chdir(folder)
    with open("said.txt", "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    function(*arguments)
