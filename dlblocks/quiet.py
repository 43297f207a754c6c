"""Keeps Lightning's remarks that do not apply here from burying what a run has to say."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

# Advice for data sets of files; arrays in memory are faster without workers. And: every key is
# logged once an epoch, whatever the logging interval.
REMARKS = (
    r"The '.*_dataloader' does not have many workers",
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    # Restoring weights to test or predict needs no callback of the fit.
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    # The checkpoint's weights are the averaged ones already.
    r"You're using the WeightAveraging callback, but loading a checkpoint outside the 'fit' stage",
    r"Checkpoint directory .* exists and is not empty",
    # Of Lightning's own code under newer versions of torch.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences Lightning's information lines and the remarks above; warnings stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for remark in REMARKS:
            warnings.filterwarnings("ignore", remark)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
