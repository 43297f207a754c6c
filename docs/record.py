"""Run the pages of the gallery in full, and record their results for the site.

Each page gets ``docs/recorded/<name>.json``: what it printed, its metrics, its seconds, the
hardware and the versions; and ``<name>.png``, the one figure that it shows.

Run: python docs/record.py [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "recorded"
WIDTH = 800  # pixels of a figure at most
LOSS = 64  # of 255: the change of a pixel from which on a palette is refused
# Progress bars and messages of Lightning.
NOISE = re.compile(
    r"it/s|\r|^GPU available|^TPU available|Tip: For|`Trainer\.|^Loading `|^Seed set"
)
# One thread, or results would depend on the number of cores; and bars that stay in one line.
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "PYTHONWARNINGS": "ignore",
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "300",
}
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

from course import COURSE  # noqa: E402 - beside the extensions


def cpu_name() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def record(name: str) -> None:
    """Run one page in full, and write its record."""
    script = ROOT / "recipes" / f"{name}.py"
    with tempfile.TemporaryDirectory() as folder:
        run_dir, started, before = Path(folder) / name, time.perf_counter(), cpu_seconds()
        done = subprocess.run(
            [sys.executable, str(script), f"--run_dir={run_dir}", "--accelerator=cpu"],
            check=True, stdout=subprocess.PIPE, text=True, cwd=folder,
            env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip
        seconds, cpu = time.perf_counter() - started, cpu_seconds() - before
        summary = json.loads((run_dir / "summary.json").read_text())
        figure = re.search(r":figure: (\w+)", script.read_text())
        if figure is None:
            raise ValueError(f"{script} has no '.. recorded::' with a ':figure:'.")
        shrink(run_dir / "figures" / f"{figure[1]}.png", FOLDER / f"{name}.png")
    lines = [line.rstrip() for line in done.stdout.splitlines() if not NOISE.search(line)]
    output = "\n".join(line for line in lines if "Everything is in" not in line).strip("\n")
    found: dict[str, Any] = {
        "seconds": round(seconds),
        "cpu_seconds": round(cpu),
        "hardware": f"{cpu_name()}, {os.cpu_count()} cores",
        "versions": {n: version(n) for n in ("dlblocks", "torch", "lightning")},
        "date": date.today().isoformat(),
        "output": output,
        "metrics": summary["metrics"],
        "baselines": summary.get("baselines", {}),
    }
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")
    print(f"{name}: {seconds:.0f} s, {cpu:.0f} s of CPU time\n{output}\n", flush=True)


def cpu_seconds() -> float:
    """Return the CPU time of all processes that were started here."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def shrink(source: Path, target: Path) -> None:
    """Write a figure in a size for the site."""
    with Image.open(source) as image:
        small = image.convert("RGB")
        small.thumbnail((WIDTH, 2 * WIDTH))
        few = small.quantize(128, dither=Image.Dither.NONE)
        change = ImageChops.difference(small, few.convert("RGB")).getextrema()
        # A palette may lose a colour of few pixels, such as that of a class.
        (few if max(high for _, high in change) < LOSS else small).save(target, optimize=True)


def main() -> None:
    """Record the pages that the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(COURSE)}; all by default")
    names = parser.parse_args().names or COURSE
    unknown = sorted(set(names) - set(COURSE))
    if unknown:
        parser.error(f"{unknown[0]!r} is not a page; choose from {', '.join(COURSE)}.")
    for name in names:
        record(name)


if __name__ == "__main__":
    main()
