"""Arguments of recipes that are scripts in cells."""

import asyncio
import functools
import sys
from pathlib import Path

import forked
import pytest

from dlblocks import cli
from dlblocks.cli import RecipeArguments, recipe_arguments, run_recipe

SCRIPT = '''
"""
A title
=======

How many?

.. math:: x^2
   + 1

Result: two.
"""
from dlblocks.cli import recipe_arguments
from dlblocks.models import MLPClassifier

args = recipe_arguments(__doc__, max_epochs=6, hidden=[8, 8], kind=("mlp", "cnn"), noise=0.5)
print(args.hidden, args.kind, args.noise, args.run_dir, sorted(args.trainer.items()))
MLPClassifier(4, 2, hidden=args.hidden, optimizer="adm") if args.seed else 1 / 0
'''


@pytest.fixture
def parse(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def parse(*argv, **settings):
        monkeypatch.setattr(sys, "argv", ["recipes/some.py", *argv])
        return recipe_arguments("Some.", **settings)

    return parse


def test_settings_have_the_type_of_their_default(parse, tmp_path):
    flags = ["--lr=1", "--hidden=[3]", "--kind=cnn", "--fast_dev_run", "--seed=4", "--devices=2"]
    settings = {"lr": 0.1, "hidden": [8, 8], "kind": ("mlp", "cnn"), "max_epochs": 7}
    args = parse(*flags, **settings)
    assert (args.lr, type(args.lr), args.hidden, args.kind, args.seed) == (
        1.0,
        float,
        [3],
        "cnn",
        4,
    )
    assert args.trainer == {
        "max_epochs": 7,
        "accelerator": "auto",
        "devices": 2,
        "precision": "32-true",
        "fast_dev_run": True,
    }
    assert args.run_dir.as_posix() == "runs/some"
    assert parse(**settings).kind == "mlp"
    assert "max_epochs" not in parse().trainer
    methods = {"none": 1, "early stopping": 2, "mixup": 3}
    assert parse(methods=methods).methods == list(methods)
    chosen = parse("--methods=[early stopping, none]", methods=methods).methods
    assert chosen == ["early stopping", "none"]


@pytest.mark.parametrize(
    "flag, says",
    [
        ("--kind=rnn", "kind: 'rnn' is not known; did you mean 'cnn'? Choose from: mlp, cnn."),
        ("--lrr=1", "'lrr' is not known; did you mean 'lr'?"),
        ("--methods=[none, mixop]", "'mixop' is not known; did you mean 'mixup'?"),
        ("--lr=fast", "lr: expected float, got 'fast'."),
    ],
)
def test_wrong_arguments_are_named(parse, capsys, flag, says):
    with pytest.raises(SystemExit) as end:
        parse(flag, lr=0.1, kind=("mlp", "cnn"), methods={"none": 1, "mixup": 2})
    assert end.value.code == 2
    assert says in capsys.readouterr().err


def test_a_function_gets_the_arguments_of_all_recipes(monkeypatch, capsys, tmp_path):
    seen = {}

    def main(args: RecipeArguments, width: int = 4, max_epochs: int = 2, seed: int = 3) -> None:
        """Fit a net.

        Args:
            args: Those of all recipes.
            width: Units of the net.
            max_epochs: Epochs.
            seed: Its own seed.
        """
        seen.update(width=width, seed=seed, args=args)

    def call(*argv):
        monkeypatch.setattr(sys, "argv", ["recipes/some.py", *argv])
        run_recipe(main)

    monkeypatch.chdir(tmp_path)
    call("--width=8", "--logger=csv", "--devices=2", "--fast_dev_run")
    args = seen["args"]
    assert (seen["width"], seen["seed"], args.logger, args.fast_dev_run) == (8, 3, "csv", True)
    assert args.run_dir == Path("runs/some")
    assert args.trainer == {
        "max_epochs": 2, "accelerator": "auto", "devices": 2, "precision": "32-true",
        "fast_dev_run": True,
    }  # fmt: skip
    call("--seed=5", "--run_dir=here")
    assert (seen["seed"], seen["args"].run_dir, seen["args"].logger) == (5, Path("here"), "none")
    with pytest.raises(SystemExit):
        call("--help")
    said = capsys.readouterr().out
    assert "Fit a net." in said and "Units of the net." in said and "runs/some" in said
    assert "--args" not in said and said.count("--seed SEED") == 2
    with pytest.raises(SystemExit):
        call("--sead=1")
    assert "did you mean 'seed'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("annotations", "says"),
    [
        ({"args": RecipeArguments | None}, "annotate it with RecipeArguments alone"),
        ({"args": RecipeArguments, "trainer": str}, "has a parameter 'trainer'"),
    ],
)
def test_functions_whose_arguments_collide_are_refused(monkeypatch, capsys, annotations, says):
    def main(args=None, trainer="x"):
        raise AssertionError("it must not run")

    main.__annotations__ = annotations
    monkeypatch.setattr(sys, "argv", ["recipes/some.py"])
    with pytest.raises(SystemExit):
        run_recipe(main)
    assert says in capsys.readouterr().err


async def _async() -> None:
    """Run nothing."""


@functools.wraps(_async)
def _wrapped() -> object:
    return asyncio.sleep(0)


def _yielding(lr: float = 0.1):
    yield lr


def _with_config(config: str = "a") -> None:
    """Take the place of the file of arguments."""


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (_async, "_async() is written with 'async def' or 'yield'"),
        (_wrapped, "_async() is written with 'async def' or 'yield'"),
        (_yielding, "so that calling it runs nothing; define it with 'def'"),
        (
            _with_config,
            "a parameter 'config', but --config is a file of arguments; give it another",
        ),
    ],
)
def test_functions_that_cannot_be_recipes(monkeypatch, capsys, function, says):
    monkeypatch.setattr(sys, "argv", ["recipes/some.py"])
    with pytest.raises(SystemExit):
        run_recipe(function)
    assert says in capsys.readouterr().err


def test_annotations_as_text_are_understood(monkeypatch, tmp_path):
    seen = []

    def main(args: "cli.RecipeArguments", lr: "float" = 0.1) -> None:
        seen.append((args.seed, lr))

    monkeypatch.setattr(sys, "argv", ["recipes/some.py", "--seed=4", "--lr=0.5"])
    run_recipe(main)
    assert seen == [(4, 0.5)]


def test_a_script_has_help_and_plain_errors(tmp_path):
    script = tmp_path / "some.py"
    script.write_text(SCRIPT.lstrip())

    helped = forked.script(script, "--help").stdout
    assert "How many?" in helped and "Result: two." in helped and "default: [8, 8]" in helped
    assert "math" not in helped and "=====" not in helped
    mistake = forked.script(script, "--seed=1")  # of the user
    assert mistake.stdout.startswith("[8, 8] mlp 0.5 runs/some [('accelerator', 'auto')")
    assert mistake.stderr.startswith("error: ") and "did you mean 'adam'" in mistake.stderr
    assert "Traceback" not in mistake.stderr and mistake.returncode == 2
    assert "ZeroDivisionError" in forked.script(script).stderr  # a fault of the script
