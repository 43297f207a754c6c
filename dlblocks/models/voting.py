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
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from dlblocks._lightning import trainer_of
from dlblocks.models._members import Kind, MadeOfTrained, described, rebuilt
from dlblocks.models._predict import gather, join_batches, predictor, target_in
from dlblocks.models.model import Model
from dlblocks.tasks import PredictionTable, Task
from dlblocks.tasks.task import Stage

IDENTITY = (1.0, 0.0)  # the scale and shift of inputs that stay as they are


class VotingEnsemble(MadeOfTrained, Model):
    """The average of several models of one task; evaluated like one, saved and loaded as one.

    ``"soft"`` voting averages what the members predict: of classifiers the probabilities,
    p = (1/M) Σ p_m, and `forward` returns log p, whose softmax is p; of regressors the values.
    ``"hard"`` voting counts the classes that members find likeliest.

    `Trainer.predict` adds the members' ``"std"``, the standard deviation of their predictions (with
    M in the denominator), of the shape of the prediction; `uncertainty` says how much of a
    classifier's doubt is disagreement.

    Members may have been trained on inputs normalised in different ways, as the models of a
    cross-validation are. Given their `normalisations`, the inputs of `forward` are raw, in the
    units of the source; under a Trainer with one of our datamodules, its batches are understood.
    A member that is such an ensemble itself has ``(1.0, 0.0)`` there; if all are, leave them out.

    Args:
        members: Models with a task, or their descriptions in a checkpoint. A checkpoint of yours
            that has members of your own classes is loaded by
            ``dlblocks.models.load(path, classes=[YourModel])``.
        voting: ``"soft"`` or ``"hard"``.
        normalisations: For each member the scale and shift of ``raw * scale + shift`` that it was
            trained on, or None if all take the same inputs.

    Raises:
        ValueError: No members, members of different tasks or numbers of classes, or hard voting
            where there are no classes.
    """

    task: Task

    def __init__(
        self,
        members: Sequence[Any],
        *,
        voting: Literal["soft", "hard"] = "soft",
        normalisations: Sequence[Any] | None = None,
    ) -> None:
        models = _at_least_one(members, Model)
        normalisations = _for_each(models, normalisations)
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
        super().__init__(_Committee(models, normalisations), task)
        if voting == "hard" and not self.task.votes:
            raise ValueError("voting='hard' counts votes for classes, and values have none.")
        self.voting = voting
        _describe(self, models, normalisations, voting=voting)

    def forward(self, inputs: Tensor) -> Tensor:
        return self._of_raw(_raw(self, inputs))

    def _of_raw(self, inputs: Tensor) -> Tensor:
        return self.task.average(self.net(inputs), hard=self.voting == "hard")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        inputs, *rest = batch if isinstance(batch, (list, tuple)) else [batch]
        targets = rest[0] if rest else None
        outputs = _outputs(self, inputs)
        average = self.task.average(outputs, hard=self.voting == "hard")
        result = {"prediction": self.task.predict(average, targets)}
        result.update(zip(("target", "index"), rest, strict=False))
        each = torch.stack([self.task.predict(member, targets) for member in outputs])
        result["std"] = each.std(0, correction=0)
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
        return self.task.uncertainty(_outputs(self, inputs))


