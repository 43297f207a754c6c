"""K models of one architecture as one: each parameter a tensor with a leading axis of K."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import vmap
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from dlblocks._lightning import trainer_of
from dlblocks.engine._support import NotVectorizable, plain_state
from dlblocks.models.model import Model
from dlblocks.nets import MLP
from dlblocks.tasks.task import is_ours


class StackedModels:
    """The parameters and buffers of K models in shared memory, and their batched computation.

    The models' own parameters, buffers and gradients are views of row k of the stacked tensors, so
    that what an optimizer or a checkpoint does to a model is done to the stack. One model
    of the stack computes for all, by `torch.func.vmap` over the leading axis: its `forward`, its
    `loss`, batch norm with each model's own statistics, and dropout with draws of each model's own.

    Args:
        models: K >= 1 models with equal names, shapes and dtypes of parameters and buffers.
        device: Where to compute.

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
        self._layers = dense_layers(self.template)
        if self._layers is not None:
            tail = _Step(copy.copy(self.template))
            vars(tail.model)["_trainer"] = _NoTrainer()  # which a copy lets go of
            tail.model._modules = {**tail.model._modules, "net": nn.Identity()}
            self._after_net = _Vmapped(tail, [n for n in self._names if not n.startswith("net.")])
        self.params: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}  # that are the models' own too
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
        """Sets the models to training, in which modules keep the mode they came with, or not."""
        for module, training in self._modes.items():
            module.training = training and mode
        if self._layers is not None:
            self._after_net.step.model.training = self.template.training

    def run(
        self,
        inputs: Tensor,
        targets: Tensor,
        members: Sequence[int] | None = None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Losses, shape (M,), and outputs, shape (M, N, ...), of each member on a batch of its own.

        Args:
            inputs: Shape (M, N, ...).
            targets: Shape (M, N, ...).
            weights: How much each sample counts, shape (M, N), or None.
            members: Which M of the models compute, all by default. Buffers of the others stay.
        """
        # What the loss takes beside the outputs.
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
        if self._layers is None:
            return self._vmapped(inputs, beside, named)
        values = dense_forward(self._layers, inputs, named, gradients)
        task, losses = self.template.task, None
        own = not is_ours(type(task)) or type(self.template).loss is not Model.loss
        if task is not None and not own:
            losses = task.stacked_loss(values, *beside)
        return self._after_net(values, beside, named) if losses is None else (losses, values)

    def make_gradients(self, names: Iterable[str]) -> None:
        """Gives these parameters gradients of 0, the models' own being views of the stack's.

        They are only ever added to. A parameter without one is of no use to the loss: as without a
        stack, the optimizer leaves it alone.
        """
        self._gradients = {name: torch.zeros_like(self.params[name].data) for name in names}
        for name, gradient in self._gradients.items():
            self.params[name].grad = gradient
            for k, model in enumerate(self.models):
                model.get_parameter(name).grad = gradient[k]

    def clip_gradients(self, members: list[int], limit: float, *, by_value: bool) -> None:
        """Clips the gradients of some models, each its own; those of the others stay.

        Args:
            members: Which models.
            limit: The largest norm of all of a model's gradients, or the largest value.
            by_value: Clip values, not the norm.
        """
        gradients = list(self._gradients.values())
        if by_value:
            for gradient in gradients:
                gradient[members] = gradient[members].clamp(-limit, limit)
            return
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        factors = (limit / (norms + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_ has it
        for gradient in gradients:
            gradient[members] *= factors[members].view(-1, *(1,) * (gradient.ndim - 1))

    def zero_gradients(self, members: list[int]) -> None:
        """Sets the gradients of some models to 0."""
        gradients = list(self._gradients.values())
        if len(members) == len(self):
            torch._foreach_zero_(gradients)
            return
        for gradient in gradients:
            gradient[members] = 0

    def state(self, k: int) -> dict[str, Tensor]:
        """A copy of model k's parameters and buffers, as its `state_dict` has them."""
        return {name: value.detach().clone() for name, value in self.models[k].state_dict().items()}

    def keep(self, members: Sequence[int]) -> None:
        """Leaves only these models in the stack; the others keep their weights, on their own."""
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
    """What is computed for each model: outputs, and their loss."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, beside: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        outputs = self.model.forward_prepared(inputs)
        return self.model.loss(outputs, *beside), outputs


class _Vmapped:
    """One step over stacked tensors, by `torch.func.vmap`."""

    def __init__(self, step: _Step, names: Sequence[str]) -> None:
        self.step, self.names = step, names
        self.places = [_place(step.model, name) for name in names]
        self.run = vmap(self._call, randomness="different")

    def __call__(
        self, inputs: Tensor, beside: tuple[Tensor, ...], tensors: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        return self.run(inputs, beside, *(tensors[name] for name in self.names))

    def _call(
        self, inputs: Tensor, beside: tuple[Tensor, ...], *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        # As functional_call does, in a tenth of its time, which for a small net is noticed.
        before = [holder[name] for holder, name in self.places]
        for (holder, name), tensor in zip(self.places, tensors, strict=True):
            holder[name] = tensor
        try:
            found = self.step(inputs, beside)
            for (holder, name), tensor in zip(self.places, tensors, strict=True):
                if holder[name] is not tensor:
                    raise NotVectorizable(
                        f"a step puts another tensor in the place of {name}; write into it instead"
                    )
            return found
        finally:
            for (holder, name), tensor in zip(self.places, before, strict=True):
                holder[name] = tensor


def _place(model: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """Where a module keeps a parameter or buffer."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    holder: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
    return holder, leaf


def _without_metrics(model: Model) -> Model:
    """A copy for computation alone, attached to no Trainer."""
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
    """Stands for the Trainer of the model that computes for all: there is none to be asked."""

    def __getattr__(self, name: str) -> Any:
        raise NotVectorizable(f"a step asks for, or logs to, the Trainer ({name}) of one model")


def _check_same(models: Sequence[Model]) -> None:
    def described(model: Model) -> dict[str, tuple[torch.Size, torch.dtype, bool]]:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, x in tensors.items():
            if is_lazy(x):
                raise NotVectorizable(f"{name} is lazy: its shape is not known before the fit")
        return {name: (x.shape, x.dtype, x.requires_grad) for name, x in tensors.items()}

    _check_tensors(models[0])
    first, plain = described(models[0]), plain_state(models[0])
    for k, model in enumerate(models):
        mine = described(model)
        if type(model) is not type(models[0]) or mine.keys() != first.keys():
            raise NotVectorizable(
                f"model {k} is a {type(model).__name__} with other parameters than model 0, a "
                f"{type(models[0]).__name__}; models fitted together need the same architecture"
            )
        for name, found in mine.items():
            if found != first[name]:
                raise NotVectorizable(
                    f"{name} is {_said(*found)} in model {k} and {_said(*first[name])} in model 0; "
                    "models fitted together need the same architecture"
                )
        if plain_state(model) != plain:
            other = plain_state(model)
            name = next(n for n in {**plain, **other} if plain.get(n) != other.get(n))
            raise NotVectorizable(
                f"{name} is {other.get(name)!r} in model {k} and {plain.get(name)!r} in model 0; "
                "only what trains a model, such as lr, may differ"
            )


def _said(shape: torch.Size, dtype: torch.dtype, requires_grad: bool) -> str:
    return f"{dtype} of shape {tuple(shape)}{'' if requires_grad else ' (not trained)'}"


def _check_tensors(model: Model) -> None:
    """That every parameter has one place, and nothing that is called with its gradient."""
    for kind in ("parameters", "buffers"):
        named = getattr(model, f"named_{kind}")
        once = {name for name, _ in named()}
        for name, _ in named(remove_duplicate=False):
            if name not in once:
                raise NotVectorizable(f"{name} is tied to another of the {kind}")
    for name, p in model.named_parameters():
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
            raise NotVectorizable(f"{name} has a hook on its gradient")


# What these do to a value depends on that value alone.
POINTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Identity,
)  # fmt: skip
Tensors = Mapping[str, Tensor]


