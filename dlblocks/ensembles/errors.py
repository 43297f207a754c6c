"""What says that models cannot be fitted together, and which of them an error belongs to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from dlblocks.errors import named


class NotVectorizable(ValueError):
    """Models cannot be fitted together in one batched computation; the message says why."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short; on the CPU torch raises a plain `RuntimeError`."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        "DefaultCPUAllocator" in str(error)
    )


@contextlib.contextmanager
def naming(name: str | None) -> Iterator[None]:
    """Begins the message of an error with a name, unless that is None.

    Lack of memory, and what cannot be fitted together, belong to all.
    """
    try:
        yield
    except NotVectorizable:
        raise
    except Exception as error:
        if name is None or is_out_of_memory(error):
            raise
        raise named(error, name) from error
