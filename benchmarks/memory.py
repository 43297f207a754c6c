"""Compare the peak memory of cross-validation, data path and engine with their peers.

Every run is a new process. Its memory is the peak beyond that after the imports, in MB.

- *Cross-validation*: five folds of an MLP on the digits, ten epochs, both engines, without figures,
  and the loop that is written by hand.
- *Data*: an epoch of 2,048 images of 224×224, augmented: `ArrayDataModule` with `Augment`, and
  torchvision's v2 transforms in a DataLoader.
- *Engine*: 50 MLPs in one fit, and one after another in one process.

Run: python benchmarks/memory.py
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial

from _memory import in_process, measured
from _timing import Bench, Run, arguments, start


def runs() -> dict[str, Callable[[], Run]]:
    """For each name a function that makes what is run."""
    import crossval
    import data_path
    import numpy as np

    from dlblocks.callbacks import Augment
    from dlblocks.data import DigitsDataModule
    from dlblocks.engine import Member, StackedFit

    small = partial(crossval.mlp, [128])

    def images() -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (2048, 224, 224, 3), dtype=np.uint8)

    def fits(at_once: int) -> Run:
        data = DigitsDataModule(num_folds=10)

        def run() -> None:
            for first in range(0, 50, at_once):
                numbers = range(first, first + at_once)
                members = [Member(str(k), small(), data.for_fold(k % 10, 10)) for k in numbers]
                trainer = {"max_epochs": 2, "accelerator": "cpu"}
                StackedFit(members, trainer=trainer, monitor="val/loss", mode="min").fit()

        return run

    return {
        "cross-validation, vectorized": partial(
            crossval.ours, small, "vectorized", figures=False
        ),
        "cross-validation, sequential": partial(
            crossval.ours, small, "sequential", figures=False
        ),
        "cross-validation by hand": partial(crossval.by_hand, "cpu"),
        "data, ours": lambda: data_path.ours(
            images(), 32, Augment(horizontal_flip=0.5, crop_padding=28)
        ),
        "data, torchvision": lambda: data_path.torchvision(images(), 32, 28),
        "50 fits at once": lambda: fits(50),
        "50 fits, one after another": lambda: fits(1),
    }  # fmt: skip


TABLES = {
    "Memory of a cross-validation": {
        "cross-validation, vectorized": None,
        "cross-validation, sequential": None,
        "cross-validation by hand": 0.9,
    },
    "Memory of an epoch of images of 224×224": {"data, ours": None, "data, torchvision": None},
    "Memory of 50 MLPs": {"50 fits at once": None, "50 fits, one after another": None},
}


def tables(bench: Bench) -> None:
    def peak(name: str) -> Run:
        return lambda: in_process(__file__, "--run", name)["megabytes"]

    for title, names in TABLES.items():
        goals = {name: goal for name, goal in names.items() if goal}
        made = {name: partial(peak, name) for name in names}
        bench.compare(title, made, unit="MB", goals=goals, turns=min(3, bench.turns))


def inside(name: str) -> None:
    """Run one of them, and print its memory."""
    import torch

    from dlblocks._quiet import quiet

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    with quiet():
        run = runs()[name]()
        found = measured(run)
    print(json.dumps(found))


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--run", help="what a new process does")
    given = parser.parse_args()
    if given.run:
        inside(given.run)
    else:
        start(tables, parser)
