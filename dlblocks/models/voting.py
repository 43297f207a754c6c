"""Average the predictions of several models.

Averaging members that err differently lowers the error (Hansen and Salamon, "Neural Network
Ensembles", 1990). With the models of a cross-validation as members it is also called CV bagging
(Krogh and Vedelsby, "Neural Network Ensembles, Cross Validation, and Active Learning", 1995).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from dlblocks._errors import check_range
from dlblocks._npz import Growing
from dlblocks._ragged import entries_of
from dlblocks.models._conformal import Calibration
from dlblocks.models._predict_batches import gather, predictor, target_in, to_numpy
from dlblocks.models._trained_members import MadeOfTrained, Trained, common_spec, described, rebuilt
from dlblocks.models.language import LanguageModel, average_language_model
from dlblocks.models.model import Model, beside_inputs
from dlblocks.nets import Preprocess
from dlblocks.nets.preprocess import PassOn
from dlblocks.tasks import PredictionTable, Task, task_names
from dlblocks.tasks.task import Stage


class VotingEnsemble(MadeOfTrained, Model):
    """The average of several models of one task.

    It is evaluated, saved and loaded like a single model. ``"soft"`` voting averages the members'
    predictions. For classifiers these are probabilities, p = (1/M) Σ p_m, and `forward` returns
    log p, whose softmax is p. ``"hard"`` voting counts how many members find a class likeliest.

    `Trainer.predict` adds ``"std"``, the standard deviation of the members' predictions (with M in
    the denominator), of the shape of the prediction. `uncertainty` tells how much of a classifier's
    uncertainty is disagreement of its members.

    Inputs are raw, as for any `Model`. Each member applies its own `preprocess`, since the models
    of a cross-validation have statistics of their own training parts.

    Args:
        members: Models with a task, or their descriptions in a checkpoint. Load a checkpoint whose
            members are of your own classes with
            ``dlblocks.models.load(path, classes=[YourModel])``.
        voting: ``"soft"`` or ``"hard"``.
        temperature: T by which the members' logits are divided (Guo et al. 2017). Above 1, the
            probabilities are less certain.

    Attributes:
        coverage: Set it, to 0.9 for example, and `Trainer.predict` adds prediction intervals,
            ``"lower"`` and ``"upper"``, or for classes ``"in_set"``, bool of shape (N, C).
        calibration: Out-of-fold scores for the intervals. A fold average has them.

    Raises:
        ValueError: There are no members, their tasks or numbers of classes differ, hard voting is
            asked of regressors, or only some members have statistics of their inputs.
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
                f"member {known.index(False)} has no statistics of its inputs (preprocess), but "
                f"member {known.index(True)} has; set model.preprocess of the former, or train it "
                "with a datamodule of dlblocks."
            )
        tasks = [model.task for model in models]
        for model, task in zip(models, tasks, strict=True):
            if task is None:
                raise ValueError(
                    f"members hold a {type(model).__name__}, which has no task; use "
                    "Model(net, task), a Classifier or a Regressor."
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
            raise ValueError(
                "voting='hard' counts votes for classes, which regression does not have; use "
                "voting='soft'."
            )
        check_range("temperature", temperature, 0, low_open=True)
        if temperature != 1 and not self.task.votes:
            raise ValueError(
                "temperature scales the logits of classes, which regression does not have; use "
                "temperature=1."
            )
        self.voting, self.temperature = voting, float(temperature)
        _describe(self, models, voting=voting, temperature=self.temperature)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.task.average(self._outputs(inputs), hard=self.voting == "hard")

    def _outputs(self, inputs: Tensor) -> Tensor:
        """Return the members' outputs (M, N, ...), divided by the temperature."""
        outputs: Tensor = self.net(inputs)
        return outputs if self.temperature == 1 else outputs / self.temperature

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        inputs, *rest = entries_of(batch)
        targets = rest[0] if rest else None
        outputs = self._outputs(inputs)
        average = self.task.average(outputs, hard=self.voting == "hard")
        result = {"prediction": self.task.predict(average, targets)}
        result |= self.task.from_inputs(inputs) | beside_inputs(rest)
        each = torch.stack([self.task.predict(member, targets) for member in outputs])
        result["std"] = each.std(0, correction=0)
        if self.coverage is not None:
            result |= self.task.regions(self.calibration, each, self.coverage)
        return result

    def generate(self, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        """Continue texts by the mean probabilities of language models.

        Args:
            prompts: As for `dlblocks.models.LanguageModel.generate`.
            *args: Likewise.
            **kwargs: Likewise.

        Raises:
            ValueError: A member is not a language model.
        """
        net: Any = self.net
        members = list(net.members)
        for member in members:
            if not isinstance(member, LanguageModel):
                raise ValueError(
                    f"generate continues texts, but a member is a {type(member).__name__}; use "
                    "predict."
                )
        return average_language_model(members, self.data_spec).generate(prompts, *args, **kwargs)

    @torch.no_grad()
    def uncertainty(self, inputs: Tensor) -> dict[str, Tensor]:
        """Compute the uncertainty about each sample in nats, shape (N,).

        ``"entropy"`` is that of the average, H(p) = -Σ p log p. It is the sum of two parts:
        ``"expected_entropy"``, (1/M) Σ H(p_m), is the uncertainty within the members.
        ``"mutual_information"`` is their disagreement, which more data could remove (Houlsby et al.
        2011; Depeweg et al. 2018). Hard voting changes nothing: the members' probabilities count.

        Args:
            inputs: As for `forward`.

        Raises:
            ValueError: The members do not predict one class for each sample.
        """
        return self.task.uncertainty(self._outputs(inputs))


class VotingModule(MadeOfTrained, Model):
    """The average of the predictions of any LightningModules.

    Each member predicts with its own `predict_step`, or with `forward` if it has none. Their
    results, be they probabilities, logits or values, are averaged unchanged: p = (1/M) Σ p_m.

    The members' own losses and metrics do not apply to the average. `Trainer.validate` and `test`
    log the metrics of the task that fits predictions and targets, such as ``test/accuracy``, or
    ``test/accuracy/dataloader_idx_1`` for one of several loaders. The targets are the ``"target"``
    that `predict_step` returns, else the second entry of the batch, or its entry with a name such
    as ``"label"``.

    A module of yours has no statistics of its inputs. ``average.own[k]``, a
    `dlblocks.nets.Preprocess`, holds those of member k, in a fold average those of its fold.
    Batches are then ``[inputs, …]`` with raw inputs.

    `Trainer.predict` returns dictionaries of ``"prediction"`` and ``"std"``, the members' standard
    deviation (with M in the denominator), both of the shape of one member's prediction.

    Args:
        members: LightningModules. Load a checkpoint with ``dlblocks.models.load(path,
            overrides={"members": [make_model() for _ in range(M)]})``.
        task_name: What they predict, such as ``"multilabel"``; see `dlblocks.tasks.find_task`.

    Raises:
        ValueError: There are no members, or one cannot predict. Predictions without an average,
            such as classes, are refused when they occur.

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
                f"the members are of {members[0]}, which cannot be created from a checkpoint; give "
                f"them with any weights: overrides={{'members': [make_model() for _ in "
                f"range({len(members)})]}}."
            )
        models = _at_least_one(members, pl.LightningModule)
        for model in models:
            predictor(model)
        super().__init__(_Committee(models))
        # A `Model` applies its own `preprocess`.
        own = [PassOn([m.preprocess]) if isinstance(m, Model) else Preprocess() for m in models]
        self.own = nn.ModuleList(own)
        self.preprocess = PassOn(own)
        self.data_spec = common_spec(models)
        self.calibration, self.coverage = Calibration(), None
        self.task_name = task_name
        # Predictions, targets and, if there are any, sample weights, by number of the loader.
        self._scored: dict[int, list[Growing]] = {}
        _describe(self, models, task_name=task_name)

    def forward(self, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        pairs = zip(self.own, self.net.members, strict=True)
        return self._mean([m(own(inputs), *args, **kwargs) for own, m in pairs])[0]

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        outputs = []
        for own, member in zip(self.own, self._members, strict=True):
            # The step of a `Model` expects prepared inputs.
            prepare = member.preprocess if isinstance(member, Model) else own
            mine = batch
            if isinstance(batch, (list, tuple)) and prepare.is_set:
                inputs, *rest = entries_of(batch)
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
                    "predict_step return a tensor, or a dictionary with a tensor 'prediction'."
                )
            if not output.is_floating_point():
                raise ValueError(
                    f"{name} predicts {output.dtype}, probably classes, which have no average; let "
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
            member.trainer = self.trainer  # they may use it

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._keep(batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._keep(batch, batch_idx, dataloader_idx)

    def _keep(self, batch: Any, batch_idx: int, loader: int) -> None:
        """Keep a batch's predictions and targets until the epoch ends."""
        found = self.predict_step(batch, batch_idx)
        prediction, target = found["prediction"], found.get("target", target_in(batch))
        if not isinstance(target, Tensor) or len(target) != len(prediction):
            raise ValueError(
                f"the targets of {type(self.net.members[0]).__name__} are not known, so its "
                "average cannot be scored; let predict_step return a dictionary with 'prediction' "
                "and 'target'."
            )
        kept = [prediction, target, *([batch[2]] if self._weighted else [])]
        columns = self._scored.setdefault(loader, [Growing() for _ in kept])
        for column, values in zip(columns, kept, strict=True):
            column.add(to_numpy(values))

    def _reset(self, stage: Stage) -> None:
        self._scored = {}

    def _log(self, stage: Stage) -> None:
        for loader, growing in self._scored.items():
            ranks = gather([[column.finish() for column in growing]])
            joined = (p[0] if len(p) == 1 else np.concatenate(p) for p in zip(*ranks, strict=True))
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
    """Stack the members' outputs for the same inputs, shape (M, N, ...)."""

    def __init__(self, models: Sequence[pl.LightningModule]) -> None:
        super().__init__()
        self.members = nn.ModuleList(models)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([member(inputs) for member in self.members])


def _at_least_one(members: Sequence[Any], kind: type[Trained]) -> list[Trained]:
    if not members:
        raise ValueError("members is empty; an ensemble needs at least one.")
    return rebuilt(members, kind)


def _describe(model: Model, members: Sequence[pl.LightningModule], **others: Any) -> None:
    """Save plain hyperparameters from which the model can be created again."""
    model.save_hyperparameters({"members": described(members), **others}, logger=False)
