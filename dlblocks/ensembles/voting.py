"""`Voting`, which combines models that are trained already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Literal

from dlblocks._errors import checked
from dlblocks.models import Model, VotingEnsemble, load


@checked
def Voting(
    members: Sequence[Model | str | PathLike[str]],
    *,
    voting: Literal["soft", "hard"] = "soft",
    classes: Iterable[type[Model]] = (),
) -> VotingEnsemble:
    """Combine trained models into a `VotingEnsemble`, in evaluation mode.

    Architectures may differ. Models are taken as they are, not copied: what later changes one of
    them changes the ensemble.

    Args:
        members: Models, or paths of checkpoints.
        voting: ``"soft"``, the average of probabilities or values; or ``"hard"``, the share of the
            votes for each class.
        classes: Your own subclasses of our models, of which checkpoints may be.

    Raises:
        TypeError: `members` is not a list.
        ValueError: There are no members, one is no model with a task, or they are not all
            classifiers of as many classes, or all regressors of as many values; or hard voting of
            values.

    Example:
        >>> import torch
        >>> from dlblocks.models import CNNClassifier, MLPClassifier
        >>> both = Voting([MLPClassifier(64, 10), CNNClassifier(1, 10)], voting="hard")
        >>> both(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    own = list(classes)
    models = [load(m, classes=own) if isinstance(m, (str, PathLike)) else m for m in members]
    return VotingEnsemble(models, voting=voting).eval()
