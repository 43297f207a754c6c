"""Reuse the memory of large batches."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# The C library keeps smaller pieces of freed memory. Larger ones return to the system, and new
# pages are slow: MixUp of 64 images of 224 × 224 (float32) takes 29 ms instead of 16 ms.
LEAST_BYTES = 4 << 20
# One for the batch of this step, one for code that still holds the last one.
BUFFERS = 2


class BatchMemory:
    """Reuse the memory of earlier batches for new ones.

    Memory is reused only when nothing holds the earlier batch any more: neither the batch itself
    nor a view, a NumPy array or a graph that needs it.
    """

    def __init__(self) -> None:
        self._buffers: list[tuple[Any, Any]] = []  # memory, and a weak reference to its use
        self._lock = threading.Lock()  # two threads must not find the same memory free

    def like(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return an uninitialised tensor like `tensor`, in its memory format too.

        `dtype` is that of the result, None for the tensor's own.
        """
        dtype = dtype or tensor.dtype
        size = tensor.numel() * dtype.itemsize
        if tensor.device.type != "cpu" or size < LEAST_BYTES:
            return torch.empty_like(tensor, dtype=dtype)
        strides = torch.empty_like(tensor, device="meta").stride()
        lease = self._lease(size)
        if lease is None:
            return torch.empty_like(tensor, dtype=dtype)
        return torch.from_numpy(lease).view(dtype).as_strided(tensor.shape, strides)

    def _lease(self, size: int) -> npt.NDArray[np.uint8] | None:
        """Return memory that nothing holds, or None if all buffers are held."""
        with self._lock:
            held = [buffer for buffer in self._buffers if buffer[1]() is not None]
            free = [memory for memory, user in self._buffers if user() is None]
            memory = next((memory for memory in free if memory.nbytes >= size), None)
            if memory is None:
                if len(held) == BUFFERS:
                    return None
                memory = np.empty(size, dtype=np.uint8)  # in huge pages, where the system has some
            # Torch keeps this very array for as long as any tensor uses its memory.
            lease = memory[:size]
            self._buffers = [*held, (memory, weakref.ref(lease))]
            return lease

    def clear(self) -> None:
        """Free the memory."""
        self._buffers = []

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return BatchMemory, ()  # a copy starts without memory
