"""The arguments of a recipe, once parsed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any


class RecipeArguments(SimpleNamespace):
    """The arguments that all recipes have, and those of one recipe.

    Attributes:
        run_dir: The run folder. By default it is a new one, ``runs/<script>``, or that of a killed
            run which can be resumed.
        logger: Where each fit logs: ``"csv"``, ``"wandb"``, ``"tensorboard"`` or ``"none"``.
        trainer: Arguments of Lightning's Trainer: ``accelerator``, ``devices``, ``precision``,
            ``fast_dev_run``, and ``max_epochs`` if the recipe has such a setting.
        fast_dev_run: One batch of everything, to see that it runs.
        seed: Seed of splits, initialisation and noise.
    """

    run_dir: Path
    logger: Any  # for the type checker: one of the four
    trainer: dict[str, Any]
    fast_dev_run: bool
    seed: int
