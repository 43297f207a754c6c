"""Parts shared by models that consist of trained models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import lightning.pytorch as pl

from dlblocks.models import _checkpoints as checkpoints
from dlblocks.models.model import Model

Trained = TypeVar("Trained", bound=pl.LightningModule)


class MadeOfTrained(pl.LightningModule):
    """A model that is not trained itself."""

    to_train = "train them one by one"

    def configure_optimizers(self) -> Any:
        raise RuntimeError(
            f"{type(self).__name__} consists of models that are trained already; {self.to_train}, "
            "and use Trainer.validate, test or predict with this one."
        )


def rebuilt(members: Sequence[Any], kind: type[Trained]) -> list[Trained]:
    """Return the members, and create those given as descriptions.

    Raises:
        ValueError: A member is not a `kind`.
    """
    models = []
    for member in members:
        model = checkpoints.rebuild(member, Model) if isinstance(member, Mapping) else member
        if not isinstance(model, kind):
            raise ValueError(
                f"members hold a {type(model).__name__}; every one must be a {kind.__name__}"
                f"{' of dlblocks' if issubclass(kind, Model) else ''}."
            )
        models.append(model)
    return models


def common_spec(models: Sequence[pl.LightningModule]) -> dict[str, Any] | None:
    """Return the `data_spec` of all members, or None if they differ.

    Tokens of a text that some member did not see in training are unknown to all.
    """
    found = [getattr(model, "data_spec", None) for model in models]
    # Members of earlier versions do not know the kind of the targets.
    kinds = {spec["target_kind"] for spec in found if spec and spec.get("target_kind")}
    kind = {"target_kind": "".join(kinds)} if len(kinds) == 1 else {}
    alike = [spec and {**spec, "batch_size": None, "unknown": None, **kind} for spec in found]
    if not all(spec == alike[0] for spec in alike):
        return None
    if not found[0] or "unknown" not in found[0]:
        return found[0] and {**found[0], **kind}
    unknown = set().union(*(spec["unknown"] for spec in found if spec))
    return {**found[0], **kind, "unknown": "".join(sorted(unknown))}


def described(models: Sequence[pl.LightningModule]) -> list[Any]:
    """Describe members by plain values, from which `rebuilt` creates them.

    A member of another package is described by its class path alone.
    """
    return [
        checkpoints.description(model)
        if isinstance(model, Model)
        else checkpoints.class_path(type(model))
        for model in models
    ]
