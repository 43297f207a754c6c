"""Run the benchmarks, and write their page.

Each script of this folder runs in its own process, one after another. Its rows are ours, the
peer's, their ratio (peer / ours, so 2 means that the peer takes twice as long) as median, least and
greatest of the turns, what is wanted, and the floor of the machine where there is one. A peer that
is not installed is left out.

    python benchmarks/run.py                              # all, into benchmarks/results/<cpu>.json
    python benchmarks/run.py --only mixing                # one script
    python benchmarks/run.py --only mixing:CutMix         # the tables with that in their title
    python benchmarks/run.py --only mixing --out FILE.json   # its rows replace those of the file
    python benchmarks/run.py --device cuda
    python benchmarks/run.py --report FILE.json …         # docs/benchmarks.md and its figure

Run: pip install 'dlblocks[bench]', then python benchmarks/run.py
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _timing import arguments, hardware, spread

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
SCRIPTS = (
    "crossval", "vectorized", "bagging", "boosting", "overhead", "sam", "data_path", "photographs",
    "vision", "detection", "mixing", "optimizers", "sequences", "generative", "tables", "predict",
    "memory", "import_time", "gpu",
)  # fmt: skip
# gpu.py is started by itself.
BY_ITSELF = ("gpu",)
ON_GPU = ("overhead", "data_path", "mixing", "optimizers", "vectorized", "vision", "sequences")


def measure(script: str, title: str, given: Any, tree: Path = HERE.parent) -> list[dict[str, Any]]:
    """Run one script, with the code of its repository `tree`, and return its rows."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, str(tree / "benchmarks" / f"{script}.py"), "--out", str(out)]
        command += ["--turns", str(given.turns), "--device", given.device, "--only", title]
        command += ["--threads", str(given.threads)]
        started = time.perf_counter()
        print(f"\n== {script}", flush=True)
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tree)})
        print(f"== {script}: {time.perf_counter() - started:.0f} s", flush=True)
        if done.returncode:
            print(f"== {script} failed with {done.returncode}; rows are missing.", flush=True)
        if not out.exists():
            return []
        rows: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
    return [{"script": script, **row} for row in rows]


def name_of(machine: Mapping[str, Any]) -> str:
    """Return the name of a machine as a file name."""
    text = f"{machine['gpu'] or machine['cpu']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(\w+\)", "", text).lower()).strip("-")


def summary(row: Mapping[str, Any]) -> str:
    """Return a row as one line."""
    return "  ".join([row["table"][:58].ljust(58), *cells(row)])


def number(value: float) -> str:
    """Return three digits of a number."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return ours, the peer's, the ratio, what is wanted, and the floor."""
    unit = row["unit"]
    ours = f"{number(spread(row['ours'])['median'])} {unit}"
    if "peer" in row:
        peer = f"{row['peer']}: {number(spread(row['theirs'])['median'])} {unit}"
        ratio = "{median:.2f} ({min:.2f} to {max:.2f})".format(**row["ratio"])
        wanted = "" if row["goal"] is None else f"≥ {row['goal']:.2g}"
    else:
        peer, ratio = "", ""
        wanted = "" if row["limit"] is None else f"≤ {number(row['limit'])} {unit}"
    if "met" in row:
        wanted += " reached" if row["met"] else " **missed**"
    floor = f"{number(row['floor'])} {unit}, {row['floor_is']}" if "floor" in row else ""
    return [ours, peer, ratio, wanted, floor]


TEXT = """# Benchmarks

Written by `python benchmarks/run.py --report`. All numbers are those of {files}.

The ratio is the peer's time over ours within a turn: 2 means that the peer takes twice as long. It
is the median of the turns, with the least and the greatest. Times are those of the processor where
nothing else is said, since other programs used the machine. The memory is the peak beyond that
after the imports. A floor is what the machine needs at least.

{notes}

```{{figure}} figures/benchmarks.png
:alt: Ratio of each row, on a logarithmic scale, with its range and what is wanted.
:width: 720px

Ratio of each row that has a goal. The tick is the goal.
```
"""
NOTES = HERE / "notes.md"


