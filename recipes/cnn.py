r"""
Convolutional net
=================

What does a convolutional net gain on small images of handwritten digits?

Each of its layers moves a small filter over the image, so that it finds a stroke wherever it is:

.. math:: h_{i+1}[c, y, x] = \operatorname{relu}\left(b_c + \sum_{c', u, v} W[c, c', u, v] \,
   h_i[c', y + u, x + v]\right)

The 1,797 digits of 8×8 pixels are split once into training, validation and test samples. Training
images are shifted, rotated and scaled a little. The epoch with the lowest validation loss is
tested.

Result: test accuracy 0.9944 (95 % interval 0.9799 … 0.9985), of 359 test samples; an RBF SVM has
0.9833 and logistic regression 0.9638.

Paper: LeCun, Bottou, Bengio and Haffner, *Gradient-based learning applied to document recognition*,
1998.
"""

# %%
# Settings and data
# -----------------

from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from dlblocks.callbacks import Augment
from dlblocks.cli import recipe_arguments
from dlblocks.crossval import HeldOutScores
from dlblocks.data import DigitsDataModule
from dlblocks.models import CNNClassifier
from dlblocks.runs import add_to_summary, fit_and_test, is_rank_zero

args = recipe_arguments(__doc__, channels=[32, 64], augment=True, lr=0.01, max_epochs=30)
seed_everything(args.seed, workers=True, verbose=False)
data = DigitsDataModule(split_seed=args.seed, shuffle_seed=args.seed)

# %%
# Model and fit
# -------------
# Each block has two convolutions of 3×3 pixels and halves the image. The head sees all that is
# left, 64 channels of 2×2 pixels.

model = CNNClassifier(
    in_channels=1,
    num_classes=10,
    channels=args.channels,
    convs_per_block=2,
    head="flatten",
    image_size=8,
    optimizer="adamw",
    lr=args.lr,
    weight_decay=0.02,
    lr_schedule="one_cycle",
)
stop = EarlyStopping("val/loss", patience=12)
augment = Augment(translation=0.1, rotation=10.0, scale=(0.9, 1.1), seed=args.seed)
metrics = fit_and_test(
    model,
    data,
    callbacks=[stop, augment] if args.augment else [stop],
    trainer=args.trainer,
    logger=args.logger,
    run_dir=args.run_dir,
)

# %%
# Result
# ------
# The others get the same training samples, as rows of 64 pixels.

images, labels, _ = data.arrays("train")
test_images, test_labels, _ = data.arrays("test")
others = {
    "RBF SVM": SVC(C=10, gamma=0.001 * 16**2 / 255**2),
    "logistic regression": LogisticRegression(max_iter=5000),
}
scores = {"CNN": metrics}
for name, machine in others.items():
    machine.fit(images.flatten(1), labels)
    accuracy = machine.score(test_images.flatten(1), test_labels)
    scores[name] = HeldOutScores({"test/accuracy": accuracy}, num_samples=len(test_labels))
if is_rank_zero():
    for name, score in scores.items():
        low, high = score.interval("test/accuracy")
        print(f"{name:<20} {score['test/accuracy']:.4f} ({low:.4f} … {high:.4f})")
add_to_summary(args.run_dir, baselines={name: scores[name] for name in others})

# %%
# .. recorded:: cnn
#    :figure: hardest
#
# The figure shows the test images with the lowest probability of the true class: two eights are
# taken for a 3 and a 7.
#
# Exercises
# ---------
# 1. What does the net score without augmentation?
#
# .. dropdown:: Answer
#
#    ``--augment=false`` gives 0.9861 (0.9678 … 0.9940). The intervals overlap; to show a gain takes
#    more than 359 test images.
#
# 2. Move the test images to the right by one pixel: ``torch.roll(test_images, 1, dims=3)``. What do
#    ``model`` and the other two score?
#
# .. dropdown:: Answer
#
#    The CNN has 0.9833, the SVM 0.5348 and logistic regression 0.4123. A filter finds a stroke at
#    any place, and the shifts of augmentation help: without augmentation the CNN has 0.8384.
#
# 3. Permute the 64 pixels of all images in the same way, without augmentation, before the fit. Who
#    minds?
#
#    .. code-block:: python
#
#       order = torch.randperm(64)
#       data.source.inputs = data.source.inputs.flatten(1)[:, order].view(-1, 1, 8, 8)
#
# .. dropdown:: Answer
#
#    The CNN falls from 0.9861 to 0.9694: neighbours are no longer neighbours, and its filters find
#    no strokes. The other two do not know which pixels are neighbours, so their scores stay.
