"""Turn raw inputs into the inputs that a net is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from dlblocks._memory import BatchMemory
from dlblocks.fields import Padded

Inputs = TypeVar("Inputs", Tensor, Padded)
AT_ONCE = 1 << 18  # values that stay in a processor's cache: 1 MB
STATISTICS = ("scale", "shift", "fill", "coded", "tables")


class Preprocess(nn.Module):
    """Normalise inputs by statistics of the training part.

    Every `Model.preprocess` is one. A fit with a datamodule of this package sets it, once, to the
    statistics of its training part. They are saved with the weights, so that a loaded model takes
    raw inputs.

    It changes inputs in this order:

    1. Numbers of categories become their values in `tables`.
    2. Missing cells (NaN) become `fill`.
    3. ``inputs * scale + shift``, each channel (or column) with its own.

    Sequences of unequal length are `dlblocks.fields.Padded`. Their padding becomes 0.

    The result has the dtype of the model. Statistics keep their dtype when the model's changes:
    float32, or float64 if float32 would round too much. A checkpoint holds them, but they are not
    buffers, because weight averaging, DDP and half precision change buffers.

    Args:
        mean: Mean of each channel, or column, in the units of the inputs, such as 0 … 255 of uint8
            images. None: inputs stay as they are.
        std: Standard deviation of each.

    Attributes:
        scale: Shape (C,), or () for all; empty while nothing is set. For sequences of unequal
            length (1, C, 1, ...), which broadcasts with values (B, T, C, ...).
        shift: Of the same shape as `scale`.
        fill: Replacements of missing cells, shape (F,), or empty.
        coded: Columns that hold numbers of categories from -1 (missing), int64 of shape (K,).
        tables: New values of each category of these columns, shape (K, 2 + categories).

    Example:
        >>> images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
        >>> Preprocess(mean=[127.5] * 3, std=[63.75] * 3)(images).flatten()[:2]
        tensor([2., 2.])
    """

    def __init__(
        self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.scale, self.shift = torch.empty(0), torch.empty(0)
        self.fill, self.tables = torch.empty(0), torch.empty(0)
        self.coded = torch.empty(0, dtype=torch.int64)
        # It follows the dtype of the model.
        self.dtype_of: Tensor
        self.register_buffer("dtype_of", torch.empty(0), persistent=False)
        if (mean is None) != (std is None):
            raise ValueError(f"mean={mean} and std={std}; give both or neither.")
        if mean is not None and std is not None:
            means, stds = (torch.as_tensor(x, dtype=torch.float64).flatten() for x in (mean, std))
            if means.shape != stds.shape or not (stds > 0).all():
                raise ValueError(
                    f"mean={mean} and std={std}; both need a number for each channel, and a "
                    "standard deviation is above 0."
                )
            self.set(scale=(1 / stds).float(), shift=(-means / stds).float())

    @property
    def is_set(self) -> bool:
        """True if statistics are set."""
        return self.scale.numel() > 0

    def set(self, **statistics: Tensor) -> Self:
        """Replace some statistics by copies of these.

        They move to the device of the old ones.
        """
        device = self.scale.device
        for name, value in statistics.items():
            value = value.detach().clone()
            # The meta device would drop the numbers.
            setattr(self, name, value if device.type == "meta" else value.to(device))
        return self

    def statistics(self) -> dict[str, Tensor]:
        """Return all statistics by name."""
        return {name: getattr(self, name) for name in STATISTICS}

    def is_like(self, other: Preprocess) -> bool:
        """Return True if the statistics of two can be stacked.

        They need the same shapes, dtypes and columns.
        """
        pairs = [(getattr(self, name), getattr(other, name)) for name in STATISTICS]
        alike = all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
        return alike and torch.equal(self.coded, other.coded)

    def to_plain(self) -> dict[str, Any]:
        """Return the statistics as plain values, for JSON and `from_plain`."""
        return {
            name: [str(value.dtype).removeprefix("torch."), value.tolist()]
            for name, value in self.statistics().items()
            if value.numel()
        }

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """Create one from the result of `to_plain`."""
        return cls().set(
            **{
                name: torch.tensor(numbers, dtype=getattr(torch, dtype))
                for name, (dtype, numbers) in values.items()
            }
        )

    def forward(self, inputs: Inputs, memory: BatchMemory | None = None) -> Inputs:
        """Return prepared inputs.

        Those of a large batch may be in `memory`.
        """
        if self.scale.numel() == 0:
            return inputs
        if isinstance(inputs, Padded):
            if self.scale.ndim == 1:
                raise ValueError(
                    f"preprocess has statistics of {len(self.scale)} channels of inputs (N, C, …), "
                    "but the batch is Padded sequences; fit the model to sequences of unequal "
                    "length, given as Ragged.of([…])."
                )
            return inputs.masked(self(inputs.values))
        inputs = complete(inputs, self.fill, self.coded, self.tables)
        scale, shift = self.scale, self.shift
        if scale.ndim == 1 and inputs.ndim > 2:  # (C,) of inputs (N, C, …)
            scale = scale.reshape([-1] + [1] * (inputs.ndim - 2))
            shift = shift.reshape([-1] + [1] * (inputs.ndim - 2))
        return rescale(inputs, scale, shift, self.dtype_of.dtype, memory)

    def inverse(self, inputs: Inputs) -> Inputs:
        """Undo scale and shift, back to the units of the source.

        If statistics are set, the result is floating point.
        """
        if not self.is_set:
            return inputs
        if isinstance(inputs, Padded):
            return inputs.masked(self.inverse(inputs.values))
        shape = (-1,) + (1,) * (inputs.ndim - 2) if self.scale.ndim == 1 else self.scale.shape
        return (inputs - self.shift.reshape(shape)) / self.scale.reshape(shape)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Half precision would round the statistics, so they change their device only.
        moved = fn(self.dtype_of)
        self._buffers["dtype_of"] = moved
        for name in STATISTICS:
            value = getattr(self, name)
            if moved.device.type == "mps" and value.dtype == torch.float64:  # MPS has no float64
                value = value.float()
            if moved.device != value.device:
                is_meta = value.device.type == "meta"  # it has no numbers to copy
                make = torch.empty_like(value, device=moved.device) if is_meta else None
                setattr(self, name, value.to(moved.device) if make is None else make)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination.update({prefix + name: x for name, x in self.statistics().items()})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # The saved shapes replace those of the present statistics.
        names = {prefix + name: name for name in STATISTICS}
        self.set(**{name: state_dict[key] for key, name in names.items() if key in state_dict})
        if strict:
            missing_keys.extend(key for key in names if key not in state_dict)
            mine = [key for key in state_dict if key.startswith(prefix)]
            unexpected_keys.extend(key for key in mine if key not in names)


class PassOn(Preprocess):
    """Leave inputs as they are, for an ensemble.

    Its members have statistics of their own. `is_set` is True if one of them has any.
    """

    def __init__(self, members: Sequence[Preprocess]) -> None:
        super().__init__()
        self.members = list(members)  # not submodules, because the members hold them already

    @property
    def is_set(self) -> bool:
        return any(member.is_set for member in self.members)

    def forward(self, inputs: Inputs, memory: BatchMemory | None = None) -> Inputs:
        return inputs


def preprocess_of(model: Any) -> Preprocess | None:
    """Return the `preprocess` of a `dlblocks.models.Model`, else None.

    Other modules with such an attribute may apply it in their own `forward`.
    """
    found = getattr(model, "preprocess", None)
    takes_raw = hasattr(model, "forward_prepared")
    return found if takes_raw and isinstance(found, Preprocess) else None


def complete(inputs: Tensor, fill: Tensor, coded: Tensor, tables: Tensor) -> Tensor:
    """Fill in missing cells, and look up numbers of categories.

    Args:
        inputs: Shape (N, F), or (M, N, F) for M models.
        fill: Shape (F,) or (M, 1, F); empty to fill in nothing.
        coded: Columns, int64 of shape (K,); empty for none.
        tables: Shape (K, 2 + categories), or with a leading M.

    Returns:
        New inputs, or the given ones if there is nothing to do.
    """
    if coded.numel() > 0:
        codes = inputs.index_select(-1, coded).long() + 1
        found = tables.gather(-1, codes.transpose(-1, -2)).transpose(-1, -2)
        inputs = inputs.index_copy(-1, coded, found.to(inputs.dtype))
    if fill.numel() > 0:
        inputs = torch.where(inputs.isnan(), fill.to(inputs.dtype), inputs)
    return inputs


def rescale(
    inputs: Tensor,
    scale: Tensor,
    shift: Tensor,
    dtype: torch.dtype,
    memory: BatchMemory | None = None,
) -> Tensor:
    """Return ``inputs * scale + shift`` as `dtype`.

    It computes in float32 at least, and in float64 if any of the three is float64. The result of a
    large batch may be in `memory`.
    """
    if torch.float64 in (inputs.dtype, scale.dtype):
        return (inputs.double() * scale.double()).add_(shift.double()).to(dtype)
    wide = torch.promote_types(torch.float32, dtype)
    if inputs.dtype == wide:
        return (inputs * scale.to(wide)).add_(shift.to(wide)).to(dtype)
    # Operations in place take half the time of one that casts and multiplies at once.
    if memory is None or wide != dtype or inputs.requires_grad or inputs.numel() <= AT_ONCE:
        return inputs.to(wide).mul_(scale).add_(shift).to(dtype)
    result = memory.like(inputs, wide)
    count = max(1, AT_ONCE // inputs[0].numel())
    for source, part in zip(inputs.split(count), result.split(count), strict=True):
        part.copy_(source).mul_(scale).add_(shift)
    return result
