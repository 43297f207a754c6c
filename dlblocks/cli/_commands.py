"""The commands, and what ``dlblocks --help`` says of them."""

from __future__ import annotations

# Command → what it does. Those of Lightning's CLI take `--config FILE`.
FITS = {
    "fit": "Train a model.",
    "validate": "Score a trained model on the validation set.",
    "test": "Score a trained model on the test set.",
    "predict": "Predict the data of a configuration.",
    "cross-validate": "Fit and score a new model for each fold.",
    "nested-cross-validate": "Score a search for hyperparameters on inner folds.",
}
OTHERS = {
    "predict": "Predict new data: files, images, a folder.",
    "compare": "Rank runs that were cross-validated on the same folds.",
    "report": "Write the page of a finished cross-validation anew.",
    "completion": "Print the script that completes commands in your shell.",
}
USAGE = {
    "predict": "predict RUN --input FILE",
    "compare": "compare RUN RUN …",
    "report": "report RUN …",
    "completion": "completion bash",
}


def help_text() -> str:
    """Describe all commands."""
    width = max(map(len, [*FITS, *USAGE.values()])) + 2
    fits = [f"  {name:<{width}}{said}" for name, said in FITS.items()]
    others = [f"  {USAGE[name]:<{width}}{said}" for name, said in OTHERS.items()]
    return "\n".join([
        "usage: dlblocks COMMAND --config FILE [--KEY=VALUE …]",
        "       dlblocks COMMAND --help",
        "",
        "Train, cross-validate and compare models. Each command leaves one run folder, and",
        "its config.yaml repeats the run. A flag such as --model.lr=0.01 overrides the file.",
        "",
        "commands that take a configuration:",
        *fits,
        "",
        "commands that take what has ended:",
        *others,
        "",
        "options:",
        f"  {'-h, --help':<{width}}Show this text.",
        f"  {'--version':<{width}}Show the version.",
    ])  # fmt: skip
