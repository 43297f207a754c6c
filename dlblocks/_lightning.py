"""Where there is no GPU: saying so at little cost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"


@contextlib.contextmanager
def quick_gpu_check() -> Iterator[None]:
    """Makes `torch.cuda.is_available` quick while it is False; changes nothing where it is True.

    Every step of an optimizer asks whether there is an accelerator. Lightning has set an
    environment variable by which torch asks the driver's library and not CUDA, since processes
    forked from one that has begun CUDA cannot use it. Where there is no such library it is searched
    for each time, a tenth of a millisecond a step. Without a GPU there is nothing to begin: CUDA
    may be asked, and remembers its answer. Afterwards the variable is as before.
    """
    before = os.environ.get(NVML_CHECK)
    if before != "1" or torch.cuda.is_available():
        yield
        return
    os.environ[NVML_CHECK] = "0"
    try:
        yield
    finally:
        os.environ[NVML_CHECK] = before
