r"""
Batch size and sharpness
========================

Do large batches generalize less well, and are their solutions sharper?

The sharpness of weights w is how much the loss can rise in a small box around them:

.. math:: \phi(w) = 100 \cdot \frac{\max_{|z_i| \le \epsilon (|w_i| + 1)} L(w + z) - L(w)}{1 + L(w)}

An MLP, 64 → 128 → 128 → 10, learns 1,024 digits by gradient descent with momentum, in batches of 16
and of 128. The large batch is trained over as many epochs, which are an eighth of the steps, and
over as many steps. As remedies it has eight times the learning rate, at once or after a warm-up of
five epochs. A seed has its own weights, split and order, the same in all settings. The last weights
are measured. A test set has 645 digits, one of which is 0.16 %.

Result: over equal epochs the large batch is half a point worse, -0.57 ± 0.43 % (mean and standard
deviation of the differences over ten seeds), and its solutions are 17 times as sharp. After equal
steps -0.14 ± 0.27 is left. The splits share digits, so that ten of them do not show a difference in
accuracy (exercise 1); in sharpness it is plain. With the scaled rate and warm-up,
in an eighth of the steps, it is as good as the small batch's 97.88 ± 0.47 %.

Papers: Keskar et al., *On large-batch training for deep learning*, 2017; Goyal et al., *Accurate,
large minibatch SGD*, 2017; Dinh et al., *Sharp minima can generalize for deep nets*, 2017.
"""

# %%
# Settings
# --------

import math
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from dlblocks import plots
from dlblocks.callbacks import sharpness
from dlblocks.cli import recipe_arguments
from dlblocks.data import DigitsDataModule
from dlblocks.engine import fit_variants
from dlblocks.models import MLPClassifier
from dlblocks.runs import check_new_run_dir, mean_std, table, write_results

args = recipe_arguments(
    __doc__,
    small=16,
    large=128,
    lr=0.02,
    warmup_epochs=5,
    epsilon=1e-3,
    samples=1024,
    num_seeds=10,
    max_epochs=60,
)
if args.fast_dev_run:
    args.num_seeds, args.warmup_epochs = 1, 0
check_new_run_dir(args.run_dir)
many, few = (math.ceil(args.samples / size) for size in (args.small, args.large))
longer = round(args.max_epochs * many / few)
scaled, warmup = args.lr * args.large / args.small, args.warmup_epochs * few
small = {"batch_size": args.small, "lr": args.lr, "epochs": args.max_epochs}
large = {**small, "batch_size": args.large}
settings = {
    "small": small,
    "large": large,
    "large, equal steps": {**large, "epochs": longer},
    "large, scaled rate": {**large, "lr": scaled},
    "large, scaled + warm-up": {**large, "lr": scaled, "warmup_steps": warmup},
}

# %%
# Fits
# ----
# The seeds of a setting are trained as one. Only the last epoch is validated, so that its weights
# are kept. 128 digits are for validation, and those that are left are the test set.

DIGITS, VALIDATION = 1797, 128
development = args.samples + VALIDATION


def new_fit(seed, batch_size, lr, epochs, warmup_steps=0):
    rate = {"lr": lr, "warmup_steps": warmup_steps}
    model = MLPClassifier(64, 10, hidden=[128, 128], optimizer="momentum", **rate)
    data = DigitsDataModule(
        batch_size=batch_size,
        test_fraction=(DIGITS - development) / DIGITS,
        val_fraction=VALIDATION / development,
        split_seed=seed,
        shuffle_seed=seed,
    )
    return model, data


members = []
for name, setting in settings.items():
    count = setting["epochs"]
    found = fit_variants(
        {name: partial(new_fit, **setting)},
        range(args.seed, args.seed + args.num_seeds),
        args.run_dir,
        trainer={**args.trainer, "max_epochs": count, "check_val_every_n_epoch": count},
        logger=args.logger,
    )
    members += [(name, member) for member in found[name]]

# %%
# Losses, accuracies and sharpness
# --------------------------------
# In float64, because the differences of losses are small.

rows = []
for name, member in members:
    if member.error:
        raise member.error
    net, data = member.model.net.cpu().double().eval(), member.datamodule
    row = {"setting": name, "seed": member.seed, **settings[name], "steps": member.steps}
    for part in ("test", "val", "train"):
        raw, targets, _ = data.arrays(part)
        inputs = data.transform(raw).double()
        with torch.no_grad():
            logits = net(inputs)
        row[f"{part}/loss"] = float(F.cross_entropy(logits, targets))
        row[f"{part}/accuracy"] = float((logits.argmax(1) == targets).double().mean())
    loss = partial(lambda net, x, y: F.cross_entropy(net(x), y), net, inputs, targets)
    row["sharpness"] = sharpness(loss, list(net.parameters()), args.epsilon)
    rows.append(row)

# %%
# Results
# -------

values = {
    key: {name: np.array([r[key] for r in rows if r["setting"] == name]) for name in settings}
    for key in ("steps", "train/loss", "test/accuracy", "sharpness")
}
accuracies = values["test/accuracy"]
values["- small"] = {name: each - accuracies["small"] for name, each in accuracies.items()}
metrics = {
    name: {"mean": accuracies[name].mean()}
    | {key: mean_std(each[name]) for key, each in values.items()}
    for name in settings
}
print(table([
    {"": name, "steps": values["steps"][name][0], "train/loss": found["train/loss"]["mean"]}
    | {key: found[key] for key in ("test/accuracy", "- small", "sharpness")}
    for name, found in metrics.items()
]))  # fmt: skip
figures = {
    "test_accuracy": plots.strip(accuracies, metric="test accuracy", dots="seeds"),
    "sharpness": plots.strip(values["sharpness"], metric="sharpness", dots="seeds"),
}
write_results(args.run_dir, metrics, rows=rows, figures=figures, epsilon=args.epsilon)

# %%
# .. recorded:: batch_size
#    :figure: sharpness
#
# Sharpness does not rank the settings: with the scaled rate the solutions are seven times flatter
# than those of the small batch, and not better on the test set.
#
# Exercises
# ---------
# 1. Between which settings do ten seeds tell a difference in accuracy?
#
# .. dropdown:: Answer
#
#    Between none. Were the ten splits independent, t would be the mean difference over its
#    deviation / √10: -4.3 for equal epochs in the column "- small". But all splits draw from the
#    same 1,797 digits. With Nadeau and Bengio's variance, (1/10 + 645/1024) s², t is -1.6 (p =
#    0.15), -0.6 for equal steps, -0.9 for the scaled rate and 0 with warm-up: see
#    `dlblocks.crossval.statistics.corrected_t_test`.
#
# 2. Is the large batch sharper only because it is less trained? Look at the training loss.
#
# .. dropdown:: Answer
#
#    After as many epochs its loss is 0.0048, 18 times that of the small batch, and its sharpness 17
#    times. After as many steps the losses are close, 0.00035 and 0.00027, but the large batch is
#    still five times as sharp. So both count.
#
# 3. Does that sharpness cost accuracy?
#
# .. dropdown:: Answer
#
#    With equal steps it costs 0.14 ± 0.27 %, which is not beyond doubt, and with the scaled rate
#    the flattest solutions are the second worst. Dinh et al. show why: weights can be scaled
#    between layers so that the function stays the same, and its sharpness does not.
