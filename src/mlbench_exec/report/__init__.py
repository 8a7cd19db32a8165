"""Reports: the result files, and what a person reads in the terminal."""

from mlbench_exec.report.files import write_results, write_summary
from mlbench_exec.report.progress import Progress
from mlbench_exec.report.terminal import plain, render_header, render_json, render_summary

__all__ = [
    "Progress",
    "plain",
    "render_header",
    "render_json",
    "render_summary",
    "write_results",
    "write_summary",
]
