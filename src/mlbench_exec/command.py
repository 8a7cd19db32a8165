"""Command: what the command lines share: exit codes, signals, messages, and a run's last words."""

import errno
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.abc
import click
from rich.console import Console

from mlbench_exec.errors import BackendUnavailable, InputError, MLBenchExecError, RunFolderBroken
from mlbench_exec.report import render_json, render_summary
from mlbench_exec.run import Outcome
from mlbench_exec.summary import Summary

__all__ = [
    "BAD_INPUT",
    "INCOMPLETE",
    "INTERRUPTED",
    "NO_BACKEND",
    "OK",
    "Failures",
    "Outcome",
    "conclude",
    "console",
    "exit_code",
    "interruptible",
    "say",
    "show",
]

OK, INCOMPLETE, BAD_INPUT, NO_BACKEND, INTERRUPTED = 0, 1, 2, 3, 130
PLAIN_WIDTH = 120
NO_THREAD = "can't start new thread"  # Python's words, of a RuntimeError
UNUSABLE_PATH = {errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR}

T = TypeVar("T")


def conclude(
    outcome: Outcome, folder: Path, *, as_json: bool, program: str = "mlbench-exec"
) -> int:
    """Show how a run ended; its exit code."""
    show(outcome.summary, as_json)
    say(f"Everything is in {folder}/")
    say(f"To look at it, open {folder}/report.html")
    if outcome.usable == 0:
        say(f"{program}: {_why_nothing(outcome, folder)}")
    return exit_code(outcome)


def exit_code(outcome: Outcome) -> int:
    if outcome.usable == 0:
        return BAD_INPUT
    return INCOMPLETE if outcome.unjudged or outcome.summary.unjudged else OK


def _why_nothing(outcome: Outcome, folder: Path) -> str:
    if outcome.unjudged:
        return f"nothing in the input can be used: {folder}/unjudged.jsonl says why, line by line"
    return "no row was given: OUTPUTS is empty, or --only leaves nothing of it"


def show(summary: Summary, as_json: bool) -> None:
    if as_json:
        click.echo(render_json(summary))
    else:
        console().print(render_summary(summary))


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def say(text: str) -> None:
    """Write a line to stderr, above the live view if one is drawn; nothing if nobody reads it."""
    with suppress(OSError):
        sys.stderr.write(text + "\n")  # click would go around what the view put in its place
        sys.stderr.flush()


class Failures:
    """Turns our exceptions into a message and an exit code."""

    def __init__(self, program: str = "mlbench-exec") -> None:
        self._program = program

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, KeyboardInterrupt):  # before or after the part that cleans up
            say("\nInterrupted.")
            sys.exit(INTERRUPTED)
        if isinstance(error, BackendUnavailable):
            say(f"{self._program}: {error}")
            sys.exit(NO_BACKEND)
        if isinstance(error, InputError) and not isinstance(error, RunFolderBroken):
            say(f"{self._program}: {error}")
            sys.exit(BAD_INPUT)
        if isinstance(error, MLBenchExecError):
            say(f"{self._program}: {error}")
            sys.exit(INCOMPLETE)
        if isinstance(error, OSError) and error.errno in UNUSABLE_PATH:
            say(f"{self._program}: {error.filename}: {error.strerror}: name another path")
            sys.exit(BAD_INPUT)
        if _lacks_a_thread(error):
            say(
                f"{self._program}: no thread can be started here: raise the limit on processes "
                "(`ulimit -u`, or the job's or container's) or lower --concurrency; the same "
                "command continues"
            )
            sys.exit(INCOMPLETE)


def _lacks_a_thread(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_lacks_a_thread(one) for one in error.exceptions)
    return isinstance(error, RuntimeError) and str(error) == NO_THREAD


def interruptible(work: Callable[[], Awaitable[T]]) -> T:
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
                            say("\nInterrupted: cleaning up. The same command continues.")
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
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # one that comes late can't spoil the exit
        return result

    interrupted: list[bool] = []
    result = anyio.run(supervised)
    if interrupted or result is None:
        sys.exit(INTERRUPTED)
    return result
