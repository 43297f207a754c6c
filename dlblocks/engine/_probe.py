"""A step without consequences: whether models can be computed together, and how fast that is."""

from __future__ import annotations

import contextlib
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.plugins import Precision

from dlblocks.engine._batches import Batches, BatchSource
from dlblocks.engine._models import StackedModels
from dlblocks.engine._support import NotVectorizable, is_out_of_memory, plain_state
from dlblocks.models.model import Model


@contextlib.contextmanager
def quiet_vmap() -> Iterator[None]:
    """Silences advice to torch's developers about operations that vmap computes one by one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop because we have not yet")
        yield


@contextlib.contextmanager
def _untouched(stack: StackedModels) -> Iterator[None]:
    """Leaves buffers, modes and random numbers as they were."""
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
    """Computes losses and gradients of one step, and a step of validation.

    The parameters that have a gradient have one of 0 afterwards.

    Args:
        stack: The stacked models.
        models: The same, one by one.
        sources: Where batches come from, and whether they are for training.
        precision: That of the Trainer.

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
                try:
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
                except NotVectorizable:
                    raise
                except Exception as error:
                    if is_out_of_memory(error):
                        raise
                    # What a single model cannot compute either is no matter of the stack.
                    _alone(models[batches.members[0]], batches, precision)
                    raise NotVectorizable(
                        f"{type(stack.template).__name__} cannot be computed for several models "
                        f"at once: {_short(error)}"
                    ) from error
                if _draws_elsewhere() != drawn:
                    raise NotVectorizable(
                        f"{type(stack.template).__name__} draws from Python's random or NumPy in a "
                        "step, and one draw would serve all models; draw by torch"
                    )
                model = models[batches.members[0]]
                model.check_batch(outputs[0], batches.targets[0])
        if plain_state(stack.template) != before:
            raise NotVectorizable(
                f"{type(stack.template).__name__} changes attributes of its own in a step, and all "
                "models would share them"
            )
    stack.make_gradients(used)


def _draws_elsewhere() -> tuple[Any, ...]:
    """The states of the global generators that are not torch's."""
    _, keys, position, *rest = np.random.get_state(legacy=True)
    return random.getstate(), np.asarray(keys).tobytes(), position, *rest


def seconds_a_step(
    stack: StackedModels, models: Sequence[Model], source: BatchSource, precision: Precision
) -> tuple[float, float]:
    """The time of a step's losses and gradients: of all models together, and one by one.

    The shortest of three tries, after one that counts for nothing.
    """
    source.begin(0)
    (batches, *_) = source.step(0, range(len(models)))
    share = len(models) / len(batches.members)
    model = models[batches.members[0]]
    own = [p for p in model.parameters() if p.requires_grad]

    def at_once() -> None:
        losses, _ = stack.run(batches.inputs, batches.targets, batches.members, batches.weights)
        losses.sum().backward()
        stack.zero_gradients(batches.members)

    def alone() -> None:
        loss = model.loss(model.forward_prepared(batches.inputs[0]), *batches.beside(0))
        torch.autograd.grad(loss, own, allow_unused=True)

    with _untouched(stack), precision.train_step_context():
        found = [_shortest(run, stack.device) for run in (at_once, alone)]
    return share * found[0], len(models) * found[1]


def _alone(model: Model, batches: Batches, precision: Precision) -> None:
    with precision.train_step_context():
        outputs = model.forward_prepared(batches.inputs[0])
        model.check_batch(outputs, batches.targets[0])
        model.loss(outputs, *batches.beside(0))


def _shortest(run: Callable[[], None], device: torch.device) -> float:
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        run()
        if device.type != "cpu":
            torch.get_device_module(device).synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def _short(error: Exception) -> str:
    text = str(error).split("\n")[0].split(" Please file")[0].split(". ")[0]
    return text or repr(error)
