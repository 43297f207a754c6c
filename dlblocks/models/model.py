"""`Model`, the base class of this package's LightningModules.

One step serves all stages. A step puts its loss, predictions and targets into a buffer. They are
checked, summed and logged after some steps, for two reasons: logging a key costs Lightning about as
much as the step of a small net, and reading a number waits for the accelerator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlblocks._errors import check_range
from dlblocks._lightning import log_as
from dlblocks._ragged import entries_of
from dlblocks.fields import kinds_of
from dlblocks.models import _checkpoints as checkpoints
from dlblocks.models._arguments import ModelArguments
from dlblocks.models._inputs import (
    adapt,
    inputs_and_targets,
    outputs_of,
    prepare_batches,
    release_batches,
    with_prepared_inputs,
)
from dlblocks.models._optimization import OptimizedModel
from dlblocks.models._step_buffer import StepBuffer
from dlblocks.models._task_model import STAGES, TaskModel
from dlblocks.nets import Preprocess
from dlblocks.optim import check_optimizer, check_schedule
from dlblocks.tasks import Task
from dlblocks.tasks.task import Stage, is_ours


class Model(ModelArguments, TaskModel, OptimizedModel):
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
        self._weighted = False
        # True while a callback such as `SAM` repeats a step. Its loss and metrics do not count.
        self.metrics_paused = False
        # Lightning collects the arguments of all constructors that led here, the subclass's too.
        self.save_hyperparameters(ignore=self._unsaved_arguments())
        if task is not None and task.chosen:
            log_as(self, "metrics", list(task.chosen_metrics()))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        adapt(cls, Model)

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
        task, targets = self.task, rest[0] if rest else None
        if task is None:
            return {"prediction": self.prediction(outputs)} | beside_inputs(rest)
        if is_ours(type(self).prediction):
            prediction = task.predict(outputs, targets)
        else:
            prediction = task.shaped(self.prediction(outputs), targets)
        return {"prediction": prediction} | task.from_inputs(inputs) | beside_inputs(rest)

    def _step(self, batch: Any, stage: Stage) -> Tensor:
        inputs, targets = inputs_and_targets(batch, type(self).__name__, weighted=self._weighted)
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
            inputs, targets: Shape (N, ...).
            weights: How much each sample counts, shape (N,), or None.
        """
        outputs = outputs_of(self, inputs)
        if self._first_batch:
            self._check_outputs(outputs)
            self.check_batch(outputs, targets)
        beside = () if weights is None else (weights,)  # `loss` of a subclass may take none
        try:
            return outputs, self.loss(outputs, targets, *beside)
        except IndexError:  # a label that the first batch did not have
            self.check_batch(outputs, targets)
            raise

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

    # Epochs

    def setup(self, stage: str) -> None:
        self._first_batch = True
        prepare_batches(self)
        self.use_weights("weights" in kinds_of(self.datamodule))
        if self.datamodule is not None:
            self.check_data(self.datamodule)
        if stage == "fit" and self.task is not None:
            self.task.fit_to(self.datamodule)

    def teardown(self, stage: str) -> None:
        release_batches(self)

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
    preprocess: Preprocess | None = None,
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
        preprocess: Normalisation of a checkpoint of version 0.1, such as `Preprocess(mean, std)`.

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
    checkpoints.fill(model, checkpoint, strict, preprocess, path)
    if map_location not in (None, "cpu") and isinstance(map_location, (str, torch.device)):
        model.to(map_location)
    return model.eval()
