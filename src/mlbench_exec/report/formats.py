"""Formats: results for papers and scripts: Markdown tables, CSV lines, JSON."""

import csv
import io
from collections.abc import Iterable
from typing import Any

import msgspec

from mlbench_exec.report.compare import Comparison
from mlbench_exec.report.loaded import Run
from mlbench_exec.report.tables import TextTable
from mlbench_exec.report.terminal import plain
from mlbench_exec.verdicts import Verdict

__all__ = ["changes_csv", "run_csv", "to_json", "to_markdown"]

# What programs printed is in verdicts.jsonl; a table of figures has no room for it.
CSV_COLUMNS = (
    "repo",
    *(name for name in Verdict.__struct_fields__ if name not in {"stdout", "stderr"}),
)
_MARKDOWN = str.maketrans({character: "\\" + character for character in "\\`*_{}[]<>|#&~$"})


def to_markdown(title: str, tables: Iterable[TextTable], remarks: Iterable[str] = ()) -> str:
    """A heading, remarks and tables; what is foreign in them is no markup."""
    parts = [f"# {_escaped(title)}"]
    parts += [f"- {_escaped(remark)}" for remark in remarks]
    for table in tables:
        aligned = [*["---"] * table.names, *["---:"] * (len(table.columns) - table.names)]
        lines = [_line(table.columns, escape=True), _line(aligned, escape=False)]
        lines += [_line(row, escape=True) for row in table.rows]
        parts += [f"\n## {_escaped(table.title)}\n", *lines]
        if table.note:
            parts.append(f"\n{_escaped(table.note)}")
    return "\n".join(parts) + "\n"


def run_csv(run: Run) -> str:
    """A header and a line for each verdict: everything but what programs printed."""
    return _csv(CSV_COLUMNS, run.records())


def changes_csv(found: Comparison) -> str:
    """A header and a line for each output whose status changed."""
    rows = [msgspec.structs.asdict(one) for one in found.outputs]
    return _csv(("repo", "github_id", "id", "index", "before", "after", "same_code"), rows)


def to_json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode() + "\n"


def _csv(columns: tuple[str, ...], rows: Iterable[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row[name]) for name in columns])
    return stream.getvalue()


def _cell(value: object) -> str:
    """A text that a spreadsheet would take for a formula is marked as text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return str(value)
    text = plain(value, limit=1000).plain
    return "'" + text if text.startswith(("=", "+", "-", "@")) else text


def _line(cells: Iterable[str], *, escape: bool) -> str:
    return "| " + " | ".join(_escaped(cell) if escape else cell for cell in cells) + " |"


def _escaped(text: str) -> str:
    return plain(text, limit=500).plain.translate(_MARKDOWN)
