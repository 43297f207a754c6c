"""Choose the engine of several fits, and how many run at once."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from dlblocks.engine._support import NotVectorizable, is_out_of_memory
from dlblocks.engine.fit_many import StackedFit

# Seconds of a sequential step without losses and gradients, at the least: Lightning's loop, the
# optimizer's step, metrics. The whole step of a small MLP takes about 2 ms; see
# benchmarks/vectorized.py.
STEP_SECONDS = 1.5e-3
# Seconds of a sequential fit beside its steps, at the least, beyond those of a member of a stack:
# a Trainer, checkpoints written and read.
FIT_SECONDS = 0.1
Key = TypeVar("Key")
Found = TypeVar("Found")


def choose_engine(
    engine: str,
    make_stacked: Callable[[Sequence[Key]], StackedFit],
    keys: Sequence[Key],
    what: str,
) -> tuple[str, str, StackedFit | None]:
    """Choose the engine of some fits, with the reason.

    Args:
        engine: ``"vectorized"`` or ``"auto"``.
        make_stacked: Stacks some of the fits.
        keys: Keys of all fits.
        what: Name of the fits, such as ``"folds"``.

    Returns:
        The engine, the reason, and the stacked fits. The last is None for the sequential engine,
        and if memory is too short for all fits together.

    Raises:
        NotVectorizable: The fits must be vectorized and cannot be.
    """
    stacked, part = None, keys
    try:
        while stacked is None:
            try:
                stacked = make_stacked(part)
            except Exception as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
                part = _halves(part)[0]
            if stacked is None:
                gc.collect()  # a Trainer and its module refer to each other
    except NotVectorizable as error:
        if engine == "vectorized":
            raise NotVectorizable(
                f"engine='vectorized' cannot run these fits: {error}; use engine='sequential', or "
                "'auto' to let dlblocks choose."
            ) from error
        return "sequential", f"the {what} cannot be fitted together: {error}", None
    except Exception as error:
        if engine == "vectorized":
            raise
        # The sequential engine reports which fit failed.
        return "sequential", f"one of the {what} fails: {error!r}", None
    chosen, why = engine, "as asked"
    if engine == "auto":
        at_once, apart = stacked.seconds_a_step()
        apart += (STEP_SECONDS + FIT_SECONDS / stacked.most_steps) * len(part)
        why = f"a step takes {1e3 * at_once:.2g} ms for {len(part)} {what} at once and "
        why += f"{1e3 * apart:.2g} ms one after the other"
        chosen = "vectorized" if at_once < apart else "sequential"
    if chosen == "vectorized" and len(part) == len(keys):
        return chosen, why, stacked
    stacked.detach()
    return chosen, why, None


def in_halves(
    run: Callable[[Sequence[Key]], Sequence[Found]], keys: Sequence[Key], what: str
) -> Generator[Found, None, None]:
    """Run fits as one, or in halves if memory is short.

    A half that still needs too much memory is halved again.

    Args:
        run: Runs some fits.
        keys: Keys of all fits.
        what: Name of the fits, such as ``"folds"``.
    """
    try:
        found = run(keys)
    except Exception as error:
        if len(keys) == 1 or not is_out_of_memory(error):
            raise
        halves = _halves(keys)
        print(
            f"{len(keys)} {what} at once need more memory than there is; continuing with "
            f"{len(halves[0])}.",
            file=sys.stderr,
            flush=True,
        )
    else:
        yield from found
        return
    # Outside of the handler, because its error holds the memory. A Trainer and its module refer to
    # each other, so only the garbage collector frees them.
    gc.collect()
    for part in halves:
        yield from in_halves(run, part, what)


def _halves(keys: Sequence[Key]) -> tuple[Sequence[Key], Sequence[Key]]:
    half = -(-len(keys) // 2)
    return keys[:half], keys[half:]
