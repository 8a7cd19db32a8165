"""Charts: small pictures of a run as SVG, coloured by the page's style, without a script.

Every text in them is ours or a number; nothing of a program gets here.
"""

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from mlbench_exec.summary import STATUSES, Estimate
from mlbench_exec.verdicts import Status

__all__ = ["Histogram", "Timeline", "difference", "interval", "share", "stacked_bar", "swing"]

_NUMBER = {status: number for number, status in enumerate(STATUSES)}
WIDTH, HEIGHT = 520.0, 190.0
LEFT, BOTTOM, TOP = 38.0, 30.0, 8.0
LABELLED = 5  # steps of an axis that have a label: as many as a narrow window has room for


def interval(estimate: Estimate, rate: float | None = None) -> str:
    """A dot at the estimate, a line over its interval, and a mark at another rate: 0 to 100 %."""
    low, at, high = (2 + 196 * value for value in (estimate.low, estimate.rate, estimate.high))
    label = (
        f"unbiased {100 * estimate.rate:.1f} %, 95 % interval "
        f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f} %"
    )
    mark = ""
    if rate is not None:
        label += f"; as ML-Bench counts {100 * rate:.1f} %"
        mark = f'<path class="mark" d="M{2 + 196 * rate:.2f} 12l-3 5h6z"/>'
    ticks = "".join(
        f'<line class="tick" x1="{2 + 196 * i / 4:g}" x2="{2 + 196 * i / 4:g}" y1="10" y2="12"/>'
        for i in range(5)
    )
    return (
        f'<svg class="interval" viewBox="0 0 200 18" role="img" aria-label="{label}">'
        f'<line class="axis" x1="2" x2="198" y1="12" y2="12"/>{ticks}{mark}'
        f'<line class="range" x1="{low:.2f}" x2="{high:.2f}" y1="6" y2="6"/>'
        f'<circle class="dot" cx="{at:.2f}" cy="6" r="4"/></svg>'
    )


def difference(low: float, at: float, high: float) -> str:
    """A dot at a difference of rates and a line over its interval; zero is in the middle."""
    most = max(0.05, abs(low), abs(high))
    x_low, x_at, x_high = (100 + 96 * value / most for value in (low, at, high))
    label = (
        f"{100 * at:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f} points, "
        f"on a scale from {-100 * most:.1f} to {100 * most:+.1f}"
    )
    return (
        f'<svg class="interval" viewBox="0 0 200 20" role="img" aria-label="{label}">'
        '<line class="axis" x1="2" x2="198" y1="12" y2="12"/>'
        '<line class="zero" x1="100" x2="100" y1="0" y2="12"/>'
        f'<text class="scale" x="2" y="19">{-100 * most:.0f}</text>'
        '<text class="scale" x="100" y="19" text-anchor="middle">0</text>'
        f'<text class="scale" x="198" y="19" text-anchor="end">{100 * most:+.0f}</text>'
        f'<line class="range" x1="{x_low:.2f}" x2="{x_high:.2f}" y1="6" y2="6"/>'
        f'<circle class="dot" cx="{x_at:.2f}" cy="6" r="4"/></svg>'
    )


def swing(lost: int, gained: int, most: int) -> str:
    """What was lost to the left of a middle line, what was gained to the right of it."""
    left, right = (490 * count / max(most, 1) for count in (lost, gained))
    return (
        '<svg class="bar" viewBox="0 0 1000 10" preserveAspectRatio="none" height="10" '
        f'role="img" aria-label="{lost} lost, {gained} gained">'
        f'<rect class="s-failed" x="{497 - left:.1f}" width="{left:.1f}" y="0" height="10"/>'
        f'<rect class="s-passed" x="503" width="{right:.1f}" y="0" height="10"/>'
        '<rect class="middle" x="498" width="4" y="0" height="10"/></svg>'
    )


