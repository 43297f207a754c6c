"""Call a function on many items in threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import joblib

MAX_THREADS = 8
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], *, pays: bool = True
) -> list[Result]:
    """Call a function on each item, and return the results in order.

    It helps where NumPy, torch or pandas do the work, which they do without Python's lock.

    Args:
        function: A function of one item.
        items: The items.
        pays: False to do without threads, because they take longer to start than the work.
    """
    workers = min(joblib.cpu_count(), MAX_THREADS, len(items)) if pays else 1
    if workers < 2:
        return list(map(function, items))
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))
