"""Call a function on many items in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import joblib

MAX_THREADS = 8
THREADS_PAY = 10_000  # rows of a column
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], *, pays: bool = True
) -> Iterator[Result]:
    """Call a function on each item, and yield the results in order.

    Without threads a result is gone before the next item: small results of large items would cut
    the freed memory into pieces that the next item does not fit.

    It helps where NumPy, torch or pandas do the work, which they do without Python's lock.

    Args:
        function: A function of one item.
        items: The items.
        pays: False to do without threads, because they take longer to start than the work.
    """
    workers = min(joblib.cpu_count(), MAX_THREADS, len(items)) if pays else 1
    if workers < 2:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(function, items)
