"""Live: the view of a run under way that a terminal shows.

`lines` is pure: a sight of the run, a width and a height become as many lines as fit. What it names
are ids, numbers and our own words; nothing that a program, a model or a dataset wrote gets here.
"""

import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

import msgspec
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from mlbench_exec.pool import Running, Statistics
from mlbench_exec.report.terminal import plain
from mlbench_exec.report.words import LABELS, duration, size

__all__ = ["Screen", "Sight", "Slow", "is_live", "lines", "machine_memory"]

LISTED = 5
LABEL = 12  # columns that a line's name takes
WIDEST = 120
TWO_COLUMNS = 76
STRIP = 32  # slots that are drawn one by one
STYLES: Mapping[str, str] = {
    "passed": "green",
    "passed_at_limit": "cyan",
    "failed": "red",
    "wrong_arguments": "yellow",
    "wrong_type": "bright_yellow",
    "out_of_memory": "magenta",
    "killed": "bright_magenta",
    "skipped": "bright_black",
    "unjudged": "bright_red",
    "earlier": "bright_black",
}
_ASCII = str.maketrans({"━": "=", "─": "-", "●": "*", "·": "-", "■": "#", "□": ".", "…": "~"})


class Slow(msgspec.Struct, frozen=True, order=True):
    """An output that was executed: how long it took, which it is, what became of it."""

    wall_s: float
    name: str
    status: str


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """A run at one moment. Times are seconds; what isn't known is None."""

    done: int
    total: int | None
    rate: float | None  # outputs a second, over the last minute
    left_s: float | None
    took_s: float
    statuses: Mapping[str, int]
    unjudged: int
    earlier: int  # outputs that earlier runs have judged
    now_s: float  # on the clock of `Running.since_s`
    slots: Statistics | None
    size: int  # sandboxes at once
    slowest: tuple[Slow, ...] = ()  # of those that have ended, the slowest first
    stalled: float | None = None  # share of the last minute's executions that waited for a CPU
    alone: int = 0
    retried: int = 0
    largest: tuple[int, str] | None = None  # peak memory in bytes, and whose
    machine: tuple[int, int] | None = None  # bytes of memory in use, of how many
    note: str = ""
    beside: str = ""


def is_live(stream: TextIO) -> bool:
    """Whether a stream leads to a terminal that can move its cursor."""
    return stream.isatty() and not Console(file=stream).is_dumb_terminal


def machine_memory() -> tuple[int, int] | None:
    """This machine's memory in use, and all of it, in bytes. Blocks."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = dict(line.split(":", 1) for line in file)
        total, free = (int(facts[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return None
    return total - free, total


class Screen:
    """Draws sights in place on a terminal, below what stands there already. Blocks.

    Meant for one thread at a time. Raises `OSError` where the terminal is gone.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console = Console(file=stream, force_terminal=True, highlight=False)
        self._live: Live | None = None
        self._size = _window(stream)  # at the last drawing

    def draw(self, sight: Sight) -> None:
        if self._has_shrunk():
            self.close()
        self._size = _window(self._stream)
        self._console.size = ConsoleDimensions(*self._size)  # else $COLUMNS would fix it
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=self._console.file is sys.stderr,
                vertical_overflow="crop",
            )
            self._live.start()
            self._console.show_cursor(True)  # a killed or stopped run must not leave it hidden
        self._live.update(_View(sight), refresh=True)

    def close(self) -> None:
        """Take the view away: what stood above it is left, with the cursor below."""
        has_shrunk = self._has_shrunk()
        live, self._live = self._live, None
        if live is not None:
            live.stop()
        if has_shrunk:
            # Terminals differ in where a narrower window puts what was drawn: leave none of it.
            self._console.clear()

    def _has_shrunk(self) -> bool:
        now = _window(self._stream)
        is_smaller = now.columns < self._size.columns or now.lines < self._size.lines
        return self._live is not None and is_smaller


def _window(stream: TextIO) -> os.terminal_size:
    """The size of a stream's terminal now, 80 by 24 where it isn't known."""
    try:
        return os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return shutil.get_terminal_size()


class _View:
    def __init__(self, sight: Sight) -> None:
        self._sight = sight

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in lines(self._sight, options.max_width, console.height - 1):
            if options.ascii_only:
                line.plain = line.plain.translate(_ASCII)
            yield line


def lines(sight: Sight, width: int, height: int) -> list[Text]:
    """What fits, the most important first; no line is wider than the terminal."""
    width = max(1, min(width, WIDEST) - 1)
    found = [_counts(sight, width), _bar(sight, width), *_legend(sight, width)]
    said = [(sight.beside, ""), (sight.note, "bold yellow")]
    found += [Text(plain(words, limit=500).plain, style=style) for words, style in said if words]
    facts = [*_slots(sight, width), *_contention(sight, width), *_memory(sight, width)]
    if height >= len(found) + len(facts):
        found += facts
        found += _lists(sight, width, height - len(found))
    else:
        found += facts[: max(0, height - len(found))]
    if height > len(found) + 1:
        found.insert(0, Text())  # apart from what stands above
    shown = found[: max(1, height)]
    for line in shown:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return shown


