r"""
Recurrent nets
==============

Do the gates of LSTM and GRU help to read a digit row by row?

A recurrent net reads one row after another and keeps a state. That of a vanilla RNN is new at each
step. A GRU has gates, numbers *z* and *r* between 0 and 1, that say how much of the old state
stays:

.. math:: \text{RNN:} \quad h_t = \tanh(W x_t + U h_{t-1} + b)

.. math:: \text{GRU:} \quad h_t = z_t \odot h_{t-1} + (1 - z_t) \odot
   \tanh(W x_t + b + r_t \odot (U h_{t-1} + c))

An LSTM keeps a second state, with gates for what is forgotten, added and shown. Here each of the
1,797 digits of 8×8 pixels is a sequence of eight rows, which two layers read from above and from
below. All nets get the same three folds and small random shifts, rotations and scales; the vanilla
RNN has a fifth of the learning rate.

Result: accuracy over three folds 0.9855 ± 0.0059 of the GRU, 0.9699 ± 0.0044 of the LSTM and 0.9304
± 0.0114 of the vanilla RNN. The nearest neighbour has 0.9866 ± 0.0044 and logistic regression
0.9633 ± 0.0073.

Papers: Elman, *Finding structure in time*, 1990; Hochreiter and Schmidhuber, *Long short-term
memory*, 1997; Cho et al., *Learning phrase representations using RNN encoder-decoder*, 2014.
"""

# %%
# Settings and data
# -----------------

from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from dlblocks import plots
from dlblocks.callbacks import Augment
from dlblocks.cli import recipe_arguments
from dlblocks.crossval import cross_validate
from dlblocks.data import DigitsDataModule
from dlblocks.models import RNNClassifier
from dlblocks.runs import is_rank_zero, mean_std, table, write_results

args = recipe_arguments(
    __doc__,
    kinds=["lstm", "gru", "rnn"],
    num_folds=3,
    hidden=64,
    lr=0.005,
    max_epochs=20,
)
num_folds = 2 if args.trainer["fast_dev_run"] else args.num_folds
data = DigitsDataModule(test_fraction=0.0, split_seed=args.seed, shuffle_seed=args.seed)

# %%
# Models and fits
# ---------------
# The vanilla RNN gets a lower rate.

scores = {}
for kind in args.kinds:
    result = cross_validate(
        lambda kind=kind: RNNClassifier(
            in_features=8,
            num_classes=10,
            kind=kind,
            hidden=args.hidden,
            layers=2,
            bidirectional=True,
            dropout=0.3,
            optimizer="adamw",
            lr=args.lr / 5 if kind == "rnn" else args.lr,
            weight_decay=0.02,
            lr_schedule="one_cycle",
        ),
        data,
        num_folds=num_folds,
        make_callbacks=lambda: [
            Augment(translation=0.1, rotation=10.0, scale=(0.9, 1.1), seed=args.seed)
        ],
        trainer=args.trainer,
        select="last",
        logger=args.logger,
        run_dir=args.run_dir / kind,
        seed=args.seed,
        figures=False,
    )
    scores[kind] = result.values("val/accuracy")

# %%
# Result
# ------
# The baselines get the 64 pixels of the same folds.

others = {
    "logistic regression": LogisticRegression(max_iter=5000),
    "1-nearest neighbour": KNeighborsClassifier(1),
}
for name, machine in others.items():
    scores[name] = []
    for fold in range(num_folds):
        parts = data.for_fold(fold, num_folds)
        (images, labels, _), (val_images, val_labels, _) = map(parts.arrays, ("train", "val"))
        machine.fit(images.flatten(1), labels)
        scores[name].append(machine.score(val_images.flatten(1), val_labels))
means = {name: mean_std(values) for name, values in scores.items()}
if is_rank_zero():
    print(table([{"model": name, "accuracy": mean} for name, mean in means.items()]))
write_results(
    args.run_dir,
    {name: means[name] for name in args.kinds},
    baselines={name: means[name] for name in others},
    figures={"accuracy": plots.strip(scores, metric="accuracy")},
)

# %%
# .. recorded:: rnn
#    :figure: accuracy
#
# Each dot is a fold; a diamond is the mean. All folds of the vanilla RNN lie below those of the
# nets with gates. It also has fewer parameters and a lower rate, and 20 epochs are short.
#
# Exercises
# ---------
# 1. How many parameters have the three nets, and why are they in these proportions?
#
# .. dropdown:: Answer
#
#    LSTM 138,506, GRU 104,202, vanilla RNN 35,594. An LSTM has four pairs of matrices *W* and *U*
#    (three gates and the new state), a GRU three, a vanilla RNN one.
#
# 2. The package aeon has 640 utterances of Japanese vowels by nine speakers, 7 to 29 steps of 12
#    values, 270 of them for training. Read them into lists of arrays (T, 12) for `ArrayDataModule`.
#    Does an LSTM (one layer of 128, ``readout="mean"``, dropout 0.5) name the speaker better than
#    logistic regression on mean, standard deviation, first and last step?
#
# .. dropdown:: Answer
#
#    No. Over five seeds it has 0.9757 ± 0.0038, logistic regression 0.9838, and the nearest
#    neighbour 0.9649.
