"""Fit learners in one Lightning fit whose epochs are the stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dlblocks._errors import check_range
from dlblocks.data import DataModule
from dlblocks.data.dataset import ArrayDataset, EpochSampler, collate
from dlblocks.models.model import Model
from dlblocks.optim import make_optimizer, make_schedule
from dlblocks.runs._trainer import check_trainer_arguments

# Without gradients more samples fit into memory than a training batch has.
EVALUATION_BATCHES = 4
# Normalised inputs that are kept for all stages.
READY_BYTES = 1 << 28
# Arguments of the Trainer that are those of each learner.
OF_LEARNERS = ("max_epochs", "gradient_clip_val", "gradient_clip_algorithm")
# Arguments of the Trainer that mean for a stage what they mean for a fit.
TRAINER = (
    "max_epochs", "gradient_clip_val", "gradient_clip_algorithm", "accelerator", "devices",
    "precision", "deterministic", "benchmark", "detect_anomaly",
)  # fmt: skip
DEFAULT_EPOCHS = 10
FUSED = ("sgd", "momentum", "nesterov", "adam", "adamw")


@dataclass
class Stage:
    """A learner, and the samples and targets to fit it to.

    Attributes:
        learner: A new model.
        positions: Its samples, as positions in the training part, int64, shape (n,).
        targets: Targets of all training samples, shape (N, ...).
        weights: Weights of all training samples, mean 1, shape (N,); None for equal weights.
    """

    learner: Model
    positions: Tensor
    targets: Tensor
    weights: Tensor | None = None


class Booster:
    """Define what each stage learns, and take its outputs.

    Attributes:
        datamodule: The data.
        trainer: Arguments of the Trainer, with ``max_epochs``, the passes over a stage's samples.
        seed: Seed of the learners' weights and draws.
    """

    datamodule: DataModule
    trainer: dict[str, Any]
    seed: int

    def begin_stage(self, stage: int) -> Stage | None:
        """Prepare a stage, or return None if nothing is left."""
        raise NotImplementedError

    def batch_loss(
        self, learner: Any, outputs: Tensor, targets: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Compute the mean loss of a batch."""
        raise NotImplementedError

    def fitted(self, stage: int) -> Mapping[str, Any] | None:
        """Load the weights of a stage of a killed fit, or None."""
        raise NotImplementedError

    def end_stage(self, stage: int, outputs: dict[str, Tensor]) -> bool:
        """Take the learner's outputs for ``"train"`` and ``"val"``.

        Returning False ends the fit.
        """
        raise NotImplementedError


