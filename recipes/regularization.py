"""Which regularizers help a small CNN and an MLP that have 200 digits to learn from?

Each method is added alone, with one setting that was taken from its paper's range and not tuned, to
the same net, and cross-validated on the same folds of 200 digits; the last epoch's weights are
scored. The folds' verdict is a corrected t-test against the bare net. The other 1,597 digits say
how good it was: "test" is the mean accuracy there of the models of all folds.

Result: (seed 0, one run) the bare nets learn all their samples by heart and have 91.5 % (CNN) and
91.1 % (MLP) on the test set. Augmentation alone helps much: 95.3 % and 94.5 %. Cutout, input noise
and cutmix add 1.4 to 1.9 points to the CNN and 0.5 to 1 to the MLP, mixup 1.1 and nothing; L2,
batch norm, weight noise, SAM and label smoothing less than one. Dropout is good for the MLP (+0.9)
and bad for the CNN (-1.2). Early stopping costs 1.7 and 1.3 points: it gives up 15 % of the
training samples to choose its epoch. All together is worst, by 62 and 5 points: 18 % and 47 % of
the training samples are learned. The folds alone tell none of the gains: with 200 samples their
intervals are 1 to 7 points to either side (augmentation of the CNN: +3.7, -3.5 … +10.9, p = 0.29).
Of each net's 13 comparisons one and none are below 0.05 after Holm's correction: the CNN's
collapse, p = 0.048. 7 minutes (two CPU cores shared with other work, torch 2.14, lightning 2.6.6).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping

from dlblocks import plots, tracking
from dlblocks._errors import check_choice, check_range
from dlblocks._files import is_rank_zero, write_json
from dlblocks.callbacks import SAM, Augment, CutMix, Cutout, InputNoise, MixUp, OneOf, WeightNoise
from dlblocks.cli import run_recipe
from dlblocks.crossval import Comparison, CrossValidationResult, cross_validate
from dlblocks.crossval.statistics import holm
from dlblocks.data import DigitsDataModule
from dlblocks.models import CNNClassifier, MLPClassifier, load
from dlblocks.runs.folder import next_run_dir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIGITS = 1797
SHOWN = 12  # points to either side in the figure; what lies beyond is written
LABELS = {"cnn": "CNN", "mlp": "MLP"}
SHIFTS: dict[str, Any] = {"translation": 0.1, "rotation": 10.0, "scale": (0.9, 1.1)}

# The arguments of the model, and the callbacks, of a seed.
METHODS: dict[str, tuple[dict[str, Any], Callable[[int], list[Callback]]]] = {
    "none": ({}, lambda seed: []),
    "L2": ({"weight_decay": 5e-3}, lambda seed: []),
    "dropout": ({"dropout": 0.5}, lambda seed: []),
    "batch norm": ({"norm": "batch"}, lambda seed: []),
    "label smoothing": ({"label_smoothing": 0.1}, lambda seed: []),
    "input noise": ({}, lambda seed: [InputNoise(0.3, seed=seed)]),
    "weight noise": ({}, lambda seed: [WeightNoise(0.1, relative=True, seed=seed)]),
    "cutout": ({}, lambda seed: [Cutout(3, seed=seed)]),
    "mixup": ({}, lambda seed: [MixUp(0.4, seed=seed)]),
    "cutmix": ({}, lambda seed: [CutMix(1.0, p=0.5, seed=seed)]),
    "augmentation": ({}, lambda seed: [Augment(**SHIFTS, seed=seed)]),
    "SAM": ({}, lambda seed: [SAM(rho=0.05)]),
    "early stopping": ({}, lambda seed: [EarlyStopping("val/loss", patience=10)]),
    # But the noise on the weights and SAM, which are for nets that are trained one by one.
    "all together": (
        {"weight_decay": 5e-3, "dropout": 0.5, "norm": "batch", "label_smoothing": 0.1},
        lambda seed: [
            Augment(**SHIFTS, seed=seed),
            InputNoise(0.3, seed=seed),
            OneOf([Cutout(3), MixUp(0.4), CutMix(1.0)], seed=seed),
            EarlyStopping("val/loss", patience=10),
        ],
    ),
}


class Row(NamedTuple):
    """What one method of one net came to."""

    result: CrossValidationResult
    versus: Comparison  # with the first method
    train: float  # accuracy, of the last epoch
    test: float  # mean accuracy of the models of all folds; NaN under fast_dev_run


def main(
    nets: list[Literal["cnn", "mlp"]] = ["cnn", "mlp"],  # noqa: B006 - only read
    methods: list[str] = list(METHODS),  # noqa: B006 - only read
    samples: int = 200,
    num_folds: int = 5,
    repeats: int = 3,
    max_epochs: int = 60,
    run_dir: str | None = None,
    logger: Literal["csv", "wandb", "tensorboard", "none"] = "none",
    fast_dev_run: bool = False,
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str = "32-true",
    seed: int = 0,
) -> None:
    """Which regularizers help a small CNN and an MLP that have 200 digits to learn from?

    Args:
        nets: Which nets.
        methods: Which methods, such as '[none, L2, mixup]'; all are compared with the first.
        samples: Digits in the folds; the others are the test set.
        num_folds: Number of folds.
        repeats: How often to cross-validate, each time with other folds.
        max_epochs: Epochs, at most with early stopping.
        run_dir: Where everything goes; by default runs/regularization, or runs/regularization-2
            and so on. A run there that was killed is gone on with when it is named.
        logger: Where each fold logs.
        fast_dev_run: One batch of everything, in two folds, to see that it runs.
        accelerator: What to train on, as for Lightning's Trainer.
        devices: How many of them, as for Lightning's Trainer.
        precision: Numeric precision, as for Lightning's Trainer.
        seed: Seed of which digits, folds, initialisation and noise.
    """
    for method in methods:
        check_choice("methods", method, METHODS)
    check_range("samples", samples, 100, DIGITS - 100)
    if fast_dev_run:
        num_folds, repeats = 2, 1
    datamodule = DigitsDataModule(
        batch_size=32, test_fraction=1 - samples / DIGITS, split_seed=seed, shuffle_seed=seed
    )
    folder = Path(run_dir or next_run_dir("runs/regularization"))

    def make_model(net: str, arguments: dict[str, Any]) -> CNNClassifier | MLPClassifier:
        shared: dict[str, Any] = {
            "optimizer": "nesterov",
            "lr": 0.03,
            "lr_schedule": "one_cycle",
            "norm": None,
            **arguments,
        }
        if net == "mlp":
            return MLPClassifier(in_features=64, num_classes=10, hidden=[128, 128], **shared)
        return CNNClassifier(
            in_channels=1,
            num_classes=10,
            channels=[16, 32],
            head="flatten",
            image_size=8,
            hidden=[64],
            **shared,
        )

    def run(net: str, method: str) -> CrossValidationResult:
        arguments, make_callbacks = METHODS[method]
        stops = any(isinstance(callback, EarlyStopping) for callback in make_callbacks(seed))
        return cross_validate(
            lambda: make_model(net, arguments),
            datamodule,
            num_folds=num_folds,
            repeats=repeats,
            make_callbacks=lambda: make_callbacks(seed),
            trainer={
                "max_epochs": max_epochs,
                "accelerator": accelerator,
                "devices": devices,
                "precision": precision,
                "fast_dev_run": fast_dev_run,
            },
            # To keep the best epoch's weights would be early stopping.
            select="inner" if stops else "last",
            engine="auto",
            logger=logger,
            run_dir=folder / net / method.replace(" ", "-"),
            seed=seed,
            figures=False,
        )

    rows: dict[str, dict[str, Row]] = {}
    for net in nets:
        found = rows[net] = {}
        for method in methods:
            if is_rank_zero():
                print(f"{LABELS[net]}: {method}", flush=True)
            result = run(net, method)
            first = next(iter(found.values())).result if found else result
            ends = [history[-1]["train/accuracy"] for history in result.histories if history]
            found[method] = Row(
                result,
                result.compare(first, "val/accuracy"),
                float(np.mean(ends or np.nan)),
                truth(result, datamodule),
            )
    if not is_rank_zero():
        return
    metrics = {}
    for key, found in rows.items():
        others = list(found)[1:]
        p = holm([found[name].versus.p for name in others])
        adjusted = dict(zip(others, p, strict=True))
        print("\n" + table(LABELS[key], found, adjusted))
        for name, row in found.items():
            metrics[f"{key}/{name}"] = {
                "mean": row.result.mean("val/accuracy"),
                "val/accuracy": row.result.mean("val/accuracy"),
                "interval": row.result.interval("val/accuracy"),
                "test/accuracy": row.test,
                "train/accuracy": row.train,
                "difference": row.versus.difference,
                "difference_interval": row.versus.interval,
                "p": row.versus.p,
                "p_holm": adjusted.get(name),
            }
    plots.save(dots(rows), folder / "figures" / "regularization.png")
    write_json(folder / "summary.json", {"metrics": metrics, "versions": tracking.versions()})
    print(
        f"\nEverything is in {folder}: summary.json, figures/regularization.png, and a folder for "
        "each cross-validation."
    )


@torch.inference_mode()
def truth(result: CrossValidationResult, datamodule: DigitsDataModule) -> float:
    """Mean accuracy of the folds' models on the test set."""
    inputs, targets, _ = datamodule.arrays("test")
    scores = [np.nan]
    if all(row["checkpoint"] for row in result.folds):
        scores = []
        for row in result.folds:
            part = datamodule.for_fold(row["fold"], result.info["num_folds"], repeat=row["repeat"])
            if result.info["select"] == "inner":
                part = part.with_selection(result.info["selection_fraction"])
            part.setup()  # fits the normalisation to the fold's training samples
            model = load(result.run_dir / row["checkpoint"]).eval()
            scores.append(float((model(inputs).argmax(1) == targets).float().mean()))
    return float(np.mean(scores))


