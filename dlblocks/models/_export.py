"""Export models to ONNX and torch.export."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from dlblocks import __version__
from dlblocks._files import atomic_write
from dlblocks.fields import Padded
from dlblocks.models._predict_batches import predictor
from dlblocks.nets import Preprocess
from dlblocks.nets.preprocess import STATISTICS
from dlblocks.tasks import Task

ENDINGS = (".onnx", ".pt2")
METADATA = "metadata.json"  # in a .pt2 file
BATCHES = 2, 5  # samples of the example, and of the batch by which the program is checked
STEPS = 4, 7  # steps of their sequences, if lengths are unequal


def export(
    model: pl.LightningModule,
    path: Path,
    *,
    statistics: Preprocess,
    data_spec: Mapping[str, Any] | None,
    example: Tensor | Padded | None = None,
) -> None:
    """Write a model with its normalisation.

    See `dlblocks.loading.Predictor.export`.
    """
    if path.suffix not in ENDINGS:
        raise ValueError(f"path={str(path)!r} must end with {' or '.join(ENDINGS)}.")
    reason = getattr(model, "not_exportable", None)
    if reason is not None:
        raise ValueError(f"{type(model).__name__} cannot be exported: {reason}.")
    if path.suffix == ".onnx":
        for name in ("onnx", "onnxscript"):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    "export to ONNX needs onnx and onnxscript: pip install 'dlblocks[export]'."
                ) from error
    task = getattr(model, "task", None)
    is_ragged = isinstance(task, Task) and task.ragged
    if is_ragged and path.suffix != ".onnx":
        raise ValueError(
            f"path={str(path)!r} must end with .onnx: how many rows {type(model).__name__} "
            "predicts depends on their values, which torch.export cannot hold."
        )
    known = dict(data_spec or {})
    example = _example(known, example)
    is_padded = isinstance(example, Padded)
    values = example.values if isinstance(example, Padded) else example
    wrapped = _Predicting(model, statistics, known.get("target_shape")).eval()
    if is_ragged:
        program = _traced(wrapped, values[:1])
    else:
        program = _program(wrapped, example)
    named = "prediction", "std"
    metadata = {
        "class_names": known.get("class_names"),
        "columns": known.get("feature_names"),
        "task": task.name if isinstance(task, Task) else getattr(model, "task_name", None),
        "input_shape": [None, *values.shape[2:]] if is_padded else list(values.shape[1:]),
        "input_dtype": str(values.dtype).removeprefix("torch."),
        "outputs": named[: 1 + wrapped.has_std],
        "data_spec": known or None,
        "dlblocks": __version__,
    }
    with atomic_write(path) as part:
        if path.suffix == ".pt2":
            torch.export.save(program, part, extra_files={METADATA: json.dumps(metadata)})
        elif is_ragged:
            _write_traced(program, values[:1], part, metadata)
        else:
            _write_onnx(program, part, metadata, is_padded=is_padded)


class _Predicting(nn.Module):
    """Predictions of raw inputs, and of ensembles their standard deviation."""

    def __init__(
        self, model: pl.LightningModule, statistics: Preprocess, target_shape: Any
    ) -> None:
        super().__init__()
        trainers = {id(t): None for m in model.modules() if (t := getattr(m, "_trainer", None))}
        # Copied together: a model's statistics are its own.
        copied: Any = copy.deepcopy(nn.ModuleList([model, statistics]), trainers)
        self.model, self.statistics = copied.cpu()
        for module in self.modules():
            if type(module) is Preprocess:  # programs keep buffers alone by name
                for name in STATISTICS:
                    module.register_buffer(name, vars(module).pop(name))
        self.predict = predictor(self.model)
        self.target_shape = target_shape
        self.has_std = False

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Any:
        raw = inputs if lengths is None else Padded(inputs, lengths)
        output = self.predict([self.statistics(raw)], 0)
        found = output if isinstance(output, Mapping) else {"prediction": output}
        columns = [found[name] for name in ("prediction", "std") if name in found]
        if isinstance(columns[0], list):
            return tuple(columns[0])  # the rows of one image
        task = getattr(self.model, "task", None)
        if isinstance(task, Task) and self.target_shape is not None:
            like = torch.empty(2, *self.target_shape, device="meta")
            columns = [task.shaped(column, like) for column in columns]
        self.has_std = len(columns) > 1
        return tuple(columns)


def _example(known: Mapping[str, Any], example: Tensor | Padded | None) -> Tensor | Padded:
    """Return two samples."""
    if isinstance(example, Padded):
        values, lengths = (entry.detach().cpu()[:1] for entry in example)
        return Padded(values.repeat(2, *[1] * (values.ndim - 1)), lengths.repeat(2))
    if example is not None:
        if not isinstance(example, Tensor) or not len(example):
            raise TypeError("example must be a tensor of raw inputs, one row a sample.")
        return example.detach().cpu()[:1].repeat(BATCHES[0], *[1] * (example.ndim - 1))
    shape, dtype = known.get("input_shape"), known.get("input_dtype")
    if shape is None or dtype is None:
        raise ValueError(
            "the model does not know the shape of its inputs; give export(path, example=a tensor "
            "of raw inputs)."
        )
    if shape and shape[0] is None:
        values = torch.zeros(BATCHES[0], STEPS[0], *shape[1:], dtype=getattr(torch, dtype))
        return Padded(values, torch.full((BATCHES[0],), STEPS[0]))
    # 0 is the number of a category, too.
    return torch.zeros(BATCHES[0], *shape, dtype=getattr(torch, dtype))


def _program(module: _Predicting, example: Tensor | Padded) -> Any:
    name = type(module.model).__name__
    batch = torch.export.Dim("batch")
    try:
        with torch.no_grad(), _silent():
            if isinstance(example, Padded):
                given: tuple[Tensor, ...] = tuple(example)
                axes: Any = ({0: batch, 1: torch.export.Dim("steps")}, {0: batch})
                shape = BATCHES[1], STEPS[1], *example.values.shape[2:]
                several: tuple[Tensor, ...] = (
                    torch.ones(shape, dtype=example.values.dtype),
                    STEPS[1] - torch.arange(BATCHES[1]),
                )
            else:
                given, axes = (example,), ({0: batch},)
                several = (example[:1].repeat(BATCHES[1], *[1] * (example.ndim - 1)),)
            program = torch.export.export(module, given, dynamic_shapes=axes)
            found, expected = program.module()(*several), module(*several)
    except Exception as error:
        said = " ".join(str(error).partition("\n\n")[0].split())[:300].rstrip(".")
        raise ValueError(
            f"{name} cannot be exported ({type(error).__name__}: {said}); its "
            "predict_step, or its forward, must take [inputs, …] and compute with tensors alone. "
            "Sizes of batches come from inputs.shape[0], not from len(inputs)."
        ) from error
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    return program


def _traced(module: _Predicting, example: Tensor) -> Any:
    """Trace the predictions of one sample, and check them with another."""
    other = torch.rand(example.shape)
    other = other if example.is_floating_point() else (255 * other).to(example.dtype)
    with torch.no_grad(), _silent():
        module.requires_grad_(False)  # the copy's; parameters become constants
        program: Any = torch.jit.trace(lambda x: module(x), (example,), check_trace=False)
        found, expected = program(other), module(other)
    for one, another in zip(found, expected, strict=True):
        torch.testing.assert_close(one, another, atol=1e-4, rtol=1e-4)
    return program


def _write_traced(program: Any, example: Tensor, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a traced program; the newer exporter cannot hold non-maximum suppression."""
    import onnx

    with _silent():
        torch.onnx.export(
            program,
            (example,),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["inputs"],
            output_names=["prediction"],
            dynamic_axes={"prediction": {0: "rows"}},
        )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, _texts(metadata))
    onnx.save(model, str(path))


def _texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}


def _write_onnx(program: Any, path: Path, metadata: Mapping[str, Any], *, is_padded: bool) -> None:
    with _silent():
        converted: Any = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["inputs", "lengths"] if is_padded else ["inputs"],
            output_names=list(metadata["outputs"]),
            # The names of the axes.
            dynamic_shapes=({0: "batch", 1: "steps"}, {0: "batch"})
            if is_padded
            else ({0: "batch"},),
            verbose=False,
        )
    converted.model.metadata_props.update(_texts(metadata))
    converted.save(str(path))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Silence the exporters.

    Their advice is not for users, and the program is checked.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
