"""A whole grid of learning rates in one fit.

A fit of a small net leaves a machine idle. Here one MLP with each of 17 learning rates, four to a
decade, and three seeds of each is trained at the same time, by `dlblocks.engine.StackedFit`: 51
fits of which each has its own weights, order of the data and optimizer, and goes its own way; one
that diverges stops and leaves the others alone. The rate of lowest validation loss is then fitted
once more by itself, which says how long that takes, and whether it is the same fit.

Result: of SGD with momentum, the rate 0.1 has the lowest validation loss, 0.163 ± 0.013 (mean ±
standard deviation over seeds 0 to 2), and 96.9 ± 0.7 % on the test set; a wide range below comes
near to it (0.19 to 0.20 from 0.003 to 0.06). At 0.3 the loss is 0.51, at 0.56 and above nets learn
nothing; a fit diverged at 1.8 and 5.6, all three at 10. 51 fits at once took 11 to 13 s, one of
them alone 1.0 to 1.3 s, which would be 4.5 to 5.2 times as long for all of them; the losses of that
fit, alone and among all, differ by less than 1e-6 (two runs, one thread of two CPU cores, torch
2.14, lightning 2.6.6).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import LambdaCallback
from tqdm import tqdm

from dlblocks import plots, tracking
from dlblocks._errors import check_range
from dlblocks._files import write_json, write_rows
from dlblocks._quiet import quiet
from dlblocks.cli import run_recipe
from dlblocks.data import DigitsDataModule
from dlblocks.engine import Member, StackedFit
from dlblocks.models import CNNClassifier, MLPClassifier
from dlblocks.plots._style import new_figure, style_axis
from dlblocks.runs.fit import fit
from dlblocks.runs.folder import check_new_run_dir, next_run_dir
from dlblocks.tasks import PredictionTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GUESSING = math.log(10)  # the loss of equal probabilities for ten digits


@dataclass
class Rate:
    """What the fits with one learning rate came to, one entry a seed.

    Attributes:
        lr: The learning rate.
        losses: Validation loss of every epoch, shape (S, epochs); NaN from where a fit has stopped.
        accuracies: Validation accuracy of every epoch, likewise.
        diverged: Whether each fit has: its loss was not finite, or is at the end above that of the
            net as it began.
    """

    lr: float
    losses: np.ndarray
    accuracies: np.ndarray
    diverged: np.ndarray

    @property
    def at_chance(self) -> np.ndarray:
        """Whether each fit has learned nothing: it ends with no less than the loss of guessing."""
        return ~self.diverged & (self.losses[:, -1] >= GUESSING)

    @property
    def best_epoch(self) -> np.ndarray:
        """The epoch of lowest validation loss of each fit, from 0."""
        return np.where(np.isfinite(self.losses), self.losses, np.inf).argmin(1)

    def best(self, curves: np.ndarray) -> np.ndarray:
        """The values of the best epoch; NaN for fits that diverged."""
        found = np.take_along_axis(curves, self.best_epoch[:, None], 1)[:, 0]
        return np.where(self.diverged, np.nan, found)

    def outcome(self) -> str:
        """What has gone wrong, with how many of the seeds."""
        wrong = {"diverged": self.diverged, "at chance": self.at_chance}
        said = [f"{which.sum()} {name}" for name, which in wrong.items() if which.any()]
        return ", ".join(said)


def main(
    net: Literal["mlp", "cnn"] = "mlp",
    optimizer: str = "momentum",
    min_lr: float = 1e-3,
    max_lr: float = 10.0,
    num_rates: int = 17,
    num_seeds: int = 3,
    max_epochs: int = 30,
    run_dir: str | None = None,
    logger: Literal["csv", "wandb", "tensorboard", "none"] = "csv",
    fast_dev_run: bool = False,
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str = "32-true",
    seed: int = 0,
) -> None:
    """A whole grid of learning rates in one fit.

    Args:
        net: Which net.
        optimizer: Name of the optimizer.
        min_lr: The lowest rate.
        max_lr: The highest rate.
        num_rates: Number of rates, equally far apart in their logarithm.
        num_seeds: Fits with each rate, with other weights and another order of the data.
        max_epochs: Epochs of every fit.
        run_dir: Where everything goes; by default runs/learning_rates, or runs/learning_rates-2
            and so on.
        logger: Where the means over the seeds are logged, one run a rate.
        fast_dev_run: One epoch of few batches, three rates and two seeds, to see that it runs.
        accelerator: What to train on, as for Lightning's Trainer.
        devices: One device fits all.
        precision: Numeric precision, as for Lightning's Trainer.
        seed: The first seed.
    """
    check_range("min_lr", min_lr, 0, low_open=True)
    check_range("max_lr", max_lr, min_lr, low_open=True)
    check_range("num_rates", num_rates, 2)
    check_range("num_seeds", num_seeds, 1)
    check_range("max_epochs", max_epochs, 1)
    trainer: dict[str, Any] = {
        "max_epochs": max_epochs,
        "accelerator": accelerator,
        "devices": 1 if devices == "auto" else devices,
        "precision": precision,
    }
    if fast_dev_run:
        num_rates, num_seeds = 3, 2
        trainer |= {"max_epochs": 1, "limit_train_batches": 2}
    folder = check_new_run_dir(run_dir or next_run_dir("runs/learning_rates"))
    rates = [float(f"{lr:.3g}") for lr in np.geomspace(min_lr, max_lr, num_rates)]
    seeds = range(seed, seed + num_seeds)

    def new_member(lr: float, s: int) -> Member:
        seed_everything(s, workers=True, verbose=False)
        model: MLPClassifier | CNNClassifier
        if net == "mlp":
            model = MLPClassifier(64, 10, hidden=[128, 128], optimizer=optimizer, lr=lr)
        else:
            model = CNNClassifier(1, 10, channels=[16, 32], optimizer=optimizer, lr=lr)
        data = DigitsDataModule(split_seed=seed, shuffle_seed=s)
        return Member(f"lr {lr:g}, seed {s}", model, data)

    epochs, started = trainer["max_epochs"], time.monotonic()
    members = [new_member(lr, s) for lr in rates for s in seeds]
    before = [untrained_loss(member) for member in members]
    with quiet():
        together = StackedFit(
            members,
            trainer=trainer,
            monitor="val/loss",
            mode="min",
            folder=folder,
            on_error="continue",
        )
        seldom = 0.1 if sys.stderr.isatty() else 10.0
        with tqdm(total=epochs, unit="epoch", dynamic_ncols=True, mininterval=seldom) as bar:
            together.show(LambdaCallback(on_train_epoch_end=lambda *_: bar.update()))
            together.fit()
    seconds = time.monotonic() - started
    found = [
        summed_up(lr, members[i : i + num_seeds], before[i : i + num_seeds], epochs)
        for lr, i in zip(rates, range(0, len(members), num_seeds), strict=True)
    ]
    print(table(found))
    usable = [rate for rate in found if not rate.diverged.any()]
    if not usable:
        raise SystemExit("error: with every rate a fit has diverged; choose a lower min_lr.")
    best = min(usable, key=lambda rate: rate.best(rate.losses).mean())
    at = rates.index(best.lr) * num_seeds
    tests = [accuracy(together.predict(m, "test")) for m in members[at : at + num_seeds]]
    print(
        f"\nThe rate of lowest validation loss is {best.lr:g}. Its accuracy on the test set, which "
        f"has chosen nothing: {mean_std(np.array(tests))}."
    )
    alone = new_member(best.lr, seed)
    with quiet():
        one = fit(
            alone.model,
            alone.datamodule,
            folder / "alone",
            callbacks=[],
            trainer={**trainer, "enable_model_summary": False},
            monitor="val/loss",
            mode="min",
            logger=None,
            bar=False,
        )
    apart = abs(one.metrics["val/loss"] - best.best(best.losses)[0])
    print(
        f"{len(members)} fits at once: {seconds:.1f} s. One of them alone: {one.seconds:.1f} s, "
        f"{one.seconds * len(members) / seconds:.1f} times as long for all of them one after "
        f"another. Its validation loss differs by {apart:.1g} from that of the same fit among all."
    )
    for rate in found:
        log(rate, logger, folder)
    names = ("lr", "seed", "best val/loss", "best val/accuracy", "diverged", "at chance")
    rows = [
        dict(zip(names, (rate.lr, s, *values), strict=True))
        for rate in found
        for s, *values in zip(
            seeds,
            rate.best(rate.losses),
            rate.best(rate.accuracies),
            rate.diverged,
            rate.at_chance,
            strict=True,
        )
    ]
    write_rows(folder / "fits.csv", rows)
    figure = draw(found, best)
    for ending in ("png", "pdf"):
        plots.save(figure, folder / "figures" / f"learning_rates.{ending}")
    write_json(
        folder / "summary.json",
        {
            "metrics": {
                f"{rate.lr:g}": {
                    "mean": float(np.mean(rate.best(rate.losses))),
                    "val/loss": rate.best(rate.losses).tolist(),
                    "val/accuracy": rate.best(rate.accuracies).tolist(),
                    "diverged": rate.diverged.tolist(),
                    "at_chance": rate.at_chance.tolist(),
                }
                for rate in found
            },
            "best": {"lr": best.lr, "test/accuracy": tests},
            "seconds": {"all": seconds, "one": one.seconds, "fits": len(members)},
            "alone": {"val/loss": one.metrics["val/loss"]},
            "config": {
                "net": net,
                "optimizer": optimizer,
                "seeds": list(seeds),
                "trainer": trainer,
            },
            "versions": tracking.versions(),
        },
    )
    print(f"Everything is in {folder}: summary.json, fits.csv, <rate>/, figures/.")


@torch.inference_mode()
def untrained_loss(member: Member) -> float:
    """Validation loss of a member as it begins."""
    data, model = member.datamodule, member.model
    data.setup("fit")
    inputs, targets, _ = data.arrays("val")
    loss = model.eval().loss(model(data.transform(inputs)), targets)
    model.train()
    return float(loss)


def summed_up(lr: float, members: Sequence[Member], before: Sequence[float], epochs: int) -> Rate:
    """The fits with one rate, from the histories of their members."""
    curves = {name: np.full((len(members), epochs), np.nan) for name in ("loss", "accuracy")}
    for name, values in curves.items():
        for row, member in zip(values, members, strict=True):
            known = [logged[f"val/{name}"] for logged in member.history.rows]
            row[: len(known)] = known
    last = curves["loss"][:, -1]
    diverged = ~(last <= np.array(before))  # NaN, too
    return Rate(lr, curves["loss"], curves["accuracy"], diverged)


def accuracy(predicted: PredictionTable) -> float:
    """The share of samples whose likeliest class is the target."""
    return float((predicted.prediction.argmax(1) == predicted.target).mean())


def mean_std(values: np.ndarray, digits: int = 4) -> str:
    """Mean ± standard deviation, which one value does not have."""
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def table(found: Sequence[Rate]) -> str:
    """One line a rate: loss and accuracy of the best epochs of the seeds that did not diverge."""
    head = f"{'lr':>8}   {'best val/loss':<18}{'its val/accuracy':<18}{'failed':<22}"
    lines = [head, "─" * len(head)]
    for rate in found:
        kept = ~rate.diverged
        values = [rate.best(curves)[kept] for curves in (rate.losses, rate.accuracies)]
        loss, right = (mean_std(v) if len(v) else "–" for v in values)
        lines.append(f"{rate.lr:>8g}   {loss:<18}{right:<18}{rate.outcome()}".rstrip())
    lines.append(
        "mean ± standard deviation over seeds; at chance: ends with no less than the loss of "
        f"guessing, {GUESSING:.3f}"
    )
    return "\n".join(lines)


def log(rate: Rate, kind: str, folder: Path) -> None:
    """Logs the means over the seeds of one rate, as one run."""
    name = f"lr-{rate.lr:g}"
    logger = tracking.make_logger(
        kind,
        folder / name,
        run_name=name,
        group=folder.name,
        job_type="rate",
        config={"lr": rate.lr, "seeds": len(rate.losses)},
    )
    if logger is None:
        return
    try:
        curves = zip(rate.losses.T, rate.accuracies.T, strict=True)
        for epoch, (losses, accuracies) in enumerate(curves):
            if not np.isfinite(losses).all():
                break  # a seed has stopped: a mean of the others would be of other fits
            row = {"val/loss": losses.mean(), "val/accuracy": accuracies.mean(), "epoch": epoch}
            logger.log_metrics({key: float(value) for key, value in row.items()}, step=epoch)
        logger.save()
    finally:
        tracking.finish_logger(logger)


def draw(found: Sequence[Rate], best: Rate) -> Figure:
    """Loss over the epochs for each rate; and what the fits come to, over the rate."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = new_figure(10, 5)
    grid = figure.add_gridspec(2, 2, width_ratios=[1.2, 1])
    left = figure.add_subplot(grid[:, 0])
    upper = figure.add_subplot(grid[0, 1])
    lower = figure.add_subplot(grid[1, 1], sharex=upper)
    rates = np.array([rate.lr for rate in found])
    colours, norm = colormaps["viridis"], LogNorm(rates[0], rates[-1])
    lowest = min(float(np.nanmin(rate.losses, initial=GUESSING)) for rate in found)
    top = 1.5 * GUESSING
    epochs = np.arange(1, found[0].losses.shape[1] + 1)
    for rate in found:
        colour = colours(norm(rate.lr))
        kept = rate.losses[~rate.diverged]
        if len(kept):
            left.plot(epochs, kept.mean(0), color=colour, linewidth=1.5)
        for losses in rate.losses[rate.diverged]:
            end = int(np.isfinite(losses).sum())
            at = min(float(losses[end - 1]), top) if end else top
            left.plot(max(end, 1), at, "x", color=colour, markersize=8, mew=2, clip_on=False)
    left.plot(
        epochs, best.losses.mean(0), color=plots.RED, linewidth=2.6, label=f"best: {best.lr:g}"
    )
    left.plot([], [], "x", color="#333333", markersize=8, mew=2, label="end of a diverged fit")
    left.axhline(GUESSING, color=plots.GREY, linestyle=":", linewidth=1.4, label="guessing")
    left.set_yscale("log")
    left.set_ylim(0.9 * lowest, top)
    style_axis(left, "epoch", "validation loss, mean over seeds")
    left.legend(fontsize=9.5, loc="upper right", bbox_to_anchor=(1, 0.8), edgecolor="none")
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=left, location="top", aspect=40)
    bar.set_label("learning rate")
    failed = np.array([rate.diverged for rate in found])
    for axis, name in ((upper, "losses"), (lower, "accuracies")):
        curves = [getattr(rate, name) for rate in found]
        ends = np.where(failed, np.nan, [c[:, -1] for c in curves])
        chosen = np.array([rate.best(c) for rate, c in zip(found, curves, strict=True)])
        band(axis, rates, ends, plots.GREY, "--", "last epoch")
        band(axis, rates, chosen, plots.BLUE, "o-", "best epoch")
        axis.axvline(best.lr, color=plots.RED, linewidth=1.2)
        across = axis.get_xaxis_transform()
        for pick, weight in ((np.any, 1.2), (np.all, 3.0)):
            marked = rates[pick(failed, axis=1)]
            axis.plot(
                marked,
                np.ones(len(marked)),
                "x",
                color="#333333",
                markersize=8,
                mew=weight,
                transform=across,
                clip_on=False,
            )
        axis.set_xscale("log")
    upper.axhline(GUESSING, color=plots.GREY, linestyle=":", linewidth=1.4)
    upper.set_yscale("log")
    upper.tick_params(labelbottom=False)
    style_axis(upper, "", "validation loss")
    style_axis(lower, "learning rate", "validation accuracy")
    lower.set_ylim(0, 1.04)
    lower.plot(
        [], [], "x", color="#333333", markersize=8, mew=2, label="diverged (bold: all seeds)"
    )
    lower.legend(frameon=False, fontsize=9.5, loc="lower left")
    for axis in (left, upper):
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    return figure


def band(
    axis: Axes, rates: np.ndarray, values: np.ndarray, colour: str, style: str, label: str
) -> None:
    """Mean over the seeds (second axis of `values`), and the range from least to largest."""
    known = np.isfinite(values).any(1)
    values = values[known]
    low, high = np.nanmin(values, 1), np.nanmax(values, 1)
    axis.fill_between(rates[known], low, high, color=colour, alpha=0.2, linewidth=0)
    axis.plot(rates[known], np.nanmean(values, 1), style, color=colour, markersize=4, label=label)


if __name__ == "__main__":
    run_recipe(main)
