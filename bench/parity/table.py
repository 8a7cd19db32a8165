"""Table: what the passes say, side by side."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from bench.parity.corpus import Case
from bench.parity.judging import Pass

HEADER = (
    "backend",
    "clock",
    "hogs",
    "at once",
    "flips",
    "from 1",
    "unjudged",
    "again alone",
    "seconds",
)


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    zone: str
    is_parallel: bool
    share: float
    expected: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one call measured; `corpus` by the case's name."""

    machine: dict[str, str | int]
    corpus: dict[str, Expected]
    passes: list[Pass]


def describe(cases: Sequence[Case]) -> dict[str, Expected]:
    return {
        case.name: Expected(
            kind=case.kind,
            zone=case.zone,
            is_parallel=case.is_parallel,
            share=case.share,
            expected=case.expected,
        )
        for case in cases
    }


def flips(one: Pass, corpus: dict[str, Expected]) -> list[str]:
    """Names of the cases whose verdict isn't the one that their source deserves."""
    return [name for name, seen in one.judged.items() if seen.status != corpus[name].expected]


def table(report: Report, *, with_flips: bool = False) -> str:
    cases = report.corpus.values()
    lines = [
        ", ".join(f"{name} {value}" for name, value in report.machine.items()),
        f"{len(cases)} snippets: {sum(c.zone == 'near' for c in cases)} fail at 75-85 % of the "
        f"limit, {sum(c.is_parallel for c in cases)} have several threads or processes, "
        f"{sum(c.zone == 'under' for c in cases)} end earlier, "
        f"{sum(c.zone == 'past' for c in cases)} run past it",
    ]
    rows = [HEADER, *(_row(one, report) for one in report.passes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells))
    if with_flips:
        lines += [line for one in report.passes for line in _named(one, report)]
    return "\n".join(lines)


def _row(one: Pass, report: Report) -> tuple[str, ...]:
    alone = [
        p
        for p in report.passes
        if (p.backend, p.clock, p.hogs, p.concurrency) == (one.backend, one.clock, one.hogs, 1)
    ]
    differ = (
        str(sum(seen.status != alone[0].judged[name].status for name, seen in one.judged.items()))
        if alone
        else "-"
    )
    statuses = Counter(seen.status for seen in one.judged.values())
    again = sum(seen.contended for seen in one.judged.values())
    return (
        one.backend,
        one.clock,
        str(one.hogs),
        str(one.concurrency),
        str(len(flips(one, report.corpus))),
        differ,
        str(statuses["unjudged"]),
        f"{again / len(one.judged):.1%}",
        f"{one.seconds:.1f}",
    )


def _named(one: Pass, report: Report) -> list[str]:
    where = f"{one.backend}, {one.clock}, {one.hogs} hogs, {one.concurrency} at once"
    return [
        f"{where}: {name}: {seen.status} instead of {report.corpus[name].expected}, "
        f"counted {seen.counted_s}, wall {seen.wall_s}, cpu {seen.cpu_s} {seen.reason}"
        for name in flips(one, report.corpus)
        for seen in [one.judged[name]]
    ]
