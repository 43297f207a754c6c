"""`Voting`: models that are trained already, as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Literal

from torch import nn

from dlblocks._errors import check_choice
from dlblocks.models import Model, VotingEnsemble, load


def Voting(
    members: Sequence[Model | str | PathLike[str]],
    *,
    voting: Literal["soft", "hard"] = "soft",
    classes: Iterable[type[Model]] = (),
) -> VotingEnsemble:
    """The models as one, in evaluation mode: a `VotingEnsemble`.

    Architectures may differ. Models are taken as they are, not copied: what later changes one of
    them changes the ensemble.

    Args:
        members: Models, or paths of checkpoints.
        voting: ``"soft"``, the average of probabilities or values; or ``"hard"``, the share of the
            votes for each class.
        classes: Your own subclasses of our models, of which checkpoints may be.

    Raises:
        TypeError: `members` is no sequence of models and paths.
        ValueError: There are no members, or they are not all classifiers of as many classes, or all
            regressors of as many values; or hard voting of values.

    Example:
        >>> import torch
        >>> from dlblocks.models import CNNClassifier, MLPClassifier
        >>> both = Voting([MLPClassifier(64, 10), CNNClassifier(1, 10)], voting="hard")
        >>> both(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    check_choice("voting", voting, ["soft", "hard"])
    if isinstance(members, (str, PathLike, nn.Module)):
        raise TypeError("members is a single model or path; give a list of them.")
    for member in members:
        if not isinstance(member, (Model, str, PathLike)):
            raise TypeError(
                f"members hold a {type(member).__name__}; each must be a Classifier or Regressor "
                "of dlblocks, such as Classifier(net, num_classes) over a net of your own, or the "
                "path of a checkpoint."
            )
    own = list(classes)
    models = [m if isinstance(m, Model) else load(m, classes=own) for m in members]
    return VotingEnsemble(models, voting=voting).eval()
