"""Slots: how much of the time each of them holds a snippet, when all of them sleep for a second."""

import msgspec

from bench import places
from bench.figures import Figure, Summary, Target
from bench.judging import Judged, Request, Row, judge


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    concurrency: int
    count: int
    share: float  # of the time between the last slot's first start and the last start of all
    wall_s: float


def measure(*, quick: bool = False) -> list[Measured]:
    """Sleeps of a second, so that the CPUs are no part of it."""
    sizes = [(4, 16, 0.2)] if quick else [(32, 512, 1.0), (128, 512, 1.0)]
    return [_at(concurrency, count, sleep_s) for concurrency, count, sleep_s in sizes]


def _at(concurrency: int, count: int, sleep_s: float) -> Measured:
    with places.plain("local") as place:
        request = Request(
            environments=place.toml,
            backend="local",
            concurrency=concurrency,
            warm=True,
            memory_bytes=128 << 20,
        )
        code = f"import time\ntime.sleep({sleep_s})\n"
        rows = [Row(github_id=1, id=n, outputs=(code,)) for n in range(count)]
        judged = judge(rows, request)
    return Measured(concurrency=concurrency, count=count, share=held(judged), wall_s=judged.wall_s)


def held(judged: Judged) -> float:
    """The share of the slots' time in which a program ran, while all of them were at work."""
    by_slot: dict[int, list[tuple[float, float]]] = {}
    for start, verdict in zip(judged.starts_s, judged.verdicts, strict=True):
        by_slot.setdefault(verdict.slot or 0, []).append((start, start + (verdict.wall_s or 0)))
    begin = max(min(start for start, _ in spans) for spans in by_slot.values())
    end = min(max(end for _, end in spans) for spans in by_slot.values())
    if end <= begin:
        return 0.0
    inside = sum(
        max(0.0, min(stop, end) - max(start, begin))
        for spans in by_slot.values()
        for start, stop in spans
    )
    return inside / (len(by_slot) * (end - begin))


def summarize(measured: list[Measured]) -> Summary:
    return Summary(
        figures=tuple(
            Figure(
                name=f"{one.count} sleeps, {one.concurrency} at once",
                value=one.wall_s,
                unit="s",
                note=f"slots hold a program {one.share:.1%} of the time",
            )
            for one in measured
        ),
        targets=tuple(
            Target(
                name=f"slots hold a snippet, {one.concurrency} at once",
                value=100 * one.share,
                unit="%",
                wanted=95,
                sense="at least",
            )
            for one in measured
        ),
    )
