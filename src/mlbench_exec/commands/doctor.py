"""The `doctor` command: what works on this machine, and the command that mends what doesn't."""

import sys
from pathlib import Path

import click
import msgspec
from rich.table import Table

from mlbench_exec.command import Failures, console, interruptible, say
from mlbench_exec.doctor import Facts, Finding, exit_code, findings, gather
from mlbench_exec.report import plain
from mlbench_exec.settings import Settings
from mlbench_exec.weights import default_folder

MARKS = {"ok": "ok", "note": "note", "bad": "BAD"}


@click.command()
@click.option(
    "--environments",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Your own environments (TOML).",
)
@click.option("--runtime", metavar="NAME", help="Docker's runtime, runsc for instance.")
@click.option("--json", "as_json", is_flag=True, help="Print facts and findings as JSON.")
def doctor(environments: Path | None, runtime: str | None, as_json: bool) -> None:
    """Say what works on this machine, and what would mend the rest.

    Runs one small program through each backend that starts. Ends with 0 if one of them ran it, and
    with 3 if none did.
    """
    with Failures():
        settings = Settings(
            environments_file=environments, runtime=runtime, weights=default_folder().absolute()
        )
        facts = interruptible(lambda: gather(settings))
        _show(facts, findings(facts), as_json)
        sys.exit(exit_code(facts))


def _show(facts: Facts, found: list[Finding], as_json: bool) -> None:
    if as_json:
        shown = {"exit_code": exit_code(facts), "findings": found, "facts": facts}
        click.echo(msgspec.json.format(msgspec.json.encode(shown)).decode())
        return
    table = Table.grid(padding=(0, 2))
    for one in found:
        table.add_row(MARKS[one.state], plain(one.about), plain(one.text, limit=1000))
        if one.mend:
            table.add_row("", "", plain(f"→ {one.mend}", limit=1000))
    console().print(table)
    if exit_code(facts) == 0:
        names = [one.backend for one in facts.tries if one.problem is None]
        say(f"Programs run here: {' and '.join(names)}.")
    else:
        say("No backend runs a program here: mend what is marked BAD, or get an image.")
