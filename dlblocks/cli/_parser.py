"""Parsers whose errors are one sentence, with a hint."""

from __future__ import annotations

import os
import re
import sys
import warnings
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from dlblocks import data, models
from dlblocks._errors import constructor_arguments, did_you_mean
from dlblocks.models._checkpoints import is_ours

# Arguments of models that follow from the data.
KNOWN_BY_DATA = (
    "in_features", "num_classes", "in_channels", "out_features", "image_size", "embeddings",
    "vocab_size", "source_vocab_size", "target_vocab_size",
)  # fmt: skip
UNKNOWN_KEY = re.compile(
    r"[Oo]ption '(?P<option>[\w.]+)' is not accepted"
    r"|[Kk]ey '?(?P<key>[\w.]+)'? is not expected"
    r"|not accept option '(?P<nested>[\w.]+)'"
    r"|[Uu]nrecognized arguments: --(?P<flag>[\w.-]+)"
)
SUBCOMMAND = re.compile(r"Subcommand '(?P<name>[\w-]+)' does not accept")
CLASS_PATH = re.compile(r"class_path '(?P<path>[\w.]+)'")


# Lines of jsonargparse without information of their own.
FRAME = re.compile(
    r"Parser key \S+:$|Does not validate|Subtypes:|Errors:|Given value"
    r"|Problem with given class_path|Expected a <class 'NoneType'>|Expected a path but"
    r"|Import path .* does not correspond"
)
KEY = re.compile(r'Parser key "(?P<key>[\w.]+)"')
CHOICES = re.compile(
    r"Expected a typing\.Literal\[(?P<of>.+)\](?:\. Got value: (?P<value>.*))?"
    r"|invalid choice: '(?P<invalid>.*)' \(choose from (?P<from>.+)\)"
)
ATTRIBUTE = re.compile(r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>\w+)'")


class _DidYouMean(ArgumentParser):
    """A parser whose errors are one sentence and suggest the nearest key."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        found = UNKNOWN_KEY.search(message)
        if found is not None and "is not known" not in message:
            whole = next(group for group in found.groups() if group)
            parts = [part for part in whole.split(".") if part != "init_args"]
            key, names = self._unknown(parts, SUBCOMMAND.match(message))
            for match in CLASS_PATH.finditer(message):
                cls = class_at(match["path"])
                names = set(constructor_arguments(cls)) if cls else names
                key = next((part for part in parts if part not in names), parts[-1])
            place = f"--{whole}: " if found["flag"] else ""
            if found["nested"] and key != whole:
                place = f"{whole}: "
            message = f"{message}\n{place}{key!r} is not known{did_you_mean(key, names) or '.'}"
        if self.exit_on_error and "JSONARGPARSE_DEBUG" not in os.environ:
            print(f"error: {_sentence(message)}", file=sys.stderr)
            self.exit(2)
        super().error(message, ex)

    def _unknown(self, parts: list[str], subcommand: re.Match[str] | None) -> tuple[str, set[str]]:
        """Return the unknown part of a key, and the known names."""
        parser: Any = self
        if subcommand is not None and self._subcommands_action is not None:
            parser = self._subcommands_action.choices[subcommand["name"]]
        known = [action.dest.split(".") for action in parser._actions]
        for i, part in enumerate(parts):
            names = {dest[i] for dest in known if dest[:i] == parts[:i] and len(dest) > i}
            if part not in names:
                return part, names
        return parts[-1], names


def _sentence(message: str) -> str:
    """Extract the essential line of jsonargparse's error, with its place."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    said = [line for line in lines if line and not FRAME.match(line)]
    if not said:
        return message
    found = next((line for line in said if " is not known" in line), said[0])
    choices, attribute = CHOICES.search(found), ATTRIBUTE.search(found)
    given = next((line for line in lines if line.startswith("Given value: ")), "")
    given = given.removeprefix("Given value: ")
    if choices is not None:
        value = choices["value"] or choices["invalid"] or given
        known = choices["of"] or choices["from"]
        names = re.findall(r"'([^']+)'", known) or re.findall(r"[\w.-]+", known)
        hint = did_you_mean(value, names) or "."
        found = f"{value!r} is not known{hint} Choose from: {', '.join(names)}."
    elif attribute is not None:
        found += did_you_mean(attribute["name"], dir(sys.modules[attribute["module"]])) or "."
    elif found.startswith("Expected a dot import path"):
        name = found.rpartition(" ")[2]
        hint = did_you_mean(name, [*models.__all__, *data.__all__]) or "."
        found = f"{name!r} is not known{hint} Give a class of dlblocks, or another as module.Class."
    elif expected := re.match(r"Expected (?:a )?(.+?)(?:\. Got value: (.*))?$", found):
        kind = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", expected[1])
        found = f"expected {kind}, got {expected[2] or given!r}."
    keys = ".".join(KEY.findall(message))
    # The first line may hold both a key and the reason.
    found = re.sub(KEY.pattern + ": *", "", found)
    return f"{keys}: {found}" if keys else found


class Parser(_DidYouMean, LightningArgumentParser):
    """Lightning's parser, with hints and without abbreviated names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def dump(self, *args: Any, **kwargs: Any) -> str:
        with warnings.catch_warnings():
            # YAML has no tuples; classes that want one, as those of albumentations, take a list.
            warnings.filterwarnings("ignore", r"(?s).*a tuple is serialized as list")
            text: str = super().dump(*args, **kwargs)
        return text

    def add_class_arguments(self, class_type: Any, *args: Any, **kwargs: Any) -> Any:
        """Make arguments of our models optional if the data know them.

        See `CLI.instantiate_classes`.
        """
        added = super().add_class_arguments(class_type, *args, **kwargs)
        for action in self._actions if is_our_model(class_type) else ():
            if action.dest in added and action.dest.rpartition(".")[2] in KNOWN_BY_DATA:
                action.required, action.default = False, None
                # Older versions of jsonargparse list required arguments here.
                getattr(self, "required_args", set()).discard(action.dest)
                action.help = f"{action.help} Filled in from the data if it is not given."
        return added


def is_our_model(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, models.Model) and is_ours(cls)


def class_at(path: str) -> Any:
    """Return an imported class, or None."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def add_mode_argument(parser: ArgumentParser) -> None:
    """Add ``--mode``."""
    parser.add_argument(
        "--mode",
        type=Literal["min", "max"] | None,
        default=None,
        help="Which value of it is best; by default the metric's own direction.",
    )


class RecipeParser(_DidYouMean):
    """A recipe's parser with hints, where ``--flag`` alone means ``--flag=true``."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        action = super().add_argument(*args, **kwargs)
        if kwargs.get("type") is bool:
            action.nargs, action.const = "?", True
        return action
