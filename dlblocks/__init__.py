"""Small reusable parts of deep-learning experiments for PyTorch Lightning.

Import the part that you need; importing the package alone loads nothing heavy:

- `dlblocks.nets`: plain `torch.nn.Module`s: `MLP`, `CNN`.
- `dlblocks.optim`: optimizers, parameter groups and learning-rate schedules.
- `dlblocks.fields`: kinds of data, such as images, masks and tokens, and what is done with each.
- `dlblocks.losses`, `dlblocks.metrics`: for hard and soft targets.
- `dlblocks.plots`: the figures of an experiment, from arrays.
- `dlblocks.tracking`: CSV, TensorBoard and Weights & Biases loggers.
- `dlblocks.data`: LightningDataModules with K-fold splitting.
- `dlblocks.callbacks`: augmentation, MixUp, CutMix, SAM and others, for any LightningModule.
- `dlblocks.models`: LightningModules, each a net with its loss, metrics and optimizer.
- `dlblocks.runs`: one run folder: fit, resume, plan, predictions, figures.
- `dlblocks.engine`: many models of one architecture in one fit.
- `dlblocks.ensembles`: bagging, deep ensembles, boosting, voting.
- `dlblocks.crossval`: `cross_validate`, nested cross-validation, their results.
- `dlblocks.loading`: `load` a trained model, and predict new data; also ``dlblocks.load``.
- `dlblocks.cli`: the command line.

A folder imports only folders above it in this list, and helper files whose name begins with an
underscore belong to their folder.
"""

import importlib
from importlib.metadata import version
from typing import Any

__version__: str = version("dlblocks")
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        # Not imported above, which would load torch, Lightning and all of this package.
        return importlib.import_module("dlblocks.loading").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
