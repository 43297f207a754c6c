"""Every optimizer on one curve: y = exp(-x²) · cos(10x) + noise.

10,000 points, of which 6,400 train an MLP of two hidden layers of 64 tanh units for 100 epochs of
100 batches of 64. Each optimizer has three learning rates and three seeds, all nine fits at once;
the rate with the lowest validation loss, averaged over the seeds, is its best. L-BFGS has batches
of its own: an epoch is one step on all samples, of up to 20 iterations, one fit after another.

Result: L-BFGS is nearest to the curve, then the relatives of Adam, and descent without momentum is
last. RMSE from the curve without noise, mean ± standard deviation over seeds 0 to 2: lbfgs 0.0066 ±
0.0003, nadam 0.023 ± 0.004, lion 0.026 ± 0.006, radam 0.028 ± 0.006, adamp 0.029 ± 0.006, adam and
adamw (the same without decay) 0.030 ± 0.006, adadelta 0.035 ± 0.001, rmsprop 0.036 ± 0.004, adagrad
and momentum 0.043, nesterov and sgdp 0.053, sgd 0.14 ± 0.02. The noise has 0.1. 17 minutes (one
thread of two CPU cores in other use, torch 2.14, lightning 2.6.6).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.pytorch import seed_everything

from dlblocks import plots, tracking
from dlblocks._errors import check_choice, check_range
from dlblocks._files import write_json, write_rows
from dlblocks._quiet import quiet
from dlblocks.cli import run_recipe
from dlblocks.data import CurveDataModule
from dlblocks.engine import Member, StackedFit
from dlblocks.models import MLPRegressor
from dlblocks.plots._style import new_figure, style_axis
from dlblocks.runs.fit import fit
from dlblocks.runs.folder import check_new_run_dir, next_run_dir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# For each optimizer the rates to choose from, around the best of a wider search.
RATES: dict[str, list[float]] = {
    "sgd": [0.01, 0.03, 0.06],
    "momentum": [0.01, 0.03, 0.06],
    "nesterov": [0.01, 0.02, 0.03],
    "sgdp": [0.01, 0.02, 0.03],
    "lbfgs": [1.0],  # its line search finds the length of a step
    "adagrad": [0.03, 0.1, 0.3],
    "adadelta": [0.3, 1.0, 3.0],
    "rmsprop": [0.001, 0.003, 0.01],
    "lion": [0.0001, 0.0003, 0.001],
    "adam": [0.001, 0.003, 0.01],
    "adamw": [0.001, 0.003, 0.01],
    "nadam": [0.0006, 0.002, 0.006],
    "radam": [0.001, 0.003, 0.01],
    "adamp": [0.001, 0.003, 0.01],
}
FAMILIES = {
    "gradient descent": ["sgd", "momentum", "nesterov", "sgdp", "lbfgs"],
    "a rate for every weight": ["adagrad", "adadelta", "rmsprop", "lion"],
    "Adam and its relatives": ["adam", "adamw", "nadam", "radam", "adamp"],
}
COLOURS = [plots.BLUE, plots.RED, plots.GREEN, plots.ORANGE, "#CC79A7"]
NOISE = 0.1


@dataclass
class Run:
    """A finished fit.

    Attributes:
        lr: Its learning rate.
        seed: Its seed.
        best: Validation loss of the best epoch; infinite if the fit diverged.
        losses: Validation loss of every epoch.
        curve: What the best weights predict at the points of the grid.
        rmse: Their root mean square distance from the curve without noise.
    """

    lr: float
    seed: int
    best: float
    losses: list[float]
    curve: np.ndarray
    rmse: float


def main(
    optimizers: list[str] = list(RATES),  # noqa: B006 - only read
    num_seeds: int = 3,
    num_samples: int = 10_000,
    max_epochs: int = 100,
    run_dir: str | None = None,
    logger: Literal["csv", "wandb", "tensorboard", "none"] = "csv",
    fast_dev_run: bool = False,
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str = "32-true",
    seed: int = 0,
) -> None:
    """Every optimizer on one curve, at its best learning rate.

    Args:
        optimizers: Names of optimizers.
        num_seeds: Fits with each learning rate, with other weights and another order of the data.
        num_samples: Points of the curve; 64 % train, 16 % choose rate and epoch.
        max_epochs: Epochs; of 100 iterations with 10,000 samples.
        run_dir: Where everything goes; by default runs/optimizers, or runs/optimizers-2 and so on.
        logger: Where each optimizer logs its losses at its best rate, as one run.
        fast_dev_run: One epoch of few samples and one seed, to see that it runs.
        accelerator: What to train on, as for Lightning's Trainer.
        devices: One device fits all.
        precision: Numeric precision, as for Lightning's Trainer.
        seed: The first seed.
    """
    for name in optimizers:
        check_choice("optimizers", name, RATES)
    if not optimizers or len(set(optimizers)) < len(optimizers):
        raise ValueError(f"optimizers={optimizers} must name at least one, and each once.")
    check_range("num_seeds", num_seeds, 1)
    if fast_dev_run:
        num_seeds, num_samples, max_epochs = 1, 200, 1
    folder = check_new_run_dir(run_dir or next_run_dir("runs/optimizers"))
    trainer = {
        "max_epochs": max_epochs,
        "accelerator": accelerator,
        "devices": 1 if devices == "auto" else devices,
        "precision": precision,
    }
    seeds = range(seed, seed + num_seeds)
    found: dict[str, list[Run]] = {}
    rows: list[dict[str, Any]] = []
    print(f"{'optimizer':<11}{'lr':>8}   loss of validation   RMSE from the curve   seconds")
    for name in optimizers:
        started = time.monotonic()
        fit_all = one_by_one if name == "lbfgs" else at_once
        runs = fit_all(name, seeds, num_samples, trainer, folder)
        seconds = time.monotonic() - started
        means = {lr: np.mean([run.best for run in runs if run.lr == lr]) for lr in RATES[name]}
        best = min(means, key=lambda lr: means[lr])
        if not math.isfinite(means[best]):
            print(f"{name:<11} diverged with every rate: {RATES[name]}", flush=True)
            continue
        found[name] = [run for run in runs if run.lr == best]
        losses, errors = mean_std(found[name], "best"), mean_std(found[name], "rmse")
        print(
            f"{name:<11}{best:>8g}   {losses[0]:.5f} ± {losses[1]:.5f}    "
            f"{errors[0]:.4f} ± {errors[1]:.4f}{seconds:>16.1f}",
            flush=True,
        )
        rows += [
            {"optimizer": name, "lr": r.lr, "seed": r.seed, "val/loss": r.best, "rmse": r.rmse}
            for r in runs
        ]
        log(found[name], logger, folder, name)
    if not found:
        raise SystemExit("error: no optimizer has a rate with which all its fits end.")
    write_rows(folder / "fits.csv", rows)
    plots.save(draw(found), folder / "figures" / "optimizers.png")
    write_json(
        folder / "summary.json",
        {
            "metrics": {
                name: {
                    "mean": mean_std(runs, "rmse")[0],
                    "lr": runs[0].lr,
                    "val/loss": dict(zip(("mean", "std"), mean_std(runs, "best"), strict=True)),
                    "rmse": dict(zip(("mean", "std"), mean_std(runs, "rmse"), strict=True)),
                }
                for name, runs in found.items()
            },
            "config": {"num_samples": num_samples, "seeds": list(seeds), "trainer": trainer},
            "versions": tracking.versions(),
        },
    )
    print(f"Everything is in {folder}: summary.json, fits.csv, <optimizer>/, figures/.")


def make_model(name: str, lr: float, seed: int) -> MLPRegressor:
    """The model as new, its weights drawn with `seed`."""
    seed_everything(seed, verbose=False)
    return MLPRegressor(1, hidden=[64, 64], activation="tanh", optimizer=name, lr=lr)


def make_data(num_samples: int, seed: int, batch_size: Any = 64) -> CurveDataModule:
    """The same points and split for every seed, in an order of its own."""
    return CurveDataModule(
        num_samples=num_samples, noise=NOISE, batch_size=batch_size, shuffle_seed=seed
    )


def at_once(
    name: str, seeds: Sequence[int], num_samples: int, trainer: Mapping[str, Any], folder: Path
) -> list[Run]:
    """Fits all rates and seeds of an optimizer in one vectorised fit."""
    settings = [(lr, seed) for lr in RATES[name] for seed in seeds]
    members = [
        Member(f"{name}, lr {lr}, seed {s}", make_model(name, lr, s), make_data(num_samples, s))
        for lr, s in settings
    ]
    with quiet():
        together = StackedFit(
            members,
            trainer=trainer,
            monitor="val/loss",
            mode="min",
            folder=folder,
            on_error="continue",
        )
        together.fit()
    runs = []
    for (lr, s), member in zip(settings, members, strict=True):
        losses = [row["val/loss"] for row in member.history.rows if "val/loss" in row]
        failed = member.error is not None or member.best is None
        best = math.inf if failed or member.best is None else member.best.value
        runs.append(finished(lr, s, best, losses, member.model, member.datamodule))
    return runs


def one_by_one(
    name: str, seeds: Sequence[int], num_samples: int, trainer: Mapping[str, Any], folder: Path
) -> list[Run]:
    """Fits an optimizer that needs all samples in a batch, and computes their loss many times."""
    runs = []
    for lr in RATES[name]:
        for s in seeds:
            model, data = make_model(name, lr, s), make_data(num_samples, s, "full")
            with quiet():
                done = fit(
                    model,
                    data,
                    folder / "fits" / f"{name}-lr-{lr:g}-seed-{s}",
                    callbacks=[],
                    trainer={**trainer, "enable_model_summary": False},
                    monitor="val/loss",
                    mode="min",
                    logger=None,
                    bar=False,
                )
            losses = [row["val/loss"] for row in done.history if "val/loss" in row]
            runs.append(finished(lr, s, done.metrics["val/loss"], losses, model, data))
    return runs


def grid(data: CurveDataModule) -> np.ndarray:
    """Where fits are compared with the curve."""
    return np.linspace(data.low, data.high, 401)


def finished(lr: float, seed: int, best: float, losses: list[float], model: Any, data: Any) -> Run:
    """A fit, held against the curve without noise."""
    x = grid(data)
    with torch.inference_mode():
        model.eval()
        inputs = torch.from_numpy(x).float().unsqueeze(1)
        curve = model(inputs.to(model.device)).squeeze(1).cpu().double().numpy()
    rmse = float(np.sqrt(np.mean((curve - data.function(x)) ** 2)))
    return Run(lr, seed, best, losses, curve, rmse)


def mean_std(runs: Sequence[Run], what: str) -> tuple[float, float]:
    """Mean and standard deviation over the seeds."""
    values = [getattr(run, what) for run in runs]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def log(runs: Sequence[Run], kind: str, folder: Path, name: str) -> None:
    """Logs the mean losses of an optimizer as a run."""
    logger = tracking.make_logger(
        kind,
        folder / name,
        run_name=name,
        group=folder.name,
        job_type="optimizer",
        config={"optimizer": name, "lr": runs[0].lr, "seeds": [run.seed for run in runs]},
    )
    if logger is None:
        return
    for epoch, values in enumerate(zip(*(run.losses for run in runs), strict=True)):
        logger.log_metrics({"val/loss": float(np.mean(values)), "epoch": epoch}, step=epoch)
    logger.log_metrics({"rmse": mean_std(runs, "rmse")[0]}, step=len(runs[0].losses))
    logger.save()
    tracking.finish_logger(logger)


def draw(found: Mapping[str, Sequence[Run]]) -> Figure:
    """The loss curves of each family, and below them what every optimizer has fitted."""
    families = {
        title: [name for name in names if name in found] for title, names in FAMILIES.items()
    }
    families = {title: names for title, names in families.items() if names}
    figure = new_figure(10, 3 + 1.55 * len(families))
    halves: Any = figure.subfigures(2, 1, height_ratios=[2.9, 1.55 * len(families)])
    upper, lower = halves
    panels = upper.subplots(1, len(families), sharey=True, squeeze=False)[0]
    fits = lower.subplots(len(families), 5, sharex=True, sharey=True, squeeze=False)
    data = CurveDataModule()
    x = grid(data)
    for panel, row, (title, names) in zip(panels, fits, families.items(), strict=True):
        panel.axhline(NOISE**2, color=plots.GREY, linestyle=":", linewidth=1.2)
        for name, colour in zip(names, COLOURS, strict=False):
            losses = np.array([run.losses for run in found[name]])
            epochs = np.arange(1, losses.shape[1] + 1)
            panel.plot(epochs, losses.mean(0), color=colour, linewidth=1.6, label=name)
            panel.fill_between(
                epochs, losses.min(0), losses.max(0), color=colour, alpha=0.15, linewidth=0
            )
        panel.set_yscale("log")
        style_axis(panel, "epoch", "validation loss" if panel is panels[0] else "")
        panel.set_title(title, fontsize=11)
        panel.legend(frameon=False, fontsize=9.5)
        for axis in row[len(names) :]:
            axis.set_visible(False)
        for axis, name, colour in zip(row, names, COLOURS, strict=False):
            axis.plot(x, data.function(x), color="#c8c8c8", linewidth=2.4)
            for run in found[name]:
                axis.plot(x, run.curve, color=colour, linewidth=1)
            style_axis(axis, "", "")
            axis.set_ylim(-1.15, 1.25)
            axis.set_title(f"{name}, lr {found[name][0].lr:g}", color=colour, fontsize=10.5)
    lower.supxlabel("x: the curve (grey), and the fits of all seeds", fontsize=10.5)
    across = panels[0].get_yaxis_transform()
    panels[0].text(0.5, NOISE**2 * 0.97, "noise", transform=across, va="top", fontsize=9.5)
    return figure


if __name__ == "__main__":
    run_recipe(main)
