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

# Command → what it does. Those of Lightning's CLI take `--config FILE`.
FITS = {
    "fit": "Train a model.",
    "validate": "Score a trained model on the validation set.",
    "test": "Score a trained model on the test set.",
    "predict": "Predict the data of a configuration.",
    "cross-validate": "Fit and score a new model for each fold.",
    "nested-cross-validate": "Score a search for hyperparameters on inner folds.",
}
OTHERS = {
    "predict": "Predict new data: files, images, a folder.",
    "compare": "Rank runs that were cross-validated on the same folds.",
    "report": "Write the page of a finished cross-validation anew.",
    "completion": "Print the script that completes commands in your shell.",
}
USAGE = {
    "predict": "predict RUN --input FILE",
    "compare": "compare RUN RUN …",
    "report": "report RUN …",
    "completion": "completion bash",
}
__all__ = ["main", "run_recipe"]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line, and restore the process's global state afterwards."""
    given = sys.argv[1:] if args is None else list(args)
    if given[:1] in ([], ["-h"], ["--help"]):
        print(_help())
        raise SystemExit(0 if given else 2)
    if given == ["--version"]:
        print(f"dlblocks {__version__}")
        raise SystemExit(0)
    from dlblocks.cli._run import run

    run(given)


def _help() -> str:
    """Describe all commands."""
    width = max(map(len, [*FITS, *USAGE.values()])) + 2
    fits = [f"  {name:<{width}}{said}" for name, said in FITS.items()]
    others = [f"  {USAGE[name]:<{width}}{said}" for name, said in OTHERS.items()]
    return "\n".join([
        "usage: dlblocks COMMAND --config FILE [--KEY=VALUE …]",
        "       dlblocks COMMAND --help",
        "",
        "Train, cross-validate and compare models. Each command leaves one run folder, and",
        "its config.yaml repeats the run. A flag such as --model.lr=0.01 overrides the file.",
        "",
        "commands that take a configuration:",
        *fits,
        "",
        "commands that take what has ended:",
        *others,
        "",
        "options:",
        f"  {'-h, --help':<{width}}Show this text.",
        f"  {'--version':<{width}}Show the version.",
    ])  # fmt: skip


def run_recipe(function: Callable[..., None]) -> None:
    """Run a recipe's function with arguments from the command line.

    The function's signature defines the arguments.
    """
    from dlblocks.cli._run import run_function

    run_function(function)
