"""Which engine runs several fits, and how many of them at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from dlblocks.ensembles.errors import NotVectorizable
from dlblocks.ensembles.probe import is_out_of_memory, seconds_a_step
from dlblocks.ensembles.vectorized import Together

# What a step of a fit of its own costs at the least beside losses and gradients: Lightning's loop,
# the optimizer's step, metrics (of about 2 ms for a small MLP; benchmarks/vectorized.py).
STEP_SECONDS = 1.5e-3
ENGINES = ("sequential", "vectorized", "auto")
Key = TypeVar("Key")
Found = TypeVar("Found")


def choose_engine(
    engine: str, make_together: Callable[[], Together], count: int, what: str
) -> tuple[str, str]:
    """Which engine runs some fits, and why.

    Args:
        engine: ``"vectorized"`` or ``"auto"``.
        make_together: Makes the fits ready to be run as one.
        count: How many they are.
        what: What they are, such as ``"folds"``.

    Returns:
        The engine, and a sentence that says why it was chosen.

    Raises:
        NotVectorizable: The fits must be vectorized and cannot be.
    """
    try:
        together = make_together()
    except NotVectorizable as error:
        if engine == "vectorized":
            raise NotVectorizable(
                f"engine='vectorized' cannot run these fits: {error}; use engine='sequential', or "
                "'auto' to have it chosen."
            ) from error
        return "sequential", f"the {what} cannot be fitted together: {error}"
    except Exception as error:
        if count == 1 or not is_out_of_memory(error):
            raise
        return (
            "vectorized",
            f"{count} {what} at once need more memory than there is, a part may fit",
        )
    if engine == "vectorized":
        together.detach()
        return engine, "as asked"
    at_once, apart = seconds_a_step(together)
    together.detach()
    apart += STEP_SECONDS * count
    said = f"a step takes {1e3 * at_once:.2g} ms for {count} {what} at once and "
    said += f"{1e3 * apart:.2g} ms for one after the other"
    return ("vectorized" if at_once < apart else "sequential"), said


def in_halves(
    run: Callable[[Sequence[Key]], Sequence[Found]], keys: Sequence[Key], what: str
) -> Generator[Found, None, None]:
    """Runs fits as one, or in two halves where they do not fit into memory together, and so on.

    Args:
        run: Runs some fits.
        keys: All of them.
        what: What they are, such as ``"folds"``.
    """
    try:
        found = run(keys)
    except Exception as error:
        if len(keys) == 1 or not is_out_of_memory(error):
            raise
        half = -(-len(keys) // 2)
        print(
            f"{len(keys)} {what} at once need more memory than there is; going on with {half}.",
            file=sys.stderr,
            flush=True,
        )
    else:
        yield from found
        return
    # Outside of the handler, whose error holds the memory.
    for part in (keys[:half], keys[half:]):
        yield from in_halves(run, part, what)
