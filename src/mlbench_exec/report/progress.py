"""Progress: what is known of a run under way, and who shows it on stderr: a view or plain lines."""

import heapq
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TextIO

import anyio
import anyio.to_thread
import msgspec

from mlbench_exec.pool import Statistics
from mlbench_exec.report.live import Screen, Sight, Slow, is_live, machine_memory
from mlbench_exec.report.words import LABELS, duration
from mlbench_exec.verdicts import Verdict

__all__ = ["Progress"]

LIVE_EVERY_S = 0.5
LINE_EVERY_S = 10.0
OVER_S = 60.0  # rates are those of the last minute
SLOWEST = 5


class _Mark(msgspec.Struct, frozen=True):
    """Sums up to a moment."""

    at_s: float
    done: int = 0
    wall_s: float = 0.0
    stalled_s: float = 0.0


class Progress:
    """A run under way: a view of all of it on a terminal, elsewhere a plain line now and then.

    `total` may be set at any time; None says that it isn't known. `slots` tells how the sandboxes
    stand, of which there are `size`. `note` gives words that a person should read at this moment,
    `beside` words about what stands before this run; they lead the line.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        total: int | None = None,
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        slots: Callable[[], Statistics] | None = None,
        size: int = 0,
        note: Callable[[], str] = str,
        beside: Callable[[], str] | None = None,
    ) -> None:
        self.total = total
        self._stream = stream
        self._screen = Screen(stream) if (is_live(stream) if live is None else live) else None
        self._clock = clock
        self._slots = slots
        self._size = size
        self._note = note
        self._beside = beside
        self._statuses: Counter[str] = Counter()
        self._unjudged = 0
        self._earlier = 0
        self._wall_s = self._stalled_s = 0.0
        self._alone = self._retried = 0
        self._slowest: list[Slow] = []  # a heap, the least slow one first
        self._largest: tuple[int, Slow] | None = None
        self._shown = ""
        self._is_broken = False
        self._began_s = clock()
        self._marks = deque([_Mark(self._began_s)])

    def __repr__(self) -> str:
        return f"<Progress {self.line()!r}>"

    @property
    def done(self) -> int:
        return self._earlier + self._statuses.total() + self._unjudged

    def resumed(self, outputs: int) -> None:
        """Count outputs that earlier runs have judged: done, but no part of the rate."""
        self._earlier += outputs

    def judged(self, verdict: Verdict) -> None:
        """Count a verdict. Called for each one, so that it has to be quick."""
        self._statuses[verdict.status] += 1
        if verdict.wall_s is None:
            return
        self._wall_s += verdict.wall_s
        self._stalled_s += verdict.stalled_s or 0.0
        self._alone += verdict.contended
        self._retried += verdict.attempts > 1 and not verdict.contended
        memory = verdict.peak_memory_bytes or 0
        is_slow = len(self._slowest) < SLOWEST or verdict.wall_s > self._slowest[0].wall_s
        if not is_slow and self._largest is not None and memory <= self._largest[0]:
            return
        name = f"{verdict.github_id}/{verdict.id}/{verdict.index}"
        slow = Slow(wall_s=verdict.wall_s, name=name, status=verdict.status)
        if is_slow:
            change = heapq.heappush if len(self._slowest) < SLOWEST else heapq.heapreplace
            change(self._slowest, slow)
        if memory and (self._largest is None or memory > self._largest[0]):
            self._largest = memory, slow

    def unjudged(self) -> None:
        self._unjudged += 1

    def sight(self) -> Sight:
        """All of it as of now, as plain data. Not to be called from another thread."""
        mark, now = self._mark()
        rate = self._rate(mark, now)
        wall_s = now.wall_s - mark.wall_s
        return Sight(
            done=self.done,
            total=self.total,
            rate=rate,
            left_s=self._left_s(rate),
            took_s=now.at_s - self._began_s,
            statuses=dict(self._statuses),
            unjudged=self._unjudged,
            earlier=self._earlier,
            now_s=now.at_s,
            slots=self._slots() if self._slots else None,
            size=self._size,
            slowest=tuple(sorted(self._slowest, reverse=True)),
            stalled=(now.stalled_s - mark.stalled_s) / wall_s if wall_s > 0 else None,
            alone=self._alone,
            retried=self._retried,
            largest=None if self._largest is None else (self._largest[0], self._largest[1].name),
            note=self._note(),
            beside=self._beside() if self._beside else "",
        )

    def line(self) -> str:
        """The plain line as of now."""
        rate = self._rate(*self._mark())
        left_s = self._left_s(rate)
        parts = [str(self.done) if self.total is None else f"{self.done}/{self.total}"]
        if rate is not None:
            parts.append(f"{rate:.1f}/s" if rate < 100 else f"{rate:.0f}/s")
        if left_s is not None:
            parts.append(f"{duration(left_s)} left")
        parts += [
            f"{label} {self._statuses[status]}"
            for status, label in LABELS.items()
            if self._statuses[status]
        ]
        if self._unjudged:
            parts.append(f"unjudged {self._unjudged}")
        if self._slots is not None:
            slots = self._slots()
            parts.append(f"sandboxes {slots.lent}/{self._size}")
            if slots.opening:
                parts.append(f"starting {slots.opening}")
        if note := self._note():
            parts.append(note)
        line = "  ".join(parts)
        return f"{self._beside()} | judged {line}" if self._beside else line

    async def show(self) -> None:
        """Show it until cancelled, and its last state then."""
        try:
            while True:
                await self._draw()
                await anyio.sleep(LIVE_EVERY_S if self._screen else LINE_EVERY_S)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self.finish, self.line())

    async def _draw(self) -> None:
        if self._screen is not None:
            await anyio.to_thread.run_sync(self.draw, self.sight())
        elif self.done > self._earlier:
            await anyio.to_thread.run_sync(self.write, self.line())

    def draw(self, sight: Sight) -> None:
        """Bring the terminal up to date. Blocks."""
        if self._screen is None or self._is_broken:
            return
        try:
            self._screen.draw(msgspec.structs.replace(sight, machine=machine_memory()))
        except OSError:  # the terminal is gone: no reason for the run to end
            self._is_broken = True

    def write(self, line: str) -> None:
        """Write a plain line, if it says anything new. Blocks."""
        if line == self._shown or self._is_broken:
            return
        self._shown = line
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except OSError:
            self._is_broken = True

    def finish(self, line: str) -> None:
        """Leave the last state standing as one line, with the cursor below it. Blocks."""
        try:
            if self._screen is not None:
                self._screen.close()
        except OSError:
            self._is_broken = True
        self.write(line)

    def _mark(self) -> tuple[_Mark, _Mark]:
        """The sums of a minute ago, or of the start, and of now."""
        now = _Mark(self._clock(), self.done - self._earlier, self._wall_s, self._stalled_s)
        while len(self._marks) > 1 and now.at_s - self._marks[1].at_s >= OVER_S:
            self._marks.popleft()
        if now.at_s - self._marks[-1].at_s >= 1.0:
            self._marks.append(now)
        return self._marks[0], now

    def _rate(self, mark: _Mark, now: _Mark) -> float | None:
        """Outputs a second over the last minute, or since the start; None in the first second."""
        past_s = now.at_s - mark.at_s
        return (now.done - mark.done) / past_s if past_s >= 1.0 else None

    def _left_s(self, rate: float | None) -> float | None:
        if not rate or self.total is None or self.total <= self.done:
            return None
        return (self.total - self.done) / rate
