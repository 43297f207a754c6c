"""Find the command that the arguments name, and run it."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException

from dlblocks._errors import did_you_mean
from dlblocks._quiet import isolated
from dlblocks.cli._commands import FITS, OTHERS
from dlblocks.cli._completion import completion
from dlblocks.cli._finished import compare_runs, report_runs
from dlblocks.cli._predict import is_of_new_data, predict_file


def run(args: Sequence[str]) -> None:
    """Run a command."""
    others = {"compare": compare_runs, "report": report_runs, "completion": completion}
    with plain_errors(), isolated(), _classes_of_working_folder():
        command, rest = args[0], args[1:]
        known = {**FITS, **OTHERS}
        if command not in known and not command.startswith("-"):
            hint = did_you_mean(command, known) or "."
            print(
                f"error: {command!r} is not known{hint} Choose from: {', '.join(known)}.",
                file=sys.stderr,
            )
            raise SystemExit(2)
        if command in others:
            others[command](rest)
        elif command == "predict" and is_of_new_data(rest):
            predict_file(rest)
        else:
            from dlblocks.cli._cli import CLI

            CLI(args)


@contextlib.contextmanager
def _classes_of_working_folder() -> Iterator[None]:
    """Find modules of the working folder, as ``python -m dlblocks`` does."""
    before = list(sys.path)
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Print a mistake of the user in one line, without a traceback."""
    try:
        yield
    except Exception as error:
        if not is_mistake_of_user(error):
            raise
        # For an argument with several types, the class's own message is buried among others.
        said = re.findall(r"^ *- (?!Expected a )(.+)$", str(error), flags=re.MULTILINE)
        print(f"error: {said[0] if said else error}", file=sys.stderr)
        raise SystemExit(2) from None


def is_mistake_of_user(error: BaseException) -> bool:
    """Return True for errors that this package raises on purpose.

    So are those of the construction of a requested class.
    """
    kinds = (
        ValueError, TypeError, OSError, FloatingPointError, ModuleNotFoundError,
        MisconfigurationException,
    )  # fmt: skip
    frames = traceback.extract_tb(error.__traceback__)
    raisers = ("/dlblocks/", "/jsonargparse/", "/lightning/pytorch/trainer/connectors/")
    last = frames[-1].filename.replace("\\", "/")
    return isinstance(error, kinds) and any(raiser in last for raiser in raisers)
