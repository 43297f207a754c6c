"""Small against large batches on the digits: accuracy, sharpness, and the line between them.

An MLP, 64 → 128 → 128 → 10, learns 1,024 digits by gradient descent with momentum in batches of 16
and of 128, an eighth of all (Keskar et al., "On Large-Batch Training for Deep Learning", 2017, took
a tenth, and Adam). The large batch is trained over as many epochs, which are an eighth of the
steps, and over as many steps, which are eight times the epochs; and, as remedies, over as many
epochs with eight times the rate (Goyal et al., "Accurate, Large Minibatch SGD", 2017), at once or
after a linear warm-up of five epochs. A seed has weights, a split and an order of its own, the same
in all settings. Measured are the last weights: ε-sharpness (Keskar's equation 4, whole space, ε =
1e-3) and top Hessian eigenvalue of the loss of all training digits, in float64.

Result: mean ± standard deviation over seeds 0 to 9. Every training accuracy is 100 %; a test set
has 645 digits, one of which is 0.16 %; "- small" is the difference from the small batch, seed by
seed::

                         epochs  steps  loss of training  test accuracy   - small      sharpness
    small                    60  3,840           0.00027  97.88 ± 0.47                 0.105 ± 0.021
    large                    60    480           0.00481  97.30 ± 0.63 -0.57 ± 0.43     1.75 ± 0.31
    large, equal steps      480  3,840           0.00035  97.74 ± 0.54 -0.14 ± 0.27    0.564 ± 0.16
    large, scaled rate       60    480           0.00009  97.61 ± 0.56 -0.26 ± 0.34    0.016 ± 0.006
    large, scaled + warm-up  60    480           0.00009  97.88 ± 0.55  0.00 ± 0.33    0.018 ± 0.005

    Top Hessian eigenvalue: 0.10 ± 0.01, 2.4 ± 0.4, 0.28 ± 0.04, 0.028 ± 0.009, 0.026 ± 0.008.

Over equal epochs it is as Keskar et al. say: the large batch generalizes less well, by half a point
(lower in 8 of 10 seeds), and its solutions are 17 times as sharp. But they are also less trained:
after equal steps a gap of 0.14 is left, which ten seeds do not tell from none, and five times the
sharpness. Sharpness does not rank the settings: with the scaled rate the solutions are seven times
flatter than the small batch's, and a quarter of a point worse. Scaled with warm-up, in an eighth of
the steps, the large batch is as good as the small one. On the line there is no barrier between the
solutions (training accuracy is 100 % all the way), and as in their figure 3 it gets worse sooner
beyond the large batch: training accuracy is 84 % at α = 2, 100.0 % at α = -1. After equal steps it
is 94 % and 99.9 %. Linear scaling has an end: with batches of 512 (--large=512, seeds 0 to 4; gaps
of 1.1 over equal epochs and 0.1 over equal steps) two of five fits end at chance and one at 50 %,
with warm-up one at chance. 2.5 minutes (one thread of two CPU cores in other use, torch 2.14,
lightning 2.6.6).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from dlblocks import plots, tracking
from dlblocks._errors import check_range
from dlblocks._files import write_json, write_rows
from dlblocks._quiet import quiet
from dlblocks.callbacks import sharpness, top_eigenvalue
from dlblocks.cli import run_recipe
from dlblocks.data import DigitsDataModule
from dlblocks.engine import Member, StackedFit
from dlblocks.models import MLPClassifier
from dlblocks.plots._style import new_figure, style_axis
from dlblocks.runs.folder import check_new_run_dir, next_run_dir

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

DIGITS = 1797
# To choose rates by: from 0.003 to 0.05 the small batch is equally good on them, within noise.
VALIDATION = 128
ALPHAS = np.linspace(-1, 2, 61)
PARTS = ("train", "val", "test")
SMALL, LARGE, STEPS = "small", "large", "large, equal steps"
SCALED, WARM = "large, scaled rate", "large, scaled + warm-up"
COLOURS = {
    SMALL: plots.BLUE,
    LARGE: plots.RED,
    STEPS: plots.GREEN,
    SCALED: plots.ORANGE,
    WARM: "#CC79A7",
}
MEASURED = {
    "test/accuracy": "test accuracy (%)",
    "sharpness": "sharpness",
    "eigenvalue": "top Hessian eigenvalue",
}


class Setting(NamedTuple):
    """How a net is trained."""

    batch_size: int
    lr: float
    epochs: int
    steps: int
    warmup_steps: int = 0


class Solution(NamedTuple):
    """What a fit has found.

    Attributes:
        net: Its net in float64, in evaluation mode.
        data: Inputs and targets of each part.
        measured: Loss and accuracy of each part, sharpness and top Hessian eigenvalue; NaN if the
            fit diverged.
        losses: Training loss of every epoch.
    """

    net: nn.Module
    data: dict[str, tuple[Tensor, Tensor]]
    measured: dict[str, float]
    losses: list[float]


def main(
    small: int = 16,
    large: int = 128,
    lr: float = 0.02,
    warmup_epochs: int = 5,
    epsilon: float = 1e-3,
    samples: int = 1024,
    num_seeds: int = 10,
    max_epochs: int = 60,
    run_dir: str | None = None,
    logger: Literal["csv", "wandb", "tensorboard", "none"] = "csv",
    fast_dev_run: bool = False,
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str = "32-true",
    seed: int = 0,
) -> None:
    """Small against large batches on the digits.

    Args:
        small: Samples in a small batch.
        large: Samples in a large batch.
        lr: Learning rate of both; with the scaled rate, large / small times as much.
        warmup_epochs: Epochs over which the scaled rate rises from 0.
        epsilon: Size of the box of the sharpness.
        samples: Digits to train on; 128 more are for validation, the others are the test set.
        num_seeds: Fits of each setting: other weights, another split and another order.
        max_epochs: Epochs, but of the large batch with equal steps.
        run_dir: Where everything goes; by default runs/batch_size, or runs/batch_size-2 and so on.
        logger: Where each setting logs its mean losses, as one run.
        fast_dev_run: Two epochs of few samples and one seed, to see that it runs.
        accelerator: What to train on, as for Lightning's Trainer.
        devices: One device fits all.
        precision: Numeric precision, as for Lightning's Trainer.
        seed: The first seed.
    """
    if fast_dev_run:
        samples, num_seeds, max_epochs, warmup_epochs = 2 * large, 1, 2, 1
    check_range("num_seeds", num_seeds, 1)
    check_range("samples", samples, 100, DIGITS - VALIDATION - 100)
    check_range("large", large, 2, samples)
    check_range("small", small, 1, large, high_open=True)
    check_range("warmup_epochs", warmup_epochs, 1, max_epochs, high_open=True)
    check_range("epsilon", epsilon, 0, math.inf, low_open=True, high_open=True)
    folder = check_new_run_dir(run_dir or next_run_dir("runs/batch_size"))
    trainer = {
        "accelerator": accelerator,
        "devices": 1 if devices == "auto" else devices,
        "precision": precision,
    }
    seeds = range(seed, seed + num_seeds)
    settings = make_settings(small, large, lr, warmup_epochs, samples, max_epochs)
    found: dict[str, list[Solution]] = {}
    for name, setting in settings.items():
        members = [make_member(setting, samples, s) for s in seeds]
        train(members, setting, trainer, folder)
        found[name] = [measure(member, epsilon) for member in members]
        print(line_of_table(name, setting, found), flush=True)
        log(name, setting, found[name], logger, folder)
    along = {
        name: [between(*pair) for pair in zip(found[SMALL], found[name], strict=True)]
        for name in (LARGE, STEPS)
    }
    write_rows(
        folder / "fits.csv",
        [
            {"setting": name, "seed": s, **settings[name]._asdict(), **solution.measured}
            for name, solutions in found.items()
            for s, solution in zip(seeds, solutions, strict=True)
        ],
    )
    write_rows(
        folder / "line.csv",
        [
            {"to": name, "seed": s, "alpha": float(alpha), **{k: v[i] for k, v in curves.items()}}
            for name, pairs in along.items()
            for s, curves in zip(seeds, pairs, strict=True)
            for i, alpha in enumerate(ALPHAS)
        ],
    )
    write_json(
        folder / "summary.json",
        {
            "metrics": {
                name: {
                    "mean": mean_std(solutions, "test/accuracy")[0],
                }
                | {
                    key: dict(zip(("mean", "std"), mean_std(solutions, key), strict=True))
                    for key in solutions[0].measured
                }
                for name, solutions in found.items()
            },
            "config": {
                "settings": {name: setting._asdict() for name, setting in settings.items()},
                "seeds": list(seeds),
                "samples": samples,
                "epsilon": epsilon,
                "trainer": trainer,
            },
            "versions": tracking.versions(),
        },
    )
    figure = draw(settings, found, along)
    for ending in ("png", "pdf"):
        plots.save(figure, folder / "figures" / f"batch_size.{ending}")
    print(f"Everything is in {folder}: summary.json, fits.csv, line.csv, <setting>/, figures/.")


def make_settings(
    small: int, large: int, lr: float, warmup_epochs: int, samples: int, epochs: int
) -> dict[str, Setting]:
    """Equal epochs, but of one setting, which has as many steps as the small batch."""
    few, many = math.ceil(samples / large), math.ceil(samples / small)
    longer = round(epochs * many / few)
    scaled = lr * large / small
    return {
        SMALL: Setting(small, lr, epochs, epochs * many),
        LARGE: Setting(large, lr, epochs, epochs * few),
        STEPS: Setting(large, lr, longer, longer * few),
        SCALED: Setting(large, scaled, epochs, epochs * few),
        WARM: Setting(large, scaled, epochs, epochs * few, warmup_epochs * few),
    }


def make_member(setting: Setting, samples: int, seed: int) -> Member:
    """A new net and its data: with one seed, the same weights and split in every setting."""
    seed_everything(seed, verbose=False)
    model = MLPClassifier(
        64,
        10,
        hidden=[128, 128],
        optimizer="momentum",
        lr=setting.lr,
        warmup_steps=setting.warmup_steps,
    )
    development = samples + VALIDATION
    data = DigitsDataModule(
        batch_size=setting.batch_size,
        test_fraction=(DIGITS - development) / DIGITS,
        val_fraction=VALIDATION / development,
        split_seed=seed,
        shuffle_seed=seed,
    )
    return Member(f"seed {seed}", model, data)


def train(
    members: Sequence[Member], setting: Setting, trainer: Mapping[str, Any], folder: Path
) -> None:
    """Trains all seeds at once. The weights of the last epoch stay, the only one validated."""
    epochs = {"max_epochs": setting.epochs, "check_val_every_n_epoch": setting.epochs}
    with quiet():
        together = StackedFit(
            members, trainer={**trainer, **epochs}, monitor="val/loss", mode="min", folder=folder
        )
        together.on_error = "continue"
        together.fit()


def measure(member: Member, epsilon: float) -> Solution:
    """The net of a fit, and how good and how sharp it is; in float64 on the CPU."""
    net = copy.deepcopy(member.model.net).cpu().double().eval()
    data = {}
    for part in PARTS:
        inputs, targets, _ = member.datamodule.arrays(part)
        data[part] = (member.datamodule.transform(inputs).double(), targets)
    measured = {}
    for part in PARTS:
        measured[f"{part}/loss"], measured[f"{part}/accuracy"] = evaluate(net, *data[part])
    inputs, targets = data["train"]

    def loss() -> Tensor:
        return F.cross_entropy(net(inputs), targets)

    params = list(net.parameters())
    measured["sharpness"] = sharpness(loss, params, epsilon)
    measured["eigenvalue"] = top_eigenvalue(loss, params)
    if member.error is not None:
        measured = dict.fromkeys(measured, math.nan)
    losses = [row["train/loss"] for row in member.history.rows if "train/loss" in row]
    return Solution(net, data, measured, losses)


@torch.no_grad()
def evaluate(net: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    logits = net(inputs)
    accuracy = (logits.argmax(1) == targets).double().mean()
    return float(F.cross_entropy(logits, targets)), float(accuracy)


def between(first: Solution, second: Solution) -> dict[str, list[float]]:
    """Losses and accuracies at (1 - α) · first + α · second, the weights of two solutions."""
    net = copy.deepcopy(first.net)
    start, end = (parameters_to_vector(s.net.parameters()).detach() for s in (first, second))
    curves: dict[str, list[float]] = {}
    for alpha in ALPHAS:
        vector_to_parameters((1 - alpha) * start + alpha * end, net.parameters())
        for part in ("train", "test"):
            for name, value in zip(
                ("loss", "accuracy"), evaluate(net, *first.data[part]), strict=True
            ):
                curves.setdefault(f"{part}/{name}", []).append(value)
    return curves


def mean_std(solutions: Sequence[Solution], key: str) -> tuple[float, float]:
    """Mean and standard deviation over the seeds whose fit did not diverge."""
    values = [s.measured[key] for s in solutions if not math.isnan(s.measured[key])]
    if not values:
        return math.nan, math.nan
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def line_of_table(name: str, setting: Setting, found: Mapping[str, Sequence[Solution]]) -> str:
    """One setting: mean ± standard deviation over the seeds, accuracies in percent."""
    solutions = found[name]
    said = [f"{mean_std(solutions, 'train/loss')[0]:.5f}"]
    for part in ("train", "test"):
        mean, std = (100 * v for v in mean_std(solutions, f"{part}/accuracy"))
        said.append(f"{mean:.2f} ± {std:.2f}")
    pairs = [
        100 * (b.measured["test/accuracy"] - a.measured["test/accuracy"])
        for a, b in zip(found[SMALL], solutions, strict=True)
    ]
    pairs = [pair for pair in pairs if not math.isnan(pair)]
    lower = sum(pair < 0 for pair in pairs)
    said.append("" if name == SMALL else f"{np.mean(pairs or np.nan):+.2f} ({lower}/{len(pairs)})")
    for key in ("sharpness", "eigenvalue"):
        mean, std = mean_std(solutions, key)
        said.append(f"{mean:.3g} ± {std:.2g}")
    widths = (9, 15, 15, 15, 17, 17)
    line = f"{name:<24}{setting.batch_size:>6}{setting.lr:>6g}{setting.epochs:>7}{setting.steps:>7}"
    line += "".join(f"{text:>{width}}" for text, width in zip(said, widths, strict=True))
    diverged = sum(math.isnan(s.measured["train/loss"]) for s in solutions)
    if diverged:
        line += f"   {diverged} of {len(solutions)} diverged"
    if name != SMALL:
        return line
    head = f"{'':<24}{'batch':>6}{'rate':>6}{'epochs':>7}{'steps':>7}"
    names = ("loss", "training acc.", "test acc.", "- small (less)", "sharpness", "eigenvalue")
    head += "".join(f"{text:>{width}}" for text, width in zip(names, widths, strict=True))
    return f"{head}\n{'─' * len(head)}\n{line}"


def log(
    name: str, setting: Setting, solutions: Sequence[Solution], kind: str, folder: Path
) -> None:
    """Logs the mean losses of a setting, and what was measured at the end, as a run."""
    logger = tracking.make_logger(
        kind,
        folder / name.replace(",", "").replace(" + ", "-").replace(" ", "-"),
        run_name=name,
        group=folder.name,
        job_type="setting",
        config=setting._asdict(),
    )
    if logger is None:
        return
    kept = [s.losses for s in solutions if not math.isnan(s.measured["train/loss"])]
    for epoch, values in enumerate(zip(*kept, strict=True)):
        logger.log_metrics({"train/loss": float(np.mean(values)), "epoch": epoch}, step=epoch)
    last = {key: mean_std(solutions, key)[0] for key in ("test/accuracy", "sharpness")}
    last["hessian_eigenvalue"] = mean_std(solutions, "eigenvalue")[0]
    logger.log_metrics(last, step=setting.epochs)
    logger.save()
    tracking.finish_logger(logger)


def draw(
    settings: Mapping[str, Setting],
    found: Mapping[str, Sequence[Solution]],
    along: Mapping[str, Sequence[dict[str, list[float]]]],
) -> Figure:
    """Loss and accuracy along the lines; below them what was measured of every solution."""
    figure = new_figure(10, 7)
    halves: Any = figure.subfigures(2, 1, height_ratios=[1.3, 1])
    lines = halves[0].subplots(1, 2)
    for axis, what in zip(lines, ("loss", "accuracy"), strict=True):
        for name, pairs in along.items():
            for part, style in (("train", "-"), ("test", "--")):
                values = np.array([curves[f"{part}/{what}"] for curves in pairs])
                values = 100 * values if what == "accuracy" else values
                label = f"{name}: {'training' if part == 'train' else 'test'}"
                colour = COLOURS[name]
                axis.plot(ALPHAS, np.nanmean(values, 0), style, color=colour, label=label)
                if part == "test":
                    low, high = np.nanmin(values, 0), np.nanmax(values, 0)
                    axis.fill_between(ALPHAS, low, high, color=colour, alpha=0.12, linewidth=0)
        for at in (0, 1):
            axis.axvline(at, color=plots.GREY, linestyle=":", linewidth=1.2, zorder=0)
        axis.set_xticks([-1, 0, 1, 2], ["-1", "0\nsmall", "1\nlarge", "2"])
    style_axis(lines[0], "α: weights (1 - α) · small + α · large", "cross-entropy")
    style_axis(lines[1], "α: weights (1 - α) · small + α · large", "accuracy (%)")
    lines[0].set_yscale("log")
    lines[1].legend(frameon=False, fontsize=9.5)
    strips = halves[1].subplots(1, len(MEASURED), sharey=True)
    for axis, (key, label) in zip(strips, MEASURED.items(), strict=True):
        for y, (name, solutions) in enumerate(found.items()):
            values = np.array([s.measured[key] for s in solutions])
            values = 100 * values if key == "test/accuracy" else values
            axis.plot(values, [y] * len(values), "o", color=COLOURS[name], alpha=0.35, markersize=5)
            axis.plot(np.nanmean(values), y, "|", color="#222222", markersize=16)
        if key != "test/accuracy":
            axis.set_xscale("log")
        style_axis(axis, label, "")
        axis.set_yticks(
            range(len(found)), [f"{name} ({settings[name].batch_size})" for name in found]
        )
        axis.tick_params(axis="y", length=0)
    strips[0].invert_yaxis()
    return figure


if __name__ == "__main__":
    run_recipe(main)
