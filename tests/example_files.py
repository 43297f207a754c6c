"""Files that the README and the guide read: a table, photographs."""

from pathlib import Path

import numpy as np
from PIL import Image


def churn() -> str:
    """A table as companies have them: identifiers, dates, households, gaps, 1 : 9 classes."""
    rng, rows = np.random.default_rng(0), []
    for i in range(600):
        day = np.datetime64("2020-01-01") + int(rng.integers(0, 1500))
        charge = "" if rng.random() < 0.05 else f"{rng.normal(70, 20):.2f}"
        plan = rng.choice(["basic", "family", "premium", ""], p=[0.5, 0.3, 0.15, 0.05])
        churned = "yes" if rng.random() < 0.1 else "no"
        rows.append(f"C{i:05d},{day},{i // 2},city {rng.integers(0, 80)},{plan},{charge},{churned}")
    header = "customer_id,signed_up,household,city,plan,monthly_charge,churned"
    return "\n".join([header, *rows]) + "\n"


def write(folder: Path) -> None:
    """Write all of them."""
    for kind in ("cat", "dog"):
        (folder / "photos" / kind).mkdir(parents=True)
        for i in range(5):
            pixels = np.random.default_rng(i).integers(0, 255, (70, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / kind / f"{i}.jpg")
    table = churn()
    (folder / "churn.csv").write_text(table)
    new = [line.rpartition(",")[0] for line in table.splitlines()[:50]]
    (folder / "new_customers.csv").write_text("\n".join(new) + "\n")
