"""Scale: time and the engine's memory for many outputs, of which 95 % need no sandbox."""

from collections.abc import Iterator

import msgspec

from bench import places
from bench.figures import Figure, Summary, Target, ratio
from bench.judging import Request, Row, judge

ROWS = 200
EXECUTED = 20  # of so many outputs one runs


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    outputs: int
    wall_s: float
    engine_cpu_s: float
    peak_bytes: int


def measure(*, quick: bool = False) -> list[Measured]:
    return [_at(outputs) for outputs in ((400, 2_000) if quick else (10_000, 100_000))]


def _at(outputs: int) -> Measured:
    with places.plain("local") as place:
        request = Request(environments=place.toml, backend="local", concurrency=4, warm=True)
        judged = judge(_rows(outputs), request, keep=False)
    return Measured(
        outputs=outputs,
        wall_s=judged.wall_s,
        engine_cpu_s=judged.cpu_s,
        peak_bytes=judged.peak_bytes,
    )


def _rows(outputs: int) -> Iterator[Row]:
    """As many rows for any number of outputs: a benchmark doesn't grow with its answers."""
    each = outputs // ROWS
    for row_id in range(ROWS):
        yield Row(
            github_id=1,
            id=row_id,
            arguments="{'name': 'number'}",
            outputs=tuple(
                f"number = {n}\n" if (row_id * each + n) % EXECUTED == 0 else f"value = {n}\n"
                for n in range(each)
            ),
        )


def summarize(measured: list[Measured]) -> Summary:
    small, large = measured[0], measured[-1]
    return Summary(
        figures=tuple(
            Figure(
                name=f"{one.outputs:,} outputs",
                value=one.wall_s,
                unit="s",
                note=f"engine: {one.peak_bytes / 2**20:.0f} MiB at most, "
                f"{1000 * one.engine_cpu_s / one.outputs:.2f} ms of CPU an output",
            )
            for one in measured
        ),
        targets=(
            Target(
                name=f"memory at {large.outputs:,} outputs, to that at {small.outputs:,}",
                value=ratio(large.peak_bytes, small.peak_bytes),
                unit="times",
                wanted=1.1,
                sense="at most",
            ),
        ),
    )