class VotingModule(MadeOfTrained, Model):
    """The average of what several LightningModules predict, whoever has written them.

    Each member predicts by its own `predict_step`, or by its `forward` if it has none. What they
    return is averaged as it is: p = (1/M) Σ p_m, be they probabilities, logits or values.

    Losses and metrics of the members are not those of the average. `Trainer.validate` and `test`
    log what the task of its predictions and targets makes of them, such as
    ``test/accuracy``; of several loaders ``test/accuracy/dataloader_idx_1``. Targets are those that
    `predict_step` returns as ``"target"``, else the second entry of the batch, or that of a name
    such as ``"label"``.

    `Trainer.predict` gives a dictionary of ``"prediction"`` and ``"std"``, the members' standard
    deviation (with M in the denominator), both of the shape of one member's prediction.

    Args:
        members: LightningModules. A checkpoint is loaded by ``dlblocks.models.load(path,
            overrides={"members": [make_model() for _ in range(M)]})``.
        normalisations: See `VotingEnsemble`; for batches ``[inputs, …]``.
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

    def __init__(
        self,
        members: Sequence[Any],
        *,
        normalisations: Sequence[Any] | None = None,
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
        super().__init__(_Committee(models, normalisations))
        self.task_name = task_name
        self._scored: dict[int, list[tuple[Tensor, Tensor]]] = {}  # by the number of the loader
        _describe(self, models, normalisations, task_name=task_name)

    def forward(self, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        raw = _raw(self, inputs)
        pairs = enumerate(self.net.members)
        return self._mean([m(self.net.own(i, raw), *args, **kwargs) for i, m in pairs])[0]

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        outputs = []
        for i, member in enumerate(self._members):
            own = batch
            if isinstance(batch, (list, tuple)) and self.net.normalisations:
                inputs, *rest = batch
                own = [self.net.own(i, _raw(self, inputs)), *rest]
            outputs.append(predictor(member)(own, batch_idx))
        named = [output if isinstance(output, Mapping) else {} for output in outputs]
        result = {k: v for k, v in named[0].items() if k in ("target", "index")}
        values = [n.get("prediction", o) for n, o in zip(named, outputs, strict=True)]
        result["prediction"], result["std"] = self._mean(values)
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
        self._scored.setdefault(loader, []).append((prediction.cpu(), target.cpu()))

    def _reset(self, stage: Stage) -> None:
        self._scored = {}

    def _log(self, stage: Stage) -> None:
        for loader, batches in self._scored.items():
            gathered = zip(*gather(batches), strict=True)
            prediction, target = (join_batches(part)["prediction"] for part in gathered)
            end = f"/dataloader_idx_{loader}" if len(self._scored) > 1 else ""
            columns = {"target": target, "prediction": prediction}
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
    """All members' outputs for the same inputs, stacked: shape (M, N, ...)."""

    def __init__(
        self, models: Sequence[pl.LightningModule], normalisations: Sequence[Any] | None
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(models)
        self.normalisations = normalisations is not None
        # No buffers: a model in half precision would round them.
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.dtype_of: Tensor
        self.register_buffer("dtype_of", torch.empty(0), persistent=False)  # that of the members
        if normalisations is not None:
            if len(normalisations) != len(models):
                raise ValueError(
                    f"normalisations has {len(normalisations)} entries and members {len(models)}; "
                    "give one a member."
                )
            self.pairs = [(_exact(scale), _exact(shift)) for scale, shift in normalisations]

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = []
        for i, member in enumerate(self.members):
            own = self.own(i, inputs)
            # What the Trainer made of the inputs is undone already, by the vote that it runs.
            vote = getattr(member, "_of_raw", None)
            outputs.append(member(own) if vote is None else vote(own))
        return torch.stack(outputs)

    def own(self, member: int, inputs: Any) -> Any:
        """Return raw inputs as a member is used to them."""
        if not self.normalisations or _takes_raw(self.members[member]):
            return inputs
        scale, shift = self.pairs[member]
        if inputs.device.type == "mps":  # which has no float64
            scale, shift = scale.float(), shift.float()
        scale, shift = scale.to(inputs.device), shift.to(inputs.device)
        own = self.dtype_of.dtype
        wide = torch.promote_types(torch.promote_types(inputs.dtype, scale.dtype), own)
        return (inputs.to(wide) * scale + shift).to(own)


def _exact(values: Any) -> Tensor:
    """Return numbers as float32 if they are such, else as float64."""
    wide = torch.as_tensor(values, dtype=torch.float64)
    return wide.float() if torch.equal(wide.float().double(), wide) else wide


def _takes_raw(model: Any) -> bool:
    net = getattr(model, "net", None)
    return isinstance(net, _Committee) and net.normalisations


def _at_least_one(members: Sequence[Any], kind: type[Kind]) -> list[Kind]:
    if not members:
        raise ValueError("members is empty; an ensemble needs at least one.")
    return rebuilt(members, kind)


def _for_each(
    models: Sequence[Model], normalisations: Sequence[Any] | None
) -> Sequence[Any] | None:
    """The normalisations, of which members that have some of their own need none but the identity.

    They would take normalised inputs for raw ones, since it is the vote that knows the Trainer.
    """
    raw = [_takes_raw(model) for model in models]
    if normalisations is None and all(raw):
        return [IDENTITY] * len(models)
    pairs = [None] * len(models) if normalisations is None else normalisations
    for i, (takes_raw, pair) in enumerate(zip(raw, pairs, strict=False)):
        if takes_raw and (pair is None or not _is_identity(pair)):
            raise ValueError(
                f"member {i} is an ensemble whose members have normalisations of their own, so "
                f"that it takes inputs in the units of the source; give normalisations= with "
                f"{IDENTITY} for it, and the datamodule's `normalisation` for models that take "
                "normalised inputs."
            )
    return normalisations


def _is_identity(pair: Any) -> bool:
    return all(
        bool((torch.as_tensor(given) == value).all())
        for given, value in zip(pair, IDENTITY, strict=True)
    )


def _describe(
    model: Model,
    members: Sequence[pl.LightningModule],
    normalisations: Sequence[Any] | None,
    **others: Any,
) -> None:
    """Saves hyperparameters from which the same model can be made again: plain values only."""
    plain = None
    if normalisations is not None:
        plain = [[_exact(value).tolist() for value in pair] for pair in normalisations]
    values = {"members": described(members), "normalisations": plain, **others}
    model.save_hyperparameters(values, logger=False)


def warn_of_fitted_inputs(data: Any, cure: str) -> None:
    """Warn if members were trained on inputs that each part of a table's rows makes anew.

    Args:
        data: The datamodule.
        cure: What to do instead.
    """
    if getattr(getattr(data, "source", None), "complete", None) is not None:
        rank_zero_warn(
            "counts=, embed= and imputed cells of this table were fitted to the rows of each "
            "member, but the ensemble gets those that the datamodule fits to its own split, so its "
            "predictions differ a little from what the members learned, and a lot for a category "
            f"of embed= that a member has not seen; {cure}."
        )


def _outputs(model: Model, inputs: Tensor) -> Tensor:
    """What each member puts out for the inputs, shape (M, N, ...)."""
    outputs: Tensor = model.net(_raw(model, inputs))
    return outputs


def _raw(model: Model, inputs: Tensor) -> Tensor:
    """Inputs in the units of the source, whatever the Trainer's datamodule made of them."""
    committee = model.net
    if not (isinstance(committee, _Committee) and committee.normalisations):
        return inputs
    trainer = trainer_of(model)  # it stays after a run
    if trainer is None or trainer.state.status != TrainerStatus.RUNNING:
        return inputs
    inverse = getattr(getattr(trainer, "datamodule", None), "inverse_transform", None)
    return inputs if inverse is None else inverse(inputs)
