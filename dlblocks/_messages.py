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
