"""The file from which a killed fit of several members goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dlblocks.callbacks import resume_state
from dlblocks.files import is_whole, whole_file

if TYPE_CHECKING:
    from dlblocks.ensembles.vectorized import Together


def save(together: Together, path: Path) -> None:
    """Writes all that the rest of a fit depends on, at the end of an epoch."""
    optimizers = {m.name: together.optimizers_of.state(k) for k, m in enumerate(together.live)}
    state = {
        "epoch": together.epoch,
        "random": resume_state.random_state(together.root_device),
        "members": {member.name: member.state() for member in together.members},
        "optimizers": optimizers,
    }
    with whole_file(path) as part:
        torch.save(state, part)


def load(together: Together, path: Path) -> bool:
    """Restores what `save` wrote; False if it is missing, damaged or of other fits."""
    if not is_whole(path):
        return False
    state = torch.load(path, map_location=together.root_device, weights_only=True)
    if any(member.name not in state.get("members", ()) for member in together.members):
        return False
    for k, member in enumerate(together.members):
        member.load(state["members"][member.name])
        if member.name in state["optimizers"]:
            together.optimizers_of.load(k, state["optimizers"][member.name])
    together.epoch = state["epoch"]
    resume_state.set_random_state(together.root_device, state["random"])
    return True
