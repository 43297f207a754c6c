"""`dlblocks --help`, `compare`, `report` and `completion`."""

import shutil
import subprocess
from pathlib import Path

import commands
import pytest

from dlblocks.cli import main
from dlblocks.cli._cli import CLI
from dlblocks.cli._commands import FITS, OTHERS, help_text
from dlblocks.crossval import cross_validate
from dlblocks.data import TabularDataModule
from dlblocks.models import MLPClassifier


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on the same folds, and one on others."""
    folder = tmp_path_factory.mktemp("runs")
    for name, lr, num_folds in (("slow", 1e-5, 2), ("fast", 0.1, 2), ("three", 0.1, 3)):
        cross_validate(
            lambda lr=lr: MLPClassifier(4, 3, hidden=[8], lr=lr),
            TabularDataModule("iris"), num_folds=num_folds, logger=None, progress_bar=False,
            figures=False, trainer={"max_epochs": 2, "accelerator": "cpu"}, run_dir=folder / name,
        )  # fmt: skip
    return folder


def test_help_names_all_commands_and_does_not_load_torch():
    code = """
import sys, dlblocks.cli
try:
    dlblocks.cli.main(["--help"])
finally:
    print([name for name in ("torch", "lightning", "numpy") if name in sys.modules])
"""
    said = commands.run("python", "-c", code).stdout
    assert said == f"{help_text()}\n[]\n"
    assert all(f" {name} " in said for name in [*FITS, *OTHERS])
    assert set(FITS) == set(CLI.subcommands())


def test_no_command_says_help_and_fails(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert capsys.readouterr().out == f"{help_text()}\n"


def test_compare_prints_a_ranked_table_and_writes_page_or_figure(runs, capsys):
    main(["compare", str(runs / "slow"), str(runs / "fast")])
    said = capsys.readouterr().out
    ranks = [line.split()[:2] for line in said.split("\n")[2:4]]
    assert ranks == [["1", "fast"], ["2", "slow"]]
    assert "Table and figure are in comparison.html." in said
    assert "data:image/png" in Path("comparison.html").read_text()
    flags = ["--metric=val/accuracy", "--mode=min", "--output=a.png"]
    with pytest.raises(SystemExit):
        main(["compare", str(runs / "slow"), str(runs / "fast"), *flags])
    assert "set mode='max'" in capsys.readouterr().err
    main(["compare", str(runs / "slow"), str(runs / "fast"), flags[0], flags[2]])
    assert "The figure is in a.png." in capsys.readouterr().out
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fast", "three"], "cannot be compared fold by fold: repeats × folds are"),
        (["fast"], "compare needs two results at least, got 1"),
        (["fast", "fast"], "is given twice"),
        (["fast", "nowhere"], "has no summary.json"),
        (["fast", "slow", "--metric=val/acc"], "did you mean 'val/accuracy'"),
        (["fast", "slow", "--output=a.txt"], "Choose from: .html, .png, .svg, .pdf"),
        (["fast", "slow", "--outptu=a.png"], "did you mean 'output'"),
    ],
)
def test_compare_refuses_in_one_line(runs, arguments, said, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    with pytest.raises(SystemExit) as stop:
        main(["compare", *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (runs / "comparison.html").exists()


def test_report_writes_the_page_anew(runs, capsys):
    run = shutil.copytree(runs / "fast", "fast")
    main(["report", "fast"])
    assert capsys.readouterr().out == "fast/report.html\n"
    assert "Cross-validation: fast" in Path("fast/report.html").read_text()
    (Path(run) / "summary.json").unlink()
    with pytest.raises(SystemExit):
        main(["report", "fast"])
    assert "no cross-validation has ended there" in capsys.readouterr().err


TAB = """
source script.bash
tab() {
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  _shtab_dlblocks dlblocks "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
  echo "${COMPREPLY[*]}"
}
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_bash(capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit):
        main(["completion", "fish"])
    assert "Choose from: bash, zsh, tcsh" in capsys.readouterr().err
    main(["completion", "bash"])
    Path("script.bash").write_text(capsys.readouterr().out)
    Path("config.yaml").touch()
    asked = {
        "dlblocks compl": "completion",
        "dlblocks cross-validate --num_f": "--num_folds",
        "dlblocks cross-validate --engine v": "vectorized",
        "dlblocks fit --model MLPC": "MLPClassifier",
        "dlblocks fit --data Digi": "DigitsDataModule DigitScenesDataModule",
        "dlblocks fit --model.weight_dec": "--model.weight_decay",
        "dlblocks fit --config conf": "config.yaml",
        "dlblocks predict --inp": "--input",
        "dlblocks compare --met": "--metric",
    }
    script = TAB + "\n".join(f"tab {line}" for line in asked)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    found = [" ".join(sorted(line.split(), key=str.lower)) for line in done.stdout.splitlines()]
    assert found == [" ".join(sorted(v.split(), key=str.lower)) for v in asked.values()], done
