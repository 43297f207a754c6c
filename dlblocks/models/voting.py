"""Several models as one: the average of what they predict.

Averaging members that err differently lowers the error (Hansen and Salamon, "Neural Network
Ensembles", 1990); with the models of a cross-validation as members it is also called CV bagging
(Krogh and Vedelsby, "Neural Network Ensembles, Cross Validation, and Active Learning", 1995).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from dlblocks._errors import check_range
from dlblocks.models._conformal import Calibration
from dlblocks.models._members import Kind, MadeOfTrained, common_spec, described, rebuilt
from dlblocks.models._predict import gather, join_batches, predictor, target_in
from dlblocks.models.model import Model, beside_inputs
from dlblocks.nets import Preprocess
from dlblocks.nets.preprocess import PassOn
from dlblocks.tasks import PredictionTable, Task
from dlblocks.tasks.task import Stage, task_names


class VotingEnsemble(MadeOfTrained, Model):
    """The average of several models of one task; evaluated like one, saved and loaded as one.

    ``"soft"`` voting averages what the members predict: of classifiers the probabilities,
    p = (1/M) Σ p_m, and `forward` returns log p, whose softmax is p; of regressors the values.
    ``"hard"`` voting counts the classes that members find likeliest.

    `Trainer.predict` adds the members' ``"std"``, the standard deviation of their predictions (with
    M in the denominator), of the shape of the prediction; `uncertainty` says how much of a
    classifier's doubt is disagreement.

    Inputs are raw, as those of any `Model`: each member has its own `preprocess`, as the models of
    a cross-validation have, each fitted to its own training part.

    Args:
        members: Models with a task, or their descriptions in a checkpoint. A checkpoint of yours
            that has members of your own classes is loaded by
            ``dlblocks.models.load(path, classes=[YourModel])``.
        voting: ``"soft"`` or ``"hard"``.
        temperature: T by which the members' logits are divided (Guo et al. 2017). Above 1, the
            probabilities are less certain.

    Attributes:
        coverage: Where it is set, such as 0.9, `Trainer.predict` adds prediction intervals,
            ``"lower"`` and ``"upper"``, or of classes ``"in_set"``, bool of shape (N, C).
        calibration: The out-of-fold scores from which they come; those of a fold average are set.

    Raises:
        ValueError: No members, members of different tasks or numbers of classes, hard voting where
            there are no classes, or members of which only some have statistics of their inputs.
    """

    task: Task
    coverage: float | None

    def __init__(
        self,
        members: Sequence[Any],
        *,
        voting: Literal["soft", "hard"] = "soft",
        temperature: float = 1.0,
    ) -> None:
        models = _at_least_one(members, Model)
        known = [model.preprocess.is_set for model in models]
        if len({*known}) > 1:
            raise ValueError(
                f"member {known.index(False)} has no statistics of its inputs (preprocess), and "
                f"member {known.index(True)} has; set model.preprocess of the first, or train it "
                "with a datamodule of dlblocks."
            )
        tasks = [model.task for model in models]
        for model, task in zip(models, tasks, strict=True):
            if task is None:
                raise ValueError(
                    f"members hold a {type(model).__name__}, which has no task; make it "
                    "Model(net, task), or a Classifier or Regressor."
                )
            if different := tasks[0].difference(task):  # type: ignore[union-attr]
                raise ValueError(
                    f"members have {different}, and no common vote; they must have the same."
                )
        task = tasks[0].for_ensemble()  # type: ignore[union-attr]
        super().__init__(_Committee(models), task)
        self.preprocess = PassOn([model.preprocess for model in models])
        self.data_spec = common_spec(models)
        self.calibration, self.coverage = Calibration(), None
        if voting == "hard" and not self.task.votes:
            raise ValueError("voting='hard' counts votes for classes, and values have none.")
        check_range("temperature", temperature, 0, low_open=True)
        if temperature != 1 and not self.task.votes:
            raise ValueError("temperature scales the logits of classes, and values have none.")
        self.voting, self.temperature = voting, float(temperature)
        _describe(self, models, voting=voting, temperature=self.temperature)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.task.average(self._outputs(inputs), hard=self.voting == "hard")

    def _outputs(self, inputs: Tensor) -> Tensor:
        """Outputs of the members, shape (M, N, ...)."""
        outputs: Tensor = self.net(inputs)
        return outputs if self.temperature == 1 else outputs / self.temperature

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        inputs, *rest = batch if isinstance(batch, (list, tuple)) else [batch]
        targets = rest[0] if rest else None
        outputs = self._outputs(inputs)
        average = self.task.average(outputs, hard=self.voting == "hard")
        result = {"prediction": self.task.predict(average, targets)}
        result |= beside_inputs(rest)
        each = torch.stack([self.task.predict(member, targets) for member in outputs])
        result["std"] = each.std(0, correction=0)
        if self.coverage is not None:
            result |= self.task.regions(self.calibration, each, self.coverage)
        return result

    @torch.no_grad()
    def uncertainty(self, inputs: Tensor) -> dict[str, Tensor]:
        """How unsure the members are of each sample, in nats, each of shape (N,).

        ``"entropy"`` is that of the average, H(p) = -Σ p log p. It is the sum of
        ``"expected_entropy"``, (1/M) Σ H(p_m), the doubt that members share, and of
        ``"mutual_information"``, their disagreement, which more data could remove (Houlsby et al.
        2011; Depeweg et al. 2018). Always of the members' probabilities, under hard voting too.

        Args:
            inputs: As for `forward`.

        Raises:
            ValueError: The members do not predict one class a sample.
        """
        return self.task.uncertainty(self._outputs(inputs))


class VotingModule(MadeOfTrained, Model):
    """The average of what several LightningModules predict, whoever has written them.

    Each member predicts by its own `predict_step`, or by its `forward` if it has none. What they
    return is averaged as it is: p = (1/M) Σ p_m, be they probabilities, logits or values.

    Losses and metrics of the members are not those of the average. `Trainer.validate` and `test`
    log what the task of its predictions and targets makes of them, such as
    ``test/accuracy``; of several loaders ``test/accuracy/dataloader_idx_1``. Targets are those that
    `predict_step` returns as ``"target"``, else the second entry of the batch, or that of a name
    such as ``"label"``.

    A module of yours has no statistics of its inputs. ``average.own[k]``, a
    `dlblocks.nets.Preprocess`, has those of member k; those of a fold average are of its folds.
    Batches are then ``[inputs, …]`` of raw inputs.

    `Trainer.predict` gives a dictionary of ``"prediction"`` and ``"std"``, the members' standard
    deviation (with M in the denominator), both of the shape of one member's prediction.

    Args:
        members: LightningModules. A checkpoint is loaded by ``dlblocks.models.load(path,
            overrides={"members": [make_model() for _ in range(M)]})``.
        task_name: What they predict, such as ``"multilabel"``; see `dlblocks.tasks.find_task`.

    Raises:
        ValueError: No members, members that cannot predict, or, at the prediction, predictions
            that have no average, such as classes.

    Example:
        >>> members = [Model(nn.Linear(4, 2)) for _ in range(3)]
        >>> VotingModule(members)(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """

    net: _Committee
    coverage: float | None

    def __init__(
        self,
        members: Sequence[Any],
        *,
        task_name: str | None = None,
    ) -> None:
        if members and all(isinstance(member, str) for member in members):
            raise ValueError(
                f"the members are of {members[0]}, which a checkpoint cannot make; give them with "
                f"any weights: overrides={{'members': [make_model() for _ in "
                f"range({len(members)})]}}."
            )
        models = _at_least_one(members, pl.LightningModule)
        for model in models:
            predictor(model)
        super().__init__(_Committee(models))
        # A `Model` prepares its inputs itself.
        own = [PassOn([m.preprocess]) if isinstance(m, Model) else Preprocess() for m in models]
        self.own = nn.ModuleList(own)
        self.preprocess = PassOn(own)
        self.data_spec = common_spec(models)
        self.calibration, self.coverage = Calibration(), None
        self.task_name = task_name
        # Predictions, targets, and weights if samples have some, by the number of the loader.
        self._scored: dict[int, list[tuple[Tensor, ...]]] = {}
        _describe(self, models, task_name=task_name)

    def forward(self, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        pairs = zip(self.own, self.net.members, strict=True)
        return self._mean([m(own(inputs), *args, **kwargs) for own, m in pairs])[0]

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        outputs = []
        for own, member in zip(self.own, self._members, strict=True):
            # A step of a `Model` takes prepared inputs.
            prepare = member.preprocess if isinstance(member, Model) else own
            mine = batch
            if isinstance(batch, (list, tuple)) and prepare.is_set:
                inputs, *rest = batch
                mine = [prepare(inputs), *rest]
            outputs.append(predictor(member)(mine, batch_idx))
        named = [output if isinstance(output, Mapping) else {} for output in outputs]
        result = {k: v for k, v in named[0].items() if k in ("target", "index")}
        values = [n.get("prediction", o) for n, o in zip(named, outputs, strict=True)]
        result["prediction"], result["std"] = self._mean(values)
        if self.coverage is not None:
            task = task_names().get(self.task_name or "", Task)
            result |= task.regions(self.calibration, torch.stack(values), self.coverage)
        return result

    @property
    def _members(self) -> list[pl.LightningModule]:
        return [m for m in self.net.members if isinstance(m, pl.LightningModule)]

    def _mean(self, outputs: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over the members."""
        name = type(self.net.members[0]).__name__
        for output in outputs:
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"{name} predicts a {type(output).__name__}, which has no average; let "
                    "predict_step return a tensor, or a dictionary that has it as 'prediction'."
                )
            if not output.is_floating_point():
                raise ValueError(
                    f"{name} predicts {output.dtype}, as of classes, which have no average; let "
                    "predict_step return probabilities or logits."
                )
            if output.shape != outputs[0].shape:
                raise ValueError(
                    f"members predict shapes {tuple(outputs[0].shape)} and {tuple(output.shape)}; "
                    "they must be the same."
                )
        stacked = torch.stack(list(outputs))
        return stacked.mean(0), stacked.std(0, correction=0)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        for member in self._members:
            member.trainer = self.trainer  # they may ask it

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._keep(batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._keep(batch, batch_idx, dataloader_idx)

    def _keep(self, batch: Any, batch_idx: int, loader: int) -> None:
        """Keep predictions and targets of a batch until the end of the epoch."""
        found = self.predict_step(batch, batch_idx)
        prediction, target = found["prediction"], found.get("target", target_in(batch))
        if not isinstance(target, Tensor) or len(target) != len(prediction):
            raise ValueError(
                f"the average of {type(self.net.members[0]).__name__} is scored by its predictions "
                "and their targets, which are not known; let predict_step return a dictionary with "
                "'prediction' and 'target'."
            )
        kept = [prediction, target, *([batch[2]] if self._weighted else [])]
        self._scored.setdefault(loader, []).append(tuple(x.cpu() for x in kept))

    def _reset(self, stage: Stage) -> None:
        self._scored = {}

    def _log(self, stage: Stage) -> None:
        for loader, batches in self._scored.items():
            gathered = zip(*gather(batches), strict=True)
            joined = (join_batches(part)["prediction"] for part in gathered)
            end = f"/dataloader_idx_{loader}" if len(self._scored) > 1 else ""
            columns = dict(zip(("prediction", "target", "weight"), joined, strict=False))
            table = PredictionTable(columns, task=self.task_name)
            for name, value in table.score().items():
                self.log(
                    f"{stage}/{name}{end}",
                    value,
                    sync_dist=self.trainer.world_size > 1,  # equal on all ranks
                    add_dataloader_idx=False,
                )
        self._scored = {}


class _Committee(nn.Module):
    """All members' outputs for the same raw inputs, stacked: shape (M, N, ...)."""

    def __init__(self, models: Sequence[pl.LightningModule]) -> None:
        super().__init__()
        self.members = nn.ModuleList(models)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([member(inputs) for member in self.members])


def _at_least_one(members: Sequence[Any], kind: type[Kind]) -> list[Kind]:
    if not members:
        raise ValueError("members is empty; an ensemble needs at least one.")
    return rebuilt(members, kind)


def _describe(model: Model, members: Sequence[pl.LightningModule], **others: Any) -> None:
    """Saves hyperparameters from which the same model can be made again: plain values only."""
    model.save_hyperparameters({"members": described(members), **others}, logger=False)
