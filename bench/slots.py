"""Slots: how much of the time each of them holds a snippet, when all of them sleep for a second."""

from collections.abc import Iterable

import msgspec

from bench import floors, places
from bench.figures import Figure, Summary, Target
from bench.judging import Request, Row, judge


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    concurrency: int
    count: int  # of the last ones, which are measured
    ahead: int  # judged before these, so that every sandbox is open
    share: float  # of the slots' time
    floor: float  # the same of Pythons that nothing is around
    wall_s: float


def measure(*, quick: bool = False) -> list[Measured]:
    """Sleeps of a second, so that the CPUs are no part of it, if there are enough of them."""
    if quick:
        return [_at(4, 8, 8, sleep_s=0.2)]
    sizes = [(32, 512, 256), (128, 512, 2048), (128, 2048, 2048), (128, 512, 0)]
    return [_at(concurrency, count, ahead) for concurrency, count, ahead in sizes]


def _at(concurrency: int, count: int, ahead: int, *, sleep_s: float = 1.0) -> Measured:
    code = f"import time\ntime.sleep({sleep_s})\n"
    with places.plain("local") as place:
        request = Request(
            environments=place.toml,
            backend="local",
            concurrency=concurrency,
            warm=True,
            memory_bytes=128 << 20,
        )
        rows = [Row(github_id=1, id=n, outputs=(code,)) for n in range(ahead + count)]
        judged = judge(rows, request)
    # Pythons that nothing is around have nothing to open.
    measured = min(count, 16 * concurrency)
    bare = floors.bare(measured + (concurrency if ahead else 0), concurrency, code)
    return Measured(
        concurrency=concurrency,
        count=count,
        ahead=ahead,
        share=held(judged.starts_s, count, concurrency, sleep_s),
        floor=held(bare.starts_s, measured, concurrency, sleep_s),
        wall_s=judged.wall_s,
    )


def held(starts_s: Iterable[float], count: int, slots: int, sleep_s: float) -> float:
    """The share of the slots' time in which the last `count` programs sleep, by their starts.

    Until the last one starts: then there is nothing left to hold.
    """
    starts = sorted(starts_s)
    begin, end = starts[max(0, len(starts) - 1 - count)], starts[-1]
    started = sum(start > begin for start in starts)
    return started * sleep_s / (slots * (end - begin))


def summarize(measured: list[Measured]) -> Summary:
    return Summary(
        figures=tuple(
            Figure(
                name=f"{one.ahead + one.count} sleeps, {one.concurrency} at once",
                value=one.wall_s,
                unit="s",
                note=f"{_which(one)}: slots hold a program {one.share:.1%} of the time, "
                f"bare Pythons {one.floor:.1%}",
            )
            for one in measured
        ),
        targets=tuple(
            Target(
                name=f"slots hold a snippet, {one.count} sleeps, {one.concurrency} at once",
                value=100 * one.share,
                unit="%",
                wanted=95,
                sense="at least",
            )
            for one in measured
            if one.ahead
        ),
    )


def _which(one: Measured) -> str:
    return f"the last {one.count}" if one.ahead else "while sandboxes open"
