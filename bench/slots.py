"""Slots: how much of the time each of them holds a snippet, when all of them sleep for a second."""

import msgspec

from bench import floors, places
from bench.figures import Figure, Summary, Target
from bench.judging import Judged, Request, Row, judge


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
    floor = floors.bare(min(count, 16 * concurrency), concurrency, code)
    return Measured(
        concurrency=concurrency,
        count=count,
        share=held(judged, concurrency),
        floor=floor.per_s * sleep_s / concurrency,
        wall_s=judged.wall_s,
    )


def held(judged: Judged, slots: int) -> float:
    """The share of the slots' time in which a program ran, once a third of them had started.

    Until the last one starts: then there is nothing left to hold.
    """
    starts = sorted(judged.starts_s)
    begin, end = starts[len(starts) // 3], starts[-1]
    spans = (
        (s, s + (v.wall_s or 0)) for s, v in zip(judged.starts_s, judged.verdicts, strict=True)
    )
    inside = sum(max(0.0, min(stop, end) - max(start, begin)) for start, stop in spans)
    return inside / (slots * (end - begin))


def summarize(measured: list[Measured]) -> Summary:
    return Summary(
        figures=tuple(
            Figure(
                name=f"{one.count} sleeps, {one.concurrency} at once",
                value=one.wall_s,
                unit="s",
                note=f"slots hold a program {one.share:.1%} of the time, "
                f"where bare Pythons take {one.floor:.1%}",
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
