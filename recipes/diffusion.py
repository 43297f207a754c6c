"""One fit of a diffusion model on handwritten digits, with several samplers.

Result: 1.95 bits per dimension given the class on 359 test digits (variational bound, seed 0, one
run); uniform pixels 4.09, class histograms 2.22. It was measured by recipes/generative.py, which
trains the same model on all 1,437 other digits for the same 300 epochs, in 92 s of CPU time with
the bound. Dropout was chosen on validation digits.

Shares of 1,500 samples that are judged as asked for, and scores on real test digits of a classifier
trained on samples alone (on real digits: 98.3 %):

    DDIM, 20 steps          99.5 %  98.1 %
    DDPM, 200 steps         99.1 %  97.5 %

Samples by DDIM are 1.01 times as far from their nearest training digit as unseen digits are.
Precision 0.93, recall 0.79; by DDPM both are 0.86 (between real digits 0.91). This recipe
keeps the epoch with the least validation loss, and trains on nine tenths of the other digits: 2.01
bits; by DDIM 98.4 % and 97.2 %, precision 0.87, recall 0.78; with guidance 2 100 % and 97.2 %,
precision 0.89, recall 0.64: more typical, less diverse. One thread of a busy machine with two CPU
cores (torch 2.14, lightning 2.6.6).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import seed_everything

from dlblocks import plots
from dlblocks.cli import RecipeArguments, run_recipe
from dlblocks.data import DigitsDataModule
from dlblocks.models import Diffusion
from dlblocks.runs import fit_and_judge, is_rank_zero

STRIP = [1, 2, 3, 5, 10, 20]  # steps of the samplers that are drawn


def main(
    args: RecipeArguments,
    width: int = 256,
    depth: int = 4,
    dropout: float = 0.4,
    timesteps: int = 200,
    num_samples: int = 1500,
    guidance: float = 2.0,
    max_epochs: int = 300,
    lr: float = 0.002,
) -> None:
    """One fit of a diffusion model on handwritten digits, with several samplers.

    Args:
        args: Those of all recipes.
        width: Hidden units of the net.
        depth: Residual blocks of the net.
        dropout: Share of hidden units that are zeroed in training.
        timesteps: Steps of the noise.
        num_samples: Samples of each sampler that are judged.
        guidance: Weight of the classes in the last row of the table.
        max_epochs: Epochs.
        lr: Peak of the one-cycle learning rate.
    """
    seed_everything(args.seed, workers=True, verbose=False)
    seeds = {"split_seed": args.seed, "shuffle_seed": args.seed}
    data = DigitsDataModule(batch_size=256, val_fraction=0.1, **seeds)
    model = Diffusion(
        [1, 8, 8],
        levels=17,
        num_classes=10,
        width=width,
        depth=depth,
        dropout=dropout,
        timesteps=timesteps,
        optimizer="adamw",
        lr=lr,
        weight_decay=0.01,
        lr_schedule="one_cycle",
    )
    few = min(20, timesteps)
    samplers: dict[str, dict[str, Any]] = {
        f"DDIM, {few} steps": {"steps": few},
        f"DDPM, {timesteps} steps": {"method": "ddpm"},
        f"DDIM, guidance {guidance:g}": {"steps": few, "guidance": guidance},
    }
    fit_and_judge(
        model,
        data,
        samplers=samplers,
        num_samples=num_samples,
        trainer=args.trainer,
        logger=args.logger,
        run_dir=args.run_dir,
    )
    if is_rank_zero():
        steps = [count for count in STRIP if count <= timesteps]
        rows = torch.cat([model.sample(10, range(10), steps=count) for count in steps])
        said = np.array([f"{count} steps" for count in steps for _ in range(10)])
        plots.save(plots.batch(rows, said), args.run_dir / "figures" / "steps.png")


if __name__ == "__main__":
    run_recipe(main)
