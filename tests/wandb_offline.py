"""Reads an offline W&B run back: the log is framed as LevelDB's, each record a protobuf."""

import json
import struct
import time
from pathlib import Path

from wandb.proto import wandb_internal_pb2

BLOCK = 32768
HEADER = 7
FULL, FIRST, _, LAST = 1, 2, 3, 4


def _records(path: Path):
    data = path.read_bytes()
    assert not data or data[:4] == b":W&B", f"{path} is no W&B log"
    position, parts = HEADER, b""
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:  # no header fits: padding up to the next block
            position += BLOCK - position % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        position += HEADER
        if position + size > len(data):
            return  # it is being written
        chunk = data[position : position + size]
        position += size
        parts = chunk if kind in (FULL, FIRST) else parts + chunk
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record


def _values(items):
    return {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items}


def read_run(path: Path) -> dict:
    """One run: name, group, job_type, project, config, history (a list), summary, finished."""
    run = {"config": {}, "history": [], "summary": {}, "finished": False}
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run |= {
                "id": record.run.run_id,
                "name": record.run.display_name,
                "group": record.run.run_group,
                "job_type": record.run.job_type,
                "project": record.run.project,
                "entity": record.run.entity,
                "sweep": record.run.sweep_id,
            }
            run["config"] |= _values(record.run.config.update)
        elif kind == "config":
            run["config"] |= _values(record.config.update)
        elif kind == "history":
            run["history"].append(_values(record.history.item))
        elif kind == "summary":
            run["summary"] |= _values(record.summary.update)
        elif kind == "exit":
            run["finished"] = record.exit.exit_code == 0
    return run


def read_runs(folder: Path) -> list[dict]:
    """All offline runs below a folder, by name."""
    # wandb's own process writes them, on a busy machine some time after the run has ended.
    late = time.monotonic() + 10
    while True:
        runs = [read_run(path) for path in folder.rglob("offline-run-*/*.wandb")]
        if (runs and all(run["finished"] for run in runs)) or time.monotonic() > late:
            return sorted(runs, key=lambda run: run["name"])
        time.sleep(0.1)
