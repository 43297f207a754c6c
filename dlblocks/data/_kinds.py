"""Infer the kinds of arrays from dtype and shape."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from dlblocks.fields import Boxes, Class, Features, Image, Kind, Labels, Mask, Ragged, Values


def find_input_kind(argument: str, inputs: Any) -> Kind:
    """Infer the kind of inputs.

    Args:
        argument: Name of the inputs in the message.
        inputs: Tensor or array of shape (N, ...), or `Ragged`.

    Raises:
        ValueError: The inputs are integers, which may be tokens or features.

    Example:
        >>> find_input_kind("inputs", np.zeros((2, 3, 8, 8), np.uint8)).name
        'image'
    """
    if inputs.ndim == 4 and not isinstance(inputs, Ragged):
        return Image()
    if _letter(inputs) in "iu":
        cure = " For grey images (N, H, W) use inputs[:, None]." if inputs.ndim == 3 else ""
        raise ValueError(
            f"{argument} has whole numbers ({inputs.dtype}) of shape {tuple(inputs.shape)}, which "
            "may be tokens or features; set input_kind='tokens' to keep them whole, for an "
            "embedding, or input_kind='features' to normalise them as floating-point numbers."
            f"{cure}"
        )
    return Features()


def image_size(inputs: Any, kind: Kind) -> tuple[int, ...] | None:
    """Return height and width of images, None for inputs of another kind."""
    return tuple(inputs.shape[2:]) if isinstance(kind, Image) else None


def find_target_kind(targets: Any, size: tuple[int, ...] | None = None) -> Kind | None:
    """Infer the kind of targets, None for an unknown one.

    Args:
        targets: Tensor, array or list of shape (N, ...), or `Ragged`.
        size: Height and width of the inputs, if they are images.
    """
    if isinstance(targets, Ragged):
        return Boxes() if targets.values.shape[1:] in ((4,), (5,)) else None
    if not isinstance(targets, Tensor):
        targets = np.asarray(targets)
    letter, shape = _letter(targets), tuple(targets.shape)
    if letter == "f":
        return Values()
    if letter not in "iub" or shape[1:] in ((), (1,)):
        return Class()
    if len(shape) == 2:
        return Labels()
    return Mask() if size is not None and shape[1:] == size else None


def _letter(values: Any) -> str:
    """Return NumPy's letter of a dtype, such as f, i or u."""
    if not isinstance(values, (Tensor, Ragged)):
        return str(values.dtype.kind)
    if values.is_floating_point():
        return "f"
    return {"torch.bool": "b", "torch.uint8": "u"}.get(
        str(values.dtype), "c" if values.dtype.is_complex else "i"
    )
