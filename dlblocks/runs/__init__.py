"""Fit a model in a run folder, with its plan, history, predictions and figures."""

from dlblocks.runs.fit import fit_and_test
from dlblocks.runs.folder import next_run_dir

__all__ = ["fit_and_test", "next_run_dir"]
