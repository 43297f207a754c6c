"""Draw the figures of the guide that no run draws: `python docs/figures.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Patch

from dlblocks.callbacks import Augment
from dlblocks.data import DigitsDataModule
from dlblocks.optim import make_schedule
from dlblocks.plots import BLUE, GREY, ORANGE

FOLDER = Path(__file__).parent / "figures"
SCHEDULES = {
    "constant": {},
    "step": {"step_size": 10, "gamma": 0.3},
    "multi_step": {"milestones": [20, 30]},
    "exponential": {},
    "cosine": {},
    "cosine_restarts": {"period": 13},
    "one_cycle": {},
    "polynomial": {"power": 2},
}


def folds() -> plt.Figure:
    """Draw what scores, selects and trains in each of five folds."""
    figure, axes = plt.subplots(figsize=(7.2, 2.7), layout="constrained")
    axes.set(xlim=(-0.7, 6.5), ylim=(-0.5, 4.5))
    for fold in range(5):
        y = 4 - fold
        axes.barh(y, 5, color=BLUE, height=0.72)
        axes.barh(y, 1, left=fold, color=ORANGE, height=0.72)
        start = fold - 0.6 if fold else 1.0
        axes.barh(y, 0.6, left=start, color=GREY, height=0.72)
        axes.text(-0.1, y, f"fold {fold}", ha="right", va="center")
    axes.barh(2, 1.1, left=5.25, color="white", edgecolor=GREY, height=4.72, hatch="//")
    axes.text(5.8, 2, "test set\nlast, once", ha="center", va="center", backgroundcolor="white")
    axes.set_axis_off()
    meanings = {"trains": BLUE, "selects the epoch": GREY, "scores, once": ORANGE}
    handles = [Patch(color=color, label=label) for label, color in meanings.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def schedules() -> plt.Figure:
    """Draw the learning rate of each schedule over 40 epochs of 25 steps."""
    figure, all_axes = plt.subplots(2, 4, figsize=(8, 3.4), sharex=True, sharey=True)
    for axes, (name, args) in zip(all_axes.flat, SCHEDULES.items(), strict=True):
        for warmup in (0, 100) if name != "one_cycle" else (0,):
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
            found = make_schedule(
                name,
                optimizer,
                total_steps=1000,
                steps_per_epoch=25,
                warmup_steps=warmup,
                args=args,
            )
            rates = []
            for _ in range(1000):
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                for one in found:
                    one["scheduler"].step()
            color, style = (BLUE, "-") if not warmup else (ORANGE, "--")
            axes.plot([i / 25 for i in range(1000)], rates, style, color=color)
        axes.set_title(name, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("learning rate (dashed: with warm-up)", fontsize=10)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    folds().savefig(FOLDER / "folds.png", dpi=110)
    schedules().savefig(FOLDER / "schedules.png", dpi=110)
    batch = DigitsDataModule().show_batch([Augment(rotation=15, noise=0.05)])
    batch.savefig(FOLDER / "batch.png", dpi=80)