class Stages(pl.LightningModule):
    """Fit many learners, one an epoch.

    A batch is one pass over the samples of a stage.

    A pass takes many optimizer steps, so that the Trainer's own work is done once for all of them:
    with one Trainer a stage, or one of its steps a batch, small nets would wait for it more than
    half of the time.

    Args:
        booster: Defines the stages.
    """

    def __init__(self, booster: Booster) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.booster, self.data = booster, booster.datamodule
        self.epochs = booster.trainer["max_epochs"]
        self.inputs = self.data.raw_inputs("train")
        self.rows = {part: self.data.indices(part) for part in ("train", "val")}
        self.ready: dict[str, Tensor] = {}
        self.stage: Stage | None = None
        self.restored = False

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the numbers of the passes, which the Trainer takes for batches."""
        return DataLoader(range(self.epochs), batch_size=None)  # type: ignore[arg-type]

    def configure_optimizers(self) -> None:
        """Return None, since each learner has its own."""

    def on_fit_start(self) -> None:
        """Normalise the inputs once for all stages, if they fit."""
        floats = sum(map(len, self.rows.values())) * self.inputs[0].numel()
        if self.data.train_transform is None and 4 * floats <= READY_BYTES:
            self.ready = {
                part: self._prepared(self.inputs.index_select(0, rows))
                for part, rows in self.rows.items()
            }

    def on_train_epoch_start(self) -> None:
        number = self.current_epoch
        pl.seed_everything(self.booster.seed + number, verbose=False)
        self.stage = stage = self.booster.begin_stage(number)
        if stage is None:
            return
        precision = self.trainer.precision_plugin
        stage.learner = precision.convert_module(stage.learner).to(self.device)  # type: ignore[assignment]
        stage.learner.train()
        self.targets = stage.targets.to(self.device)
        self.weights = None if stage.weights is None else stage.weights.float().to(self.device)
        of: Any = range(len(stage.positions))  # only its length counts
        size = self._batch_size(len(of))
        self.sampler = EpochSampler(
            of,
            shuffle=True,
            seed=self.data.shuffle_seed,
            avoid_single=size if len(of) > size else None,
        )
        self.restored = False
        if self_fitting(stage.learner) is not None:
            return
        weights = self.booster.fitted(number)
        if weights is None:
            self._make_optimizer(stage.learner, -(-len(self.sampler) // size))
        else:
            stage.learner.load_state_dict(weights)
            self.restored = True

    def _batch_size(self, samples: int) -> int:
        size = self.data.batch_size
        return samples if isinstance(size, str) else size

    def _batches(self, stage: Stage) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and their positions in the training part."""
        order = stage.positions[torch.tensor(list(self.sampler))]
        size = self._batch_size(len(order))
        if self.ready:
            for at in order.to(self.device).split(size):
                yield self.ready["train"].index_select(0, at), at
            return
        data = self.data
        dataset = ArrayDataset(
            self.inputs,
            data.source.targets,
            self.rows["train"][order],
            data.train_transform,
            kinds=data.kinds,
        )
        epoch, whole = self.sampler.epoch, range(len(order))
        in_order = whole if data.train_transform is None else [(epoch, i) for i in whole]
        loader = DataLoader(
            dataset,
            batch_size=size,
            sampler=in_order,
            num_workers=data.num_workers,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(data.shuffle_seed),
        )
        for (inputs, _), at in zip(loader, order.to(self.device).split(size), strict=True):
            yield self._prepared(inputs), at

    def _make_optimizer(self, learner: Model, steps: int) -> None:
        self.optimizer = make_optimizer(
            learner.optimizer_name,
            learner,
            lr=learner.lr,
            weight_decay=learner.weight_decay,
            args={**self._fused(learner), **learner.optimizer_args},
        )
        schedules = make_schedule(
            learner.lr_schedule,
            self.optimizer,
            total_steps=self.epochs * steps,
            steps_per_epoch=steps,
            warmup_steps=learner.warmup_steps,
            args=learner.lr_schedule_args,
        )
        self.schedules: list[Any] = [schedule["scheduler"] for schedule in schedules]

    def _fused(self, learner: Model) -> dict[str, bool]:
        """Ask for the fused kernel, which takes half of the time."""
        given = {"fused", "foreach", "differentiable", "capturable"} & learner.optimizer_args.keys()
        can = learner.optimizer_name in FUSED and self.device.type in ("cpu", "cuda")
        return {"fused": True} if can and not given else {}

    def training_step(self, number: int, batch_idx: int) -> None:
        stage = self.stage
        if stage is None or self.restored:
            return
        learner = stage.learner
        if (fit := self_fitting(learner)) is not None:
            if number == 0:
                at = stage.positions.to(self.device)
                inputs = torch.cat(list(self._in_order("train")))[at]
                fit(inputs, self.targets[at], None if self.weights is None else self.weights[at])
            return
        self.sampler.set_epoch(self.current_epoch * self.epochs + number)
        parameters = [p for p in learner.parameters() if p.requires_grad]
        arguments = self.booster.trainer
        largest, losses = arguments.get("gradient_clip_val"), []
        for inputs, at in self._batches(stage):
            weights = None if self.weights is None else self.weights[at]
            loss = self.booster.batch_loss(learner, learner(inputs), self.targets[at], weights)
            self.optimizer.zero_grad()
            loss.backward()
            if largest and arguments.get("gradient_clip_algorithm") == "value":
                nn.utils.clip_grad_value_(parameters, largest)
            elif largest:
                nn.utils.clip_grad_norm_(parameters, largest)
            self.optimizer.step()
            for schedule in self.schedules:
                schedule.step()
            losses.append(loss.detach())
        # Once a pass: reading a number from an accelerator waits for it.
        if not math.isfinite(mean := torch.stack(losses).mean().item()):
            raise FloatingPointError(
                f"the loss of the learner of stage {self.current_epoch + 1} is {mean} in pass "
                f"{number + 1}; lower lr (now {learner.lr}), clip gradients, or look for values in "
                "the data that are not finite."
            )

    def on_train_epoch_end(self) -> None:
        go_on = False
        if self.stage is not None:
            learner, self.stage = self.stage.learner, None
            outputs = {part: self._outputs(learner, part) for part in self.rows}
            learner.cpu()  # of all learners, one at a time is on the accelerator
            go_on = self.booster.end_stage(self.current_epoch, outputs)
        if not go_on:
            self.trainer.should_stop = True

    def _outputs(self, learner: Model, part: str) -> Tensor:
        """Compute a learner's outputs for a part, float64 on the CPU."""
        learner.eval()
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            found = [learner(inputs).double().cpu() for inputs in self._in_order(part)]
        return torch.cat(found) if found else torch.empty(0)

    def _in_order(self, part: str) -> Iterator[Tensor]:
        """Yield the inputs of a part, without the transform of training."""
        size = EVALUATION_BATCHES * self._batch_size(len(self.rows[part]) or 1)
        if self.ready:
            yield from self.ready[part].split(size) if len(self.ready[part]) else ()
            return
        for rows in self.rows[part].split(size) if len(self.rows[part]) else ():
            yield self._prepared(self.data.kinds["inputs"].gather(self.inputs, rows))

    def _prepared(self, inputs: Tensor) -> Tensor:
        """Bring raw inputs to the device, normalised, in the learner's precision."""
        inputs = self.data.transform(inputs.to(self.device, non_blocking=True))
        found: Tensor = self.trainer.precision_plugin.convert_input(inputs)
        return found