def report(paths: Sequence[Path]) -> None:
    """Write docs/benchmarks.md and its figure."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    files = ", ".join(f"`benchmarks/results/{path.name}`" for path in paths)
    parts = [TEXT.format(files=files, notes=NOTES.read_text(encoding="utf-8").strip())]
    for result in found:
        machine = result["hardware"]
        title = machine["gpu"] or machine["cpu"]
        versions = ", ".join(f"{n} {machine[n]}" for n in ("python", "torch", "lightning"))
        parts.append(
            f"## {title}\n\n{machine['cpu']}, {machine['cores']} cores, {result['threads']} "
            f"thread(s), {versions}, {result['turns']} turns, {machine['date']}.\n"
        )
        for script in SCRIPTS:
            rows = [row for row in result["rows"] if row["script"] == script]
            if rows:
                parts.append(f"### {script}.py\n\n{table(rows)}\n")
    (DOCS / "benchmarks.md").write_text("\n".join(parts), encoding="utf-8")
    draw(found[0]["rows"], DOCS / "figures" / "benchmarks.png")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table of Markdown."""
    lines = [
        "| what | ours | peer | ratio | wanted | floor |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    last = ""
    for row in rows:
        is_first = row["table"] != last
        ours, peer, ratio, wanted, floor = cells(row)
        title = f"{row['table']}: {row['name']}" if row["name"] != "ours" else row["table"]
        shown = [title, ours] if is_first else ["", ""]
        shown += [peer, ratio, wanted, floor if is_first else ""]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in shown) + " |")
        last = row["table"]
    return "\n".join(lines)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the ratios of the rows with a goal."""
    from dlblocks.plots import BLUE, ORANGE
    from dlblocks.plots._style import new_figure, style_axis

    shown = [row for row in rows if row.get("goal") is not None][::-1]
    figure = new_figure(9, 0.22 * len(shown) + 1)
    axis = figure.subplots()
    for y, row in enumerate(shown):
        ratio, colour = row["ratio"], BLUE if row["met"] else ORANGE
        axis.plot([ratio["min"], ratio["max"]], [y, y], color=colour, linewidth=1.5)
        axis.plot(ratio["median"], y, "o", color=colour, markersize=4)
        axis.plot(row["goal"], y, "|", color="black", markersize=9)
    axis.axvline(1, color="0.6", linewidth=0.8)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    names = [f"{row['table']} / {row['peer']}" for row in shown]
    axis.set_yticks(range(len(shown)), names, fontsize=7)
    axis.set_ylim(-1, len(shown))
    style_axis(axis, "peer's time / ours", "")
    figure.savefig(path, dpi=110)


def write(path: Path, result: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Write rows, and keep the other rows that are in the file."""
    path.parent.mkdir(exist_ok=True)
    found = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    new = {(row["script"], row["table"]) for row in rows}
    kept = [row for row in found if (row["script"], row["table"]) not in new]
    every = sorted([*kept, *rows], key=lambda row: SCRIPTS.index(row["script"]))
    text = json.dumps({**result, "rows": every}, ensure_ascii=False, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def scripts_of(parser: argparse.ArgumentParser, given: Any) -> tuple[list[str], str]:
    """Return the scripts that are wanted, and the part of the titles of their tables."""
    script, _, title = given.only.partition(":")
    if script and script not in SCRIPTS:
        parser.error(f"--only {script}: there is no such script; use one of {', '.join(SCRIPTS)}.")
    usual = ON_GPU if given.device == "cuda" else [n for n in SCRIPTS if n not in BY_ITSELF]
    return [script] if script else list(usual), title


def main() -> None:
    """Measure, or write the page."""
    parser = arguments(__doc__)
    parser.add_argument("--report", type=Path, nargs="+", help="write the page of these results")
    given = parser.parse_args()
    if given.report:
        report(given.report)
        return
    wanted, title = scripts_of(parser, given)
    machine = hardware(given.device)
    out = given.out or HERE / "results" / f"{name_of(machine)}.json"
    result: dict[str, Any] = {"hardware": machine, "turns": given.turns, "threads": given.threads}
    rows: list[dict[str, Any]] = []
    for name in wanted:
        rows += measure(name, title, given)
        if given.out or not given.only:  # after each script, so that a kill loses little
            write(out, result, rows)
    print("\n" + "\n".join(map(summary, rows)))
    missed = [row for row in rows if row.get("met") is False]
    print(
        f"\n{len(rows)} rows, {sum('met' in row for row in rows)} with a goal, {len(missed)} missed"
    )


if __name__ == "__main__":
    main()
