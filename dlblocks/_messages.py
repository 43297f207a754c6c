"""Make parts of messages, such as hints and lists of names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """Return a hint at the closest choice, or an empty text.

    >>> did_you_mean("adan", ["adam", "sgd"])
    "; did you mean 'adam'?"
    """
    small = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(value).lower(), small, n=1)
    return f"; did you mean {small[close[0]]!r}?" if close else ""


def listed(names: Iterable[object], most: int = 8) -> str:
    """Return names for a message, some of them if there are many.

    >>> listed("abc", most=2)
    "'a', 'b' and 1 more"
    """
    texts = [repr(name) for name in names]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def channels_first(axes: str = "C, H, W") -> str:
    """Return the cure for images with channels last."""
    order = "2, 0, 1" if axes == "C, H, W" else "0, 3, 1, 2"
    return (
        f"whose last axis looks like channels; images are ({axes}): use .permute({order}) "
        f"(torch), .transpose({order}) (NumPy) or torchvision's v2.ToImage()."
    )


def is_channels_last(in_channels: int, shape: tuple[int, ...]) -> bool:
    """Tell whether the last axis holds the channels.

    >>> is_channels_last(3, (12, 12, 3)), is_channels_last(3, (3, 12, 12))
    (True, False)
    """
    return len(shape) == 3 and shape[-1] == in_channels != shape[0] and in_channels in (1, 3, 4)


def wrong_channels(in_channels: int, shape: tuple[int, ...]) -> ValueError:
    """Return the error for images of other channels.

    >>> wrong_channels(1, (3, 8, 8))
    ValueError('in_channels=1, but one image has shape (3, 8, 8); set in_channels=3.')
    """
    if len(shape) != 3:
        cure = "; images are (C, H, W)."
    elif is_channels_last(in_channels, shape):
        cure = f", {channels_first()}"
    else:
        cure = f"; set in_channels={shape[0]}."
    return ValueError(f"in_channels={in_channels}, but one image has shape {shape}{cure}")


def other_lightning(thing: object) -> str:
    """Return a hint if an object's class is from the package ``pytorch_lightning``."""
    if all(c.__module__.partition(".")[0] != "pytorch_lightning" for c in type(thing).__mro__):
        return ""
    return (
        f" {type(thing).__name__} is from the package pytorch_lightning, whose classes are not "
        "those of lightning.pytorch; import lightning.pytorch as pl instead."
    )


def named(error: Exception, name: str) -> Exception:
    """Return the same kind of error with a name before its message.

    >>> named(ValueError("lr=-1"), "fold 2")
    ValueError('fold 2: lr=-1')
    """
    message = f"{name}: {error}"
    try:
        new = type(error)(message)
    except Exception:  # its class needs other arguments
        return RuntimeError(f"{name}: {error!r}")
    return new if str(new) == message else RuntimeError(f"{name}: {error!r}")
