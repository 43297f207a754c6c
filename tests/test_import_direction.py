"""Arrows point one way, and importing the package loads nothing heavy."""

import ast
import json
from graphlib import TopologicalSorter
from pathlib import Path

import commands
import pytest

import dlblocks

PACKAGE = Path(dlblocks.__file__).parent
# A room may import rooms of the floors above it in this list. Within a floor rooms are apart, but
# for the first, whose helpers may use each other.
FLOORS = [
    {
        "__init__",
        "_convert",
        "_errors",
        "_files",
        "_boxes",
        "_geometry",
        "_lightning",
        "_memory",
        "_messages",
        "_npz",
        "_plain",
        "_quiet",
        "_ragged",
        "_scores",
        "_vocabulary",
    },
    {"fields", "losses"},
    {"metrics", "nets", "optim", "plots"},
    {"tracking", "tasks"},
    {"data", "callbacks", "models"},
    {"runs"},
    {"engine"},
    {"ensembles", "crossval"},
    {"loading"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: i for i, floor in enumerate(FLOORS) for room in floor}
MODULES = {
    ".".join(("dlblocks", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in PACKAGE.rglob("*.py")
}


def defined_in(module, name):
    """The module that a name comes from, through the lists of names in ``__init__.py``."""
    if f"{module}.{name}" in MODULES:
        return f"{module}.{name}"
    if MODULES[module].name == "__init__.py":
        for node in ast.walk(ast.parse(MODULES[module].read_text())):
            if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
                return defined_in(node.module, name)
    return module


def imports(module):
    """Imports at the top, inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dlblocks"):
            yield from (defined_in(node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("dlblocks"))


def room_of(module):
    return [*module.split("."), "__init__"][1]


def test_arrows_point_one_way():
    wrong = []
    for module in MODULES:
        here = room_of(module)
        assert here in FLOOR, f"{module} has no place in FLOORS"
        for target in imports(module):
            there = room_of(target)
            is_above = FLOOR[there] < FLOOR[here] or here == there or not FLOOR[here]
            if not is_above:
                wrong.append(f"{module} imports {target}")
    assert not wrong


def test_no_circles():
    graph = {module: set(imports(module)) - {module} for module in MODULES}
    TopologicalSorter(graph).prepare()  # a CycleError names the modules of a circle


HEAVY = [
    "torch",
    "lightning",
    "numpy",
    "sklearn",
    "matplotlib",
    "wandb",
    "torchvision",
    "albumentations",
]


# From light to heavy, as one process imports them; before a module, what it may stand on.
# Lightning itself loads some of these where they are installed; only what we add counts.
LIGHT = {
    "dlblocks": ("", HEAVY),
    "dlblocks.nets": ("torch", ["lightning", "sklearn", "torchvision", "matplotlib", "wandb"]),
    "dlblocks.optim": ("torch", ["lightning", "sklearn", "torchvision", "matplotlib", "wandb"]),
    "dlblocks.data": (
        "lightning.pytorch, torchmetrics",
        ["sklearn", "torchvision", "matplotlib", "wandb", "albumentations"],
    ),
    "dlblocks.models": ("", ["sklearn", "torchvision", "matplotlib", "wandb", "albumentations"]),
    "dlblocks.callbacks": ("", ["sklearn", "torchvision", "matplotlib", "wandb"]),
    "dlblocks.crossval": ("", ["sklearn", "torchvision", "matplotlib", "wandb"]),
}


@pytest.fixture(scope="module")
def loaded():
    """The modules that each import adds to those before it."""
    lines = ["import sys, json", "added = {}"]
    for module, (base, _) in LIGHT.items():
        lines += [
            f"import {base}" if base else "",
            "before = set(sys.modules)",
            f"import {module}",
            f"added[{module!r}] = sorted(set(sys.modules) - before)",
        ]
    lines.append("print(json.dumps(added))")
    return json.loads(commands.run("python", "-c", "\n".join(lines)).stdout)


@pytest.mark.parametrize("module", LIGHT)
def test_what_an_import_does_not_load(module, loaded):
    _, forbidden = LIGHT[module]
    assert module in loaded[module]
    assert not set(forbidden) & set(loaded[module])
