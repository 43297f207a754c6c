"""Private parts of Lightning: used in one file, and still there."""

import ast
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric
from torchmetrics import Metric

import dlblocks

PACKAGE = Path(dlblocks.__file__).parent


def private(*things):
    """Names of private attributes of objects and their classes."""
    names = {name for thing in things for name in dir(thing)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


@pytest.fixture(scope="module")
def parts():
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    connectors = [value for name, value in vars(trainer).items() if name.endswith("_connector")]
    loops = [trainer.fit_loop, trainer.fit_loop.epoch_loop, _FitLoop]
    metric = _ResultMetric(pl.trainer.connectors.logger_connector.result._Metadata("a", "b"), False)
    found = private(trainer, *connectors, *loops, metric, CSVLogger("."), pl.LightningModule())
    # torch's and torchmetrics' own, and names that our classes have too.
    return found - private(Metric) - {name for name in dir(__import__("torch").nn.Module())}


def test_no_other_file_uses_a_private_part_of_lightning(parts):
    used = []
    for path in PACKAGE.rglob("*.py"):
        if path.name == "_lightning.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning"):
                used += [f"{path}: {a.name}" for a in node.names if a.name.startswith("_")]
            if not isinstance(node, ast.Attribute) or node.attr not in parts:
                continue
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not is_own:
                used.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {node.attr}")
    assert not used


def test_each_use_names_a_test_that_exists():
    tree = ast.parse((PACKAGE / "_lightning.py").read_text())
    named = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found = re.findall(r"``(tests/\S+\.py)``", ast.get_docstring(node) or "")
            assert all((PACKAGE.parent / test).is_file() for test in found), found
            named += found
    assert len(named) >= 7
