"""Slots: how much of the time each of them holds a snippet, when all of them sleep for a second."""

import msgspec

from bench import places
from bench.figures import Figure, Summary, Target
from bench.judging import Judged, Request, Row, judge


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    concurrency: int
    count: int
    share: float | None  # of the time between the last slot's first start and the first's last end
    wall_s: float


def measure(*, quick: bool = False) -> list[Measured]:
    """Sleeps of a second, so that the CPUs are no part of it."""
    sizes = [(4, 16, 0.2)] if quick else [(32, 512, 1.0), (128, 512, 1.0), (128, 4096, 1.0)]
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


def held(judged: Judged) -> float | None:
    """The share of the slots' time in which a program ran, while all of them were at work.

    None where they never were: the first ones had done everything before the last was open.
    """
    by_slot: dict[int, list[tuple[float, float]]] = {}
    for start, verdict in zip(judged.starts_s, judged.verdicts, strict=True):
        by_slot.setdefault(verdict.slot or 0, []).append((start, start + (verdict.wall_s or 0)))
    begin = max(min(start for start, _ in spans) for spans in by_slot.values())
    end = min(max(end for _, end in spans) for spans in by_slot.values())
    if end <= begin:
        return None
    inside = sum(
        max(0.0, min(stop, end) - max(start, begin))
        for spans in by_slot.values()
        for start, stop in spans
    )
    return inside / (len(by_slot) * (end - begin))


def _note(one: Measured) -> str:
    if one.share is None:
        return "all was done before the last sandbox was open"
    return f"slots hold a program {one.share:.1%} of the time"


def summarize(measured: list[Measured]) -> Summary:
    return Summary(
        figures=tuple(
            Figure(
                name=f"{one.count} sleeps, {one.concurrency} at once",
                value=one.wall_s,
                unit="s",
                note=_note(one),
            )
            for one in measured
        ),
        targets=tuple(
            Target(
                name=f"slots hold a snippet, {one.count} sleeps, {one.concurrency} at once",
                value=None if one.share is None else 100 * one.share,
                unit="%",
                wanted=95,
                sense="at least",
            )
            for one in measured
        ),
    )
