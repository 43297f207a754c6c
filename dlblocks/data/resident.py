"""Arrays kept on the accelerator, so that no batch has to be copied to it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

# A model and its activations need the rest.
SHARE_OF_FREE_MEMORY = 0.5


class ResidentArrays:
    """Copies of arrays on an accelerator, made once for all loaders and folds of a datamodule.

    Args:
        wanted: True, False, or ``"auto"``: if they take at most half of the memory that is free.
    """

    def __init__(self, wanted: bool | Literal["auto"]) -> None:
        self.wanted = wanted
        self._copies: dict[str, tuple[Tensor, Tensor]] = {}  # name: (array, its copy)

    def move(self, arrays: dict[str, Tensor], device: torch.device) -> list[Tensor]:
        """The arrays on `device`, or as they are if they are not to be there.

        Args:
            arrays: By name; a name stands for one array at a time.
            device: Where batches go.
        """
        if not self.wanted or device.type == "cpu":
            return list(arrays.values())
        missing = [array for name, array in arrays.items() if not self._has(name, array, device)]
        if self.wanted == "auto" and not _fit(sum(array.nbytes for array in missing), device):
            return list(arrays.values())
        for name, array in arrays.items():
            if not self._has(name, array, device):
                self._copies[name] = array, array.to(device)
        return [self._copies[name][1] for name in arrays]

    def _has(self, name: str, array: Tensor, device: torch.device) -> bool:
        of, copied = self._copies.get(name, (None, None))
        return of is array and copied is not None and copied.device == device


def _fit(num_bytes: int, device: torch.device) -> bool:
    if num_bytes == 0:
        return True
    if device.type != "cuda":
        return False  # others cannot be asked
    free, _ = torch.cuda.mem_get_info(device)
    return num_bytes <= SHARE_OF_FREE_MEMORY * free
