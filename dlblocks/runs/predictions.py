"""Predict one part of a datamodule with any LightningModule."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from dlblocks._lightning import before_transfer
from dlblocks.models._predict import (
    TARGETS,
    NoPredictions,
    gather,
    join_batches,
    predictor,
    target_in,
    to_numpy,
)

KEYS = ("index", "target", "prediction")


def predict_part(
    trainer: pl.Trainer, model: pl.LightningModule, datamodule: Any, part: str
) -> dict[str, np.ndarray]:
    """Predict one part of a `SplitDataModule` by any model.

    All ranks must call it. The model's own `predict_step` gets the batches that its
    `validation_step` gets, and returns the predictions, or a dictionary that has them as
    ``"prediction"``. A model without one is called with the first entry of the batch, or with the
    whole batch if that is a dictionary. Predictions are left as they come, be they probabilities or
    logits. Targets are those that `predict_step` returns as ``"target"``, else the second entry of
    the batch, or that of a name such as ``"label"``, else those of the datamodule.

    Args:
        trainer: A Trainer that has fitted the model.
        model: The model.
        datamodule: The data.
        part: ``"train"``, ``"val"`` or ``"test"``.

    Returns:
        ``index``, ``target`` and ``prediction``, sorted by index.

    Raises:
        NoPredictions: The model has no `predict_step` and no `forward` of a single argument, or it
            fails; what it returns is not one prediction a sample, all of the same shape; or the
            targets are not known.
    """
    predict = _Predict(trainer, model, datamodule, part)
    found: list[dict[str, Tensor] | NoPredictions] = []

    def predict_step(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        # Errors end no run, and must not end one rank without the others.
        try:
            output, rows = predict(batch, batch_idx)
        except NoPredictions as reason:
            found.append(reason)
            return {}  # of None, Lightning would warn
        found.append(rows)
        return output  # as it is, for callbacks that write predictions

    try:
        with replaced(model, "predict_step", predict_step), _predicting(datamodule, part):
            trainer.predict(model, datamodule=datamodule, return_predictions=False)
    except Exception as error:
        found.append(NoPredictions(f"prediction fails: {_short(error)}", failed=True))
    batches: list[dict[str, Tensor]] = []
    for batch in gather(found):
        if isinstance(batch, NoPredictions):
            raise batch
        batches.append(batch)
    if not batches:
        raise NoPredictions(f"the part {part!r} has no samples.")
    shapes = {tuple(batch[key].shape[1:] for key in KEYS) for batch in batches}
    if len(shapes) > 1:
        raise NoPredictions(
            f"the predictions of {type(model).__name__} have different shapes in different "
            "batches; return the same shape for every sample."
        )
    return join_batches(batches)


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
        self, trainer: pl.Trainer, model: pl.LightningModule, datamodule: Any, part: str
    ) -> None:
        self.model, self.predict = model, predictor(model)
        self.own = is_overridden("predict_step", model)
        self.rows = datamodule.indices(part)[trainer.global_rank :: trainer.world_size]
        self.targets = datamodule.columns.targets
        full = datamodule.batch_size == "full"
        self.size = len(self.rows) if full else datamodule.batch_size

    def __call__(self, batch: Any, batch_idx: int) -> tuple[Any, dict[str, Tensor]]:
        """Return the model's output, and its rows on the CPU."""
        index = self.rows[batch_idx * self.size : (batch_idx + 1) * self.size]
        try:
            output = self.predict(batch, batch_idx)
        except Exception as error:
            raise NoPredictions(self._why(error, batch), failed=True) from error
        found = output if isinstance(output, Mapping) else {"prediction": output}
        prediction = found.get("prediction")
        if not _one_each(prediction, index):
            who = type(self.model).__name__
            raise NoPredictions(
                f"{who}{'.predict_step' if self.own else ''} returns {_what(output)} for "
                f"{len(index)} samples; return a tensor of {len(index)} rows, or a dictionary that "
                "has it as 'prediction'."
            )
        candidates = [found.get("target"), target_in(batch)]
        if self.targets is not None:
            candidates.append(torch.as_tensor(self.targets[index.numpy()]))
        for target in candidates:
            if _one_each(target, index):
                if target.shape[1:] == (1,) and not target.is_floating_point():
                    target = target[:, 0]  # labels as a column
                rows = {"index": index, "target": target, "prediction": prediction}
                return output, {name: self._plain(name, v) for name, v in rows.items()}
        raise NoPredictions(
            "the targets are not known; give targets=, one a sample, to the FoldedDataModule, or "
            "let predict_step return a dictionary with 'prediction' and 'target'."
        )

    def _plain(self, name: str, values: Tensor) -> Tensor:
        """Return values on the CPU, of a kind that NumPy has."""
        values = values.detach().cpu()
        try:
            to_numpy([values])
        except (TypeError, RuntimeError) as error:  # sparse, quantized, 8-bit floating point
            raise NoPredictions(
                f"the {name} of {type(self.model).__name__} is no array: "
                f"{_short(error).rstrip('.')}; return dense tensors of numbers."
            ) from error
        return values

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
