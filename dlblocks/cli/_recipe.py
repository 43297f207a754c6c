"""Arguments of a recipe that is a script in cells."""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from jsonargparse import Namespace

from dlblocks.cli._parser import RecipeParser
from dlblocks.cli._run import is_mistake_of_user
from dlblocks.runs import next_run_dir

Logger = Literal["csv", "wandb", "tensorboard", "none"]
TRAINER = ("max_epochs", "accelerator", "devices", "precision", "fast_dev_run")


def parse(doc: str | None, settings: dict[str, Any]) -> Namespace:
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
    common: dict[str, tuple[Any, Any, str]] = {
        "run_dir": (str, f"runs/{name}, or {name}-2, …", "where everything goes"),
        "logger": (Logger, "none", "where each fit logs"),
        "fast_dev_run": (bool, False, "one batch of everything, to see that it runs"),
        "accelerator": (str, "auto", "what to train on, as for Lightning's Trainer"),
        "devices": (int | str, "auto", "how many of them, as for Lightning's Trainer"),
        "precision": (str, "32-true", "numeric precision, as for Lightning's Trainer"),
        "seed": (int, 0, "seed of splits, initialisation and noise"),
    }
    for key, (kind, first, says) in common.items():
        if key not in settings:
            shown = f"{says} (default: {first})"
            first = None if key == "run_dir" else first
            parser.add_argument(f"--{key}", type=kind, default=first, help=shown)
    found = parser.parse_args([] if in_notebook else None)
    found.run_dir = Path(found.run_dir or next_run_dir(f"runs/{name}", resume=True))
    found.trainer = {key: found[key] for key in TRAINER if key in found}
    sys.excepthook = _plainly
    return found


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
