"""Compare and report finished runs on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dlblocks.cli._parser import RecipeParser, add_mode_argument
from dlblocks.crossval import compare, load_result


def compare_parser() -> RecipeParser:
    """Create the parser of ``compare``."""
    parser = RecipeParser(
        prog="dlblocks compare",
        description="Rank runs that were cross-validated on the same folds, and test each against "
        "the best. Runs of other samples or folds are refused.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", type=str, nargs="+", help="Two run folders or more.")
    parser.add_argument(
        "--metric", type=str | None, default=None, help="By default the monitor of all runs."
    )
    add_mode_argument(parser)
    parser.add_argument(
        "--output",
        type=str,
        default="comparison.html",
        help="A page with table and figure (.html), or the figure (.png, .svg, .pdf).",
    )
    return parser


def compare_runs(args: Sequence[str]) -> None:
    """Print a ranked table, and write a page or a figure."""
    given = compare_parser().parse_args(list(args))
    paths = [Path(run) for run in given.runs]
    ranking = compare([load_result(path) for path in paths], given.metric, mode=given.mode)
    print(ranking, flush=True)
    what = "Table and figure are" if given.output.endswith(".html") else "The figure is"
    print(f"{what} in {ranking.write(given.output)}.", flush=True)


def report_parser() -> RecipeParser:
    """Create the parser of ``report``."""
    parser = RecipeParser(
        prog="dlblocks report",
        description="Write report.html of finished cross-validations anew, with what was added "
        "since: importance, scores of the test set.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", type=str, nargs="+", help="Run folders.")
    return parser


def report_runs(args: Sequence[str]) -> None:
    """Write the pages of run folders."""
    given = report_parser().parse_args(list(args))
    for result in [load_result(run) for run in given.runs]:
        print(result.report(), flush=True)
