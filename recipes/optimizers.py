r"""
Gradient descent
================

Which variant of gradient descent fits a noisy curve best, each at its best learning rate?

Every step goes against the gradient g of a batch's loss. Momentum sums gradients up; Adagrad,
RMSprop and Adam also divide each coordinate by the size of its past gradients; Lion takes the sign
alone. Adam's step is

.. math:: m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
   v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
   \theta \leftarrow \theta - \eta \, \hat{m} / (\sqrt{\hat{v}} + \epsilon)

10,000 points of y = exp(-x²) · cos(10x) have noise of 0.1. 6,400 of them train an MLP with two
hidden layers of 64 tanh units, for 40 epochs of 100 batches. Of three learning rates, the one with
the lowest validation loss, averaged over three seeds, counts.

Result: the relatives of Adam are nearest to the curve, and descent without momentum is last. RMSE
from the curve without noise, mean ± standard deviation over three seeds: nadam 0.034 ± 0.001, lion
0.034 ± 0.003, adam 0.044 ± 0.004, rmsprop 0.059 ± 0.008, adagrad 0.063 ± 0.007, momentum
0.075 ± 0.004, nesterov 0.088 ± 0.011, sgd 0.227 ± 0.014. A constant 0 has 0.396. Nadam,
lion and adam were best at the highest of their rates, so that they might still gain.

Papers: Robbins and Monro 1951; Polyak 1964 (momentum); Nesterov 1983; Duchi et al. 2011 (Adagrad);
Tieleman and Hinton 2012 (RMSprop); Kingma and Ba 2015 (Adam); Dozat 2016 (NAdam); Chen et al. 2023
(Lion).
"""

# %%
# Settings
# --------
# Three rates for each optimizer.

import math
from functools import partial

import numpy as np
import torch

from dlblocks import plots
from dlblocks.cli import recipe_arguments
from dlblocks.data import CurveDataModule
from dlblocks.engine import fit_variants
from dlblocks.models import MLPRegressor
from dlblocks.runs import check_new_run_dir, mean_std, table, write_results

RATES = {
    "sgd": [0.01, 0.03, 0.06],
    "momentum": [0.01, 0.03, 0.06],
    "nesterov": [0.01, 0.02, 0.03],
    "adagrad": [0.03, 0.1, 0.3],
    "rmsprop": [0.001, 0.003, 0.01],
    "adam": [0.001, 0.003, 0.01],
    "nadam": [0.0006, 0.002, 0.006],
    "lion": [0.0001, 0.0003, 0.001],
}
args = recipe_arguments(
    __doc__, optimizers=RATES, num_seeds=3, num_samples=10_000, max_epochs=40, noise=0.1
)
args.num_seeds = 1 if args.fast_dev_run else args.num_seeds
check_new_run_dir(args.run_dir)

# %%
# Fits
# ----
# Each seed has its own weights and order of the data, and all have the same points. The nine fits
# of an optimizer are trained as one, and each keeps the weights of its best epoch.


def new_fit(optimizer, lr, seed):
    net = {"hidden": [64, 64], "activation": "tanh"}
    samples = {"num_samples": args.num_samples, "noise": args.noise}
    data = CurveDataModule(**samples, batch_size=64, shuffle_seed=seed)
    return MLPRegressor(1, **net, optimizer=optimizer, lr=lr), data


found = {}
for name in args.optimizers:
    found[name] = fit_variants(
        {f"{name} {lr:g}": partial(new_fit, name, lr) for lr in RATES[name]},
        range(args.seed, args.seed + args.num_seeds),
        args.run_dir,
        trainer=args.trainer,
        logger=args.logger,
    )

# %%
# The best rate of each
# ---------------------
# Its fits are measured by their distance from the curve without noise.

x = np.linspace(-2, 2, 401)
inputs = torch.from_numpy(x).float().unsqueeze(1)
best, rows = {}, []
for name, variants in found.items():
    for variant, members in variants.items():
        for member in members:
            with torch.inference_mode():
                y = member.model.cpu().eval()(inputs).squeeze(1).double().numpy()
            row = {"optimizer": name, "lr": variant.split()[1], "seed": member.seed}
            # A fit that diverged has an error.
            row["val/loss"] = math.inf if member.error else member.best.value
            row["rmse"] = np.sqrt(np.mean((y - CurveDataModule.function(x)) ** 2))
            rows.append(row)
    mine = [row for row in rows if row["optimizer"] == name]
    rates = sorted({row["lr"] for row in mine})
    losses = {lr: [row["val/loss"] for row in mine if row["lr"] == lr] for lr in rates}
    lr = min(losses, key=lambda lr: np.mean(losses[lr]))
    errors = [row["rmse"] for row in mine if row["lr"] == lr]
    best[name] = {"lr": lr, "val/loss": mean_std(losses[lr]), "errors": errors}
best = dict(sorted(best.items(), key=lambda item: np.mean(item[1]["errors"])))
metrics = {
    name: {**mean_std(one["errors"]), "lr": one["lr"], "val/loss": one["val/loss"]}
    for name, one in best.items()
}
print(table([
    {"optimizer": name, "lr": m["lr"], "val/loss": m["val/loss"]}
    | {"RMSE from the curve": m}
    for name, m in metrics.items()
]))  # fmt: skip

# %%
# Results
# -------

curves = {
    name: [member.curve("val/loss") for member in found[name][f"{name} {one['lr']}"]]
    for name, one in best.items()
}
dots = {name: one["errors"] for name, one in best.items()}
figures = {
    "curves": plots.lines(curves, ylabel="validation loss", log="y"),
    "rmse": plots.strip(dots, metric="RMSE from the curve", dots="seeds"),
}
write_results(args.run_dir, metrics, rows=rows, figures=figures)

# %%
# .. recorded:: optimizers
#    :figure: curves
#
# The bands reach from the lowest to the highest seed. A validation loss of 0.01 is the variance of
# the noise, which nothing can learn.
#
# Exercises
# ---------
# 1. Give Adam a quarter of the epochs. Is it still ahead of plain descent after 40?
#
# .. dropdown:: Answer
#
#    ``--optimizers "[sgd, adam]" --max_epochs 10`` gives 0.084 ± 0.011 for Adam, and plain descent
#    has 0.227 after 40 epochs. After 10 it has 0.339, nearly that of a constant.
#
# 2. Whose best rate is at an end of its list? What does that say about the comparison?
#
# .. dropdown:: Answer
#
#    Those of nadam (0.006), lion (0.001) and adam (0.01), all at the upper end. A longer list could
#    only improve them, so they stay ahead of the others. Their order among themselves is open.
#
# 3. Why is the validation loss no good measure of the distance from the curve?
#
# .. dropdown:: Answer
#
#    It is the mean squared distance plus the variance of the noise, 0.01, give or take what 1,600
#    samples allow. For nadam 0.0336² = 0.0011, which is a tenth of its loss of 0.0112: most of the
#    number that chooses the rate is noise.
