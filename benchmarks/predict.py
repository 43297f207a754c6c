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
imports. Ratios are peer / ours within a turn.

Measured (one thread of a busy two-core virtual machine, torch 2.14, pandas 3.1): a million rows
(196 MB) take ours 4.5 s of the processor and 135 MB. The rows of arrays take 29.0 s (6.5×) and
684 MB; the rows of a frame are another 8 times slower.

Run: python benchmarks/predict.py --rows 100000 --frame
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import date, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
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
    settings: dict[str, Any] = dict.fromkeys(
        ("enable_progress_bar", "enable_checkpointing", "enable_model_summary", "logger"), False
    )
    with quiet():
        trainer = pl.Trainer(max_epochs=2, accelerator="cpu", **settings)
        trainer.fit(model, datamodule=data)
    model.save(folder / "model.pt")
    for start in range(0, rows, AT_ONCE):
        some = make_rows(min(AT_ONCE, rows - start), seed=1 + start)
        some.to_csv(folder / "rows.csv", mode="a", header=not start, index=False)


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


def run(how: str, folder: Path) -> dict[str, Any]:
    """Predict the file in one way."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    predictor: Any = load(folder / "model.pt")
    before, started, worked = memory("VmRSS"), time.perf_counter(), time.process_time()
    reset_peak()
    if how == "ours":
        table = predictor.predict(folder / "rows.csv", device="cpu", progress_bar=False)
        found = table.prediction
    else:
        frame = pd.read_csv(folder / "rows.csv", dtype={"code": str})
        rows = Rows(frame, predictor, by_frame=how == "rows of a frame")
        net = predictor.model.net
        with torch.inference_mode():
            loader = DataLoader(rows, batch_size=BATCH_SIZE)
            found = torch.cat([net(batch).softmax(1) for batch in loader]).numpy()
    seconds, used = time.perf_counter() - started, memory("VmHWM") - before
    worked = time.process_time() - worked
    if folder.joinpath("expected.npy").exists():
        np.testing.assert_allclose(found, np.load(folder / "expected.npy"), atol=1e-4)
    else:
        np.save(folder / "expected.npy", found)
    return {"seconds": seconds, "processor": worked, "megabytes": used, "rows": len(found)}


def memory(what: str) -> float:
    """Memory of this process in megabytes, now (``"VmRSS"``) or at most; NaN but on Linux."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [line.split()[1] for line in lines if line.startswith(f"{what}:")]
    return int(found[0]) / 1024 if found else float("nan")


def reset_peak() -> None:
    """Forget how much memory the imports needed."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--frame", action="store_true", help="The slow peer, too.")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        print(json.dumps(run(given.run, Path(given.folder))))
        return
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), given.rows)
        size = (Path(name) / "rows.csv").stat().st_size / 2**20
        print(f"{given.rows:,} rows, {size:.0f} MB; torch {torch.__version__}, one thread")
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(given.turns):
            for how in ("ours", *PEERS[: 1 + given.frame]):
                command = [sys.executable, __file__, f"--run={how}", f"--folder={name}"]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found.setdefault(how, []).append(json.loads(said.splitlines()[-1]))
    for how, turns in found.items():
        text = f"{how:16}"
        for key in ("seconds", "processor"):
            ratios = [t[key] / o[key] for t, o in zip(turns, found["ours"], strict=True)]
            median = statistics.median(turn[key] for turn in turns)
            text += f" {key} {median:7.2f} ({statistics.median(ratios):.1f}×) "
        print(f"{text} memory {max(turn['megabytes'] for turn in turns):.0f} MB")


if __name__ == "__main__":
    main()
