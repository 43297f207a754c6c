"""Run folders, and the fits, predictions and figures in them."""

from dlblocks._files import is_rank_zero, write_json
from dlblocks.runs.folder import check_new_run_dir, next_run_dir
from dlblocks.runs.samples import fit_and_judge
from dlblocks.runs.single import fit_and_test
from dlblocks.runs.summary import add_to_summary, mean_std, table, write_results

__all__ = [
    "add_to_summary",
    "check_new_run_dir",
    "fit_and_judge",
    "fit_and_test",
    "is_rank_zero",
    "mean_std",
    "next_run_dir",
    "table",
    "write_json",
    "write_results",
]
