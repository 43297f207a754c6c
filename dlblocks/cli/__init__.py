"""The command line of dlblocks.

Most commands are Lightning's CLI: ``dlblocks fit --config FILE``. Each writes everything into one
run folder. The others read run folders: ``dlblocks compare``, ``dlblocks report``, and ``dlblocks
predict RUN --input FILE``.

This file imports neither torch nor Lightning, so that ``dlblocks --help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from dlblocks import __version__
from dlblocks.cli._commands import help_text

__all__ = ["main", "run_recipe"]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line, and restore the process's global state afterwards."""
    given = sys.argv[1:] if args is None else list(args)
    if given[:1] in ([], ["-h"], ["--help"]):
        print(help_text())
        raise SystemExit(0 if given else 2)
    if given == ["--version"]:
        print(f"dlblocks {__version__}")
        raise SystemExit(0)
    from dlblocks.cli._run import run

    run(given)


def run_recipe(function: Callable[..., None]) -> None:
    """Run a recipe's function with arguments from the command line.

    The function's signature defines the arguments.
    """
    from dlblocks.cli._run import run_function

    run_function(function)
