"""The command line: parse, call, exit code."""

import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.abc
import click
import msgspec
from rich.console import Console
from rich.table import Table

from mlbench_exec import __version__
from mlbench_exec.errors import BackendUnavailable, InputError, MLBenchExecError
from mlbench_exec.journal import load_run
from mlbench_exec.report import plain, render_json, render_summary, write_results, write_summary
from mlbench_exec.run import DryRun, Evaluation, Outcome, Selection, dry_run
from mlbench_exec.sandbox import Limits
from mlbench_exec.scores import Summary, summarize
from mlbench_exec.settings import HUB_DATASET, Settings, parse_gpus, parse_mount, parse_size
from mlbench_exec.submissions import STDIN

OK, INCOMPLETE, BAD_INPUT, NO_BACKEND, INTERRUPTED = 0, 1, 2, 3, 130
PLAIN_WIDTH = 120
UNUSABLE_SHOWN = 10

T = TypeVar("T")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mlbench-exec")
def main() -> None:
    """Execute what models wrote for ML-Bench, and score it."""


@main.command()
@click.argument("outputs", required=False)
@click.option("--gold", is_flag=True, help="Judge the dataset's own answers instead of OUTPUTS.")
@click.option(
    "--dataset",
    default=HUB_DATASET,
    show_default=True,
    metavar="D",
    help="JSONL or Parquet file, save_to_disk folder, or Hub id.",
)
@click.option("--split", default="full", show_default=True)
@click.option(
    "--environments",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Your own environments (TOML).",
)
@click.option(
    "--backend", type=click.Choice(["auto", "docker", "local"]), default="auto", show_default=True
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    help="Sandboxes at once. [default: as cores and memory allow]",
)
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
@click.option("--until-pass", is_flag=True, help="Stop a row where no pass@k can change any more.")
@click.option("--share-identical", is_flag=True, help="Execute equal outputs of a row once.")
@click.option(
    "--no-preload",
    is_flag=True,
    help="Import nothing ahead of snippets. (This version never does.)",
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Seconds for each snippet. [default: the environment's]",
)
@click.option(
    "--clock",
    type=click.Choice(["fair", "wall"]),
    help="What the time limit counts. [default: fair]",
)
@click.option("--memory", metavar="SIZE", help="Memory of a snippet. [default: 8g]")
@click.option(
    "--cpus",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="CPUs of a snippet. [default: 2]",
)
@click.option(
    "--pids",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes and threads of a snippet. [default: 512]",
)
@click.option("--disk", metavar="SIZE", help="What a snippet may write. [default: 2g]")
@click.option("--network", type=click.Choice(["none", "bridge"]), help="[default: none]")
@click.option("--gpus", default="none", show_default=True, metavar="none|all|0,1")
@click.option(
    "--mount",
    "mounts",
    multiple=True,
    metavar="SRC:DST[:rw]",
    help="Show a folder or file in every sandbox.",
)
@click.option("--runtime", metavar="NAME", help="Docker's runtime, runsc for instance.")
@click.option(
    "--profile",
    type=click.Choice(["strict", "mlbench"]),
    default="strict",
    show_default=True,
    help="mlbench: network, wall clock, no limits on memory, CPU and processes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print summary.json to stdout.")
@click.option("--restart", is_flag=True, help="Forget what the run folder holds.")
@click.option("--dry-run", "is_dry", is_flag=True, help="Say what would run, and run nothing.")
def run(
    outputs: str | None,
    gold: bool,
    dataset: str,
    split: str,
    environments: Path | None,
    backend: str,
    concurrency: int | None,
    out: Path | None,
    only: str | None,
    limit: int | None,
    until_pass: bool,
    share_identical: bool,
    no_preload: bool,
    time_limit: float | None,
    clock: str | None,
    memory: str | None,
    cpus: float | None,
    pids: int | None,
    disk: str | None,
    network: str | None,
    gpus: str,
    mounts: tuple[str, ...],
    runtime: str | None,
    profile: str,
    as_json: bool,
    restart: bool,
    is_dry: bool,
) -> None:
    """Judge OUTPUTS, a JSONL file of {"github_id", "id", "output": […]}, or - for stdin.

    The same command again continues an unfinished run.
    """
    if gold == (outputs is not None):
        raise click.UsageError("give OUTPUTS, or --gold for the dataset's own answers: one of them")
    with _Failures():
        settings = Settings(
            dataset=dataset,
            split=split,
            environments_file=environments,
            backend=msgspec.convert(backend, type=Settings.__annotations__["backend"]),
            concurrency=concurrency,
            time_limit_s=time_limit,
            gpus=parse_gpus(gpus),
            runtime=runtime,
            mounts=tuple(parse_mount(mount) for mount in mounts),
            until_pass=until_pass,
            share_identical=share_identical,
        ).with_profile("mlbench" if profile == "mlbench" else "strict")
        settings = with_limits(settings, clock, memory, cpus, pids, disk, network)
        selection = Selection(only=parse_only(only), limit=limit)
        if is_dry:
            found = _interruptible(lambda: dry_run(outputs, settings, selection))
            sys.exit(_show_dry_run(found, as_json))
        folder = out or Path("runs") / default_name(outputs)
        evaluation = Evaluation(outputs, folder, settings, selection=selection, restart=restart)
        outcome = _interruptible(evaluation.run)
        _show(outcome.summary, as_json)
        _say(f"Everything is in {folder}/")
        if outcome.usable == 0:
            _say(f"mlbench-exec: {_why_nothing(outcome, folder)}")
        sys.exit(exit_code(outcome))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print summary.json to stdout.")
def report(folder: Path, as_json: bool) -> None:
    """Compute a run's results again from its journal alone, and show them."""
    with _Failures():
        loaded = load_run(folder)
        facts = loaded.manifest.dataset
        summary = summarize(loaded.tally, split_rows=facts.split_rows, names=facts.names)
        write_results(folder, loaded.tally)
        write_summary(folder, summary)
        _show(summary, as_json)


def exit_code(outcome: Outcome) -> int:
    if outcome.usable == 0:
        return BAD_INPUT
    return INCOMPLETE if outcome.unjudged or outcome.summary.unjudged else OK


def _why_nothing(outcome: Outcome, folder: Path) -> str:
    if outcome.unjudged:
        return f"nothing in the input can be used: {folder}/unjudged.jsonl says why, line by line"
    return "no row was given: OUTPUTS is empty, or --only leaves nothing of it"


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


def with_limits(
    settings: Settings,
    clock: str | None,
    memory: str | None,
    cpus: float | None,
    pids: int | None,
    disk: str | None,
    network: str | None,
) -> Settings:
    """What was asked for by name goes before the profile."""
    asked = {
        "clock": clock,
        "memory_bytes": parse_size(memory) if memory else None,
        "cpus": cpus,
        "pids": pids,
        "disk_bytes": parse_size(disk) if disk else None,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    limits = msgspec.convert({**msgspec.structs.asdict(settings.limits), **given}, Limits)
    settings = msgspec.structs.replace(settings, limits=limits)
    if network is None:
        return settings
    return msgspec.structs.replace(settings, network="bridge" if network == "bridge" else "none")


def _show_dry_run(found: DryRun, as_json: bool) -> int:
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        table = Table("environment", "to execute", "problem")
        for entry in found.planned:
            count, problem = str(entry.executions), entry.problem or ""
            table.add_row(plain(entry.environment), count, plain(problem))
        _console().print(table)
        _say(f"{found.static} outputs are decided by the static checks, without a sandbox.")
    for reason in found.unusable[:UNUSABLE_SHOWN]:
        _say(f"can't be judged: {plain(reason, limit=1000)}")
    if len(found.unusable) > UNUSABLE_SHOWN:
        _say(f"and {len(found.unusable) - UNUSABLE_SHOWN} more that can't be judged")
    if not found.planned:
        return BAD_INPUT
    return INCOMPLETE if found.unusable or any(one.problem for one in found.planned) else OK


def _show(summary: Summary, as_json: bool) -> None:
    if as_json:
        click.echo(render_json(summary))
    else:
        _console().print(render_summary(summary))


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def _say(text: str) -> None:
    click.echo(text, err=True)


class _Failures:
    """Turns our exceptions into a message and an exit code."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, KeyboardInterrupt):  # before or after the part that cleans up
            _say("\nInterrupted.")
            sys.exit(INTERRUPTED)
        if isinstance(error, BackendUnavailable):
            _say(f"mlbench-exec: {error}")
            sys.exit(NO_BACKEND)
        if isinstance(error, InputError):
            _say(f"mlbench-exec: {error}")
            sys.exit(BAD_INPUT)
        if isinstance(error, MLBenchExecError):
            _say(f"mlbench-exec: {error}")
            sys.exit(INCOMPLETE)


def _interruptible(work: Callable[[], Awaitable[T]]) -> T:
    """Run to the end; Ctrl-C and SIGTERM end it in order, a second one changes nothing."""

    async def supervised() -> T | None:
        result: T | None = None
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:

            async def watch(*, task_status: anyio.abc.TaskStatus[None]) -> None:
                with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                    task_status.started()
                    async for _ in signals:
                        if not scope.cancel_called:
                            _say("\nInterrupted: cleaning up. The same command continues.")
                        scope.cancel()

            with anyio.CancelScope() as scope:
                await tasks.start(watch)
                try:
                    result = await work()
                except Exception as error:  # noqa: BLE001 - raised again, outside of the group
                    failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if scope.cancelled_caught:
            interrupted.append(True)
        return result

    interrupted: list[bool] = []
    result = anyio.run(supervised)
    if interrupted or result is None:
        sys.exit(INTERRUPTED)
    return result
