"""Time series that come with other packages."""

from __future__ import annotations

import importlib
from typing import Any

SETS = {
    "stocks": "monthly prices of eight stocks and two indices, 1990 to 2022",
    "elnino": "monthly temperature of the Pacific (Niño 1+2), 1950 to 2010",
    "co2": "weekly CO2 at Mauna Loa as monthly means, 1958 to 2001",
    "sunspots": "sunspots of each year, 1700 to 2008",
}


def read_named(name: str) -> tuple[Any, dict[str, Any]]:
    """Read a data set by its name.

    Returns:
        A DataFrame and its arguments of `read_panel`.
    """
    import pandas as pd

    if name == "stocks":
        from matplotlib import cbook

        path = cbook.get_sample_data("Stocks.csv", asfileobj=False)
        table = pd.read_csv(path, comment="#")
        # Rows between are those of dividends, without a price of all.
        return table[table["Date"].str.endswith("-01")], {"time": "Date"}
    try:
        datasets = importlib.import_module("statsmodels.datasets")
    except ImportError as error:
        raise ModuleNotFoundError(
            f"data={name!r} is a data set of statsmodels: pip install statsmodels."
        ) from error
    table = getattr(datasets, name).load_pandas().data
    if name == "elnino":
        long = table.melt(id_vars="YEAR", var_name="month", value_name="temperature")
        month = long["month"].str.title()
        long["time"] = pd.to_datetime(long["YEAR"].astype(int).astype(str) + month, format="%Y%b")
        return long[["time", "temperature"]], {"time": "time"}
    if name == "co2":
        return table.resample("MS").mean().interpolate(), {}
    return table.rename(columns={"SUNACTIVITY": "sunspots"}), {"time": "YEAR"}
