r"""
K-fold cross-validation
=======================

How well does a small CNN read handwritten digits, and how sure is that number?

The 1,797 digits of 8×8 pixels are split into K stratified folds. Each fold scores a new CNN that
trained on the others, so that every digit is predicted once, by a net that has not seen it:

.. math:: \bar{a} = \frac{1}{K} \sum_{k=1}^{K} a_k, \qquad
   \bar{a} \pm t_{K-1} \sqrt{\left(\frac{1}{K} + \frac{1}{K-1}\right) s^2}

The nets of two folds share most of their samples. That is why the interval has
:math:`1 / (K - 1)` besides the usual :math:`1 / K`. 15 % of the training samples decide when to
stop and which epoch is kept. The fold's own samples score that once.

Result: accuracy 0.9933 ± 0.0061 over five folds (95 % interval 0.9820 … 1), with two threads, which
round differently, 0.9928 ± 0.0037; an RBF SVM has 0.9883 ± 0.0050 on the same folds. Settings were
chosen by several tries on these folds, with other draws of the augmentation.

Papers: Stone, *Cross-validatory choice and assessment of statistical predictions*, 1974; Nadeau and
Bengio, *Inference for the generalization error*, 2003.
"""

# %%
# Settings and data
# -----------------

from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from sklearn.svm import SVC

from dlblocks.callbacks import Augment, CutMix, MixUp
from dlblocks.cli import recipe_arguments
from dlblocks.crossval import baseline_scores, cross_validate
from dlblocks.data import DigitsDataModule
from dlblocks.models import CNNClassifier
from dlblocks.runs import add_to_summary, is_rank_zero, mean_std

args = recipe_arguments(
    __doc__,
    num_folds=5,
    repeats=1,
    n_jobs=1,
    select=("inner", "last", "fold"),
    mix=("none", "mixup", "cutmix"),
    baseline=True,
    max_epochs=30,
    patience=12,
    lr=0.01,
)
data = DigitsDataModule(test_fraction=0.0, split_seed=args.seed, shuffle_seed=args.seed)

# %%
# Model and callbacks
# -------------------
# Both are made anew for each fold. The digits are moved, turned and scaled a little while the net
# trains, and a moving average of its weights is kept.


def make_model():
    return CNNClassifier(
        in_channels=1,
        num_classes=10,
        channels=[32, 64],
        convs_per_block=2,
        head="flatten",
        image_size=8,
        optimizer="adamw",
        lr=args.lr,
        weight_decay=0.02,
        lr_schedule="one_cycle",
    )


def make_callbacks():
    seed = args.seed
    callbacks = [Augment(translation=0.1, rotation=10.0, scale=(0.9, 1.1), seed=seed)]
    if args.mix == "mixup":
        callbacks.append(MixUp(alpha=0.2, seed=seed))
    if args.mix == "cutmix":
        callbacks.append(CutMix(alpha=1.0, p=0.5, seed=seed))
    callbacks.append(EMAWeightAveraging(decay=0.98))
    if args.select != "last":
        callbacks.append(EarlyStopping("val/loss", patience=args.patience))
    return callbacks


# %%
# Folds
# -----
# After a kill the same command resumes.

result = cross_validate(
    make_model,
    data,
    num_folds=args.num_folds,
    repeats=args.repeats,
    n_jobs=args.n_jobs,
    make_callbacks=make_callbacks,
    trainer=args.trainer,
    select=args.select,
    logger=args.logger,
    run_dir=args.run_dir,
    seed=args.seed,
)
if is_rank_zero():
    print(result.table())

# %%
# A baseline on the same folds
# ----------------------------
# A support vector machine with the settings that are usual for these digits.

beside = {}
if args.baseline and is_rank_zero():
    machine = SVC(C=10, gamma=0.001 * 16**2 / 255**2)
    scores = baseline_scores(machine, data, args.num_folds, repeats=args.repeats)
    svm = mean_std(scores)
    print(f"RBF SVM on the same folds: accuracy {svm['mean']:.4f} ± {svm['std']:.4f}")
    beside = {"SVM": {"val/accuracy": {**svm, "folds": scores.tolist()}}}
if is_rank_zero():
    add_to_summary(args.run_dir, baselines=beside)
    result.report()

# %%
# .. recorded:: kfold
#    :figure: hardest
#
# Above each digit is its class, and what the net of its fold answered. Some of them
# people would misread, too.
#
# Exercises
# ---------
# 1. Often the epoch is selected on the fold that scores it. What does that promise?
#
# .. dropdown:: Answer
#
#    ``--select fold`` gives 0.9978 ± 0.0036 with two threads, where the default has 0.9928. A part
#    of that is optimism, and a part comes from 18 % more samples to train on.
#
# 2. How wide is the interval if the folds are taken for independent?
#
# .. dropdown:: Answer
#
#    t₄ · s / √5 = 2.776 · 0.0061 / √5 = 0.0076. With 1/5 + 1/4 for 1/5 it is 0.0114, 1.5 times as
#    wide. The default prints the wider one.
#
# 3. All nets together have 12 errors in 1,797 digits. How wide is the interval of that share, and
#    why is the one above wider?
#
# .. dropdown:: Answer
#
#    Wilson's interval is 0.9884 … 0.9962. It is about these five nets and other digits. The
#    interval of the folds is about other training sets and initialisations, too, and five scores
#    say little of their spread.
