"""``dlblocks predict RUN --input FILE``: predict new data with a trained model."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from dlblocks.cli._parser import RecipeParser
from dlblocks.loading import load


def is_of_new_data(args: Sequence[str]) -> bool:
    """Tell ``predict RUN --input FILE`` from ``predict --config …``."""
    named = any(arg.partition("=")[0] == "--input" for arg in args)
    return named or not args or not args[0].startswith("-") or args[0] in ("-h", "--help")


def predict_file(args: Sequence[str]) -> None:
    """Predict samples in files with a trained model, and write a table."""
    given = predict_parser().parse_args(list(args))
    predictor = load(
        given.model, module=_imported(given.module), preprocess=_imported(given.preprocess)
    )
    table = predictor.predict(
        given.input if len(given.input) > 1 else given.input[0],
        batch_size=given.batch_size,
        device=given.device,
        id_column=given.id_column,
        unseen=given.unseen,
        coverage=given.coverage,
        progress_bar=given.progress_bar,
    )
    if given.output.endswith(".npz"):
        table.write(Path(given.output))
    else:
        table.to_csv(given.output)
    print(f"{predictor}\nPredictions of {len(table)} samples are in {given.output}.", flush=True)


def predict_parser() -> RecipeParser:
    """Create the parser of ``predict RUN``."""
    parser = RecipeParser(
        prog="dlblocks predict",
        description="Predict new data with a trained model. To predict the data set of a "
        "configuration, with its targets, use: dlblocks predict --config=FILE --ckpt_path=FILE.",
        allow_abbrev=False,
    )
    parser.add_argument("model", type=str, help="A run folder, a checkpoint, or a saved file.")
    parser.add_argument(
        "--input", type=str, nargs="+", required=True, help="A CSV file, a folder, images, or .npy."
    )
    parser.add_argument(
        "--output", type=str, default="predictions.csv", help="A .csv, .csv.gz or .npz file."
    )
    parser.add_argument(
        "--batch_size", type=int | None, default=None, help="By default that of the training."
    )
    parser.add_argument("--device", type=str, default="auto", help="Such as cpu or cuda:1.")
    parser.add_argument(
        "--id_column", type=str | None, default=None, help="A column that names the rows."
    )
    parser.add_argument(
        "--unseen",
        type=Literal["refuse", "missing"],
        default="refuse",
        help="Refuse categories that were not in the training data, or treat them as missing.",
    )
    parser.add_argument(
        "--module", type=str | None, default=None, help="Your LightningModule: package.Class."
    )
    parser.add_argument(
        "--preprocess",
        type=str | None,
        default=None,
        help="Your function that turns the input into a batch: package.function.",
    )
    parser.add_argument(
        "--coverage",
        type=float | None,
        default=None,
        help="Such as 0.9: add prediction intervals of values, or sets of classes.",
    )
    parser.add_argument("--progress_bar", type=bool, default=True, help="Show a progress bar.")
    return parser


def _imported(path: str | None) -> Any:
    """Import the object that a dotted path names."""
    if path is None:
        return None
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path!r} cannot be imported ({error}); give package.name.") from error
