r"""
Multi-layer perceptron
======================

How well does a small net of fully connected layers read handwritten digits?

Each of its layers is an affine map and a nonlinearity, here with batch norm and dropout between
them:

.. math:: h_{i+1} = \operatorname{relu}(W_i h_i + b_i), \qquad p = \operatorname{softmax}(W h + b)

The 1,797 digits of 8×8 pixels are split once into training, validation and test samples. The epoch
with the lowest validation loss is tested.

Result: test accuracy 0.9749 (95 % interval 0.9530 … 0.9868), of 359 test samples; logistic
regression has 0.9638.

Paper: Rumelhart, Hinton and Williams, *Learning representations by back-propagating errors*, 1986.
"""

# %%
# Settings and data
# -----------------
# The arguments may be given on the command line: ``python recipes/mlp.py --lr 0.01``.

from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from sklearn.linear_model import LogisticRegression

from dlblocks.cli import recipe_arguments
from dlblocks.data import DigitsDataModule
from dlblocks.models import MLPClassifier
from dlblocks.runs import add_to_summary, fit_and_test, is_rank_zero

args = recipe_arguments(__doc__, hidden=[256, 256], dropout=0.3, lr=0.005, max_epochs=60)
seed_everything(args.seed, workers=True, verbose=False)
data = DigitsDataModule(split_seed=args.seed, shuffle_seed=args.seed)

# %%
# Model and fit
# -------------
# The learning rate rises and falls once (one-cycle, Smith 2018). Training stops if the validation
# loss has not fallen for 15 epochs.

model = MLPClassifier(
    in_features=64,
    num_classes=10,
    hidden=args.hidden,
    norm="batch",
    dropout=args.dropout,
    optimizer="adamw",
    lr=args.lr,
    weight_decay=0.02,
    lr_schedule="one_cycle",
)
metrics = fit_and_test(
    model,
    data,
    callbacks=[EarlyStopping("val/loss", patience=15)],
    trainer=args.trainer,
    logger=args.logger,
    run_dir=args.run_dir,
)

# %%
# Result
# ------
# Logistic regression is the same net without hidden layers.

images, labels, _ = data.arrays("train")
test_images, test_labels, _ = data.arrays("test")
linear = LogisticRegression(max_iter=5000).fit(images.flatten(1), labels)
baseline = linear.score(test_images.flatten(1), test_labels)
low, high = metrics.interval("test/accuracy")
if is_rank_zero():
    print(f"MLP                 {metrics['test/accuracy']:.4f} ({low:.4f} … {high:.4f})")
    print(f"logistic regression {baseline:.4f}")
add_to_summary(args.run_dir, baselines={"logistic regression": {"test/accuracy": baseline}})

# %%
# .. recorded:: mlp
#    :figure: learning_curves
#
# After about 25 epochs hardly any but the training loss falls. The dots mark the epoch that is
# tested.
#
# Exercises
# ---------
# 1. What does the net score without dropout?
#
# .. dropdown:: Answer
#
#    ``--dropout 0`` gives 0.9833 (0.9640 … 0.9923). That is three digits of 359 more, far less than
#    the intervals: one test set of this size does not tell whether dropout helps here.
#
# 2. How small may the net be? Try one hidden layer of 32 units.
#
# .. dropdown:: Answer
#
#    ``--hidden [32]`` has 2,400 weights instead of 85,000 and scores 0.9666 (0.9425 … 0.9808), one
#    digit better than logistic regression.
#
# 3. How much does the result depend on the seed, which also draws the split?
#
# .. dropdown:: Answer
#
#    ``--seed 1`` gives 0.9777, and logistic regression 0.9554: the difference doubles, from 0.011
#    to 0.022. Cross-validation averages over such splits.
