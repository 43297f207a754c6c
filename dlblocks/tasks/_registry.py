"""Know the tasks by their names, for predictions that were read from a file.

Tables of predictions ask here, and tasks take tables: this file is below both.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from dlblocks._scores import kind_of

Array = npt.NDArray[Any]
_tasks: dict[str, type[Any]] = {}


# A script is imported again under its own name, as by the processes of joblib and DDP.
SCRIPTS = ("__main__", "__mp_main__")


def register(task: type[Any]) -> None:
    """Let a class of tasks be found by its name; the last definition of a class counts.

    Raises:
        ValueError: Another class has this name: it would score the predictions of this one.
    """
    if not task.name or task.__module__.startswith("torch."):  # torch.export copies classes
        return
    before = _tasks.get(task.name, task)
    scripts = before.__module__ in SCRIPTS or task.__module__ in SCRIPTS
    is_again = before.__qualname__ == task.__qualname__ and (
        scripts or before.__module__ == task.__module__
    )
    if not is_again:
        raise ValueError(
            f"two tasks are named {task.name!r}: {before.__module__}.{before.__qualname__} and "
            f"{task.__module__}.{task.__qualname__}; set name= in the class of one."
        )
    _tasks[task.name] = task


def task_names() -> dict[str, type[Any]]:
    """Return all tasks by their names, a user's too."""
    return dict(_tasks)


def find_task(target: Array, prediction: Array, name: str | None = None) -> type[Any]:
    """Find the task of predictions.

    Args:
        target: Targets, shape (N, ...).
        prediction: Predictions, shape (N, ...).
        name: Its name, such as ``"multilabel"``. None, or a name that no class has: what shapes and
            dtypes leave no doubt about; see `dlblocks._scores.kind_of`.

    Raises:
        ValueError: There is doubt, or the arrays are not of this task.

    Example:
        >>> import numpy as np
        >>> find_task(np.array([0, 1]), np.array([[0.9, 0.1], [0.4, 0.6]])).name
        'multiclass'
    """
    tasks = task_names()
    if name is None or name not in tasks:
        values = kind_of(target, prediction) == "values"
        return tasks["regression" if values else "multiclass"]
    tasks[name].check_arrays(target, prediction)
    return tasks[name]
