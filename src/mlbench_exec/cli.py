"""The command line: parse, call, exit code."""

import sys
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.table import Table

from mlbench_exec import __version__, journal
from mlbench_exec.command import (
    BAD_INPUT,
    INCOMPLETE,
    OK,
    Failures,
    conclude,
    console,
    interruptible,
    say,
    show,
)
from mlbench_exec.commands.doctor import doctor
from mlbench_exec.commands.images import images
from mlbench_exec.commands.shell import shell
from mlbench_exec.commands.weights import weights
from mlbench_exec.dry_run import DryRun, dry_run
from mlbench_exec.errors import InputError
from mlbench_exec.options import engine_options, settings_from
from mlbench_exec.report import (
    PAGE,
    changes_csv,
    compare,
    comparison_page,
    comparison_remarks,
    comparison_tables,
    load_run,
    plain,
    render_tables,
    run_csv,
    summary_tables,
    to_json,
    to_markdown,
    write_page,
    write_results,
    write_summary,
)
from mlbench_exec.run import Evaluation, Selection
from mlbench_exec.scores import summarize
from mlbench_exec.submissions import STDIN

UNUSABLE_SHOWN = 10


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mlbench-exec")
def main() -> None:
    """Execute what models wrote for ML-Bench, and score it."""


main.add_command(weights)
main.add_command(doctor)
main.add_command(images)
main.add_command(shell)


@main.command()
@click.argument("outputs", required=False)
@click.option("--gold", is_flag=True, help="Judge the dataset's own answers instead of OUTPUTS.")
@engine_options
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Run folder. [default: runs/<name of OUTPUTS>, runs/gold]",
)
@click.option("--only", metavar="GITHUB_ID[/ID],…", help="Judge these rows only.")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="ROWS", help="Take so many rows of OUTPUTS."
)
@click.option("--json", "as_json", is_flag=True, help="Print summary.json to stdout.")
@click.option("--restart", is_flag=True, help="Forget what the run folder holds.")
@click.option("--dry-run", "is_dry", is_flag=True, help="Say what would run, and run nothing.")
def run(
    outputs: str | None,
    gold: bool,
    out: Path | None,
    only: str | None,
    limit: int | None,
    as_json: bool,
    restart: bool,
    is_dry: bool,
    **engine: Any,
) -> None:
    """Judge OUTPUTS, a JSONL file of {"github_id", "id", "output": […]}, or - for stdin.

    The same command again continues an unfinished run.
    """
    if gold == (outputs is not None):
        raise click.UsageError("give OUTPUTS, or --gold for the dataset's own answers: one of them")
    with Failures():
        settings = settings_from(engine)
        selection = Selection(only=parse_only(only), limit=limit)
        if is_dry:
            found = interruptible(lambda: dry_run(outputs, settings, selection))
            sys.exit(_show_dry_run(found, as_json))
        folder = out or Path("runs") / default_name(outputs)
        evaluation = Evaluation(outputs, folder, settings, selection=selection, restart=restart)
        outcome = interruptible(evaluation.run)
        sys.exit(conclude(outcome, folder, as_json=as_json))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument(
    "other", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "md", "csv", "json", "html"]),
    default="text",
    show_default=True,
    help="For people, papers or scripts; csv has a line for each output, html is one page.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def report(folder: Path, other: Path | None, form: str, as_json: bool) -> None:
    """Compute a run's results again from its journal alone, and show them.

    Writes results.jsonl, summary.json and report.html into FOLDER. With OTHER, tells what changed
    from the first run to the second and the chance that it is noise, and writes nothing.
    """
    form = "json" if as_json else form
    with Failures():
        if other is None:
            _report(folder, form)
        else:
            _compare(folder, other, form)


def _report(folder: Path, form: str) -> None:
    loaded = journal.load_run(folder)
    facts = loaded.manifest.dataset
    summary = summarize(loaded.tally, split_rows=facts.split_rows, names=facts.names)
    write_results(folder, loaded.tally)
    write_summary(folder, summary)
    problems = write_page(folder)
    match form:
        case "md":
            click.echo(to_markdown(folder.resolve().name, summary_tables(summary)), nl=False)
        case "csv":
            click.echo(run_csv(load_run(folder)), nl=False)
        case "html":
            click.echo((folder / PAGE).read_bytes(), nl=False)
        case _:
            show(summary, form == "json")
    if form != "text":
        return
    for problem in problems:
        say(f"report.html: {plain(problem, limit=1000)}")
    say(f"The report is {folder}/report.html")


def _compare(folder: Path, other: Path, form: str) -> None:
    found = compare(load_run(folder), load_run(other))
    tables, title = comparison_tables(found), f"From {found.a} to {found.b}"
    remarks = comparison_remarks(found)
    match form:
        case "md":
            click.echo(to_markdown(title, tables, remarks), nl=False)
        case "csv":
            click.echo(changes_csv(found), nl=False)
        case "json":
            click.echo(to_json(found), nl=False)
        case "html":
            click.echo(comparison_page(found).encode("utf-8", "backslashreplace"), nl=False)
        case _:
            console().print(render_tables(tables, [title, *remarks]))


def parse_only(text: str | None) -> tuple[tuple[int, int | None], ...]:
    """`9` or `9/261`, with commas between them. Raises `InputError`."""
    chosen: list[tuple[int, int | None]] = []
    for part in text.split(",") if text else []:
        github_id, slash, row_id = part.strip().partition("/")
        try:
            chosen.append((int(github_id), int(row_id) if slash else None))
        except ValueError:
            raise InputError(f"--only {part!r}: write GITHUB_ID or GITHUB_ID/ID, 9/261") from None
    return tuple(chosen)


def default_name(outputs: str | None) -> str:
    if outputs is None:
        return "gold"
    return "stdin" if outputs == STDIN else Path(outputs).stem


def _show_dry_run(found: DryRun, as_json: bool) -> int:
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        table = Table("environment", "to execute", "problem")
        for entry in found.planned:
            count, problem = str(entry.executions), entry.problem or ""
            table.add_row(plain(entry.environment), count, plain(problem))
        console().print(table)
        say(f"{found.static} outputs are decided by the static checks, without a sandbox.")
    for one in () if as_json else found.weights:
        say(f"weights: {plain(one.name)} is missing, for {one.outputs} outputs")
    for reason in found.unusable[:UNUSABLE_SHOWN]:
        say(f"can't be judged: {plain(reason, limit=1000)}")
    if len(found.unusable) > UNUSABLE_SHOWN:
        say(f"and {len(found.unusable) - UNUSABLE_SHOWN} more that can't be judged")
    if not found.planned:
        return BAD_INPUT
    return INCOMPLETE if found.unusable or any(one.problem for one in found.planned) else OK
