"""Compare this code with an earlier commit: what became slower?

Each script of this folder runs as it was at that commit, with the code of that commit, and as it is
in the working tree, by turns. Both measure their peers, so that it does not count when the machine
is slower for a while. Printed are the ratio (peer / ours) then and now, and the change, now / then.
A row that lost more than a tenth is marked. Without a peer it is 1 / ours. Scripts and tables that
only one of the two has are left out.

Run: python benchmarks/compare.py HEAD~20 --only mixing:CutMix
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _timing import arguments
from run import HERE, measure, scripts_of

LOSS = 0.9
Rows = dict[tuple[str, str], list[float]]  # ratios of all rounds, by table and peer


def add(rows: Rows, found: list[dict[str, Any]]) -> None:
    """Add the ratios of one run of a script."""
    for row in found:
        ratio = row["ratio"]["median"] if "peer" in row else 1 / statistics.median(row["ours"])
        rows.setdefault((row["table"], row.get("peer", "alone")), []).append(ratio)


def lines(then: Rows, now: Rows) -> list[str]:
    """Return a line for each row that both have."""
    found = []
    for key in (key for key in now if key in then):
        before, after = (statistics.median(rows[key]) for rows in (then, now))
        mark = "  LOST" if after / before < LOSS else ""
        name = f"{key[0]} / {key[1]}"[:90]
        found.append(f"{name:<90}{before:9.3g}{after:9.3g}{after / before:9.2f}{mark}")
    return found


def main() -> None:
    """Measure then and now by turns, and print what changed."""
    parser = arguments(__doc__)
    parser.add_argument("commit", help="the earlier commit")
    parser.add_argument("--rounds", type=int, default=2, help="turns of then and now")
    given = parser.parse_args()
    wanted, title = scripts_of(parser, given)
    shown: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "then"
        git = ["git", "-C", str(HERE), "worktree"]
        done = subprocess.run([*git, "add", "--quiet", "--detach", str(tree), given.commit])
        if done.returncode:
            parser.error(f"{given.commit} is no commit of this repository; give one of git log.")
        try:
            for script in wanted:
                if not (tree / "benchmarks" / f"{script}.py").exists():
                    continue
                then, now = Rows(), Rows()
                for _ in range(given.rounds):
                    add(then, measure(script, title, given, tree))
                    add(now, measure(script, title, given))
                shown += lines(then, now)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)])
    print(f"\n{'peer / ours':<90}{'then':>9}{'now':>9}{'change':>9}")
    print("\n".join(shown) or "No script has the same table then and now.")
    sys.exit(any(line.endswith("LOST") for line in shown))


if __name__ == "__main__":
    main()
