"""Optimizers and learning-rate schedules by their textbook names."""

from dlblocks.optim.factory import OPTIMIZERS, check_optimizer, make_optimizer
from dlblocks.optim.param_groups import param_groups
from dlblocks.optim.schedules import SCHEDULES, check_schedule, make_schedule

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "check_optimizer",
    "check_schedule",
    "make_optimizer",
    "make_schedule",
    "param_groups",
]
