"""From what `Trainer.predict` returns to arrays over all ranks."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

KEYS = ("index", "target", "prediction")


def gather(batches: Sequence[Any]) -> list[Any]:
    """The prediction batches of all ranks, on every rank. A collective: all ranks must call it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return list(batches)
    ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, list(batches))
    return [batch for rank in ranks for batch in rank]


def stack(batches: Sequence[Any]) -> dict[str, np.ndarray]:
    """Joins prediction batches along the first axis, sorted by ``index`` where they have one.

    Args:
        batches: Dictionaries of tensors, as `dlblocks.models` predict them, or tensors.

    Returns:
        One array a key; tensors come under the key ``"prediction"``.

    Raises:
        TypeError: A batch is neither a tensor nor a dictionary of tensors.

    Example:
        >>> stack([{"prediction": torch.tensor([1.0]), "index": torch.tensor([1])},
        ...        {"prediction": torch.tensor([0.0]), "index": torch.tensor([0])}])["prediction"]
        array([0., 1.], dtype=float32)
    """
    parts = [{"prediction": b} if isinstance(b, Tensor) else b for b in batches]
    if not parts:
        return {}
    for part in parts:
        if not isinstance(part, dict) or not all(
            isinstance(value, Tensor) for value in part.values()
        ):
            raise TypeError(
                f"predict_step returned {type(part).__name__}; expected a tensor or a dictionary "
                "of tensors such as {'prediction': …, 'index': …}."
            )
    arrays = {key: _array([part[key] for part in parts]) for key in parts[0]}
    if "index" in arrays:
        order = np.argsort(arrays["index"], kind="stable")
        arrays = {key: values[order] for key, values in arrays.items()}
    return arrays


def predict_part(
    trainer: pl.Trainer, model: pl.LightningModule, datamodule: Any, part: str
) -> dict[str, np.ndarray] | None:
    """Predicts one part of a `SplitDataModule` by any model; a collective of all ranks.

    The model's own `predict_step` gets the batches that its `validation_step` gets, and returns the
    predictions, or a dictionary that has them as ``"prediction"``. A model without one is called
    with the first entry of the batch. Predictions are left as they come, be they probabilities or
    logits.

    Args:
        trainer: A Trainer that has fitted the model.
        model: The model.
        datamodule: The data.
        part: ``"train"``, ``"val"`` or ``"test"``.

    Returns:
        ``index``, ``target`` and ``prediction``, sorted by index. None if there is no
        `predict_step` and no `forward` of a single argument, if what they return is not one
        prediction a sample, all of the same shape, or if targets are neither the second entry of
        the batch nor known to the datamodule.
    """
    own = is_overridden("predict_step", model)
    if not own and not (is_overridden("forward", model) and _takes_one(model.forward)):
        return None
    rows = datamodule.indices(part)[trainer.global_rank :: trainer.world_size]
    targets = datamodule.columns.targets
    size = len(rows) if datamodule.batch_size == "full" else datamodule.batch_size
    step = model.predict_step
    found: list[dict[str, Tensor]] = []

    def predict_step(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        index = rows[batch_idx * size : (batch_idx + 1) * size]
        if own:
            wants_number = is_param_in_hook_signature(step, "batch_idx", min_args=2)
            output = step(batch, batch_idx) if wants_number else step(batch)
        else:
            output = model(batch[0] if isinstance(batch, (list, tuple)) else batch)
        found.append(_completed(output, batch, index, targets))
        return output  # as it is, for callbacks that write predictions

    with _replaced(model, "predict_step", predict_step), _predicting(datamodule, part):
        trainer.predict(model, datamodule=datamodule, return_predictions=False)
    batches = gather(found)
    if not batches or not all(batches):
        return None
    shapes = {tuple(batch[key].shape[1:] for key in KEYS) for batch in batches}
    return stack(batches) if len(shapes) == 1 else None


def _completed(
    output: Any, batch: Any, index: Tensor, targets: np.ndarray | None
) -> dict[str, Tensor]:
    """Predictions with index and target, on the CPU; empty if they are not one for each sample."""
    found = output if isinstance(output, dict) else {"prediction": output}
    target = found.get("target")
    if target is None and isinstance(batch, (list, tuple)) and len(batch) > 1:
        target = batch[1]
    if not _one_each(target, index) and targets is not None:
        target = torch.as_tensor(targets[index.numpy()])
    prediction = found.get("prediction")
    if _one_each(prediction, index) and _one_each(target, index):
        return {"index": index, "target": target.cpu(), "prediction": prediction.detach().cpu()}
    return {}


def _one_each(values: Any, index: Tensor) -> TypeGuard[Tensor]:
    return isinstance(values, Tensor) and values.ndim > 0 and len(values) == len(index)


def _takes_one(function: Any) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    return True


@contextlib.contextmanager
def _replaced(model: pl.LightningModule, name: str, function: Any) -> Iterator[None]:
    vars(model)[name] = function
    try:
        yield
    finally:
        del vars(model)[name]


@contextlib.contextmanager
def _predicting(datamodule: Any, part: str) -> Iterator[None]:
    """Sets the datamodule to predict `part`, in batches like those of validation."""
    before = datamodule.predict_on, datamodule.predict_index
    datamodule.predict_on, datamodule.predict_index = part, False
    try:
        yield
    finally:
        datamodule.predict_on, datamodule.predict_index = before


def _array(parts: Sequence[Tensor]) -> np.ndarray:
    whole = torch.cat([part.detach().cpu() for part in parts])
    return (whole.float() if whole.dtype == torch.bfloat16 else whole).numpy()
