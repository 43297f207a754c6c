"""One fit of a generative adversarial network on handwritten digits.

Result: (Wasserstein loss, seed 0, one run of 500 epochs, 1,500 samples, 359 test digits) a
classifier trained on samples alone scores 96.4 % on real test digits, one trained on real digits
98.3 %. 99.3 % of the samples are judged as asked for, and the share of each digit is within 3 % of
it. Samples are 1.03 times as far from their nearest training digit as unseen digits are. Precision
0.94, recall 0.72 (between real digits both have 0.91). Nearest neighbours tell samples from real
digits in 64 % of cases. The energy score of test digits is 0.144. 55 s of CPU time.

It was measured by recipes/generative.py, which trains the same model on all 1,437 other digits and
takes the last epoch. This recipe keeps the epoch with the best energy score of validation digits,
a tenth of the others: recall 0.59, and 95.0 % for the classifier. Two steps of the discriminator
and 300 epochs had a recall of 0.56, which was known when these settings were chosen. Earlier, the
non-saturating loss (--loss=non_saturating --discriminator_steps=1, with a cosine) had 0.19. One
thread of a busy machine with two CPU cores (torch 2.14, lightning 2.6.6).
"""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import seed_everything

from dlblocks.cli import RecipeArguments, run_recipe
from dlblocks.data import DigitsDataModule
from dlblocks.models import GAN
from dlblocks.runs import fit_and_judge


def main(
    args: RecipeArguments,
    loss: Literal["non_saturating", "wasserstein"] = "wasserstein",
    gradient_penalty: float | None = None,
    discriminator_steps: int = 3,
    latent_dim: int = 64,
    width: int = 256,
    depth: int = 2,
    num_samples: int = 1500,
    max_epochs: int = 500,
    lr: float = 0.001,
) -> None:
    """One fit of a generative adversarial network on handwritten digits.

    Args:
        args: Those of all recipes.
        loss: The losses of discriminator and generator.
        gradient_penalty: Weight of the penalty on the discriminator's gradient; None for 0.1
            (non_saturating) or 10 (wasserstein).
        discriminator_steps: Steps of the discriminator for each of the generator.
        latent_dim: Length of the noise.
        width: Hidden units of both nets.
        depth: Hidden layers of both nets.
        num_samples: Samples that are judged.
        max_epochs: Epochs.
        lr: Learning rate of both nets.
    """
    seed_everything(args.seed, workers=True, verbose=False)
    seeds = {"split_seed": args.seed, "shuffle_seed": args.seed}
    data = DigitsDataModule(batch_size=256, val_fraction=0.1, **seeds)
    model = GAN(
        [1, 8, 8],
        levels=17,
        num_classes=10,
        loss=loss,
        gradient_penalty=gradient_penalty,
        discriminator_steps=discriminator_steps,
        latent_dim=latent_dim,
        width=width,
        depth=depth,
        lr=lr,
    )
    fit_and_judge(
        model,
        data,
        num_samples=num_samples,
        trainer=args.trainer,
        logger=args.logger,
        run_dir=args.run_dir,
    )


if __name__ == "__main__":
    run_recipe(main)
