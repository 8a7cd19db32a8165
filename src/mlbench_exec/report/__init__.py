"""Reports: the result files, and what a person or a script reads of a run."""

from mlbench_exec.report.compare import Comparison, compare
from mlbench_exec.report.compare_page import comparison_page
from mlbench_exec.report.files import write_results, write_summary
from mlbench_exec.report.formats import changes_csv, run_csv, to_json, to_markdown
from mlbench_exec.report.loaded import Run, load_run
from mlbench_exec.report.page import PAGE, write_page
from mlbench_exec.report.progress import Progress
from mlbench_exec.report.tables import comparison_remarks, comparison_tables, summary_tables
from mlbench_exec.report.terminal import (
    plain,
    render_header,
    render_json,
    render_summary,
    render_tables,
)

__all__ = [
    "PAGE",
    "Comparison",
    "Progress",
    "Run",
    "changes_csv",
    "compare",
    "comparison_page",
    "comparison_remarks",
    "comparison_tables",
    "load_run",
    "plain",
    "render_header",
    "render_json",
    "render_summary",
    "render_tables",
    "run_csv",
    "summary_tables",
    "to_json",
    "to_markdown",
    "write_page",
    "write_results",
    "write_summary",
]
