"""Configure the members of an ensemble as the fits of one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.nn.parameter import is_lazy

from dlblocks.data import SplitDataModule
from dlblocks.models._predict_batches import NoPredictions
from dlblocks.runs._run_config import FitSpec, RunConfig
from dlblocks.tasks import Task


@dataclass(frozen=True)
class MemberSpec(FitSpec):
    """The number, name and folder of a member."""

    @property
    def place(self) -> dict[str, int]:
        return {"member": self.number}

    @property
    def name(self) -> str:
        return f"member {self.number}"

    @property
    def folder(self) -> str:
        return f"member-{self.number}"


@dataclass
class MemberConfig(RunConfig):
    """Configuration that all members share, by `Bagging`."""

    num_members: int = 0
    shapes: dict[str, list[int]] | None = None
    kind = "member"
    part = "oob"
    predictions_file = "oob.npz"

    def about(self, spec: FitSpec) -> dict[str, Any]:
        return {**super().about(spec), "num_members": self.num_members}

    def sizes(self, datamodule: SplitDataModule) -> dict[str, Any]:
        rows = datamodule.indices("train")
        return {
            "num_train": len(rows),
            "num_different": len(rows.unique()),
            "num_oob": len(datamodule.indices("oob")),
        }

    def warn(self, reason: NoPredictions) -> None:
        """Raise `reason`, since every member must predict."""
        raise reason

    def new_model(self) -> Any:
        """Make a model of the architecture of the first.

        Raises:
            ValueError: It has no task, or has another architecture.
        """
        model = super().new_model()
        if not isinstance(getattr(model, "task", None), Task):
            raise ValueError(
                f"make_model returned a {type(model).__name__}; members of an ensemble are models "
                "of dlblocks with a task, such as Classifier(net, num_classes) over a net of your "
                "own."
            )
        state = model.state_dict()
        shapes = {name: list(x.shape) for name, x in state.items() if not is_lazy(x)}
        if self.shapes is None:
            self.shapes = shapes
        elif shapes != self.shapes:
            names = [n for n in {**self.shapes, **shapes} if self.shapes.get(n) != shapes.get(n)]
            raise ValueError(
                f"make_model returned models of different architectures, first in {names[0]}: "
                f"{self.shapes.get(names[0])} and {shapes.get(names[0])}; make them alike, or "
                "train them one by one and combine them by Voting."
            )
        return model