def table(net: str, found: dict[str, Row], adjusted: dict[str, float]) -> str:
    """Accuracies in percent; differences from the first method, with 95 % intervals."""
    first = next(iter(found))
    head = f"{net:<16}{'train':>7}{'folds':>7}   {'minus ' + first:<24}{'p':>6}{'p Holm':>8}"
    lines = [head + f"{'test':>8}{'minus ' + first:>13}", "─" * (len(head) + 21)]
    base = found[first].test
    for name, row in found.items():
        line = f"{name:<16}{row.train:7.1%}{row.result.mean('val/accuracy'):7.1%}   "
        if name in adjusted:
            low, high = (100 * end for end in row.versus.interval)
            said = f"{100 * row.versus.difference:+5.1f}  ({low:+5.1f} … {high:+5.1f})"
            line += f"{said:<24}{row.versus.p:6.2f}{adjusted[name]:8.2f}{row.test:8.1%}"
            line += f"{100 * (row.test - base):+13.1f}"
        else:
            line += f"{'':<38}{row.test:8.1%}"
        lines.append(line)
    lines.append(
        f"p: corrected t-test on the folds; p Holm: with {len(adjusted)} methods tried. "
        "Early stopping gives up 15 % of its training samples to choose its epoch."
    )
    return "\n".join(lines).replace("%", " %").replace("nan %", "  nan")