def dense_layers(model: Model) -> list[tuple[str, nn.Module]] | None:
    """The layers of a model's perceptron with their names, or None if it has no plain one."""
    net = model.net
    if type(net) is not MLP or net.embeddings or type(model).forward is not Model.forward:
        return None
    known = (nn.Linear, nn.BatchNorm1d, nn.LayerNorm, nn.Dropout, *POINTWISE)
    layers = [(f"net.layers.{name}", layer) for name, layer in net.layers.named_children()]
    if any(type(layer) not in known or _has_hooks(layer) for _, layer in layers):
        return None
    if any(isinstance(x, nn.BatchNorm1d) and not _is_plain(x) for _, x in layers):
        return None
    return layers


def dense_forward(
    layers: list[tuple[str, nn.Module]],
    inputs: Tensor,
    tensors: Tensors,
    gradients: Tensors | None = None,
) -> Tensor:
    """Outputs (M, N, D) of M perceptrons for inputs (M, N, ...), each for its own.

    Args:
        layers: Those of one of them, in the mode to be used.
        inputs: The inputs.
        tensors: Parameters and buffers by name, stacked; running statistics are written into.
        gradients: Gradients by name: the backward pass adds those of linear layers to them, and
            autograd has nothing to do with these parameters.
    """
    gradients = gradients or {}
    x = inputs.flatten(2)  # (M, N, F)
    for name, layer in layers:
        weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
        if isinstance(layer, nn.Linear):
            assert weight is not None  # for the type checker
            sums = [gradients.get(f"{name}.{leaf}") for leaf in ("weight", "bias")]
            if sums[0] is None or (bias is not None and sums[1] is None):
                x = _linear(x, weight, bias)
            else:
                x = _Linear.apply(x, weight, bias, *sums)
        elif isinstance(layer, nn.BatchNorm1d):
            # The features of all models side by side are the channels of one batch norm.
            size = x.shape
            x = x.transpose(0, 1).reshape(size[1], -1)  # (N, M · F)
            mean, var = (tensors[f"{name}.running_{kind}"].view(-1) for kind in ("mean", "var"))
            weight, bias = _flat(weight), _flat(bias)
            momentum = layer.momentum or 0.0
            x = F.batch_norm(x, mean, var, weight, bias, layer.training, momentum, layer.eps)
            x = x.view(size[1], size[0], size[2]).transpose(0, 1)
            if layer.training:
                tensors[f"{name}.num_batches_tracked"].add_(1)
        elif isinstance(layer, nn.LayerNorm):
            x = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
            if weight is not None:
                x = x * weight.unsqueeze(1)
            if bias is not None:
                x = x + bias.unsqueeze(1)
        else:
            x = layer(x)
    return x


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = weight.transpose(1, 2)
    return x @ product if bias is None else torch.baddbmm(bias.unsqueeze(1), x, product)


class _Linear(torch.autograd.Function):
    """`_linear` whose backward pass adds to given gradients, within the matrix product itself.

    Autograd would make the products first, transposed, and add them then: for twenty perceptrons
    that takes a quarter of a step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        of_weight: Tensor,
        of_bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sums = of_weight, of_bias
        return _linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients  # (M, N, D)
        x, weight = ctx.saved_tensors
        of_weight, of_bias = ctx.sums
        of_weight.baddbmm_(g.transpose(1, 2), x)
        if of_bias is not None:
            of_bias += g.sum(1)
        return (g @ weight if ctx.needs_input_grad[0] else None), None, None, None, None


def _flat(stacked: Tensor | None) -> Tensor | None:
    return None if stacked is None else stacked.reshape(-1)


def _is_plain(layer: nn.BatchNorm1d) -> bool:
    return layer.track_running_stats and layer.momentum is not None


def _has_hooks(layer: nn.Module) -> bool:
    return any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks,
                layer._backward_pre_hooks))  # fmt: skip
