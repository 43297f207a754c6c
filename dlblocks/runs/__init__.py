"""Run folders, and the fits, predictions and figures in them."""

from dlblocks.runs.fit import fit_and_test
from dlblocks.runs.folder import next_run_dir

__all__ = ["fit_and_test", "next_run_dir"]
