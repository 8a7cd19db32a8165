"""One run for papers and scripts."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from mlbench_exec.cli import main
from reports.folders import verdict, write_run


def report(*arguments: Any) -> Result:
    result = CliRunner().invoke(main, ["report", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result


NO_SUCH_FILE = """Traceback (most recent call last):
FileNotFoundError: [Errno 2] No such file or directory: 'a|b<script>*x*\x9b2J\u202e'
"""


def a_run(folder: Path) -> Path:
    return write_run(
        folder,
        {(9, 1): ["passed", "failed"], (2, 7): ["killed", "failed"]},
        verdicts=[
            verdict((2, 8), 0, "failed", error="=cmd|' /C calc'!A0", stdout="secret " * 9),
            verdict((2, 8), 1, "failed", stderr=NO_SUCH_FILE),
        ],
    )


def test_markdown(tmp_path: Path) -> None:
    """Tables that a paper can take; what programs chose is no markup in them."""
    text = report(a_run(tmp_path), "--format", "md").stdout
    assert "| pass@1 | 33.33 % | 3.85 % |" in text
    assert "| External\\-Attention" not in text
    assert "| External-Attention-pytorch | 1 | 2 | 100.00 % |" in text
    shown = "a\\|b\\<script\\>\\*x\\*\\\\x9b2J\\\\u202e"
    assert f"| missing file | FileNotFoundError | {shown} | bert | 1 |" in text
    assert not set(text) & set("\x9b\u202e")


def test_csv(tmp_path: Path) -> None:
    """A line for each output without its streams; no cell is a formula."""
    text = report(a_run(tmp_path), "--format", "csv").stdout
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [(line["id"], line["index"], line["status"]) for line in lines][:2] == [
        *(("7", "0", "killed"), ("7", "1", "failed")),
    ]
    assert lines[2]["error"] == "'=cmd|' /C calc'!A0"
    assert lines[2]["passed"] == "false"
    assert lines[2]["exit_code"] == ""
    assert "secret" not in text


def test_json(tmp_path: Path) -> None:
    """The text of summary.json, as with --json."""
    folder = a_run(tmp_path)
    text = report(folder, "--format", "json").stdout
    assert json.loads(text) == json.loads((folder / "summary.json").read_text())
    assert report(folder, "--json").stdout == text


def test_every_format_writes_the_report(tmp_path: Path) -> None:
    """`report DIR` leaves report.html, and says what it could not show."""
    folder = a_run(tmp_path)
    result = report(folder)
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert "Instructions are missing: gone" in result.stderr
    assert "gone.jsonl can't be read any more" in result.stderr
