"""Check the arguments of a model's constructor, and name the hyperparameters."""

from __future__ import annotations

import inspect
from typing import Any

from dlblocks._errors import CheckedConstructor, constructor_arguments
from dlblocks.models import _checkpoints as checkpoints


class ModelArguments(CheckedConstructor):
    """Base class that checks arguments and names the hyperparameters."""

    @classmethod
    def _accepted(cls) -> list[str]:
        return cls.hyperparameter_names()

    @classmethod
    def _check_all(cls, args: Any, kwargs: Any) -> None:
        made = {"net", "task"} & kwargs.keys() - {*inspect.signature(cls.__init__).parameters}
        if made and cls.__module__.startswith("dlblocks."):
            name = min(made)
            raise TypeError(
                f"{cls.__name__} has no argument {name!r}, because it makes its own; "
                f"{cls._instead_of(name)}."
            )
        super()._check_all(args, kwargs)

    @classmethod
    def _instead_of(cls, name: str) -> str:
        """Return how to use one's own net or task."""
        inits = {base.__name__: vars(base).get("__init__") for base in cls.__mro__[:-1]}
        takers = (
            base
            for base, init in inits.items()
            if init and name in inspect.signature(init).parameters
        )
        return f"{next(takers)} takes one"

    @classmethod
    def hyperparameter_names(cls) -> list[str]:
        """Return the names of the constructor's arguments that a checkpoint holds."""
        own = inspect.signature(cls.__init__).parameters  # a leaf creates its net and its task
        parts = {"net", "task"} - {*own}
        return [name for name in constructor_arguments(cls) if name not in parts]

    @classmethod
    def _unsaved_arguments(cls) -> list[str]:
        """Return the constructor arguments that Lightning must not save here.

        These are live modules, and the arguments of a user's subclass. Such a class calls
        `save_hyperparameters` for its own arguments.
        """
        taken = {
            base: inspect.signature(vars(base)["__init__"]).parameters
            for base in cls.__mro__
            if issubclass(base, ModelArguments) and "__init__" in vars(base)
        }
        ours = {
            name for base, names in taken.items() if checkpoints.is_ours(base) for name in names
        }
        saved = ours & {*cls.hyperparameter_names()} - {"net", "task", "members"}
        return sorted({name for names in taken.values() for name in names} - saved)
