"""The command line of mlbench-gen: parse, call, exit code."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import click

from mlbench_gen.extraction import extract

OK, INCOMPLETE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
_BOM = b"\xef\xbb\xbf"


def main() -> None:
    """The program: like `commands`, but an interruption exits with 130."""
    try:
        code = commands.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = INTERRUPTED
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="mlbench-exec", prog_name="mlbench-gen")
def commands() -> None:
    """Prepare what mlbench-exec executes."""


@commands.command("extract")
@click.argument("answers", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "-o",
    "--out",
    "outputs",
    required=True,
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="OUTPUTS",
    help="The file to write, or - for stdout.",
)
def extract_command(answers: str, outputs: str) -> int:
    """Take the code out of whole answers.

    ANSWERS is a JSONL file of {"github_id", "id", "answers": [text, …]}, or - for stdin. Each of
    its lines becomes one line {"github_id", "id", "output": [code, …]} as soon as it is read.
    Lines that can't be used are named on stderr and left out. Exits with 0 when every line was
    used, 1 when some were not, 2 when none could be.
    """
    if "-" not in (answers, outputs) and _is_same_file(answers, outputs):
        raise click.UsageError(f"{outputs} is read from: give another file to -o")
    name = "<stdin>" if answers == "-" else answers
    with _opened(answers, "rb") as source, _opened(outputs, "wb") as target:
        try:
            used, unused = convert(source, target, name, _complain)
        except OSError as error:
            raise click.ClickException(f"{outputs} is incomplete: {error}") from None
    click.echo(f"{used} rows written to {outputs}, {unused} lines left out", err=True)
    if not used:
        return BAD_INPUT
    return INCOMPLETE if unused else OK


def convert(
    lines: Iterable[bytes], outputs: IO[bytes], name: str, complain: Callable[[str], None]
) -> tuple[int, int]:
    """Write one line of outputs for each usable line; return how many were used, and not."""
    used = unused = 0
    for number, line in enumerate(lines, start=1):
        content = line.removeprefix(_BOM).strip()
        if not content:
            continue
        try:
            row = convert_line(content)
        except ValueError as error:
            complain(f"{name}:{number}: {error}")
            unused += 1
            continue
        outputs.write(json.dumps(row).encode() + b"\n")
        outputs.flush()  # a run may be reading along
        used += 1
    return used, unused


def convert_line(line: bytes) -> dict[str, Any]:
    """One line of answers as one line of outputs. Raises `ValueError` saying what is wrong."""
    row = _decode(line)
    if not isinstance(row, dict):
        raise ValueError('is no object: write {"github_id": …, "id": …, "answers": […]}')
    for key in ("github_id", "id"):
        if type(row.get(key)) is not int:
            raise ValueError(f"{key} is missing or no integer: use that of the dataset's row")
    answers = row.get("answers")
    if not isinstance(answers, list) or not answers:
        raise ValueError('answers is missing or no list of texts: write "answers": ["…", …]')
    for index, answer in enumerate(answers):
        if not isinstance(answer, str):
            raise ValueError(f"answers[{index}] is no text: write it as a string")
    return {
        "github_id": row["github_id"],
        "id": row["id"],
        "output": [extract(answer) for answer in answers],
    }


def _decode(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8: save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _complain(message: str) -> None:
    click.echo(message, err=True)


def _is_same_file(one: str, other: str) -> bool:
    return Path(other).exists() and Path(other).samefile(one)


def _opened(path: str, mode: str) -> IO[bytes]:
    """The file, or stdin or stdout for a dash."""
    try:
        return click.open_file(path, mode)
    except OSError as error:
        raise click.UsageError(f"{path} can't be opened: {error.strerror}") from None


if __name__ == "__main__":
    main()
