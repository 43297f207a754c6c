"""Predict one part of a datamodule with any LightningModule."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from dlblocks._boxes import are_boxes, box_rows
from dlblocks._lightning import before_transfer
from dlblocks.models._predict_batches import (
    TARGETS,
    NoPredictions,
    gather,
    predictor,
    target_in,
    to_numpy,
)
from dlblocks.runs._table_writer import TableWriter
from dlblocks.tasks import PredictionTable, Task

# Columns that are not the module's: `predict_part` knows them.
RESERVED = {"index", "fold", "repeat", "target", "prediction", "weight"}


def predict_part(
    trainer: pl.Trainer,
    model: pl.LightningModule,
    datamodule: Any,
    part: str,
    *,
    targets: bool = True,
    ckpt_path: Any = None,
) -> PredictionTable:
    """Predict one part of a `SplitDataModule` by any model.

    All ranks must call it, and all get the whole table. The model's own `predict_step` gets the
    batches that its `validation_step` gets, and returns the predictions, or a dictionary that has
    them as ``"prediction"``. A model without one is called with the first entry of the batch, or
    with the whole batch if that is a dictionary. Predictions are left as they come, be they
    probabilities or logits. Targets are those that `predict_step` returns as ``"target"``, else the
    second entry of the batch, or that of a name such as ``"label"``, else those of the datamodule.
    A model's task decides what is kept of both; see `Task.keep`.

    Further entries of the dictionary are columns of the table, if they are tensors of one row a
    sample, or lists of one tensor a sample. Others, such as names, are left out.

    Every batch is written to its place in the table at once: memory holds one table and one batch.
    A column of more than 64 MiB lies in a file.

    Args:
        trainer: A Trainer that has fitted the model.
        model: The model.
        datamodule: The data.
        part: ``"train"``, ``"val"`` or ``"test"``.
        targets: Whether there must be targets.
        ckpt_path: As for `Trainer.predict`.

    Returns:
        ``index`` and what is kept, by default ``target`` and ``prediction``, sorted by index.

    Raises:
        NoPredictions: The model has no `predict_step` and no `forward` of a single argument, or it
            fails; what it returns is not one prediction a sample, all of the same shape; or the
            targets are not known.
    """
    predict = _Predict(trainer, model, datamodule, part, targets=targets)
    writer = TableWriter(datamodule.indices(part).numpy(), Path(trainer.default_root_dir))
    reasons: list[NoPredictions] = []

    def predict_step(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        # Errors end no run, and must not end one rank without the others.
        if reasons:
            return {}  # of None, Lightning would warn
        try:
            output, positions, rows = predict(batch, batch_idx)
            writer.add(positions, rows)
        except NoPredictions as reason:
            reasons.append(reason)
            return {}
        return output  # as it is, for callbacks that write predictions

    try:
        with replaced(model, "predict_step", predict_step), _predicting(datamodule, part):
            trainer.predict(
                model, datamodule=datamodule, return_predictions=False, ckpt_path=ckpt_path
            )
    except Exception as error:
        reasons.append(NoPredictions(f"prediction fails: {_short(error)}", failed=True))
    for reason in gather(reasons):
        raise reason
    try:
        writer.exchange()
    except NoPredictions as error:  # the same on all ranks
        raise NoPredictions(f"{error} The model is {type(model).__name__}.") from None
    table = writer.finish()
    if not len(table):
        raise NoPredictions(f"the part {part!r} has no samples.")
    table.task = getattr(getattr(model, "task", None), "name", None)
    return add_weights(table, datamodule, part)


def add_weights(table: PredictionTable, datamodule: Any, part: str) -> PredictionTable:
    """Add the column ``weight`` if the samples have weights."""
    weights = datamodule.weights_of(part)
    if weights is None:
        return table
    index = datamodule.indices(part).numpy()
    order = np.argsort(index, kind="stable")
    found = order[np.searchsorted(index, table.index, sorter=order)]
    return table.with_columns(weight=weights.numpy()[found])


def try_prediction(
    trainer: pl.Trainer, model: pl.LightningModule, datamodule: Any, part: str
) -> None:
    """Predict the first batch of a part, before a long fit.

    The caller keeps what must not change: random numbers, buffers, the mode of the modules.

    Args:
        trainer: A Trainer that is about to fit the model.
        model: The model, on its device.
        datamodule: The data.
        part: As for `predict_part`.

    Raises:
        NoPredictions: As `predict_part` would, as far as one batch shows it.
    """
    predict = _Predict(trainer, model, datamodule, part)
    stage = trainer.state.stage
    trainer.predicting = True  # modules and datamodules may ask
    try:
        with _predicting(datamodule, part), trainer.precision_plugin.predict_step_context():
            for batch in datamodule.predict_dataloader():
                batch = trainer.precision_plugin.convert_input(batch)
                batch = before_transfer(model, batch)
                predict(trainer.strategy.batch_to_device(batch, dataloader_idx=0), 0)
                break
    except NoPredictions:
        raise
    except Exception as error:
        raise NoPredictions(f"prediction fails: {_short(error)}", failed=True) from error
    finally:
        trainer.state.stage = stage


class _Predict:
    """Predict batches of one part, with each sample's index and target."""

    def __init__(
        self,
        trainer: pl.Trainer,
        model: pl.LightningModule,
        datamodule: Any,
        part: str,
        *,
        targets: bool = True,
    ) -> None:
        self.model, self.predict = model, predictor(model)
        self.needs_targets = targets
        self.own = is_overridden("predict_step", model)
        whole = datamodule.indices(part)
        self.positions = np.arange(len(whole))[trainer.global_rank :: trainer.world_size]
        self.rows = whole[trainer.global_rank :: trainer.world_size]
        self.targets = datamodule.columns.targets
        full = datamodule.batch_size == "full"
        self.size = len(self.rows) if full else datamodule.batch_size

    def __call__(
        self, batch: Any, batch_idx: int
    ) -> tuple[Any, np.ndarray, dict[str, Tensor | list[Tensor]]]:
        """Return output, positions of the samples, and their rows."""
        some = slice(batch_idx * self.size, (batch_idx + 1) * self.size)
        index = self.rows[some]
        try:
            output = self.predict(batch, batch_idx)
        except Exception as error:
            raise NoPredictions(self._why(error, batch), failed=True) from error
        boxed = are_boxes(output)  # of a detector of torchvision
        found = output if isinstance(output, Mapping) else {"prediction": output}
        found = {**found, "prediction": box_rows(found.get("prediction"))}
        prediction = found["prediction"]
        is_list = (boxed or isinstance(output, Mapping)) and _is_list(prediction, index)
        if not (is_list or _one_each(prediction, index)):
            who = type(self.model).__name__
            raise NoPredictions(
                f"{who}{'.predict_step' if self.own else ''} returns {_what(output)} for "
                f"{len(index)} samples; return a tensor of {len(index)} rows, or a dictionary that "
                "has it as 'prediction'."
            )
        rows = columns_of(found, index)
        target = self._target(found, batch, index)
        if target is None:
            rows["prediction"] = found["prediction"]
        else:
            task = getattr(self.model, "task", None)
            kept = {"target": target, "prediction": prediction}
            rows |= task.keep(prediction, target) if isinstance(task, Task) else kept
        return output, self.positions[some], {n: self._plain(n, v) for n, v in rows.items()}

    def _target(self, found: Mapping[str, Any], batch: Any, index: Tensor) -> Any:
        candidates = [found.get("target"), target_in(batch)]
        if self.targets is not None:
            candidates.append(torch.as_tensor(self.targets[index.numpy()]))
        for target in map(box_rows, candidates):
            if _is_list(target, index):
                return target
            if _one_each(target, index):
                is_column = target.shape[1:] == (1,) and not target.is_floating_point()
                return target[:, 0] if is_column else target  # labels as a column
        if not self.needs_targets:
            return None
        raise NoPredictions(
            "the targets are not known; give targets=, one a sample, to the FoldedDataModule, or "
            "let predict_step return a dictionary with 'prediction' and 'target'."
        )

    def _plain(self, name: str, values: Any) -> Tensor | list[Tensor]:
        """Return values on the CPU, of a kind that NumPy has."""
        try:
            if isinstance(values, list):
                return [torch.from_numpy(to_numpy(row)) for row in values]
            return torch.from_numpy(to_numpy(values))
        except (TypeError, RuntimeError) as error:  # sparse, quantized, 8-bit floating point
            raise NoPredictions(
                f"the {name} of {type(self.model).__name__} is no array: "
                f"{_short(error).rstrip('.')}; return dense tensors of numbers."
            ) from error

    def _why(self, error: Exception, batch: Any) -> str:
        name = type(self.model).__name__
        if self.own:
            return (
                f"{name}.predict_step fails with {_what(batch)}, which is what validation_step "
                f"gets, too: {_short(error)}"
            )
        if isinstance(batch, Mapping):
            key = next((k for k in batch if k not in TARGETS), next(iter(batch), ""))
            given, entry = _what(batch), f"batch[{key!r}]"
        else:
            given, entry = "the first entry of the batch", "batch[0]"
        return (
            f"{name} has no predict_step, and its forward fails with {given}: {_short(error)}. "
            "Write a predict_step that takes the batch, such as def predict_step(self, batch, "
            f"batch_idx): return self({entry})."
        )