def self_fitting(learner: nn.Module) -> Callable[..., Any] | None:
    """Return `fit_samples` of a learner or its net, or None."""
    for owner in (learner, getattr(learner, "net", None)):
        fit = getattr(owner, "fit_samples", None)
        if callable(fit):
            found: Callable[..., Any] | None = fit
            return found
    return None


def check_stage_trainer(trainer: Mapping[str, Any] | None) -> dict[str, Any]:
    """Copy the Trainer arguments of stages, and check them."""
    arguments = {"max_epochs": DEFAULT_EPOCHS, **check_trainer_arguments(trainer)}
    del arguments["enable_model_summary"]  # a default
    for name, value in arguments.items():
        if name not in TRAINER:
            raise ValueError(
                f"trainer={{{name!r}: {value!r}}} has no meaning for the stages of boosting. "
                f"There are: {', '.join(TRAINER)}."
            )
    check_range("max_epochs", arguments["max_epochs"], 1)
    if arguments.get("devices", 1) not in (1, "1", [0], "auto"):
        raise ValueError(
            f"trainer={{'devices': {arguments['devices']!r}}}, but boosting fits one learner after "
            "another on one device; use devices=1."
        )
    if str(arguments.get("precision")) in ("16", "16-mixed", "16-true"):
        raise ValueError(
            f"trainer={{'precision': {arguments['precision']!r}}} needs its gradients scaled, "
            "which boosting does not do; use 'bf16-mixed' or '32-true'."
        )
    return {**arguments, "devices": 1}
