r"""
Segmentation with a U-Net
=========================

Which pixels belong to which digit? A U-Net finds the class of each pixel, from coarse maps that
see a whole digit and fine maps that know where its edges are.

The score is the mean intersection over union (IoU) of the eleven classes, background included:

.. math:: \operatorname{IoU}_c = \frac{|P_c \cap T_c|}{|P_c \cup T_c|},

where :math:`P_c` and :math:`T_c` are the pixels of all test scenes that are predicted to be, and
that are, of class *c*.

Scenes of 40×40 pixels have one to four real digits among scraps of others. 1,000 of them train and
validate; no digit of the 300 test scenes is in them.

Result: mean IoU 0.9376 (95 % interval 0.9313 … 0.9432) of one U-Net. A random forest that sees the
9×9 pixels around each pixel, in 100 of the scenes, has 0.4467.

Paper: Ronneberger, Fischer and Brox, *U-Net: Convolutional networks for biomedical image
segmentation*, 2015.
"""

# %%
# Settings and data
# -----------------

import torch
from lightning.pytorch import seed_everything
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import jaccard_score
from torch.nn.functional import unfold

from dlblocks.cli import recipe_arguments
from dlblocks.data import DigitScenesDataModule
from dlblocks.models import UNetSegmenter
from dlblocks.runs import add_to_summary, fit_and_test, is_rank_zero

args = recipe_arguments(
    __doc__, width=16, depth=3, loss="cross_entropy+dice", num_scenes=1000, lr=0.01, max_epochs=16
)
seed_everything(args.seed, workers=True, verbose=False)
data = DigitScenesDataModule(
    num_scenes=args.num_scenes,
    batch_size=16,
    val_fraction=0.1,
    seed=args.seed,
    split_seed=args.seed,
    shuffle_seed=args.seed,
)

# %%
# Model and fit
# -------------
# The map is halved three times, and its channels double each time. The epoch with the highest
# validation IoU is tested.

model = UNetSegmenter(
    in_channels=1,
    num_classes=11,
    width=args.width,
    depth=args.depth,
    loss=args.loss,
    optimizer="adamw",
    lr=args.lr,
    weight_decay=0.01,
    lr_schedule="one_cycle",
)
model.to(memory_format=torch.channels_last)  # a quarter faster on the CPU
metrics = fit_and_test(
    model, data, trainer=args.trainer, monitor="val/iou", logger=args.logger, run_dir=args.run_dir
)

# %%
# A baseline
# ----------
# A random forest classifies each pixel by the 9×9 pixels around it, as interactive tools do.

images, masks, _ = data.arrays("train")
test_images, test_masks, _ = data.arrays("test")
few = 2 if args.trainer["fast_dev_run"] else 100  # scenes of 1,600 pixels


def neighbours(scenes):
    """Return the 9×9 pixels around each pixel, shape (N · H · W, 81)."""
    return unfold(scenes.float(), 9, padding=4).transpose(1, 2).flatten(0, 1)


forest = RandomForestClassifier(20, random_state=args.seed)
forest.fit(neighbours(images[:few]), masks[:few].flatten())
maps = [torch.from_numpy(forest.predict(neighbours(x))) for x in test_images.split(50)]
baseline = jaccard_score(test_masks.flatten(), torch.cat(maps), average="macro")

# %%
# Result
# ------
# The interval is of the bootstrap: scenes are drawn again and again.

if is_rank_zero():
    low, high = metrics.interval("test/iou")
    print(f"U-Net         {metrics['test/iou']:.4f} ({low:.4f} … {high:.4f})")
    print(f"random forest {baseline:.4f}")
add_to_summary(args.run_dir, baselines={"random forest": {"test/iou": baseline}})

# %%
# .. recorded:: segmentation
#    :figure: worst
#
# The figure shows the test scenes with the lowest IoU: masks on the left, predictions on the right.
#
# Exercises
# ---------
# 1. What share of the wrong pixels lies at the edge of a digit, where the 3×3 pixels around have
#    both background and digit?
#
# .. dropdown:: Answer
#
#    94 %. With ``digit = (test_masks > 0).float()[:, None]`` the edge is
#    ``max_pool2d(digit, 3, 1, 1) != -max_pool2d(-digit, 3, 1, 1)``. Of all pixels 15 % lie there.
#
# 2. Which class has the lowest IoU, and what is it taken for?
#
# .. dropdown:: Answer
#
#    The nine: 0.892. Of its 4,542 pixels 254 are taken for background, 5 for a one and 3 for an
#    eight. The confusion matrix in ``figures/`` shows all.
#
# 3. A U-Net takes images of any size. What does this one score, as it is, on scenes of 80×80 pixels
#    with up to 16 digits (``size=80, digits_per_scene=16``)?
#
# .. dropdown:: Answer
#
#    0.9349. It has learned what a digit looks like, not where in the image it is.