def columns_of(found: Mapping[str, Any], index: Tensor) -> dict[str, Tensor | list[Tensor]]:
    """Return the entries that are further columns of the samples in `index`."""
    return {
        name: values
        for name, values in found.items()
        if name not in RESERVED and (_one_each(values, index) or _is_list(values, index))
    }


def _what(value: Any) -> str:
    """Describe a batch or an output in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dictionary with {', '.join(map(repr, value)) or 'nothing'}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)} entries"
    return f"a {type(value).__name__}"


def _short(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:297]}…"


def _one_each(values: Any, index: Tensor) -> TypeGuard[Tensor]:
    return isinstance(values, Tensor) and values.ndim > 0 and len(values) == len(index)


def _is_list(values: Any, index: Tensor) -> TypeGuard[list[Tensor]]:
    """Return True for a list of one tensor a sample."""
    return (
        isinstance(values, list)
        and len(values) == len(index)
        and all(isinstance(row, Tensor) and row.ndim > 0 for row in values)
    )


@contextlib.contextmanager
def replaced(model: pl.LightningModule, name: str, function: Any) -> Iterator[None]:
    """Replace a method of one model."""
    had = vars(model).get(name)  # that of a compiled module
    vars(model)[name] = function
    try:
        yield
    finally:
        del vars(model)[name]
        if had is not None:
            vars(model)[name] = had


@contextlib.contextmanager
def _predicting(datamodule: Any, part: str) -> Iterator[None]:
    """Set the datamodule to predict `part`, in batches like those of validation."""
    before = datamodule.predict_on, datamodule.predict_index
    datamodule.predict_on, datamodule.predict_index = part, False
    try:
        yield
    finally:
        datamodule.predict_on, datamodule.predict_index = before
