"""Optimizers and learning-rate schedules by their textbook names."""

from dlblocks.optim._schedulers import check_schedule, make_schedule
from dlblocks.optim.adamp import AdamP
from dlblocks.optim.factory import OPTIMIZERS, check_optimizer, make_optimizer
from dlblocks.optim.lion import Lion
from dlblocks.optim.param_groups import describe, param_groups
from dlblocks.optim.schedules import SCHEDULES
from dlblocks.optim.sgdp import SGDP

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "SGDP",
    "AdamP",
    "Lion",
    "check_optimizer",
    "check_schedule",
    "describe",
    "make_optimizer",
    "make_schedule",
    "param_groups",
]
