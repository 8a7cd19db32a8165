"""Progress: a generation under way, on stderr, and its last words."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self, TextIO

import anyio
import anyio.to_thread
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mlbench_gen.tally import Tally

__all__ = ["Preparing", "last_words", "shown"]

LIVE_EVERY_S = 0.25
LINE_EVERY_S = 10.0


@asynccontextmanager
async def shown(tally: Tally, stream: TextIO) -> AsyncIterator[None]:
    """Show a tally until the block ends: a bar on a terminal, else a line now and then."""
    tasks = anyio.create_task_group()
    await tasks.__aenter__()
    tasks.start_soon(_bar if stream.isatty() else _lines, tally, stream)
    try:
        yield
    finally:
        tasks.cancel_scope.cancel()
        await tasks.__aexit__(None, None, None)


async def _bar(tally: Tally, stream: TextIO) -> None:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=Console(file=stream), auto_refresh=False) as progress:
        bar = progress.add_task("", total=None, words="")
        while True:
            words = [f"{tally.under_way} asked", *tally.details()]
            progress.update(
                bar, completed=tally.done + tally.failed, total=tally.rows, words="  ".join(words)
            )
            await anyio.to_thread.run_sync(progress.refresh)
            await anyio.sleep(LIVE_EVERY_S)


async def _lines(tally: Tally, stream: TextIO) -> None:
    while True:
        await anyio.sleep(LINE_EVERY_S)
        await anyio.to_thread.run_sync(print_line, tally.words(), stream)


def print_line(text: str, stream: TextIO) -> None:
    stream.write(text + "\n")
    stream.flush()


def last_words(tally: Tally) -> str:
    """How a generation ended, in one or two lines."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in tally.kinds.most_common()) or "none"
    lines = [f"{tally.words()}; answers: {kinds}"]
    if tally.retries:
        causes = ", ".join(f"{cause}: {count}" for cause, count in tally.retries.most_common())
        lines.append(f"{tally.requests} requests, of which failed and were repeated: {causes}")
    return "\n".join(lines)


class Preparing:
    """A preparation under way: a bar on a terminal, and a line for each thing that is done."""

    def __init__(self, stream: TextIO) -> None:
        columns = (BarColumn(), TextColumn("{task.completed} done"), TimeElapsedColumn())
        self._progress = Progress(
            *columns, console=Console(file=stream), disable=not stream.isatty()
        )
        self._stream = stream
        self._bar = self._progress.add_task("", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, name: str, what: str) -> None:
        """Say what became of a repository or split."""
        line = f"{name}: {what}"
        if self._progress.disable:
            print_line(line, self._stream)
        else:
            self._progress.console.print(line, markup=False, highlight=False)
            self._progress.advance(self._bar)
