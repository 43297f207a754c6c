"""Stack K models into tensors with a leading axis K."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.parameter import is_lazy

from dlblocks._lightning import trainer_of
from dlblocks.engine._chain import Chain
from dlblocks.engine._support import NotVectorizable, plain_state
from dlblocks.models.model import Model
from dlblocks.nets import Preprocess
from dlblocks.tasks.task import fits


class StackedModels:
    """K models whose parameters and buffers share memory and are computed together.

    The parameters, buffers and gradients of model k are views of row k of the stacked tensors. An
    optimizer or a checkpoint that changes the model therefore changes the stack. A copy of the
    first model computes for all: its net layer by layer if that is a `Chain`, else its `forward` by
    `torch.func.vmap` over the leading axis, then its `loss`. Batch norm uses each model's own
    statistics, and dropout draws for each model.

    Args:
        models: K >= 1 models with equal names, shapes and dtypes of parameters and buffers.
        device: Device of the stacked tensors.

    Raises:
        NotVectorizable: The models differ.
    """

    def __init__(self, models: Sequence[Model], device: torch.device) -> None:
        _check_same(models)
        self.models = list(models)
        self.device = device
        self.template = _without_metrics(models[0]).to(device)
        self._modes = {module: module.training for module in self.template.modules()}
        self._names = [*dict(models[0].named_parameters()), *dict(models[0].named_buffers())]
        self._vmapped = _Vmapped(_Step(self.template), self._names)
        self._chain = Chain.of(self.template)
        self._after_chain = _Vmapped(_AfterNet(self.template), self._names)
        self._stacked_loss = _stacked_loss(self.template)
        self.params: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}  # the models' gradients are views of them
        self._fill()

    def __len__(self) -> int:
        return len(self.models)

    def _fill(self) -> None:
        params: list[dict[str, Tensor]] = [{**dict(m.named_parameters())} for m in self.models]
        buffers = [dict(model.named_buffers()) for model in self.models]

        def stacked(rows: Sequence[dict[str, Tensor]], name: str) -> Tensor:
            return torch.stack([row[name].detach().to(self.device) for row in rows])

        self.params = {
            name: stacked(params, name).requires_grad_(p.requires_grad)
            for name, p in params[0].items()
        }
        self.buffers = {name: stacked(buffers, name) for name in buffers[0]}
        for k, model in enumerate(self.models):
            for name, p in model.named_parameters():
                p.data = self.params[name].data[k]
                p.grad = None
            for name in buffers[k]:
                owner, _, leaf = name.rpartition(".")
                model.get_submodule(owner)._buffers[leaf] = self.buffers[name][k]
            model.preprocess.to(self.device)

    def train(self, mode: bool = True) -> None:
        """Switch to training or evaluation mode.

        In training each module has the mode that it had in the first model.
        """
        for module, training in self._modes.items():
            module.training = training and mode

    def run(
        self,
        inputs: Tensor,
        targets: Tensor,
        members: Sequence[int] | None = None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute each model's loss and outputs on its own batch.

        Args:
            inputs: Shape (M, N, ...).
            targets: Shape (M, N, ...).
            members: Numbers of the M models, all by default. Buffers of the others stay.
            weights: How much each sample counts, shape (M, N), or None.

        Returns:
            Losses, shape (M,), and outputs, shape (M, N, ...).
        """
        # The other arguments of the loss.
        beside = (targets,) if weights is None else (targets, weights)
        params, buffers = list(self.params.values()), list(self.buffers.values())
        if members is None or len(members) == len(self):
            add = torch.is_grad_enabled() and not torch.is_autocast_enabled(self.device.type)
            gradients = self._gradients if add else {}
            return self._compute(inputs, beside, [*params, *buffers], gradients)
        where = torch.tensor(members, device=self.device)
        params, parts = ([x.index_select(0, where) for x in group] for group in (params, buffers))
        result = self._compute(inputs, beside, [*params, *parts])
        with torch.no_grad():
            for whole, part in zip(buffers, parts, strict=True):
                whole.index_copy_(0, where, part)
        return result

    def _compute(
        self,
        inputs: Tensor,
        beside: tuple[Tensor, ...],
        tensors: Sequence[Tensor],
        gradients: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        named = dict(zip(self._names, tensors, strict=True))
        if self._chain is None or not self._chain.takes(inputs):
            return self._vmapped(inputs, beside, named)
        values = self._chain.forward(inputs, named, gradients)
        losses = None if self._stacked_loss is None else self._stacked_loss(values, *beside)
        return self._after_chain(values, beside, named) if losses is None else (losses, values)

    def make_gradients(self, names: Iterable[str]) -> None:
        """Create gradients of 0 for these parameters.

        The models' gradients become views of them. Every backward pass adds to them, and
        `zero_gradients` resets them. A parameter that the loss does not depend on gets none: as
        without a stack, the optimizer skips it.
        """
        self._gradients = {name: torch.zeros_like(self.params[name].data) for name in names}
        for name, gradient in self._gradients.items():
            self.params[name].grad = gradient
            for k, model in enumerate(self.models):
                model.get_parameter(name).grad = gradient[k]

    def clip_gradients(self, members: list[int], limit: float, *, by_value: bool) -> None:
        """Clip the gradients of some models, each model by itself.

        Args:
            members: Numbers of the models.
            limit: The largest norm of all of a model's gradients, or the largest absolute value.
            by_value: Clip values, not the norm.
        """
        gradients = list(self._gradients.values())
        if by_value:
            for gradient in gradients:
                gradient[members] = gradient[members].clamp(-limit, limit)
            return
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        factors = (limit / (norms + 1e-6)).clamp(max=1.0)  # as in clip_grad_norm_
        for gradient in gradients:
            gradient[members] *= factors[members].view(-1, *(1,) * (gradient.ndim - 1))

    def zero_gradients(self, members: list[int]) -> None:
        """Set the gradients of some models to 0."""
        gradients = list(self._gradients.values())
        if len(members) == len(self):
            torch._foreach_zero_(gradients)
            return
        for gradient in gradients:
            gradient[members] = 0

    def state(self, k: int) -> dict[str, Tensor]:
        """Return a copy of the `state_dict` of model k."""
        return {name: value.detach().clone() for name, value in self.models[k].state_dict().items()}

    def keep(self, members: Sequence[int]) -> None:
        """Remove all other models from the stack.

        The removed models get their own copies of their weights.
        """
        dropped = [m for k, m in enumerate(self.models) if k not in set(members)]
        for model in dropped:
            for p in model.parameters():
                p.data = p.detach().clone()
                p.grad = None
            for name, buffer in list(model.named_buffers()):
                owner, _, leaf = name.rpartition(".")
                model.get_submodule(owner)._buffers[leaf] = buffer.clone()
        self.models = [self.models[k] for k in members]
        self._fill()
        self.make_gradients(self._gradients)


class _Step(nn.Module):
    """A module that computes outputs and loss of a model."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, beside: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        outputs = self.model.forward_prepared(inputs)
        return self.model.loss(outputs, *beside), outputs


class _AfterNet(_Step):
    """The rest of a step, from the values of the net on."""

    def forward(self, values: Tensor, beside: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        task = self.model.task
        outputs = values if task is None else task.decode(values)
        return self.model.loss(outputs, *beside), outputs


def _stacked_loss(model: Model) -> Callable[..., Tensor | None] | None:
    """Return the task's loss of several models, unless it is replaced."""
    task = model.task
    own = type(model).loss is not Model.loss or "loss" in vars(model)
    if task is None or own or {"loss", "decode"} & vars(task).keys():
        return None
    return task.stacked_loss if fits(task, "stacked_loss", "loss", "decode") else None


class _Vmapped:
    """A step that `torch.func.vmap` runs over stacked tensors."""

    def __init__(self, step: _Step, names: Sequence[str]) -> None:
        self.step, self.names = step, names
        self.places = [_place(step.model, name) for name in names]
        self.run = vmap(self._call, randomness="different")

    def __call__(
        self, inputs: Tensor, beside: tuple[Tensor, ...], tensors: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.run(
            inputs, beside, *(tensors[name] for name in self.names)
        )
        return found

    def _call(
        self, inputs: Tensor, beside: tuple[Tensor, ...], *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        # This does what functional_call does in a tenth of the time. Small nets gain from it.
        before = [holder[name] for holder, name in self.places]
        for (holder, name), tensor in zip(self.places, tensors, strict=True):
            holder[name] = tensor
        try:
            found: tuple[Tensor, Tensor] = self.step(inputs, beside)
            for (holder, name), tensor in zip(self.places, tensors, strict=True):
                if holder[name] is not tensor:
                    raise NotVectorizable(
                        f"a step replaces the tensor {name}; change it in place instead"
                    )
            return found
        finally:
            for (holder, name), tensor in zip(self.places, before, strict=True):
                holder[name] = tensor


def _place(model: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """Return the dict and the key that hold a parameter or buffer."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    holder: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
    return holder, leaf


def _without_metrics(model: Model) -> Model:
    """Copy a model without its metrics and its Trainer."""
    trainer = trainer_of(model)
    model.trainer = None
    try:
        new = copy.deepcopy(model)
    finally:
        model.trainer = trainer
    new._metrics = nn.ModuleDict()
    vars(new)["_trainer"] = _NoTrainer()
    return new


class _NoTrainer:
    """Stand-in for the Trainer that fails when a step uses it."""

    def __getattr__(self, name: str) -> Any:
        raise NotVectorizable(
            f"a step uses the Trainer ({name}), by self.log for instance, which would happen for "
            "one model only"
        )


def _check_same(models: Sequence[Model]) -> None:
    def described(model: Model) -> dict[str, tuple[torch.Size, torch.dtype, bool]]:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, x in tensors.items():
            if is_lazy(x):
                raise NotVectorizable(f"{name} is lazy: its shape is not known before the fit")
        return {name: (x.shape, x.dtype, x.requires_grad) for name, x in tensors.items()}

    _check_tensors(models[0])
    parts = _parts(models[0])
    first, plain = described(models[0]), plain_state(models[0])
    for k, model in enumerate(models):
        mine = described(model)
        if type(model) is not type(models[0]) or mine.keys() != first.keys():
            raise NotVectorizable(
                f"model {k}, a {type(model).__name__}, has other parameters than model 0, a "
                f"{type(models[0]).__name__}; models fitted together need the same architecture"
            )
        for name, found in mine.items():
            if found != first[name]:
                raise NotVectorizable(
                    f"{name} is {_said(*found)} in model {k} and {_said(*first[name])} in model 0; "
                    "models fitted together need the same architecture"
                )
        for path, part in _parts(model).items():
            if part != parts.get(path):
                raise NotVectorizable(
                    f"{path or 'the model'} is {part} in model {k} and {parts.get(path)} in model "
                    "0; models fitted together need the same architecture"
                )
        if plain_state(model) != plain:
            other = plain_state(model)
            name = next(n for n in {**plain, **other} if plain.get(n) != other.get(n))
            raise NotVectorizable(
                f"{name} is {other.get(name)!r} in model {k} and {plain.get(name)!r} in model 0; "
                "only settings of the training, such as lr, may differ"
            )


def _parts(model: Model) -> dict[str, str]:
    """Describe class, settings, mode and hooks of each module."""
    found = {}
    for path, module in model.named_modules():
        if path.startswith("_metrics") or isinstance(module, Preprocess):
            continue
        text = f"{type(module).__name__}({module.extra_repr()})"
        text += "" if module.training else " in evaluation mode"
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        found[path] = text + (f", hooks: {hooks}" if hooks else "")
    return found


def _said(shape: torch.Size, dtype: torch.dtype, requires_grad: bool) -> str:
    return f"{dtype} of shape {tuple(shape)}{'' if requires_grad else ' (not trained)'}"


def _check_tensors(model: Model) -> None:
    """Refuse tied parameters or buffers, and hooks on gradients."""
    for kind in ("parameters", "buffers"):
        named = getattr(model, f"named_{kind}")
        once = {name for name, _ in named()}
        for name, _ in named(remove_duplicate=False):
            if name not in once:
                raise NotVectorizable(f"{name} is tied: two of the {kind} share it")
    for name, p in model.named_parameters():
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
            raise NotVectorizable(f"{name} has a hook on its gradient")
