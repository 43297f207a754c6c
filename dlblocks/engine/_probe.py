"""Try and time a step of stacked models, without training them."""

from __future__ import annotations

import contextlib
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.plugins import Precision
from torch import Tensor

from dlblocks._quiet import evaluating
from dlblocks.engine._stacked_batches import Batches, BatchSource
from dlblocks.engine._stacked_models import StackedModels
from dlblocks.engine._support import NotVectorizable, is_out_of_memory, plain_state
from dlblocks.models.model import Model

FEW = 8  # samples on which the stack is compared with single models
# Seconds of measuring after which no further try begins.
ENOUGH_SECONDS = 0.04


@contextlib.contextmanager
def quiet_vmap() -> Iterator[None]:
    """Silence torch's warning about operations that vmap computes one by one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop because we have not yet")
        yield


@contextlib.contextmanager
def _untouched(stack: StackedModels) -> Iterator[None]:
    """Restore buffers, modes and random numbers afterwards."""
    device = stack.device
    buffers = {name: buffer.clone() for name, buffer in stack.buffers.items()}
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), quiet_vmap():
            yield
    finally:
        stack.train()
        for name, buffer in buffers.items():
            stack.buffers[name].copy_(buffer)


def try_a_step(
    stack: StackedModels,
    models: Sequence[Model],
    sources: Sequence[tuple[BatchSource, bool]],
    precision: Precision,
) -> None:
    """Compute losses and gradients of one step, and a step of validation.

    Afterwards the parameters that get a gradient have one of 0.

    Args:
        stack: The stacked models.
        models: The same models as a list.
        sources: Sources of batches, each with True if they are for training.
        precision: The Trainer's precision.

    Raises:
        NotVectorizable: The models cannot be computed together, though each by itself can.
    """
    params = {name: p for name, p in stack.params.items() if p.requires_grad}
    used: dict[str, None] = {}
    before = plain_state(stack.template)
    with _untouched(stack):
        for source, training in sources:
            source.begin(0)
            stack.train(training)
            for batches in source.step(0, range(len(models))):
                context = precision.train_step_context if training else precision.val_step_context
                drawn = _draws_elsewhere()
                model = models[batches.members[0]]
                with _refusing(model, batches, precision):
                    with context(), torch.set_grad_enabled(training):
                        losses, outputs = stack.run(
                            batches.inputs, batches.targets, batches.members, batches.weights
                        )
                    if training:
                        found = torch.autograd.grad(
                            losses.sum(), [*params.values()], allow_unused=True
                        )
                        pairs = zip(params, found, strict=True)
                        used.update({name: None for name, g in pairs if g is not None})
                if _draws_elsewhere() != drawn:
                    raise NotVectorizable(
                        f"{type(stack.template).__name__} uses random numbers of Python or NumPy "
                        "in a step, and all models would get the same ones; draw them with torch"
                    )
                model.check_batch(outputs[0], batches.targets[0])
                if training:
                    with _refusing(model, batches, precision):
                        _check_each(stack, models, batches, precision)
                    stack.train()
        if plain_state(stack.template) != before:
            raise NotVectorizable(
                f"{type(stack.template).__name__} changes its own attributes in a step, and all "
                "models would share them"
            )
    stack.make_gradients(used)


@contextlib.contextmanager
def _refusing(model: Model, batches: Batches, precision: Precision) -> Iterator[None]:
    """Turn errors of a stacked step into `NotVectorizable`.

    If the first model fails by itself, too, its own error is raised.

    Args:
        model: The first of the models.
        batches: Their batches.
        precision: The Trainer's precision.
    """
    try:
        yield
    except NotVectorizable:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        _alone(model, batches, precision)  # its own error
        raise NotVectorizable(
            f"{type(model).__name__} cannot be computed for several models together: "
            f"{_short(error)}"
        ) from error


def _check_each(
    stack: StackedModels, models: Sequence[Model], batches: Batches, precision: Precision
) -> None:
    """Compare the stack with each model by itself.

    They score a few samples in evaluation mode.

    Raises:
        NotVectorizable: Losses or outputs differ by more than rounding.
    """
    inputs, targets, weights = batches.inputs[:, :FEW], batches.targets[:, :FEW], batches.weights
    weights = None if weights is None else weights[:, :FEW]
    stack.train(False)
    with torch.no_grad(), precision.val_step_context():
        together = stack.run(inputs, targets, batches.members, weights)
        for j, k in enumerate(batches.members):
            rest = [x[j] for x in (targets, weights) if x is not None]
            alone = _scored(models[k], inputs[j], rest)
            mine = [found[j] for found in together]
            if _are_close(mine, alone) or not _are_close(
                alone, _scored(models[k], inputs[j], rest)
            ):
                continue  # the latter draws random numbers
            raise NotVectorizable(
                f"{type(models[k]).__name__} {k} has loss {alone[0].item():.6g} on its first "
                f"samples by itself and {mine[0].item():.6g} among the others; a step depends on "
                "more than parameters, buffers and the batch"
            )


def _scored(model: Model, inputs: Tensor, beside: Sequence[Tensor]) -> list[Tensor]:
    with evaluating(model):
        outputs = model.forward_prepared(inputs)
        return [model.loss(outputs, *beside), outputs]


def _are_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """True if numbers differ by rounding alone."""
    for x, y in zip(found, expected, strict=True):
        is_rough = torch.bfloat16 in (x.dtype, y.dtype) or torch.is_autocast_enabled(x.device.type)
        rough = 0.1 if is_rough else 1e-3
        size = float(y.abs().nan_to_num().max()) if y.numel() else 0.0
        about = rough * size + 1e-6
        if not torch.allclose(x.float(), y.float(), rtol=rough, atol=about, equal_nan=True):
            return False
    return True


def _draws_elsewhere() -> tuple[Any, ...]:
    """Return the states of the global generators of Python and NumPy."""
    _, keys, position, *rest = np.random.get_state(legacy=True)
    return random.getstate(), np.asarray(keys).tobytes(), position, *rest


def seconds_a_step(
    stack: StackedModels, models: Sequence[Model], source: BatchSource, precision: Precision
) -> tuple[float, float]:
    """Measure a step's seconds, all models together and one by one.

    A step is the losses and their gradients. The two take turns, because other programs may use
    the machine. Each time is the shortest of up to five tries. Slow steps get fewer, because the
    tries must be short beside the fit. `try_a_step` has warmed up the stack.
    """
    source.begin(0)
    (batches, *_) = source.step(0, range(len(models)))
    share = len(models) / len(batches.members)
    model = models[batches.members[0]]
    own = [p for p in model.parameters() if p.requires_grad]

    def at_once() -> None:
        losses, _ = stack.run(batches.inputs, batches.targets, batches.members, batches.weights)
        torch.autograd.backward(losses.sum())
        stack.zero_gradients(batches.members)

    def alone() -> None:
        loss = model.loss(model.forward_prepared(batches.inputs[0]), *batches.beside(0))
        torch.autograd.grad(loss, own, allow_unused=True)

    with _untouched(stack), precision.train_step_context():
        alone()  # a warm-up
        together, apart = _shortest((at_once, alone), stack.device)
    return share * together, len(models) * apart


def _alone(model: Model, batches: Batches, precision: Precision) -> None:
    with precision.train_step_context():
        outputs = model.forward_prepared(batches.inputs[0])
        model.check_batch(outputs, batches.targets[0])
        model.loss(outputs, *batches.beside(0))


def _shortest(runs: Sequence[Callable[[], None]], device: torch.device) -> list[float]:
    """Return the shortest time of each run.

    There are up to five tries of each, but no more after `ENOUGH_SECONDS`.
    """
    # With one thread, the time of the processor does not depend on other programs.
    # Windows counts it in steps of 16 ms.
    one_thread = device.type == "cpu" and torch.get_num_threads() == 1 and os.name != "nt"
    clock = time.process_time if one_thread else time.perf_counter
    seconds: list[list[float]] = [[] for _ in runs]
    while len(seconds[0]) < 5 and sum(map(sum, seconds)) < ENOUGH_SECONDS:
        for run, found in zip(runs, seconds, strict=True):
            started = clock()
            run()
            if device.type != "cpu":
                torch.get_device_module(device).synchronize()
            found.append(clock() - started)
    return [min(found) for found in seconds]


def _short(error: Exception) -> str:
    text = str(error).split("\n")[0].split(" Please file")[0].split(". ")[0]
    return text or repr(error)
