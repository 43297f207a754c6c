"""Compare `dlblocks.load(…).predict` with a loop over a DataLoader.

The file has 30 columns: 22 numbers, 6 categories of 5, a date, and a code of 500 values. The model
is an MLP of two hidden layers of 64, trained with a `TabularDataModule` on 5,000 rows. Both use
batches of 1024 on one thread of the CPU, and give the same probabilities.

- *ours*: ``load("model.pt").predict("rows.csv")``.
- *rows of arrays*: `pandas.read_csv` of the whole file, its columns as arrays, and a Dataset that
  makes the features of one row at a time: normalised numbers, 0 and 1 of categories, a parsed
  date, a looked-up share.
- *rows of a frame*: the same, but a row is ``frame.iloc[i]``, as it is often written.

Every turn is a new process, which also says how much memory it needed above that after its
imports.

Run: python benchmarks/predict.py [--rows 100000] [--frame]
"""

from __future__ import annotations

import json
import tempfile
import warnings
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from _memory import in_process, measured, time_of
from _timing import Bench, Run, arguments, start
from _trainer import OFF
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dlblocks import load
from dlblocks._quiet import quiet
from dlblocks.data import TabularDataModule
from dlblocks.models import MLPClassifier

NUMBERS = [f"n{i:02d}" for i in range(22)]
CATEGORIES = [f"c{i}" for i in range(6)]
NAMES = ["alpha", "beta", "delta", "epsilon", "gamma"]
TRAINED_ON, AT_ONCE, BATCH_SIZE = 5000, 100_000, 1024
PEERS = "rows of arrays", "rows of a frame"
EPOCH = date(1970, 1, 1)


def make_rows(count: int, seed: int) -> pd.DataFrame:
    """A table of `count` rows."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {name: rng.normal(50, 10, count).round(3) for name in NUMBERS}
    columns |= {name: rng.choice(NAMES, count) for name in CATEGORIES}
    days = pd.to_timedelta(rng.integers(0, 1500, count), "D")
    columns["signed_up"] = (pd.Timestamp("2020-01-01") + days).strftime("%Y-%m-%d")
    columns["code"] = np.char.zfill(rng.integers(0, 500, count).astype(str), 5)
    return pd.DataFrame(columns)


def prepare(folder: Path, rows: int) -> None:
    """Train the model, and write the file to predict."""
    train = make_rows(TRAINED_ON, seed=0)
    train["y"] = np.where(train["n00"] > 50, "yes", "no")
    train.to_csv(folder / "train.csv", index=False)
    data = TabularDataModule(
        folder / "train.csv", "y", dates=["signed_up"], counts=["code"], batch_size=BATCH_SIZE
    )
    model = MLPClassifier(data.in_features, 2, hidden=[64, 64])
    with quiet():
        trainer = pl.Trainer(max_epochs=2, accelerator="cpu", **OFF)
        trainer.fit(model, datamodule=data)
    model.save(folder / "model.pt")
    for first in range(0, rows, AT_ONCE):
        some = make_rows(min(AT_ONCE, rows - first), seed=1 + first)
        some.to_csv(folder / "rows.csv", mode="a", header=not first, index=False)


class Rows(Dataset):
    """The features of one row at a time.

    Args:
        frame: The table.
        predictor: Knows how the training has encoded and normalised it.
        by_frame: Whether a row is taken from the frame, not from arrays.
    """

    def __init__(self, frame: pd.DataFrame, predictor: Any, *, by_frame: bool) -> None:
        known = predictor.model.preprocess
        names = predictor.encoder.feature_names
        self.scale, self.shift = known.scale.numpy(), known.shift.numpy()
        self.code = names.index("code")
        table = known.tables[0].tolist()
        codes = next(c for c in predictor.encoder.columns if c.name == "code").categories
        self.shares = {name: table[1 + i] for i, name in enumerate(codes)}
        self.frame = frame if by_frame else None
        self.columns = {name: frame[name].to_numpy() for name in (*CATEGORIES, "signed_up", "code")}
        self.numbers = frame[NUMBERS].to_numpy(np.float32)
        self.length = len(frame)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Tensor:
        if self.frame is None:
            row, numbers = {k: column[i] for k, column in self.columns.items()}, self.numbers[i]
        else:
            series = self.frame.iloc[i]
            row, numbers = series, [series[name] for name in NUMBERS]
        x = np.zeros(len(self.scale), np.float32)
        x[: len(NUMBERS)] = numbers
        at = len(NUMBERS)
        for name in CATEGORIES:
            x[at + NAMES.index(row[name])] = 1
            at += len(NAMES)
        day = datetime.strptime(row["signed_up"], "%Y-%m-%d").date()
        x[at : at + 3] = (day - EPOCH).days, day.month, day.weekday()
        x[self.code] = self.shares.get(row["code"], 0.0)
        return torch.from_numpy((x * self.scale + self.shift).astype(np.float32))


def inside(how: str, folder: Path) -> None:
    """Predict the file in one way, and print time and memory."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    predictor: Any = load(folder / "model.pt")
    found: list[Any] = []

    def run() -> None:
        if how == "ours":
            table = predictor.predict(folder / "rows.csv", device="cpu", progress_bar=False)
            found.append(table.prediction)
            return
        frame = pd.read_csv(folder / "rows.csv", dtype={"code": str})
        rows = Rows(frame, predictor, by_frame=how == "rows of a frame")
        net = predictor.model.net
        with torch.inference_mode():
            loader = DataLoader(rows, batch_size=BATCH_SIZE)
            found.append(torch.cat([net(batch).softmax(1) for batch in loader]).numpy())

    took = measured(run)
    if folder.joinpath("expected.npy").exists():
        np.testing.assert_allclose(found[0], np.load(folder / "expected.npy"), atol=1e-4)
    else:
        np.save(folder / "expected.npy", found[0])
    print(json.dumps(took))


def predicting(how: str, folder: Path, memory: dict[str, list[float]]) -> Run:
    """Return a run in a new process, which also adds its memory to `memory`."""

    def run() -> object:
        found = in_process(__file__, "--how", how, "--folder", str(folder))
        memory.setdefault(how, []).append(found["megabytes"])
        return time_of(found)

    return run


def tables(bench: Bench, rows: int, frame: bool) -> None:
    title = f"load().predict of {rows:,} rows of a CSV file"
    if not bench.wants(title):
        return
    memory: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), rows)
        every = ("ours", *PEERS[: 1 + frame])
        runs = {how: partial(predicting, how, Path(name), memory) for how in every}
        bench.compare(title, runs, unit="s")
    bench.add(f"{title}: memory", {how: found[1:] for how, found in memory.items()}, "MB")


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--frame", action="store_true", help="the slow peer, too")
    parser.add_argument("--how", help="what a new process does")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.how:
        inside(given.how, given.folder)
    else:
        start(partial(tables, rows=given.rows, frame=given.frame), parser)
