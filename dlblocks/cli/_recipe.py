"""Arguments of a recipe."""

from __future__ import annotations

import inspect
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args, get_type_hints

from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]

from dlblocks.cli._parser import RecipeParser
from dlblocks.cli._recipe_arguments import RecipeArguments
from dlblocks.cli._run import is_mistake_of_user, plain_errors
from dlblocks.runs import next_run_dir

Logger = Literal["csv", "wandb", "tensorboard", "none"]
TRAINER = ("max_epochs", "accelerator", "devices", "precision", "fast_dev_run")


# Name → type, default, help.
COMMON: dict[str, tuple[Any, Any, str]] = {
    "run_dir": (str, None, "where everything goes"),
    "logger": (Logger, "none", "where each fit logs"),
    "fast_dev_run": (bool, False, "one batch of everything, to see that it runs"),
    "accelerator": (str, "auto", "what to train on, as for Lightning's Trainer"),
    "devices": (int | str, "auto", "how many of them, as for Lightning's Trainer"),
    "precision": (str, "32-true", "numeric precision, as for Lightning's Trainer"),
    "seed": (int, 0, "seed of splits, initialisation and noise"),
}


def parse(doc: str | None, settings: dict[str, Any]) -> RecipeArguments:
    """Parse ``sys.argv``, as `dlblocks.cli.recipe_arguments` says."""
    # A kernel of Jupyter has arguments of its own.
    in_notebook = "ipykernel" in sys.modules
    name = "notebook" if in_notebook else Path(sys.argv[0]).stem
    parser = RecipeParser(
        description=described(doc or ""), formatter_class=RawDescriptionHelpFormatter
    )
    for key, default in settings.items():
        kind, first = kind_of(default)
        parser.add_argument(f"--{key}", type=kind, default=first, help="(default: %(default)s)")
    add_common(parser, name, but=settings)
    found = parser.parse_args([] if in_notebook else None)
    sys.excepthook = _plainly
    return arguments_of(found, name)


def run_function(function: Callable[..., None]) -> None:
    """Run a function by the command line, as `dlblocks.cli.run_recipe` says."""
    with plain_errors():
        _check_function(function)
        parser, name = RecipeParser(), Path(sys.argv[0]).stem
        parser.add_argument("--config", action=ActionConfigFile, help="a file of arguments")
        hints = get_type_hints(function)
        taking = {key for key, hint in hints.items() if hint is RecipeArguments}
        if any(RecipeArguments in get_args(hint) for hint in hints.values()):
            raise TypeError(
                f"{function.__name__}() has a parameter of RecipeArguments or another type; "
                "annotate it with RecipeArguments alone, without a default."
            )
        if taking and "trainer" in hints:
            raise TypeError(
                f"{function.__name__}() has a parameter 'trainer', which RecipeArguments has, too; "
                "give it another name."
            )
        own = parser.add_function_arguments(
            function, as_group=False, skip={*taking}, sub_configs=True
        )
        parser.description = (inspect.getdoc(function) or "").partition("\nArgs:")[0].strip()
        if taking:
            add_common(parser, name, but=own)
        found = parser.instantiate_classes(parser.parse_args())
        given = {key: found[key] for key in own}
        if taking:
            given |= dict.fromkeys(taking, arguments_of(found, name))
        made: object = function(**given)  # type: ignore[func-returns-value]
        if inspect.isawaitable(made):
            if inspect.iscoroutine(made):
                made.close()  # else Python warns that it never ran
            raise TypeError(_LAZY.format(name=getattr(function, "__name__", repr(function))))


_LAZY = (
    "{name}() is written with 'async def' or 'yield', so that calling it runs nothing; define it "
    "with 'def', such as def main(): asyncio.run(work())."
)


def _check_function(function: Callable[..., None]) -> None:
    """Refuse a function that cannot be a recipe."""
    name = getattr(function, "__name__", repr(function))
    lazy = (
        inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction,
    )  # fmt: skip
    if any(is_lazy(function) for is_lazy in lazy):
        raise TypeError(_LAZY.format(name=name))
    for taken, what in (("config", "a file of arguments"), ("help", "the help")):
        parameter = inspect.signature(function).parameters.get(taken)
        if parameter is not None and parameter.kind is not parameter.VAR_KEYWORD:
            raise TypeError(
                f"{name}() has a parameter {taken!r}, but --{taken} is {what}; give it another "
                "name."
            )


def add_common(parser: RecipeParser, name: str, *, but: Collection[str]) -> None:
    """Add the arguments of all recipes that are not its own."""
    for key, (kind, default, says) in COMMON.items():
        if key not in but:
            shown = f"runs/{name}, or {name}-2, …" if key == "run_dir" else default
            parser.add_argument(
                f"--{key}", type=kind, default=default, help=f"{says} (default: {shown})"
            )


def arguments_of(found: Namespace, name: str) -> RecipeArguments:
    """Return the arguments, with a run folder and the Trainer's."""
    given = vars(found)
    given["run_dir"] = Path(found.run_dir or next_run_dir(f"runs/{name}", resume=True))
    trainer = {key: given[key] for key in TRAINER if key in given}
    return RecipeArguments(**given, trainer=trainer)


def kind_of(default: Any) -> tuple[Any, Any]:
    """Return the type of an argument and its default.

    Of a tuple one may be chosen, of the keys of a dictionary several.
    """
    if isinstance(default, tuple):
        return Literal[default], default[0]
    if isinstance(default, dict):
        return list[Literal[tuple(default)]], list(default)  # type: ignore[misc]
    if isinstance(default, list):
        return list[type(default[0])], default  # type: ignore[misc]
    return type(default), default


def described(doc: str) -> str:
    """Return a docstring without its title and its directives."""
    lines = doc.strip().splitlines()
    if len(lines) > 1 and set(lines[1].strip()) == {"="}:
        lines = lines[2:]
    kept, inside = [], False
    for line in lines:
        inside = line.startswith("..") or (inside and (not line or line.startswith(" ")))
        kept += [] if inside else [line]
    return "\n".join(kept).strip()


def _plainly(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Print mistakes of the user in one line, without a traceback."""
    if is_mistake_of_user(error):
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2)
    sys.__excepthook__(kind, error, traceback)
