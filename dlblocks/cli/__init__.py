"""The command line of dlblocks.

Most commands are Lightning's CLI: ``dlblocks fit --config FILE``. Each writes everything into one
run folder. The others read run folders: ``dlblocks compare``, ``dlblocks report``, and ``dlblocks
predict RUN --input FILE``.

This file imports neither torch nor Lightning, so that ``dlblocks --help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from dlblocks import __version__
from dlblocks.cli._commands import help_text
from dlblocks.cli._recipe_arguments import RecipeArguments

__all__ = ["RecipeArguments", "main", "recipe_arguments", "run_recipe"]


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

    The function's signature defines the arguments, and its docstring explains them. A parameter
    annotated with `RecipeArguments` gets ``--run_dir``, ``--logger``, ``--fast_dev_run``,
    ``--accelerator``, ``--devices``, ``--precision`` and ``--seed``.

    Errors that are the user's are printed in one line.

    Example::

        def main(args: RecipeArguments, width: int = 64, max_epochs: int = 20) -> None:
            trainer = pl.Trainer(**args.trainer)  # with max_epochs

        run_recipe(main)
    """
    from dlblocks.cli._recipe import run_function

    run_function(function)


def recipe_arguments(doc: str | None, **settings: Any) -> RecipeArguments:
    """Parse the command line of a recipe in cells.

    Each setting becomes an argument of the type of its default value. A tuple of texts lists what
    may be chosen, the first by default. Of the keys of a dictionary several may be chosen, all by
    default. Besides, each recipe has ``--run_dir``, ``--logger``,
    ``--fast_dev_run``, ``--accelerator``, ``--devices``, ``--precision`` and ``--seed``.

    Later errors that are the user's are printed in one line.

    Args:
        doc: The docstring of the script, for ``--help``.
        settings: Names and default values.

    Returns:
        The arguments as attributes; see `RecipeArguments`.

    Example::

        args = recipe_arguments(__doc__, max_epochs=60, optimizer=("sgd", "adam"))
        trainer = pl.Trainer(**args.trainer)
    """
    from dlblocks.cli._recipe import parse

    return parse(doc, settings)
