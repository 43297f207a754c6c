"""One fit of flow matching on handwritten digits, and the quality of its samples.

Result: 1.90 bits per dimension given the class on 359 test digits (seed 0, one run); uniform pixels
4.09, class histograms 2.22. It was measured by recipes/generative.py, which trains the same model
on all 1,437 other digits for the same 150 epochs, in 101 s of CPU time with the likelihood.

Settings were chosen on validation digits, a fifth of the others. There a net that gives logits of
levels had 1.93, and one that does without, after 300 epochs, 2.02.

Of 1,500 samples, 98.5 % are judged as asked for. A classifier trained on them alone scores 95.8 %
on real test digits, with 50 Euler steps 96.4 %, with five 95.5 %; one trained on real digits
98.3 %. Samples are 1.15 times as far from their nearest training digit as unseen digits are.
Precision 0.82, recall 0.84 (between real digits both have 0.91); nearest neighbours tell samples
from real digits in 59 % of cases. One thread of a busy machine with two CPU cores (torch 2.14,
lightning 2.6.6).
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import seed_everything

from dlblocks.cli import RecipeArguments, run_recipe
from dlblocks.data import DigitsDataModule
from dlblocks.models import FlowMatching
from dlblocks.runs import fit_and_judge


def main(
    args: RecipeArguments,
    width: int = 256,
    depth: int = 4,
    dropout: float = 0.3,
    noise_std: float = 0.3,
    num_samples: int = 1500,
    steps: int = 20,
    guidance: float = 1.0,
    max_epochs: int = 150,
    lr: float = 0.002,
) -> None:
    """One fit of flow matching on handwritten digits, and the quality of its samples.

    Args:
        args: Those of all recipes.
        width: Hidden units of the net.
        depth: Residual blocks of the net.
        dropout: Share of hidden units that are zeroed in training.
        noise_std: Standard deviation of the noise that makes levels continuous, in levels.
        num_samples: Samples that are judged.
        steps: Steps of the sampler.
        guidance: Weight of the classes; above 1 samples are more typical and less diverse.
        max_epochs: Epochs.
        lr: Peak of the one-cycle learning rate.
    """
    seed_everything(args.seed, workers=True, verbose=False)
    seeds = {"split_seed": args.seed, "shuffle_seed": args.seed}
    data = DigitsDataModule(batch_size=256, val_fraction=0.1, **seeds)
    small: dict[str, Any] = {"likelihood_steps": 1} if args.fast_dev_run else {}
    model = FlowMatching(
        [1, 8, 8],
        levels=17,
        num_classes=10,
        width=width,
        depth=depth,
        dropout=dropout,
        noise_std=3.0 if args.fast_dev_run else noise_std,  # as few steps need
        steps=1 if args.fast_dev_run else steps,
        optimizer="adamw",
        lr=lr,
        weight_decay=0.01,
        lr_schedule="one_cycle",
        **small,
    )
    samplers: dict[str, dict[str, Any]] = {
        f"{count} Euler steps": {"steps": count, "method": "euler"} for count in (5, 50)
    }
    samplers = {"samples": {"guidance": guidance}} | ({} if args.fast_dev_run else samplers)
    fit_and_judge(
        model,
        data,
        samplers=samplers,
        num_samples=num_samples,
        trainer=args.trainer,
        logger=args.logger,
        run_dir=args.run_dir,
    )


if __name__ == "__main__":
    run_recipe(main)
