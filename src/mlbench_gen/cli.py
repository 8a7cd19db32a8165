"""The command line of mlbench-gen: parse, call, exit code."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import click

from mlbench_exec import InputError
from mlbench_exec.command import (
    BAD_INPUT,
    INCOMPLETE,
    INTERRUPTED,
    OK,
    Failures,
    conclude,
    interruptible,
)
from mlbench_exec.options import dataset_option, engine_options, settings_from
from mlbench_gen.extraction import extract
from mlbench_gen.generation import Generation
from mlbench_gen.options import generation_options
from mlbench_gen.prepare import Preparation, load_pins
from mlbench_gen.prepare.preparation import ESTIMATE, Options
from mlbench_gen.progress import Preparing

PROGRAM = "mlbench-gen"
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
    """Ask models for what mlbench-exec executes."""


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


@commands.command("prepare")
@click.option(
    "--repos",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Checkouts by name; what isn't there is cloned into it.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="The dataset folder to make, for --dataset.",
)
@dataset_option
@click.option(
    "--split",
    "splits",
    multiple=True,
    metavar="NAME[=D]",
    help="A split, and its file where it has its own. [default: full and quarter]",
)
@click.option(
    "--max-chars", metavar="N|none", help="Cut each README text. ML-Bench: 100000, 400000, none."
)
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Cut after N tokens.")
@click.option(
    "--tokenizer",
    default=ESTIMATE,
    show_default=True,
    help="What counts tokens: 3.125 characters each, or a tiktoken encoding.",
)
@click.option(
    "--sentences",
    type=click.Choice(["rule", "punkt"]),
    default="rule",
    show_default=True,
    help="What ends a sentence; punkt is ML-Bench's, and needs nltk.",
)
@click.option(
    "--pins",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Your own repositories (TOML). [default: ML-Bench's 14]",
)
@click.option("--as-is", is_flag=True, help="Take checkouts at whatever commit.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="[default: one a core]")
def prepare_command(
    repos: Path,
    out: Path,
    dataset: str,
    splits: tuple[str, ...],
    max_chars: str | None,
    max_tokens: int | None,
    tokenizer: str,
    sentences: str,
    pins: Path | None,
    as_is: bool,
    jobs: int | None,
) -> int:
    """Add contexts to the dataset's rows: README texts (task 1) and retrieved segments (task 2).

    The same command again does only what has changed. Exits with 0 when every row got its
    contexts, 1 when some repositories could not be had.
    """
    with Failures(PROGRAM):
        preparation = Preparation(
            split_sources(splits, dataset),
            load_pins(pins),
            repos,
            out,
            Options(
                max_chars=parse_chars(max_chars),
                max_tokens=max_tokens,
                tokenizer=tokenizer,
                sentences=sentences,
            ),
            as_is=as_is,
            jobs=jobs or len(os.sched_getaffinity(0)),
        )
        with Preparing(sys.stderr) as progress:
            report = preparation.run(progress.tell, progress.expect)
        for problem in report.problems.values():
            click.echo(problem, err=True)
        if report.without_context:
            click.echo(f"{report.without_context} rows have no context", err=True)
        click.echo(f"{out}/ can be passed as --dataset", err=True)
        return INCOMPLETE if report.without_context else OK
    return INCOMPLETE


def split_sources(splits: tuple[str, ...], dataset: str) -> dict[str, str]:
    """Where each split comes from. A file holds one split; other sources may hold both."""
    if not splits:
        splits = ("full",) if Path(dataset).is_file() else ("full", "quarter")
    sources = {}
    for split in splits:
        name, _, source = split.partition("=")
        if not re.fullmatch(r"\w+", name):
            raise InputError(f"--split {split!r}: write NAME or NAME=FILE")
        sources[name] = source or dataset
    return sources


def parse_chars(text: str | None) -> int | None:
    if text is None or text == "none":
        return None
    if not text.isascii() or not text.replace(",", "").isdigit() or not int(text.replace(",", "")):
        raise InputError(f"--max-chars {text!r}: write a number above 0, or none")
    return int(text.replace(",", ""))


@commands.command("generate")
@generation_options
@dataset_option
@click.option("--split", "--type", "split", default="full", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of the answers. [default: runs/<model>-task<task>-<split>/generation]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="OUTPUTS",
    help="Where the code goes, or - for stdout too. [default: DIR/outputs.jsonl]",
)
def generate_command(out: Path | None, output: str | None, **given: Any) -> int:
    """Have a model answer the dataset's rows.

    Whole answers are kept in DIR/answers.jsonl, the code in them goes to OUTPUTS. The same command
    again asks only for what is missing. Exits with 0 when every row is answered, 1 when some are
    not (DIR/failed.jsonl says why), 2 for bad usage, 130 when interrupted.
    """
    with Failures(PROGRAM):
        if output and Path(given["dataset"]).exists() and _is_same_file(given["dataset"], output):
            raise InputError(f"{output} is the dataset: give another file to -o")
        generation = Generation(given, given["dataset"], given["split"])
        folder = out or generation.default_folder() / "generation"
        failed = interruptible(lambda: generation.write(folder, output))
        click.echo(f"The answers are in {folder}/", err=True)
        return INCOMPLETE if failed else OK
    return INCOMPLETE


@commands.command("run")
@generation_options
@engine_options
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Run folder. [default: runs/<model>-task<task>-<split>]",
)
@click.option("--type", "split_type", metavar="SPLIT", help="ML-Bench's name for --split.")
@click.option("--json", "as_json", is_flag=True, help="Print summary.json to stdout.")
def run_command(out: Path | None, as_json: bool, split_type: str | None, **given: Any) -> int:
    """Have a model answer the dataset's rows, and judge the answers as they come.

    DIR is a run folder of mlbench-exec; the answers are in DIR/generation. The same command again
    continues both. Exit codes are those of `mlbench-exec run`.
    """
    with Failures(PROGRAM):
        settings = settings_from({**given, "split": split_type or given["split"]})
        generation = Generation(given, settings.dataset, settings.split)
        folder = out or generation.default_folder()
        outcome = interruptible(lambda: generation.judge(folder, settings))
        return conclude(outcome, folder, as_json=as_json, program=PROGRAM)
    return INCOMPLETE


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
