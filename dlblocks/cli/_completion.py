"""``dlblocks completion bash``: the script that completes commands in a shell.

The script is made once from all arguments, so that a shell completes them without starting Python.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

import lightning.pytorch as pl
from jsonargparse import ArgumentParser

from dlblocks._errors import constructor_arguments
from dlblocks.cli._commands import FITS, OTHERS
from dlblocks.cli._parser import RecipeParser
from dlblocks.cli._predict import predict_parser

# Arguments whose values are paths, and those whose values are classes of a folder of ours.
PATHS = dict.fromkeys(("config", "ckpt_path", "input", "output", "model"), "FILE")
PATHS |= {"run_dir": "DIRECTORY", "runs": "DIRECTORY"}
CLASSES = {"model": "dlblocks.models", "data": "dlblocks.data"}


def completion_parser() -> RecipeParser:
    """Create the parser of ``completion``."""
    parser = RecipeParser(
        prog="dlblocks completion",
        description="Print the script that completes dlblocks commands. Bash: dlblocks completion "
        "bash > ~/.local/share/bash-completion/completions/dlblocks. Zsh: write it as _dlblocks "
        "into a folder of $fpath. Make it again after an update.",
        allow_abbrev=False,
    )
    parser.add_argument("shell", type=Literal["bash", "zsh", "tcsh"], help="The shell.")
    return parser


def completion(args: Sequence[str]) -> None:
    """Print the script for a shell."""
    shell = completion_parser().parse_args(list(args)).shell
    if importlib.util.find_spec("shtab") is None:
        raise ModuleNotFoundError(
            "dlblocks completion needs shtab; install it by: pip install 'dlblocks[completion]'"
        )
    import shtab

    print(shtab.complete(_prepared(whole_parser()), shell))


def _prepared(parser: ArgumentParser) -> ArgumentParser:
    """Tell shtab which arguments are files, folders or choices.

    jsonargparse's own preparation follows every class that an argument may have, and what that may
    have in turn: it ran for minutes on these parsers.
    """
    import shtab

    assert parser._subcommands_action is not None
    for name, command in parser._subcommands_action._name_parser_map.items():
        for action in command._actions:
            hint = getattr(action, "_typehint", None)
            if name in FITS and action.dest in CLASSES:
                action.choices = _classes(CLASSES[action.dest])
            elif action.dest in PATHS and not action.choices:
                action.complete = getattr(shtab, PATHS[action.dest])
            elif _choices(hint):
                action.choices = _choices(hint)
        if name in FITS:
            known, more = _flags(command), _flags_of_classes()
            if name == "predict":
                more |= _flags(predict_parser())
            for flag in sorted(more - known):
                action = argparse.Action([flag], flag.strip("-"))
                command._actions.append(action)
                command._optionals._group_actions.append(action)
    return parser


def _flags(parser: ArgumentParser) -> set[str]:
    return {text for action in parser._actions for text in action.option_strings}


def _choices(hint: Any) -> list[str]:
    """Return the texts of a `Literal`, also of one among other types."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    if hint is bool:
        return ["true", "false"]
    return [text for part in get_args(hint) for text in _choices(part) if hint is not Literal]


def _classes(module: str) -> list[str]:
    """Return the public classes of a folder that a Trainer takes."""
    found = importlib.import_module(module)
    bases = (pl.LightningModule, pl.LightningDataModule)
    every = {name: getattr(found, name) for name in found.__all__}
    return sorted(n for n, v in every.items() if isinstance(v, type) and issubclass(v, bases))


def _flags_of_classes() -> set[str]:
    """Return ``--model.lr`` and all else that some class of ours takes."""
    return {
        f"--{key}.{argument}"
        for key, module in CLASSES.items()
        for name in _classes(module)
        for argument in constructor_arguments(getattr(importlib.import_module(module), name))
    }


def whole_parser() -> ArgumentParser:
    """Create the parser of all commands."""
    from dlblocks.cli._cli import CLI
    from dlblocks.cli._finished import compare_parser, report_parser

    class OnlyParser(CLI):
        def parse_arguments(self, parser: Any, args: Any) -> NoReturn:
            raise _Made(parser)

    try:
        OnlyParser([])
    except _Made as made:
        parser: ArgumentParser = made.args[0]
    more = {"compare": compare_parser, "report": report_parser, "completion": completion_parser}
    assert parser._subcommands_action is not None
    for name, make in more.items():
        parser._subcommands_action.add_subcommand(name, make(), help=OTHERS[name])
    return parser


class _Made(Exception):
    """Carry the parser out of the CLI, which would parse and run."""
