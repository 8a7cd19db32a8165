"""Progress: one line about a run under way, on stderr."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TextIO

import anyio
import anyio.to_thread

from mlbench_exec.verdicts import Status

__all__ = ["Progress"]

LIVE_EVERY_S = 0.25
LINE_EVERY_S = 10.0
RATE_OVER_S = 60.0

LABELS: Mapping[Status, str] = {
    "passed": "passed",
    "passed_at_limit": "at limit",
    "failed": "failed",
    "wrong_arguments": "wrong args",
    "wrong_type": "wrong type",
    "out_of_memory": "oom",
    "killed": "killed",
    "skipped": "skipped",
}


class Progress:
    """One line about a run under way: rewritten in place on a terminal, else now and then.

    `total` and `sandboxes` may be set at any time; None says that a number isn't known. `beside`
    gives words about what else is under way; they lead the line.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        total: int | None = None,
        live: bool | None = None,
        width: int = 100,
        clock: Callable[[], float] = time.monotonic,
        beside: Callable[[], str] | None = None,
    ) -> None:
        self.total = total
        self.sandboxes: tuple[int, int] | None = None  # in use, of how many
        self.note: Callable[[], str] = lambda: ""  # what else is to be told at this moment
        self._stream = stream
        self._live = stream.isatty() if live is None else live
        self._width = width
        self._clock = clock
        self._beside = beside
        self._statuses: Counter[Status] = Counter()
        self._unjudged = 0
        self._earlier = 0
        self._shown = ""
        self._marks = deque([(clock(), 0)])

    def __repr__(self) -> str:
        return f"<Progress {self.line()!r}>"

    @property
    def done(self) -> int:
        return self._earlier + self._statuses.total() + self._unjudged

    def resumed(self, outputs: int) -> None:
        """Count outputs that earlier runs have judged: done, but no part of the rate."""
        self._earlier += outputs

    def judged(self, status: Status) -> None:
        self._statuses[status] += 1

    def unjudged(self) -> None:
        self._unjudged += 1

    def line(self) -> str:
        """The line as of now."""
        rate = self._rate()
        parts = [str(self.done) if self.total is None else f"{self.done}/{self.total}"]
        if rate is not None:
            parts.append(f"{rate:.1f}/s" if rate < 100 else f"{rate:.0f}/s")
        if rate and self.total is not None and self.total > self.done:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        parts += [
            f"{label} {self._statuses[status]}"
            for status, label in LABELS.items()
            if self._statuses[status]
        ]
        if self._unjudged:
            parts.append(f"unjudged {self._unjudged}")
        if self.sandboxes is not None:
            parts.append("sandboxes {}/{}".format(*self.sandboxes))
        if note := self.note():
            parts.append(note)
        line = "  ".join(parts)
        return f"{self._beside()} | judged {line}" if self._beside else line

    async def show(self) -> None:
        """Show the line until cancelled, and its last state then."""
        try:
            while True:
                await anyio.sleep(LIVE_EVERY_S if self._live else LINE_EVERY_S)
                await anyio.to_thread.run_sync(self.draw)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self.finish)

    def draw(self) -> None:
        """Write the line once, if it says anything new. Blocks."""
        line = self.line()
        if line == self._shown:
            return
        self._shown = line
        if self._live:
            line = line if len(line) < self._width else line[: self._width - 2] + "…"
            self._stream.write(f"\r{line}\x1b[K")
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def finish(self) -> None:
        """Leave the last state standing, with the cursor below it. Blocks."""
        self.draw()
        if self._live and self._shown:
            self._stream.write("\n")
            self._stream.flush()

    def _rate(self) -> float | None:
        """Outputs a second over the last minute, or since the start; None in the first second."""
        now, done = self._clock(), self.done - self._earlier
        while len(self._marks) > 1 and now - self._marks[1][0] >= RATE_OVER_S:
            self._marks.popleft()
        if now - self._marks[-1][0] >= 1.0:
            self._marks.append((now, done))
        then, before = self._marks[0]
        return (done - before) / (now - then) if now - then >= 1.0 else None


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