def stacked_bar(counts: Mapping[Status, int], unjudged: int = 0, *, height: int = 10) -> str:
    """One bar of all statuses, by share."""
    total = sum(counts.values()) + unjudged
    if not total:
        return ""
    parts, x = [], 0.0
    shares = [*((status, count) for status, count in counts.items()), ("unjudged", unjudged)]
    for name, count in shares:
        if count:
            width = 1000 * count / total
            parts.append(
                f'<rect class="s-{name}" x="{x:.2f}" y="0" width="{width:.2f}" height="10">'
                f"<title>{name}: {count}</title></rect>"
            )
            x += width
    label = ", ".join(f"{name} {count}" for name, count in shares if count)
    return (
        f'<svg class="bar" viewBox="0 0 1000 10" preserveAspectRatio="none" height="{height}" '
        f'role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def share(count: int, most: int) -> str:
    """A plain bar for a count that a table gives in figures too."""
    return (
        '<svg class="bar" viewBox="0 0 1000 10" preserveAspectRatio="none" height="10" '
        f'aria-hidden="true"><rect class="share" x="0" y="0" width="{1000 * count / most:.1f}" '
        'height="10"/></svg>'
    )


class Histogram:
    """Counts values in logarithmic bins, by status, and draws them as stacked columns."""

    def __init__(self, *, base: float, per_bin: float) -> None:
        self._base = base
        self._per_bin = per_bin  # of a power of the base
        self._counts: Counter[tuple[int, Status]] = Counter()

    def add(self, value: float | None, status: Status) -> None:
        if value is not None and value > 0:
            self._counts[math.floor(math.log(value, self._base) / self._per_bin), status] += 1

    def svg(self, title: str, words: Callable[[float], str]) -> str:
        """The picture; `words` writes a value with its unit. Empty without values."""
        if not self._counts:
            return ""
        powers = 1 / self._per_bin
        first = math.floor(min(position for position, _ in self._counts) / powers) * powers
        last = math.ceil((max(position for position, _ in self._counts) + 1) / powers) * powers
        totals = Counter[int]()
        for (position, _), count in self._counts.items():
            totals[position] += count
        highest = max(totals.values())
        step = (WIDTH - LEFT - 4) / (last - first)
        scale = (HEIGHT - BOTTOM - TOP) / highest
        parts = [_gridline(count, scale) for count in _ticks(highest)]
        for position in sorted(totals):
            y = HEIGHT - BOTTOM
            low, high = (self._base ** ((position + i) * self._per_bin) for i in (0, 1))
            for status in STATUSES:
                count = self._counts[position, status]
                if not count:
                    continue
                y -= count * scale
                x = LEFT + (position - first) * step
                parts.append(
                    f'<rect class="s-{status}" x="{x + 0.5:.2f}" y="{y:.2f}" '
                    f'width="{max(step - 1, 0.5):.2f}" height="{count * scale:.2f}">'
                    f"<title>{words(low)} to {words(high)}: {count} {status}</title></rect>"
                )
        low_power, high_power = math.floor(first / powers), math.ceil(last / powers)
        every = math.ceil((high_power - low_power) / LABELLED)
        for power in range(low_power, high_power + 1, every):
            x = LEFT + (power * powers - first) * step
            anchor = "end" if x > WIDTH - 30 else "middle"
            parts.append(
                f'<text class="label" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16:g}" '
                f'text-anchor="{anchor}">{words(self._base**power)}</text>'
                f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{HEIGHT - BOTTOM:g}" '
                f'y2="{HEIGHT - BOTTOM + 4:g}"/>'
            )
        parts.append(
            f'<line class="axis" x1="{LEFT:g}" x2="{WIDTH - 4:g}" '
            f'y1="{HEIGHT - BOTTOM:g}" y2="{HEIGHT - BOTTOM:g}"/>'
        )
        label = f"{title}: {sum(totals.values())} outputs, at most {highest} in one column"
        return _svg("histogram", WIDTH, HEIGHT, label, parts)


def _gridline(count: int, scale: float) -> str:
    y = HEIGHT - BOTTOM - count * scale
    return (
        f'<line class="grid" x1="{LEFT:g}" x2="{WIDTH - 4:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="label" x="{LEFT - 6:g}" y="{y + 4:.1f}" text-anchor="end">{count}</text>'
    )


def _ticks(highest: int) -> list[int]:
    """Two to four round numbers up to the highest."""
    size = 10 ** math.floor(math.log10(highest))
    step = next(
        (one for one in (size // 5, size // 2, size, 2 * size) if one and highest / one <= 4),
        2 * size,
    )
    return list(range(step, highest + 1, step)) or [highest]


class Timeline:
    """Which slot ran something when. Times in which nothing ran at all are cut short."""

    WIDTH = 1080.0
    LEFT = 34.0

    def __init__(self) -> None:
        self._starts = array("d")
        self._ends = array("d")
        self._slots = array("l")
        self._statuses = array("b")

    def add(self, start_s: float, wall_s: float, slot: int, status: Status) -> None:
        self._starts.append(start_s)
        self._ends.append(start_s + wall_s)
        self._slots.append(slot)
        self._statuses.append(_NUMBER[status])

    def svg(self) -> str:
        """The picture: a line for each slot. Empty where nothing was executed."""
        if not self._starts:
            return ""
        stretches = _busy(self._starts, self._ends)
        gap_s = 0.02 * sum(end - start for start, end in stretches)
        slots = sorted(set(self._slots))
        row = min(18.0, max(4.0, 320.0 / len(slots)))
        height = row * len(slots) + 30
        length = sum(end - start for start, end in stretches) + gap_s * (len(stretches) - 1)
        scale = (self.WIDTH - self.LEFT - 4) / (length or 1.0)
        place = {slot: position for position, slot in enumerate(slots)}
        offsets, at = [], 0.0
        for start, end in stretches:
            offsets.append((start, end, at))
            at += end - start + gap_s
        parts = list(self._bars(offsets, scale, place, row))
        parts += self._breaks(offsets, scale, gap_s, row * len(slots))
        every = max(1, math.ceil(14 / row))
        parts += [
            f'<text class="label" x="{self.LEFT - 6:g}" y="{(position + 0.5) * row + 4:.1f}" '
            f'text-anchor="end">{slot}</text>'
            for slot, position in place.items()
            if position % every == 0
        ]
        parts += self._axis(offsets, scale, row * len(slots))
        label = f"{len(self._starts)} executions in {len(slots)} slots over {_span(length)}"
        return _svg("timeline", self.WIDTH, height, label, parts)

    def _bars(
        self,
        offsets: Sequence[tuple[float, float, float]],
        scale: float,
        place: Mapping[int, int],
        row: float,
    ) -> Iterable[str]:
        """A bar for each execution; neighbours of one status that no eye could part are one."""
        order = sorted(range(len(self._starts)), key=lambda i: (self._slots[i], self._starts[i]))
        stretch = 0
        slot = status = None
        left = right = 0.0

        def bar() -> str:
            y = place[slot] * row + 0.12 * row if slot is not None else 0
            return (
                f'<rect class="s-{STATUSES[status or 0]}" x="{left:.2f}" y="{y:.2f}" '
                f'width="{max(right - left, 0.4):.2f}" height="{0.76 * row:.2f}"/>'
            )

        for i in order:
            if self._slots[i] != slot:
                stretch = 0
            while self._starts[i] > offsets[stretch][1]:
                stretch += 1
            start, _, at = offsets[stretch]
            x1 = self.LEFT + (self._starts[i] - start + at) * scale
            x2 = self.LEFT + (self._ends[i] - start + at) * scale
            tiny = x2 - x1 < 0.4 or self._statuses[i] == status
            if slot == self._slots[i] and tiny and x1 - right < 0.3 and x2 - left < 8:
                right = max(right, x2)
                continue
            if slot is not None:
                yield bar()
            slot, status, left, right = self._slots[i], self._statuses[i], x1, x2
        yield bar()

    def _breaks(
        self,
        offsets: Sequence[tuple[float, float, float]],
        scale: float,
        gap_s: float,
        height: float,
    ) -> list[str]:
        found = []
        for start, end, at in offsets[:-1]:
            x = self.LEFT + (at + end - start + gap_s / 2) * scale
            found.append(
                f'<line class="break" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height:g}">'
                "<title>Nothing ran here: the time is cut short</title></line>"
            )
        return found

    def _axis(
        self, offsets: Sequence[tuple[float, float, float]], scale: float, y: float
    ) -> list[str]:
        parts = [
            f'<line class="axis" x1="{self.LEFT:g}" x2="{self.WIDTH - 4:g}" y1="{y:g}" y2="{y:g}"/>'
        ]
        length = offsets[-1][2] + offsets[-1][1] - offsets[-1][0]
        step = _round_step(length / 6)
        for i in range(int(length / step) + 1):
            x = self.LEFT + i * step * scale
            anchor = "end" if x > self.WIDTH - 30 else "start" if i == 0 else "middle"
            parts.append(
                f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{y:g}" y2="{y + 4:g}"/>'
                f'<text class="label" x="{x:.1f}" y="{y + 17:g}" text-anchor="{anchor}">'
                f"{_span(i * step)}</text>"
            )
        return parts


def _busy(starts: Sequence[float], ends: Sequence[float]) -> list[tuple[float, float]]:
    """The stretches of time in which something ran, gaps of up to 5 s (or 5 %) included."""
    order = sorted(range(len(starts)), key=lambda i: starts[i])
    most_s = max(5.0, 0.05 * (max(ends) - min(starts)))
    found: list[tuple[float, float]] = []
    for i in order:
        if found and starts[i] - found[-1][1] <= most_s:
            found[-1] = (found[-1][0], max(found[-1][1], ends[i]))
        else:
            found.append((starts[i], ends[i]))
    return found


def _round_step(rough: float) -> float:
    for step in (
        0.01,
        0.02,
        0.05,
        0.1,
        0.2,
        0.5,
        1,
        2,
        5,
        10,
        15,
        30,
        60,
        120,
        300,
        600,
        900,
        1800,
    ):
        if step >= rough:
            return step
    return 3600 * math.ceil(rough / 3600)


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"


def _svg(name: str, width: float, height: float, label: str, parts: Iterable[str]) -> str:
    return (
        f'<svg class="{name}" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )
