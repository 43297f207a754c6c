"""Calls that leave the process as it was, without Lightning's remarks that do not apply."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

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
    r"Experiment logs directory .* exists and is not empty",  # it holds our lock
    # Of Lightning's own code under newer versions of torch.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)

# Where Lightning logs. It is the last if a library has imported the package of that name.
LOGGERS = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")

# Variables that a Trainer, `seed_everything` and wandb set. A process of wandb's tells its children
# by WANDB_SERVICE where it is, as long as it lives. The variables of a distributed run stay too:
# the processes of its other ranks have them for all later calls.
VARIABLES = ("PL_", "WANDB_", "CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS")
NOT_OURS = ("WANDB_SERVICE",)


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Be quiet, and leave the global state of the process as it was, after an error too.

    Restored are the random states of Python, NumPy and torch, torch's default dtype, threads,
    matmul precision, deterministic algorithms, detection of anomalies and settings of cuDNN,
    variables of Lightning and W&B, filters of warnings, and the levels of loggers.
    """
    variables = _variables()
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    levels = [logger.level for logger in loggers]
    restore = [_remember(*pair) for pair in _states()]
    with quiet():
        try:
            yield
        finally:
            for again in restore:
                again()
            for name in _variables().keys() - variables.keys():
                del os.environ[name]
            os.environ.update(variables)
            for logger, level in zip(loggers, levels, strict=True):
                if logger.level != level:  # setting one clears what all loggers remember
                    logger.setLevel(level)


def _variables() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k.startswith(VARIABLES) and k not in NOT_OURS}


def _states() -> list[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """How to read and set each part of the global state, in pairs."""
    cudnn = torch.backends.cudnn
    pairs: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
        (random.getstate, random.setstate),
        (np.random.get_state, np.random.set_state),
        (torch.get_rng_state, torch.set_rng_state),
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        (
            lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
            lambda value: torch.set_anomaly_enabled(*value),
        ),
        (lambda: cudnn.benchmark, lambda value: setattr(cudnn, "benchmark", value)),
        (lambda: cudnn.deterministic, lambda value: setattr(cudnn, "deterministic", value)),
    ]
    with contextlib.suppress(RuntimeError):  # where it is set by torch's newer names
        torch.get_float32_matmul_precision()
        pairs.append((torch.get_float32_matmul_precision, torch.set_float32_matmul_precision))
    if torch.cuda.is_available():
        pairs.append((torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all))
    if torch.backends.mps.is_available():
        pairs.append((torch.mps.get_rng_state, torch.mps.set_rng_state))
    return pairs


def _remember(read: Callable[[], Any], write: Callable[[Any], Any]) -> Callable[[], None]:
    value = read()

    def again() -> None:
        if isinstance(value, (tuple, list, torch.Tensor)) or read() != value:
            write(value)  # setting the number of threads costs some time

    return again


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences Lightning's information lines and the remarks above; warnings stay."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
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
