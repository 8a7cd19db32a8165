"""Slots: how much of the time each of them holds a snippet, when all of them sleep for a second."""

from collections.abc import Iterable

import msgspec

from bench import floors, places
from bench.figures import Figure, Summary, Target
from bench.judging import Request, Row, judge


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    concurrency: int
    count: int
    share: float  # of the slots' time
    floor: float  # the same of Pythons that nothing is around
    wall_s: float


def measure(*, quick: bool = False) -> list[Measured]:
    """Sleeps of a second, so that the CPUs are no part of it, if there are enough of them."""
    sizes = [(4, 16, 0.2)] if quick else [(32, 512, 1.0), (128, 512, 1.0), (128, 4096, 1.0)]
    return [_at(concurrency, count, sleep_s) for concurrency, count, sleep_s in sizes]


def _at(concurrency: int, count: int, sleep_s: float) -> Measured:
    code = f"import time\ntime.sleep({sleep_s})\n"
    with places.plain("local") as place:
        request = Request(
            environments=place.toml,
            backend="local",
            concurrency=concurrency,
            warm=True,
            memory_bytes=128 << 20,
        )
        rows = [Row(github_id=1, id=n, outputs=(code,)) for n in range(count)]
        judged = judge(rows, request)
    bare = floors.bare(min(count, 16 * concurrency), concurrency, code)
    return Measured(
        concurrency=concurrency,
        count=count,
        share=held(judged.starts_s, concurrency, sleep_s),
        floor=held(bare.starts_s, concurrency, sleep_s),
        wall_s=judged.wall_s,
    )


def held(starts_s: Iterable[float], slots: int, sleep_s: float) -> float:
    """The share of the slots' time in which programs sleep, by when they started.

    From when a third of them had, so that sandboxes are open, until the last one does: then there
    is nothing left to hold.
    """
    starts = sorted(starts_s)
    begin, end = starts[len(starts) // 3], starts[-1]
    count = sum(start > begin for start in starts)
    return count * sleep_s / (slots * (end - begin))


def summarize(measured: list[Measured]) -> Summary:
    return Summary(
        figures=tuple(
            Figure(
                name=f"{one.count} sleeps, {one.concurrency} at once",
                value=one.wall_s,
                unit="s",
                note=f"slots hold a program {one.share:.1%} of the time, "
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
        ),
    )
