"""Deep ensembles, which are bagging without resampling."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

import lightning.pytorch as pl

from dlblocks._errors import checked
from dlblocks.data import SplitDataModule
from dlblocks.ensembles.bagging import Bagging


class DeepEnsemble(Bagging):
    """Train members that differ only by initialisation and order of the data.

    Bagging without resampling: each member is trained on the whole training part, so that nothing
    is out of a bag, and the validation or test set scores the ensemble. For nets, the differences
    of initialisation and order are enough, and often better than bootstrap samples
    (Lakshminarayanan, Pritzel and Blundell 2017). Of that paper's recipe, members are combined as
    here; adversarial training and the variance that a regressor predicts for itself are not a part.

    Args:
        make_model: As all that follow, see `Bagging`.
        datamodule: The data.
        num_members: Number of members M >= 1.
        run_dir: The run folder. None: ``runs/deep-ensemble``, or with ``-2``, ``-3``, …
        settings: Those of `Bagging`, but for max_samples, bootstrap, stratify and samples.
    """

    kind = "deep ensemble"
    base = "runs/deep-ensemble"

    @checked
    def __init__(
        self,
        make_model: Callable[[], pl.LightningModule],
        datamodule: SplitDataModule | Callable[[], SplitDataModule],
        *,
        num_members: int = 5,
        run_dir: str | PathLike[str] | None = None,
        **settings: Any,
    ) -> None:
        for name in ("max_samples", "bootstrap", "stratify", "samples"):
            if name in settings:
                raise ValueError(
                    f"{name} draws samples, and every member of a DeepEnsemble is trained on all; "
                    "use Bagging."
                )
        super().__init__(
            make_model,
            datamodule,
            num_members=num_members,
            run_dir=run_dir,
            bootstrap=False,
            **settings,
        )
