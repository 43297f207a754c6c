"""Keep arrays on the accelerator."""

from __future__ import annotations

from typing import Any, Literal

import torch

# The rest is for the model and its activations.
SHARE_OF_FREE_MEMORY = 0.5


class ResidentArrays:
    """Copies of arrays on an accelerator, shared by all loaders and folds.

    Args:
        wanted: True, False, or ``"auto"`` to copy if they take at most half of the free memory.
    """

    def __init__(self, wanted: bool | Literal["auto"]) -> None:
        self.wanted = wanted
        self._copies: dict[str, tuple[Any, Any]] = {}  # name: (array, its copy)

    def move(self, arrays: dict[str, Any], device: torch.device) -> list[Any]:
        """Copy arrays to a device, or return them unchanged if not wanted.

        Args:
            arrays: Arrays by name. A new array under a name replaces the copy of the old.
            device: Device of the batches.
        """
        if not self.wanted or device.type == "cpu":
            return list(arrays.values())
        missing = {n: array for n, array in arrays.items() if not self._has(n, array, device)}
        if self.wanted == "auto" and not _fit(sum(a.nbytes for a in missing.values()), device):
            return list(arrays.values())
        for name, array in missing.items():
            self._copies[name] = array, array.to(device)
        return [self._copies[name][1] for name in arrays]

    def _has(self, name: str, array: Any, device: torch.device) -> bool:
        of, copied = self._copies.get(name, (None, None))
        return of is array and copied is not None and copied.device == device


def _fit(num_bytes: int, device: torch.device) -> bool:
    # Only CUDA tells its free memory.
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return num_bytes <= SHARE_OF_FREE_MEMORY * free