def _counts(sight: Sight, width: int) -> Text:
    text = Text(f"{sight.done:,}", style="bold")
    if sight.total is not None:
        text.append(f" of {sight.total:,}", style="not bold")
        share = f"{100 * sight.done // sight.total} %" if sight.total else "-"
        text.append(f" · {share}", style="not bold")
    if sight.rate is not None:
        rate = f"{sight.rate:.1f}" if sight.rate < 100 else f"{sight.rate:.0f}"
        text.append(f" · {rate}/s", style="not bold")
    if sight.left_s is not None:
        text.append(f" · {duration(sight.left_s)} left", style="not bold")
    took = f"{duration(sight.took_s)} so far"
    room = width - text.cell_len - len(took)
    if room > 1:
        text.append(" " * room + took, style="not bold dim")
    return text


def _bar(sight: Sight, width: int) -> Text:
    """Every status by its share; what is left to do is a thinner line."""
    parts = [("earlier", sight.earlier), *_statuses(sight)]
    total = max(sight.total or 0, sum(count for _, count in parts))
    text, at, seen = Text(), 0, 0
    for name, count in parts:
        seen += count
        end = round(width * seen / total) if total else 0
        text.append("━" * (end - at), style=STYLES[name])
        at = end
    text.append("─" * (width - at), style="dim")
    return text


def _legend(sight: Sight, width: int) -> list[Text]:
    words: dict[str, str] = dict(LABELS.items())
    return _flow(
        [
            Text.assemble(("●", STYLES[name]), f" {words.get(name, name)} ", (f"{count:,}", "bold"))
            for name, count in [("earlier", sight.earlier), *_statuses(sight)]
            if count
        ],
        width,
        gap="   ",
    )


def _flow(parts: Iterable[Text], width: int, gap: str) -> list[Text]:
    """As many parts on each line as have room."""
    found: list[Text] = []
    for part in parts:
        if found and found[-1].cell_len + len(gap) + part.cell_len <= width:
            found[-1].append(gap).append_text(part)
        else:
            found.append(part.copy())
    return found


def _statuses(sight: Sight) -> Iterable[tuple[str, int]]:
    yield from ((status, sight.statuses.get(status, 0)) for status in LABELS)
    yield "unjudged", sight.unjudged


def _fact(name: str, width: int, *parts: str) -> list[Text]:
    given = [Text(part) for part in parts if part]
    flowed = _flow(given, width - LABEL, gap=" · ")
    names = (name, *[""] * len(flowed))
    return [Text.assemble((f"{names[i]:{LABEL}}", "dim"), one) for i, one in enumerate(flowed)]


def _slots(sight: Sight, width: int) -> list[Text]:
    slots = sight.slots
    if slots is None:
        return []
    busy = len(slots.running)
    strip = "■" * min(busy, sight.size) + "□" * (sight.size - busy)
    return _fact(
        "slots",
        width,
        (f"{strip} " if sight.size <= STRIP else "") + f"{busy} of {sight.size} busy",
        f"{slots.opening} starting" if slots.opening else "",
        f"{slots.idle} ready" if slots.idle else "",
    )


def _contention(sight: Sight, width: int) -> list[Text]:
    stalled = "nothing executed yet"
    if sight.stalled is not None:
        stalled = f"{100 * sight.stalled:.0f} % of the time waiting for a CPU"
    waiting = sight.slots.waiting if sight.slots else 0
    return _fact(
        "contention",
        width,
        stalled,
        f"{waiting} held back until a CPU has time" if waiting else "",
        f"{sight.alone} judged again alone" if sight.alone else "",
        f"{sight.retried} on a fresh sandbox" if sight.retried else "",
    )


def _memory(sight: Sight, width: int) -> list[Text]:
    parts = []
    if sight.largest is not None:
        parts.append(f"at most {size(sight.largest[0])}, by {sight.largest[1]}")
    if sight.machine is not None:
        used, total = map(size, sight.machine)
        parts.append(f"machine {used} of {total}")
    return _fact("memory", width, *parts)


def _lists(sight: Sight, width: int, room: int) -> list[Text]:
    """What runs longest now and what took longest, side by side where there is the width."""
    running = sorted(sight.slots.running, key=lambda one: one.since_s) if sight.slots else []
    now = [_running(one, sight.now_s) for one in running[:LISTED]]
    ended = [_slow(one) for one in sight.slowest[:LISTED]]
    if width < TWO_COLUMNS:
        stacked = [*_titled("running now", now), *_titled("slowest so far", ended)]
        return stacked[:room] if room > 2 else []
    left, right = _titled("running now", now), _titled("slowest so far", ended)
    return _beside(left, right, width // 2)[:room] if room > 2 else []


def _titled(title: str, entries: Sequence[Text]) -> list[Text]:
    return [Text(), Text(title, style="dim"), *entries] if entries else []


def _beside(left: Sequence[Text], right: Sequence[Text], column: int) -> list[Text]:
    found = []
    for place in range(max(len(left), len(right))):
        line = left[place].copy() if place < len(left) else Text()
        line.truncate(column - 2, overflow="ellipsis", pad=True)
        row = Text("  ").join([line, right[place]]) if place < len(right) else line
        found.append(row)
    return found


def _running(one: Running, now_s: float) -> Text:
    text = Text(f"{_seconds(now_s - one.since_s):>9}  ")
    text.append(f"{one.github_id}/{one.id}/{one.index}", style="bold")
    text.append(f"  slot {one.slot}", style="dim")
    return text


def _slow(one: Slow) -> Text:
    text = Text(f"{_seconds(one.wall_s):>9}  ")
    text.append(one.name, style="bold")
    text.append("  ").append(LABELS[one.status], style=STYLES[one.status])  # type: ignore[index]
    return text


def _seconds(value: float) -> str:
    return f"{max(value, 0.0):.1f} s" if value < 600 else duration(value)
