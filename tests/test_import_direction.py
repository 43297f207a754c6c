"""Arrows point one way, and importing the package loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dlblocks

PACKAGE = Path(dlblocks.__file__).parent
# Each room may import those above it, and nothing below.
FLOORS = [
    {"errors", "files", "no_gpu", "plain", "quiet"},
    {"arguments", "losses", "lock", "scores", "tables"},
    {"nets", "optim", "metrics", "history", "csv_log", "wandb_log", "predictions", "plots"}
    | {"data.folds"},
    {"data", "callbacks", "models", "tracking"},
    {"report"},
    {"fitting"},
    {"plan"},
    {"ensembles"},
    {"crossval"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: i for i, floor in enumerate(FLOORS) for room in floor}


def room_of(parts):
    dotted = ".".join(parts[:2])
    return dotted if dotted in FLOOR else parts[0]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dlblocks"):
            inside = node.module.split(".")[1:]
            yield from [inside] if inside else [[alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("dlblocks."):
                    yield alias.name.split(".")[1:]


def test_arrows_point_one_way():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts == ["__init__"]:
            assert not list(imports(path))
            continue
        here = room_of([p for p in parts if p != "__init__"])
        assert here in FLOOR, f"{path} has no place in DESIGN.md"
        for target in imports(path):
            if target[0] == "__version__":
                continue
            there = room_of(target)
            if there != here and FLOOR[there] >= FLOOR[here] and there != f"{here}.folds":
                wrong.append(f"{here} imports {there}")
    assert not wrong


def test_data_and_models_do_not_know_each_other():
    for room, other in (("data", "models"), ("models", "data"), ("callbacks", "models")):
        for path in (PACKAGE / room).glob("*.py"):
            assert all(target[0] != other for target in imports(path))


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


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("dlblocks", HEAVY),
        ("dlblocks.nets", ["lightning", "sklearn", "torchvision", "matplotlib", "wandb"]),
        ("dlblocks.optim", ["lightning", "sklearn", "torchvision", "matplotlib", "wandb"]),
        ("dlblocks.data", ["sklearn", "torchvision", "matplotlib", "wandb", "albumentations"]),
        ("dlblocks.models", ["sklearn", "torchvision", "matplotlib", "wandb", "albumentations"]),
        ("dlblocks.callbacks", ["sklearn", "torchvision", "matplotlib", "wandb"]),
        ("dlblocks.crossval", ["sklearn", "torchvision", "matplotlib", "wandb"]),
    ],
)
def test_what_an_import_does_not_load(module, forbidden):
    # Lightning itself loads some of these where they are installed; only what we add counts.
    before = "" if module == "dlblocks" else "import lightning.pytorch, torchmetrics;"
    if module in ("dlblocks.nets", "dlblocks.optim"):
        before = "import torch;"
    code = (
        f"import sys; {before} before = set(sys.modules); import {module};"
        f"print([m for m in {forbidden!r} if m in sys.modules and m not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
