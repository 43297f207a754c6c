"""The parts of a deep-learning experiment, as small reusable blocks for PyTorch Lightning.

Import the part that you need; importing the package alone loads nothing heavy:

- `dlblocks.nets`: plain `torch.nn.Module`s: `MLP`, `CNN`.
- `dlblocks.models`: LightningModules, each a net with its loss, metrics and optimizer.
- `dlblocks.data`: LightningDataModules with K-fold splitting.
- `dlblocks.callbacks`: MixUp, CutMix, Cutout and augmentation for any LightningModule.
- `dlblocks.optim`: optimizers and learning-rate schedules by their textbook names.
- `dlblocks.crossval`: `cross_validate`, K-fold cross-validation in one call.
- `dlblocks.tracking`: CSV, TensorBoard and Weights & Biases loggers.
- `dlblocks.plots`: the figures of an experiment.
"""

from importlib.metadata import version

__version__: str = version("dlblocks")
__all__ = ["__version__"]
