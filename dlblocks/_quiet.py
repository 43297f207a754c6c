"""Restore the process's global state after a call, and silence Lightning."""

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
from torch import nn

# Warnings of Lightning that do not apply to us.
REMARKS = (
    # Workers help data sets of files. Arrays in memory are faster without.
    r"The '.*_dataloader' does not have many workers",
    # We log every key once per epoch, whatever the interval.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    # Restoring weights to test or predict needs no callback of the fit.
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    # The checkpoint's weights are the averaged ones already.
    r"You're using the WeightAveraging callback, but loading a checkpoint outside the 'fit' stage",
    r"Checkpoint directory .* exists and is not empty",
    r"Experiment logs directory .* exists and is not empty",  # it holds our lock
    # Lightning's own code causes this one under newer versions of torch.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)

# Lightning's loggers. The last is used if a library has imported `pytorch_lightning`.
LOGGERS = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")

# Environment variables that a Trainer, `seed_everything` and wandb set. WANDB_SERVICE is kept,
# because it holds the address of wandb's process for as long as that runs. Variables of a
# distributed run are kept as well, because the processes of the other ranks keep theirs.
VARIABLES = ("PL_", "WANDB_", "CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS")
NOT_OURS = ("WANDB_SERVICE",)


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Restore the global state of the process afterwards, also after an error.

    This covers the random states of Python, NumPy and torch; torch's default dtype, threads,
    matmul precision, deterministic algorithms, anomaly detection and cuDNN settings; environment
    variables of Lightning and W&B; warning filters; levels of loggers. Inside it is `quiet`.
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
                if logger.level != level:  # setting a level clears the caches of all loggers
                    logger.setLevel(level)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and its parts back afterwards."""
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in before.items():
            part.training = mode


def _variables() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k.startswith(VARIABLES) and k not in NOT_OURS}


def _states() -> list[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Return pairs of functions that read and set a global state."""
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
    with contextlib.suppress(RuntimeError):  # raised if it was set by torch's newer names
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
            write(value)  # only if changed: setting the number of threads takes time

    return again


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's information lines and `REMARKS`, but no other warning."""
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
