"""The results of bagging and of boosting."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from dlblocks._files import AGAIN, write_rows
from dlblocks._npz import read_columns
from dlblocks._quiet import isolated
from dlblocks.data import SplitDataModule
from dlblocks.ensembles._bootstrap import Rows
from dlblocks.ensembles._member_config import MemberConfig, MemberSpec
from dlblocks.models import Model, VotingEnsemble, load
from dlblocks.runs._figures import curve_figures, prediction_figures
from dlblocks.runs._fits import read_fit
from dlblocks.runs._plan import run_id_of
from dlblocks.runs._result import Result
from dlblocks.runs._text_table import block, number
from dlblocks.tasks import PredictionTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENSEMBLE, SAMPLES, OOB = "ensemble.ckpt", "samples.npz", "oob.npz"


@dataclass(repr=False)
class BaggingResult(Result):
    """The result of `Bagging.fit`.

    Attributes:
        run_dir: Where everything lies.
        model: The members as one model, in evaluation mode: for `Trainer.validate`, `test` and
            `predict`; see `VotingEnsemble`.
        members: One row a member: epochs run, best epoch (from 1), samples drawn, different ones
            among them, samples out of its bag, its validation metrics, seconds, checkpoint.
        samples: The rows that each member was trained on, with repeats.
        oob: Out-of-bag predictions, with ``std`` and ``votes``: their spread over the members, and
            how many have not seen the sample. Masks are voted for pixel by pixel, without ``std``.
            None where every member was trained on all samples, or the task keeps no predictions.
        oob_score: Their metrics, such as ``"oob/accuracy"`` or ``"oob/rmse"``, over the samples
            that at least one member was not trained on; empty if there are none.
        histories: One list of rows a member, one row an epoch, of all that was logged.
        info: Engine, seconds, configuration and versions, as in ``summary.json``.
    """

    run_dir: Path
    model: VotingEnsemble
    members: list[dict[str, Any]]
    samples: list[Rows]
    oob: PredictionTable | None
    oob_score: dict[str, float]
    histories: list[list[dict[str, float]]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)

    kind = "member"
    columns = (
        "member", "epochs", "best_epoch", "num_train", "num_different", "num_oob", "seconds",
        "checkpoint",
    )  # fmt: skip
    files = (SAMPLES, OOB, "members.csv", ENSEMBLE)

    @property
    def _rows(self) -> list[dict[str, Any]]:
        return self.members

    def table(self) -> str:
        """Return the members as text, and the out-of-bag scores below them."""
        names = [name for name in (self.info.get("monitor"),) if name in self.metrics]
        names += [name for name in self.metrics if name not in names]
        columns = [
            ["member", *(str(row["member"]) for row in self.members), "mean ± std"],
            ["epochs", *(f"{r['epochs']} (best {r['best_epoch']})" for r in self.members), ""],
        ]
        for name in names:
            mean = f"{number(self.mean(name))} ± {number(self.std(name))}"
            columns.append([name, *map(number, self.values(name)), mean])
        seconds = [row["seconds"] for row in self.members]
        columns.append(["seconds", *(f"{t:.1f}" for t in seconds), f"{sum(seconds):.1f} in all"])
        scores = ", ".join(f"{name} {number(value)}" for name, value in self.oob_score.items())
        return block(columns, len(self.members)) + (f"\nout of bag: {scores}" if scores else "")

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of `model`, for `dlblocks.models.load`."""
        return self.run_dir / ENSEMBLE

    @property
    def seconds(self) -> float:
        """Duration of the call of `fit` that ended the run."""
        return float(self.info["seconds"])

    def summary(self) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        out: dict[str, Any] = {}
        if self.oob is not None:
            count = int((self.oob.votes > 0).sum())
            out = {**self.oob_score, "num_scored": count, "num_never_out": len(self.oob) - count}
        return {
            "metrics": {
                name: {
                    "mean": self.mean(name),
                    "std": self.std(name),
                    "members": self.values(name),
                }
                for name in self.metrics
            },
            "oob": out,
            **self.info,
        }

    def write_parts(self) -> None:
        """Write ``oob.npz`` and ``members.csv``."""
        if self.oob is not None:
            self.oob = self.oob.write(self.run_dir / OOB)
        write_rows(self.run_dir / "members.csv", self.members)

    @classmethod
    def load(
        cls,
        run_dir: str | PathLike[str],
        *,
        make_model: Callable[[], pl.LightningModule] | None = None,
        classes: Iterable[type[Model]] = (),
    ) -> BaggingResult:
        """Load a result from its run folder.

        Args:
            run_dir: The folder.
            make_model: As for `Bagging`; needed where members are over nets of your own.
            classes: Your own subclasses of our models, if members are such.

        Raises:
            FileNotFoundError: No bagging has ended there.
        """
        path = Path(run_dir)
        info, _ = cls.read_summary(path, "bagging")
        scores = {name: value for name, value in info.pop("oob").items() if "/" in name}
        count = info["num_members"]
        overrides = None
        with isolated():
            if make_model is not None:
                overrides = {"members": [make_model() for _ in range(count)]}
            model: Any = load(path / ENSEMBLE, classes=classes, overrides=overrides)
        arrays: dict[str, Any] = read_columns(path / SAMPLES, AGAIN)
        samples = [arrays[str(k)] for k in range(count)]
        oob = None
        if (path / OOB).is_file():
            oob = PredictionTable.read(path / OOB, AGAIN, model.task.name)
        found = [read_fit(MemberConfig, path, MemberSpec(k), run_id_of(path)) for k in range(count)]
        done = [fitted for fitted in found if fitted is not None]
        return cls(
            path,
            model,
            [fitted.row for fitted in done],
            samples,
            oob,
            scores,
            [fitted.history for fitted in done],
            info,
        )


def result_figures(result: BaggingResult, datamodule: SplitDataModule) -> dict[str, Figure]:
    """Draw all figures of a result, by the names of their files."""
    figures = curve_figures(
        result.histories,
        [row["best_epoch"] for row in result.members],
        monitor=result.info["monitor"],
    )
    if result.oob is not None:
        figures |= prediction_figures(
            datamodule,
            "train",
            result.oob[result.oob.votes > 0],
            title="Out-of-bag predictions",
        )
    return figures


@dataclass
class BoostingResult:
    """The result of boosting.

    Attributes:
        model: The ensemble, one model, in evaluation mode: for ``Trainer.test``, ``predict``,
            ``staged_predict(inputs)``. Like any model, it takes raw inputs.
        history: One row a stage: its number from 1, the losses or accuracies of the ensemble after
            it, and what was found of its learner.
        best_stage: The stage of the best validation score, or the last one without validation.
        stopped: Why there are fewer stages than were asked for, or "".
        seconds: Duration of the fit.
        checkpoint: The model's checkpoint, for `dlblocks.models.load`.
    """

    model: Model
    history: list[dict[str, float]]
    best_stage: int
    stopped: str
    seconds: float
    checkpoint: Path
