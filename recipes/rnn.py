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
below. All nets get the same three folds, rate and small random shifts, rotations and scales.

Result: accuracy over three folds 0.9855 ± 0.0059 of the GRU, 0.9722 ± 0.0075 of the vanilla RNN and
0.9699 ± 0.0044 of the LSTM. The nearest neighbour has 0.9866 ± 0.0044 and logistic regression
0.9633 ± 0.0073.

Papers: Elman, *Finding structure in time*, 1990; Hochreiter and Schmidhuber, *Long short-term
memory*, 1997; Cho et al., *Learning phrase representations using RNN encoder-decoder*, 2014.
"""

# %%
# Settings and data
# -----------------

from functools import partial

from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from dlblocks import plots
from dlblocks.callbacks import Augment
from dlblocks.cli import recipe_arguments
from dlblocks.crossval import baseline_scores, cross_validate
from dlblocks.data import DigitsDataModule
from dlblocks.models import RNNClassifier
from dlblocks.runs import is_rank_zero, mean_std, table, write_results

args = recipe_arguments(
    __doc__, kinds=["lstm", "gru", "rnn"], num_folds=3, hidden=64, lr=0.005, max_epochs=20
)
data = DigitsDataModule(test_fraction=0.0, split_seed=args.seed, shuffle_seed=args.seed)

# %%
# Models and fits
# ---------------

scores = {}
for kind in args.kinds:
    result = cross_validate(
        partial(
            RNNClassifier,
            in_features=8,
            num_classes=10,
            kind=kind,
            hidden=args.hidden,
            layers=2,
            bidirectional=True,
            dropout=0.3,
            optimizer="adamw",
            lr=args.lr,
            weight_decay=0.02,
            lr_schedule="one_cycle",
        ),
        data,
        num_folds=args.num_folds,
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
# The baselines get the 64 pixels, and the same folds.

others = {
    "logistic regression": LogisticRegression(max_iter=5000),
    "1-nearest neighbour": KNeighborsClassifier(1),
}
for name, machine in others.items():
    scores[name] = baseline_scores(machine, data, args.num_folds)
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
# Each dot is a fold; a diamond is the mean. The GRU is ahead of the vanilla RNN, but the LSTM,
# which has more gates, is not. Eight rows are a short time to remember.
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
# 2. How much of the gradient comes back through time? Measure it for ``nn.RNN``, ``nn.LSTM`` and
#    ``nn.GRU`` as torch initialises them, with eight features and 64 hidden units. Then set the
#    bias of the LSTM's forget gate to 1, as Jozefowicz et al. (2015) advise.
#
#    .. code-block:: python
#
#       layer = torch.nn.LSTM(8, 64, batch_first=True)
#       inputs = torch.randn(32, 100, 8, requires_grad=True)
#       layer(inputs)[0][:, -1].sum().backward()
#       norms = inputs.grad.norm(dim=(0, 2))  # of each step
#       print(norms[[-8, -32]] / norms[-1])
#
# .. dropdown:: Answer
#
#    Seven steps back it is 0.024 of that of the last step for the vanilla RNN, 0.034 for the GRU
#    and 0.037 for the LSTM; 31 steps back 2e-7, 2e-6 and 1e-6. New gates are half open, so that
#    they forget as fast. With ``layer.bias_ih_l0.data[64:128] = 1`` the LSTM keeps 0.19 and 0.0018.
#    Gates do not keep gradients by themselves, but they can learn to.
#
# 3. How much of such a comparison is the learning rate? Give the vanilla RNN a fifth of it,
#    ``--kinds [rnn] --lr 0.001``, and then three times the epochs as well, ``--max_epochs 60``.
#
# .. dropdown:: Answer
#
#    Nearly all. With the lower rate it has 0.9304 ± 0.0114, the last of all, and after 60 epochs
#    0.9744 ± 0.0026. Before one net is called better than another, each needs a rate of its own.
