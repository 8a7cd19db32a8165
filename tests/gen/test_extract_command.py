"""mlbench-gen: files in, files and exit codes out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlbench_exec.command import BAD_INPUT, INCOMPLETE, OK
from mlbench_gen.cli import commands, convert_line

GOOD = '{"github_id": 3, "id": 74, "answers": ["```python\\na\\n```", "plain"]}'


def run(*arguments: str | Path, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(commands, ["extract", *map(str, arguments)], input=stdin)


def extracted(folder: Path, *lines: str) -> tuple[int, list[dict[str, object]], str]:
    """The exit code, the rows written, and what was said."""
    answers, outputs = folder / "answers.jsonl", folder / "outputs.jsonl"
    answers.write_text("".join(line + "\n" for line in lines))
    result = CliRunner().invoke(
        commands, ["extract", str(answers), "-o", str(outputs)], standalone_mode=False
    )
    assert result.exception is None
    rows = [json.loads(line) for line in outputs.read_text().splitlines()]
    return result.return_value, rows, result.stderr


def test_each_line_becomes_a_row_of_outputs(tmp_path: Path) -> None:
    """Every answer is extracted, in its order; blank lines are nothing."""
    code, rows, _ = extracted(tmp_path, GOOD, "", GOOD.replace("74", "75"))
    assert code == OK
    assert rows[0] == {"github_id": 3, "id": 74, "output": ["a", "plain"]}
    assert [row["id"] for row in rows] == [74, 75]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON"),
        ("[1]", "no object"),
        ('{"id": 1, "answers": ["a"]}', "github_id is missing"),
        ('{"github_id": 1, "id": "2", "answers": ["a"]}', "id is missing or no integer"),
        ('{"github_id": true, "id": 2, "answers": ["a"]}', "github_id is missing or no integer"),
        ('{"github_id": 1, "id": 2, "output": ["a"]}', "answers is missing"),
        ('{"github_id": 1, "id": 2, "answers": "a"}', "no list"),
        ('{"github_id": 1, "id": 2, "answers": []}', "no list"),
        ('{"github_id": 1, "id": 2, "answers": ["a", null]}', "answers[1] is no text"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_line_is_named_and_left_out(tmp_path: Path, line: str, reason: str) -> None:
    """The message gives file and line, the other lines are used, and the exit code is 1."""
    code, rows, said = extracted(tmp_path, GOOD, line)
    assert code == INCOMPLETE
    assert len(rows) == 1
    assert f"{tmp_path / 'answers.jsonl'}:2: " in said
    assert reason in said


def test_nothing_usable_is_bad_input(tmp_path: Path) -> None:
    """Without one usable line the exit code is that of bad usage."""
    code, rows, _ = extracted(tmp_path, "{}")
    assert (code, rows) == (BAD_INPUT, [])
    assert extracted(tmp_path)[0] == BAD_INPUT


def test_bytes_that_are_not_utf8_are_one_bad_line() -> None:
    """A wrong encoding costs its own line."""
    with pytest.raises(ValueError, match="not UTF-8"):
        convert_line(b'{"github_id": "\xff"}')


def test_lone_surrogates_pass_through() -> None:
    """What a model wrote arrives as it wrote it."""
    row = convert_line(rb'{"github_id": 1, "id": 2, "answers": ["a\ud800"]}')
    assert row["output"] == ["a\ud800"]


def test_dashes_are_stdin_and_stdout() -> None:
    """With dashes the rows go through a pipe, and messages stay out of it."""
    result = run("-", "-o", "-", stdin=b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n")
    assert json.loads(result.stdout)["output"] == ["a", "plain"]
    assert "1 rows written" in result.stderr


def test_bad_usage(tmp_path: Path) -> None:
    """A file that isn't there, one that can't be written, and reading what is written: 2."""
    answers = tmp_path / "answers.jsonl"
    answers.write_text(GOOD)
    assert run(tmp_path / "none", "-o", "-").exit_code == BAD_INPUT
    assert run(answers).exit_code == BAD_INPUT
    assert run(answers, "-o", answers).exit_code == BAD_INPUT
    assert answers.read_text() == GOOD


@pytest.mark.slow
def test_the_program_exits_with_the_code(tmp_path: Path) -> None:
    """Exit codes reach the shell, and a row is written while later ones are awaited."""
    command = [sys.executable, "-m", "mlbench_gen.cli", "extract", "-", "-o", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(GOOD.encode() + b"\n")
        program.stdin.flush()
        assert json.loads(program.stdout.readline())["id"] == 74
        program.stdin.write(b"{\n")
        _, said = program.communicate()
        assert program.returncode == INCOMPLETE
        assert b"<stdin>:2: is not valid JSON" in said
    bad = [*command[:-2], "-o", str(tmp_path / "none" / "file")]
    assert subprocess.run(bad, input=b"", capture_output=True).returncode == BAD_INPUT