def dots(rows: dict[str, dict[str, Row]]) -> Figure:
    """Difference from the first method: on the folds with interval, and on the test set."""
    from dlblocks.plots._style import BLUE, RED, new_figure, style_axis

    count = max(len(found) for found in rows.values())
    figure = new_figure(1.6 + 3.9 * len(rows), 1.3 + 0.36 * count)
    axes = figure.subplots(1, len(rows), sharey=True, sharex=True, squeeze=False)[0]
    for axis, (net, found) in zip(axes, rows.items(), strict=True):
        first = next(iter(found))
        names = list(found)[1:]
        for y, name in enumerate(names):
            row = found[name]
            low, high = (100 * end for end in row.versus.interval)
            axis.plot([low, high], [y - 0.12] * 2, color=BLUE, linewidth=2, alpha=0.6)
            axis.plot(100 * row.versus.difference, y - 0.12, "o", color=BLUE, markersize=7)
            beyond = 100 * (row.test - found[first].test)
            if abs(beyond) < SHOWN:
                axis.plot(beyond, y + 0.16, "D", color=RED, markersize=6)
            elif np.isfinite(beyond):
                edge, side = (SHOWN, "right") if beyond > 0 else (-SHOWN, "left")
                axis.text(edge, y + 0.16, f" {beyond:+.0f} ", ha=side, va="center", color=RED)
        axis.set_xlim(-SHOWN, SHOWN)
        axis.axvline(0, color="#333333", linewidth=1)
        style_axis(axis, f"accuracy minus that of {first} (percentage points)", "")
        axis.set_title(f"{LABELS[net]} (test set, {first}: {100 * found[first].test:.1f} %)")
        axis.set_yticks(range(len(names)), names)
        axis.tick_params(axis="y", length=0)
    axes[0].invert_yaxis()
    axes[0].plot([], [], "o-", color=BLUE, label="folds, 95 % interval")
    axes[0].plot([], [], "D", color=RED, label="test set")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


if __name__ == "__main__":
    run_recipe(main)
