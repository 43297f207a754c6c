"""`Model`, the base class of this package's LightningModules.

One step serves training, validation and test. A step puts its loss, predictions and targets into a
buffer. They are checked, summed and logged after some steps, for two reasons: logging a key costs
Lightning about as much as the step of a small net, and reading a number waits for the accelerator.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MetricCollection

from dlblocks._errors import CheckedConstructor, check_range, constructor_arguments, signature_of
from dlblocks._lightning import datamodule_of, log_as, trainer_of
from dlblocks._ragged import entries_of
from dlblocks.fields import kinds_of
from dlblocks.models import _checkpoints as checkpoints
from dlblocks.models._inputs import (
    adapt,
    prepare_batches,
    release_batches,
    with_prepared_inputs,
)
from dlblocks.models._step_buffer import (
    StageMetrics,
    StepBuffer,
)
from dlblocks.nets import Preprocess
from dlblocks.optim import check_optimizer, check_schedule, make_optimizer, make_schedule
from dlblocks.optim.schedules import schedule_needs_total_steps
from dlblocks.tasks import Task
from dlblocks.tasks.task import Stage, is_ours

STAGES: tuple[Stage, ...] = ("train", "val", "test")


class Model(CheckedConstructor, pl.LightningModule):
    """A LightningModule with a net, a task and an optimizer.

    The task defines loss, metrics and predictions. A subclass may override `loss`, `make_metrics`
    and `prediction`. The model logs ``<stage>/loss`` and ``<stage>/<metric>`` for the stages train,
    val and test, once per epoch, over all samples of the epoch and all ranks.

    A training loss that is not finite stops the fit with an error that names the step.

    **Inputs** are raw, in the units of the source: ``model(raw)`` is ``net(preprocess(raw))``. A
    fit with a datamodule of this package sets `preprocess` to the statistics of its training part,
    unless they are set already, as in a loaded model.

    Within a Trainer, `preprocess` is applied once, when a batch arrives. Callbacks and steps get
    prepared inputs. ``self(inputs)`` within a step, or within a hook of the model that gets the
    batch, expects prepared inputs. A callback calls ``pl_module.forward_prepared(inputs)`` with
    inputs of a batch, and ``pl_module(raw)`` with others. Batches that are not ``[inputs, …]``,
    such as dictionaries, stay raw, and in their steps ``self(inputs)`` expects raw inputs.

    **New data**: a fit leaves in `data_spec` how a sample becomes raw inputs (columns and
    categories, image size) and the names of the classes, as plain values. Checkpoints keep it, and
    ``dlblocks.load(path).predict("new.csv")`` reads new data by it.

    Args:
        net: Maps a batch of prepared inputs to outputs.
        task: The learning problem; see `dlblocks.tasks`. None for a subclass that defines `loss`.
        optimizer: Name of the optimizer, or class path; see `dlblocks.optim.make_optimizer`.
        lr: Learning rate; None for the optimizer's default.
        weight_decay: Decay of the weights. It does not apply to norms, biases and tokens.
        optimizer_args: Further arguments of the optimizer, such as ``{"betas": [0.9, 0.99]}``, and
            of its groups: ``{"lr_groups": {"net.head": 10.0}, "layer_decay": 0.9}``; see
            `dlblocks.optim.param_groups`. `dlblocks.optim.describe` shows them.
        lr_schedule: Name of the learning-rate schedule; see `dlblocks.optim.SCHEDULES`.
        lr_schedule_args: Its arguments, such as ``{"step_size": 10}``.
        warmup_steps: Optimizer steps over which the learning rate rises linearly from 0.
    """

    def __init__(
        self,
        net: nn.Module | None = None,
        task: Task | None = None,
        *,
        optimizer: str = "adam",
        lr: float | None = None,
        weight_decay: float = 0.0,
        optimizer_args: dict[str, Any] | None = None,
        lr_schedule: str = "constant",
        lr_schedule_args: dict[str, Any] | None = None,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        check_range("weight_decay", weight_decay, 0)
        check_optimizer(optimizer, optimizer_args, weight_decay=weight_decay)
        check_schedule(lr_schedule, lr_schedule_args, warmup_steps=warmup_steps)
        if lr is not None:
            check_range("lr", lr, 0)
        if isinstance(net, Model) and net.preprocess.is_set:
            name = type(net).__name__
            raise ValueError(
                f"net is a {name} with statistics of its inputs (preprocess), so inputs would be "
                f"normalised twice; give {type(self).__name__}(model.net), and set its preprocess "
                "to that of the model to keep the statistics."
            )
        self.preprocess: Preprocess = Preprocess()
        # Plain values of the encoder that turns samples into inputs. A fit sets them.
        self.data_spec: dict[str, Any] | None = None
        self.net = nn.Identity() if net is None else net
        self.task = task
        self.optimizer_name = optimizer
        # Plain numbers, because the optimizer's state goes into checkpoints, where NumPy's cannot.
        self.lr = None if lr is None else float(lr)
        self.weight_decay = float(weight_decay)
        self.optimizer_args = dict(optimizer_args or {})
        self.lr_schedule = lr_schedule
        self.lr_schedule_args = dict(lr_schedule_args or {})
        self.warmup_steps = warmup_steps
        self._metrics = nn.ModuleDict()
        if not self.is_standard("make_metrics") or (task is not None and task.chosen):
            # A user's metrics are created now, since they may raise an error or have sums that
            # checkpoints hold. Ours are created when they are needed: that takes longer than
            # creating a small net, and most models of an ensemble never need them.
            for stage in STAGES:
                self._stage_metrics(stage)
        self._buffers_of: dict[str, StepBuffer] = {stage: StepBuffer() for stage in STAGES}
        self._first_batch = True
        # True within steps whose inputs have been through `preprocess`, False within others, None
        # outside of steps.
        self._prepared: bool | None = None
        self._weighted = False  # True if batches are [inputs, targets, weights]
        # True while a callback such as `SAM` repeats a step. Its loss and metrics do not count.
        self.metrics_paused = False
        # Lightning collects the arguments of all constructors that led here, the subclass's too.
        self.save_hyperparameters(ignore=self._unsaved_arguments())
        if task is not None and task.chosen:
            log_as(self, "metrics", list(task.chosen_metrics()))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        adapt(cls, Model)

    # Defined by the task; a subclass may override them

    def make_metrics(self, stage: Stage) -> MetricCollection:
        """Create the metrics of a stage. They get the results of `for_metrics`."""
        return MetricCollection({}) if self.task is None else self.task.make_metrics(stage)

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the mean loss of a batch, a scalar.

        With weights (N,) it is the mean of ``weight * loss``.
        """
        if self.task is None:
            raise NotImplementedError(
                f"{type(self).__name__} needs a task, or its own method loss(outputs, targets)."
            )
        if weights is None:
            return self.task.loss(outputs, targets)
        return self.task.loss(outputs, targets, weights)

    @property
    def loss_range(self) -> tuple[float | None, float | None]:
        """Lowest and highest possible loss, None for an unknown bound."""
        if self.task is None or not is_ours(type(self).loss):
            return None, None
        return self.task.loss_range

    def for_metrics(self, outputs: Tensor, targets: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        """Return the predictions and targets of a batch that the metrics need."""
        if self.task is None:
            return outputs, targets
        if not is_ours(type(self).make_metrics):  # in training they may need more than ours
            stage = "val"
        kept, targets = self.task.for_metrics(outputs, targets, stage)
        # In training our classifiers keep only the predicted classes.
        own = kept.is_floating_point() and not is_ours(type(self).prediction)
        return (self.prediction(outputs) if own else kept), targets

    def prediction(self, outputs: Tensor) -> Tensor:
        """Return the predictions for outputs of the net."""
        return outputs if self.task is None else self.task.predict(outputs)

    def is_standard(self, *names: str) -> bool:
        """Tell whether the task and these methods are those of this package."""
        task = self.task is None or is_ours(type(self.task))
        return task and all(is_ours(getattr(type(self), name)) for name in names)

    def check_data(self, datamodule: Any) -> None:
        """Raise a `ValueError` if the model does not fit the data."""
        shape = getattr(datamodule, "input_shape", None)
        check_input = getattr(self.net, "check_input", None)
        if isinstance(shape, tuple) and callable(check_input):
            if None in shape and not getattr(self.net, "takes_padded", False):
                raise ValueError(
                    f"{type(self.net).__name__} needs inputs of one shape, but the sequences of "
                    f"{type(datamodule).__name__} have unequal lengths; use a net over padded "
                    "batches, such as dlblocks.nets.RNN."
                )
            check_input(shape)
        check_embeddings = getattr(self.net, "check_embeddings", None)
        if callable(check_embeddings):
            embeddings = getattr(datamodule, "embeddings", None) or {}
            check_embeddings(embeddings, type(datamodule).__name__)
        if self.task is not None:
            self.task.check_data(datamodule, type(self).__name__)

    def check_batch(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise a `ValueError` if targets do not fit outputs.

        It is called on the first batch.
        """
        if self.task is not None:
            self.task.check_batch(outputs, targets)

    @property
    def not_vectorizable(self) -> str | None:
        """Reason why several such models cannot be fitted as one, or None.

        A subclass with a training of its own gives one. `dlblocks.engine` asks for it.
        """
        return None

    @property
    def not_exportable(self) -> str | None:
        """Reason why `dlblocks.loading.Predictor.export` refuses the model, or None."""
        return None

    # Steps

    def forward(self, inputs: Tensor) -> Tensor:
        if not self._prepared:
            inputs = self.preprocess(inputs)
        outputs: Tensor = self.net(inputs)
        return outputs if self.task is None else self.task.decode(outputs)

    def forward_prepared(self, inputs: Tensor) -> Tensor:
        """Call `forward` with inputs that have been through `preprocess` already."""
        before, self._prepared = self._prepared, True
        try:
            outputs: Tensor = self(inputs)
            return outputs
        finally:
            self._prepared = before

    @with_prepared_inputs
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    @with_prepared_inputs
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._step(batch, "val")

    @with_prepared_inputs
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._step(batch, "test")

    @with_prepared_inputs
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return the prediction, and the target and index that the batch has.

        The keys are ``"prediction"``, ``"target"`` and ``"index"``. Predictions of classes are
        probabilities (N, C); those of values have the shape of the targets. The index (N,) is each
        sample's row in its data set.
        """
        inputs, *rest = entries_of(batch)
        outputs = self(inputs)
        if self.task is None or not is_ours(type(self).prediction):
            result = {"prediction": self.prediction(outputs)}
            if self.task is not None:
                targets = rest[0] if rest else None
                result["prediction"] = self.task.shaped(result["prediction"], targets)
        else:
            result = {"prediction": self.task.predict(outputs, rest[0] if rest else None)}
        if self.task is not None:
            result |= self.task.from_inputs(inputs)
        return result | beside_inputs(rest)

    def _step(self, batch: Any, stage: Stage) -> Tensor:
        inputs, targets = self._inputs_and_targets(batch)
        weights = batch[2] if self._weighted else None
        # Here, because the metrics below need it too.
        if self.task is not None and (found := self.task.from_inputs(inputs)):
            targets = self.task.join(targets, found)
        outputs, loss = self.outputs_and_loss(inputs, targets, weights)
        if self._first_batch:
            self._check_loader(stage)
            self._first_batch = False
        if self.metrics_paused:
            return loss
        buffer = self._buffers_of[stage]
        # Detached, so that the buffer does not hold the graph.
        free = outputs.detach() if isinstance(outputs, Tensor) else outputs
        kept = self.for_metrics(free, targets, stage)
        beside = () if weights is None else (weights,)
        counted = None if self.task is None else self.task.counted(targets)
        buffer.add(loss.detach(), (*kept, *beside), step=self.global_step, counted=counted)
        if buffer.is_full or (stage == "train" and loss.device.type == "cpu"):
            self._flush(stage, whole=buffer.is_full)
        return loss

    def outputs_and_loss(
        self, inputs: Tensor, targets: Any, weights: Tensor | None = None
    ) -> tuple[Any, Tensor]:
        """Compute the outputs for prepared inputs of a batch, and their loss.

        A model over a net that computes its own loss overrides it.

        Args:
            inputs: Shape (N, ...).
            targets: Shape (N, ...).
            weights: How much each sample counts, shape (N,), or None.
        """
        outputs = self(inputs)
        if self._first_batch:
            if not isinstance(outputs, Tensor):
                named = ", ".join(map(repr, outputs)) if isinstance(outputs, dict) else ""
                raise TypeError(
                    f"{type(self.net).__name__} returns a {type(outputs).__name__}"
                    f"{f' with {named}' if named else ''}, but {type(self).__name__} expects a "
                    "tensor; define forward in a subclass, such as return "
                    f"self.net(inputs)[{next(iter(outputs), 0) if named else 0!r}]."
                )
            self.check_batch(outputs, targets)
        try:
            if weights is None:
                return outputs, self.loss(outputs, targets)
            return outputs, self.loss(outputs, targets, weights)
        except IndexError:  # a label that the first batch did not have
            self.check_batch(outputs, targets)
            raise

    def _check_loader(self, stage: Stage) -> None:
        """Raise a `ValueError` if a loader has sample weights that nobody told the model of."""
        name = "train_dataloader" if stage == "train" else f"{stage}_dataloaders"
        found = getattr(trainer_of(self), name, None)
        for loader in found if isinstance(found, list) else [found]:
            weights = getattr(getattr(loader, "dataset", None), "weights", None)
            if isinstance(weights, Tensor) and not self._weighted:
                raise ValueError(
                    "the loader has sample weights, which count only with its datamodule; give "
                    "datamodule=… to the Trainer instead of loaders."
                )

    def _inputs_and_targets(self, batch: Any) -> tuple[Tensor, Tensor]:
        entries = entries_of(batch)
        if isinstance(batch, (list, tuple)) and len(entries) >= 2 + self._weighted:
            return entries[0], entries[1]
        size = f" of {len(batch)}" if isinstance(batch, (list, tuple, dict)) else ""
        raise ValueError(
            f"{type(self).__name__} expects batches [inputs, targets"
            f"{', weights' if self._weighted else ''}], got {type(batch).__name__}{size}; give "
            "your DataLoader a collate_fn that returns such batches."
        )

    def _flush(self, stage: Stage, *, whole: bool = True) -> None:
        """Check the buffered losses. If `whole`, move the buffer into the metrics."""
        buffer = self._buffers_of[stage]
        if stage == "train":
            buffer.check_finite(self)
        if whole and len(buffer):
            self.update_metrics(stage, *buffer.take())

    def flush_metrics(self) -> None:
        """Move the training buffer into the metrics, where `ExactResume` saves it."""
        self._stage_metrics("train")  # creates them, to be saved or restored
        self._flush("train")

    def update_metrics(self, stage: Stage, losses: Tensor, sizes: Tensor, *kept: Tensor) -> None:
        """Add batches to the metrics of a stage.

        Args:
            stage: The stage.
            losses: The mean loss of each batch, shape (B,).
            sizes: The number of samples of each batch, or what `Task.counted` counts, or the sum of
                their weights, shape (B,).
            *kept: Predictions and targets of all samples, as returned by `for_metrics`, and the
                weights of the samples if there are any.
        """
        metrics = self._stage_metrics(stage)
        metrics.loss.update(losses, sizes)
        metrics.others.update(*kept)

    def compute_metrics(self, stage: Stage) -> dict[str, Tensor]:
        """Compute the metrics of a stage over all ranks, by logged name."""
        metrics = self._stage_metrics(stage)
        values = {"loss": metrics.loss.compute(), **metrics.others.compute()}
        return {f"{stage}/{name}": value for name, value in values.items()}

    def reset_metrics(self, stage: Stage) -> None:
        """Reset the metrics of a stage."""
        metrics = self._stage_metrics(stage)
        metrics.loss.reset()
        metrics.others.reset()

    def _stage_metrics(self, stage: Stage) -> StageMetrics:
        # With a suffix, because a child module cannot be called "train", like a method.
        name = f"{stage}_metrics"
        if name not in self._metrics:
            self._metrics[name] = StageMetrics(self.make_metrics(stage)).to(self.device)
        metrics = self._metrics[name]
        assert isinstance(metrics, StageMetrics)  # for the type checker
        return metrics

    # Epochs

    def setup(self, stage: str) -> None:
        self._first_batch = True
        prepare_batches(self)
        self.use_weights("weights" in kinds_of(self.datamodule))
        if self.datamodule is not None:
            self.check_data(self.datamodule)
        if stage == "fit" and self.task is not None:
            self.task.fit_to(self.datamodule)

    def use_weights(self, weighted: bool) -> None:
        """Prepare for batches with or without sample weights."""
        if weighted == self._weighted:
            return
        self._weighted = weighted
        if self.task is not None:
            self.task.weighted = weighted
        for stage in [name.removesuffix("_metrics") for name in self._metrics]:
            del self._metrics[f"{stage}_metrics"]  # those with and without weights differ
        if not weighted:
            return
        takes_weights("loss", self.loss)
        if self.task is not None:
            takes_weights(f"{type(self.task).__name__}.loss", self.task.loss)
        for stage in STAGES:
            for name, metric in self._stage_metrics(stage).others.items():
                takes_weights(f"the metric {name!r}", metric.update)

    def teardown(self, stage: str) -> None:
        release_batches(self)

    @property
    def datamodule(self) -> Any:
        """The Trainer's datamodule, or None if it was given loaders."""
        return datamodule_of(self.trainer)

    def on_train_epoch_start(self) -> None:
        self._reset("train")

    def on_validation_epoch_start(self) -> None:
        self._reset("val")

    def on_test_epoch_start(self) -> None:
        self._reset("test")

    def on_train_epoch_end(self) -> None:
        self._log("train")

    def on_validation_epoch_end(self) -> None:
        self._log("val")

    def on_test_epoch_end(self) -> None:
        self._log("test")

    def _reset(self, stage: Stage) -> None:
        self._buffers_of[stage] = StepBuffer()
        self.reset_metrics(stage)

    def _log(self, stage: Stage) -> None:
        self._flush(stage)
        names = ("loss", *(self.task.shown if self.task else ()))
        shown = {f"{stage}/{name}" for name in names} if stage == "val" else ()
        # These are metrics of all ranks already. Lightning's mean over ranks does not change them.
        for name, value in self.compute_metrics(stage).items():
            value = value if value.is_floating_point() else value.float()
            self.log(name, value, prog_bar=name in shown, sync_dist=self.trainer.world_size > 1)

    # Optimization

    def make_optimizer(self) -> Optimizer:
        """Create the optimizer."""
        return make_optimizer(
            self.optimizer_name,
            self,
            lr=self.lr,
            weight_decay=self.weight_decay,
            args=self.optimizer_args,
        )

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        if isinstance(optimizer, torch.optim.LBFGS):
            accumulated, ranks = self.trainer.accumulate_grad_batches, self.trainer.world_size
            if accumulated > 1 or ranks > 1:
                raise ValueError(
                    f"accumulate_grad_batches={accumulated} on {ranks} devices, but lbfgs computes "
                    "the loss of one batch on one device several times a step; use a larger "
                    "batch_size, such as 'full', and devices=1."
                )
        total_steps = steps_per_epoch = None
        if schedule_needs_total_steps(self.lr_schedule) or self.warmup_steps:
            total = self.trainer.estimated_stepping_batches
            total_steps = int(total) if 0 < total < float("inf") else None
            batches = self.trainer.num_training_batches
            if batches != float("inf"):
                steps_per_epoch = -(-int(batches) // self.trainer.accumulate_grad_batches)
        schedules = make_schedule(
            self.lr_schedule,
            optimizer,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            warmup_steps=self.warmup_steps,
            args=self.lr_schedule_args,
        )
        return [optimizer], schedules

    # Checkpoints

    def save(self, path: str | PathLike[str]) -> None:
        """Write a checkpoint that `dlblocks.load` and `load` read, without a Trainer.

        Args:
            path: The file, such as ``"model.ckpt"``. It is written completely or not at all.
        """
        checkpoints.write_checkpoint(Path(path), self, epoch=0, global_step=0)

    def to_torchscript(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: PyTorch gives TorchScript up, and it knows no `preprocess`."""
        raise NotImplementedError(
            "to_torchscript is not supported; dlblocks.load(model).export('model.pt2') writes the "
            "model with its normalisation for torch.export.load, and export('model.onnx') for "
            "ONNX Runtime."
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoints.describe(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoints.check_same(self, checkpoint)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Model:
        """Load a model of this class, in evaluation mode.

        Only tensors and plain values are read. Keyword arguments replace saved hyperparameters. A
        model over a net of your own needs it again: ``load_from_checkpoint(path, net=net)``.

        Raises:
            ValueError: The file is truncated, holds another class or names code to run.
        """
        if hparams_file is not None or weights_only is False:
            raise ValueError(
                "load_from_checkpoint reads only plain values, and hyperparameters from the "
                "checkpoint; leave out hparams_file and weights_only=False."
            )
        return load(
            checkpoint_path,
            only=cls,
            map_location=map_location,
            strict=strict is not False,
            overrides=kwargs,
        )

    @classmethod
    def _accepted(cls) -> list[str]:
        return cls.hyperparameter_names()

    @classmethod
    def _check_all(cls, args: Any, kwargs: Any) -> None:
        made = {"net", "task"} & kwargs.keys() - {*signature_of(cls.__init__).parameters}
        if made and cls.__module__.startswith("dlblocks."):
            name = min(made)
            raise TypeError(
                f"{cls.__name__} has no argument {name!r}, because it makes its own; "
                f"{cls._instead_of(name)}."
            )
        super()._check_all(args, kwargs)

    @classmethod
    def _instead_of(cls, name: str) -> str:
        """Return how to use one's own net or task."""
        inits = {base.__name__: vars(base).get("__init__") for base in cls.__mro__[:-1]}
        takers = (
            base for base, init in inits.items() if init and name in signature_of(init).parameters
        )
        return f"{next(takers)} takes one"

    @classmethod
    def hyperparameter_names(cls) -> list[str]:
        """Return the names of the constructor's arguments that a checkpoint holds."""
        own = signature_of(cls.__init__).parameters  # a leaf creates its net and its task
        parts = {"net", "task"} - {*own}
        return [name for name in constructor_arguments(cls) if name not in parts]

    @classmethod
    def _unsaved_arguments(cls) -> list[str]:
        """Return the constructor arguments that Lightning must not save here.

        These are live modules, and the arguments of a user's subclass. Such a class calls
        `save_hyperparameters` for its own arguments.
        """
        inits = {
            base: vars(base).get("__init__") for base in cls.__mro__ if issubclass(base, Model)
        }
        taken = {base: signature_of(f).parameters for base, f in inits.items() if f}
        ours = {
            name for base, names in taken.items() if checkpoints.is_ours(base) for name in names
        }
        saved = ours & {*cls.hyperparameter_names()} - {"net", "task", "members"}
        return sorted({name for names in taken.values() for name in names} - saved)


def takes_weights(name: str, method: Any) -> None:
    """Raise a `ValueError` unless a method takes (outputs, targets, weights)."""
    try:
        inspect.signature(method).bind(None, None, None)
    except TypeError as error:
        raise ValueError(
            f"the samples have weights, which {name} does not take; remove it, or give one that "
            "takes (outputs, targets, weights)."
        ) from error


def beside_inputs(rest: Sequence[Any]) -> dict[str, Any]:
    """Return the targets and sample numbers among a batch's further entries."""
    # Weights, which may stand in the place of the numbers, are floating point.
    found = dict(zip(("target", "index"), rest, strict=False))
    if "index" in found and found["index"].is_floating_point():
        del found["index"]
    return found


def load(
    path: str | PathLike[str],
    *,
    classes: Iterable[type[Model]] = (),
    map_location: Any = "cpu",
    strict: bool = True,
    overrides: Mapping[str, Any] | None = None,
    only: type[Model] | None = None,
) -> Model:
    """Load a model of any class from a checkpoint, in evaluation mode.

    The file is read with ``weights_only=True``. The class that it names is looked up among the
    models of this package and `classes` (with their subclasses). Nothing is imported for it.

    Args:
        path: A checkpoint of the Trainer.
        classes: Your own subclasses of `Model` that the checkpoint, or an ensemble in it, may
            contain.
        map_location: Device of the weights, as in `torch.load`.
        strict: Refuse missing and unexpected weights.
        overrides: Constructor arguments that replace the saved ones, such as ``{"net": net}`` for a
            `Classifier` over a net of your own, or ``{"members": [model, …]}`` for an ensemble of
            such models.
        only: Refuse a checkpoint of any class but this and its subclasses.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is truncated, not a checkpoint, of another class, or contains code.
    """
    checkpoint = checkpoints.read_checkpoint(path, map_location or "cpu")
    model = checkpoints.rebuild(
        checkpoint.get(checkpoints.HPARAMS) or {},
        Model,
        classes=classes,
        overrides=overrides,
        only=only,
        source=path,
    )
    checkpoints.fill(model, checkpoint, strict)
    if map_location not in (None, "cpu") and isinstance(map_location, (str, torch.device)):
        model.to(map_location)
    return model.eval()
