"""Memory that is used again, batch after batch, once nobody holds the batch before."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

# Below it the C library keeps freed memory; above, the system takes it back and gives new pages,
# which for a batch of images takes four times as long as to mix it.
LEAST_BYTES = 4 << 20
# One for the batch of this step, one for whoever still holds the last one.
BUFFERS = 2


class BatchMemory:
    """Gives out tensors for new batches, in memory of earlier ones that nobody holds any more.

    Whoever keeps a batch, a view of it, its NumPy array or a graph that needs it, keeps it as it
    is: its memory is not given out again.
    """

    def __init__(self) -> None:
        self._buffers: list[tuple[Any, Any]] = []  # memory, and a weak reference to its use

    def like(self, tensor: Tensor) -> Tensor:
        """An uninitialised tensor of the shape, dtype, device and memory format of `tensor`."""
        size = tensor.nbytes
        if tensor.device.type != "cpu" or size < LEAST_BYTES:
            return torch.empty_like(tensor)
        strides = torch.empty_like(tensor, device="meta").stride()
        held = [buffer for buffer in self._buffers if buffer[1]() is not None]
        free = [memory for memory, user in self._buffers if user() is None]
        memory = next((memory for memory in free if memory.nbytes >= size), None)
        if memory is None:
            if len(held) == BUFFERS:
                return torch.empty_like(tensor)
            memory = torch.empty(size, dtype=torch.uint8).numpy()
        # Torch keeps this very array for as long as any tensor uses its memory.
        lease = memory[:size]
        self._buffers = [*held, (memory, weakref.ref(lease))]
        return torch.from_numpy(lease).view(tensor.dtype).as_strided(tensor.shape, strides)

    def clear(self) -> None:
        """Gives the memory back."""
        self._buffers = []

    def __reduce__(self) -> tuple[type, tuple]:
        return BatchMemory, ()  # a copy of it has memory of its own
