"""Progress: a generation under way, on stderr, and its last words."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
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

    def draw() -> None:
        done, words = tally.done + tally.failed, [f"{tally.under_way} asked", *tally.details()]
        progress.update(bar, completed=done, total=tally.rows, words="  ".join(words))
        progress.refresh()

    with (
        suppress(OSError),  # the terminal has gone: nobody is left to be told
        Progress(*columns, console=Console(file=stream), auto_refresh=False) as progress,
    ):
        bar = progress.add_task("", total=None, words="")
        try:
            while True:
                await anyio.to_thread.run_sync(draw)
                await anyio.sleep(LIVE_EVERY_S)
        finally:
            draw()  # the last state stays


async def _lines(tally: Tally, stream: TextIO) -> None:
    while True:
        await anyio.sleep(LINE_EVERY_S)
        await anyio.to_thread.run_sync(print_line, tally.words(), stream)


def print_line(text: str, stream: TextIO) -> None:
    """Write a line; nothing happens where nobody reads it any more."""
    with suppress(OSError):
        stream.write(text + "\n")
        stream.flush()


def last_words(tally: Tally) -> str:
    """How a generation ended, in one or two lines."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in tally.kinds.most_common()) or "none"
    lines = [f"{tally.words()}; answers: {kinds}"]
    if tally.retries:
        causes = ", ".join(f"{cause}: {count}" for cause, count in tally.retries.most_common())
        lines.append(f"{tally.requests} requests, of which failed and were repeated: {causes}")
    if tally.uncounted:
        lines.append(f"{tally.uncounted} replies came without usage: tokens are of the others")
    if unknown := tally.without_price():
        lines.append(f"no cost: the price file has no {', '.join(map(repr, unknown))}")
    return "\n".join(lines)


class Preparing:
    """A preparation under way: a bar on a terminal, and a line for each thing that is done."""

    def __init__(self, stream: TextIO) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
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

    def expect(self, things: int) -> None:
        """Say how many repositories and splits there are."""
        self._progress.update(self._bar, total=things)

    def tell(self, name: str, what: str) -> None:
        """Say what became of a repository or split."""
        line = f"{name}: {what}"
        if self._progress.disable:
            print_line(line, self._stream)
        else:
            self._progress.console.print(line, markup=False, highlight=False)
            self._progress.advance(self._bar)
