"""Real work: the demo's outputs and the rows of github_id 9, against ML-Bench's serial way."""

import json
from typing import Any

import msgspec

from bench import places, torch_rows
from bench.figures import Figure, Summary
from bench.judging import NOT_WARM, Judged, Request, Row, judge
from bench.peers import Serial, one_after_another
from bench.places import ROOT, Place

CONCURRENCIES = (1, 2, 8, 32)
LIMIT_S = 3.0  # the demo has programs that never end
DEMO = ROOT / "examples" / "demo"
REPOSITORIES = {101: "tabular-trainer", 102: "tiny-tokenizer", 103: "image-filters"}


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One run of all of it. `differs` names outputs that pass in one way and not in the other."""

    way: str
    concurrency: int
    wall_s: float | None = None
    differs: tuple[str, ...] = ()
    note: str = ""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    executed: int
    serial_s: float
    points: tuple[Point, ...]


def measure(*, quick: bool = False) -> Measured:
    python, dataset = places.torch_python(), places.data("mlbench_full.jsonl")
    rows, all_places = demo_rows(), demo_places()
    if quick:
        rows = [row for row in rows if row.github_id == 102][:2]
        return _compare(rows, all_places, (2,), time_limit_s=2.0)
    if python is None or dataset is None:
        return _compare(rows, all_places, CONCURRENCIES, time_limit_s=LIMIT_S)
    with places.torch(python) as torch:
        rows += torch_rows.read_rows(dataset)
        return _compare(rows, [*all_places, torch], CONCURRENCIES, time_limit_s=None)


def demo_places() -> list[Place]:
    return [
        Place(
            name=name,
            github_id=github_id,
            workdir=str(DEMO / "repos" / name),
            python=places.PYTHON,
            limit_s=LIMIT_S,
        )
        for github_id, name in REPOSITORIES.items()
    ]


def demo_rows() -> list[Row]:
    outputs = {(line["github_id"], line["id"]): line["output"] for line in _lines("outputs.jsonl")}
    return [
        Row(
            github_id=row["github_id"],
            id=row["id"],
            outputs=tuple(outputs[row["github_id"], row["id"]]),
            type=row["type"],
            path=row["path"],
            arguments=row["arguments"],
        )
        for row in _lines("rows.jsonl")
    ]


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DEMO / name).read_text().splitlines()]


def _compare(
    rows: list[Row],
    all_places: list[Place],
    concurrencies: tuple[int, ...],
    *,
    time_limit_s: float | None,
) -> Measured:
    environments = "".join(place.toml for place in all_places)
    found: list[tuple[str, int, Judged]] = []
    for concurrency in concurrencies:
        for warm in (False, True):
            request = Request(
                environments=environments,
                backend="local",
                concurrency=concurrency,
                warm=warm,
                memory_bytes=8 << 30,
                time_limit_s=time_limit_s,
            )
            found.append(("warm" if warm else "cold", concurrency, judge(rows, request)))
    executed = {
        f"{one.github_id}/{one.id}/{one.index}"
        for one in found[0][2].verdicts
        if one.wall_s is not None
    }
    serial = one_after_another(rows, all_places, executed)
    points = tuple(compared(way, concurrency, judged, serial) for way, concurrency, judged in found)
    return Measured(executed=len(executed), serial_s=serial.wall_s, points=points)


def compared(way: str, concurrency: int, judged: Judged, serial: Serial) -> Point:
    """One run beside the serial one; pure."""
    if way == "warm" and not judged.warm_share:
        return Point(way=way, concurrency=concurrency, note=NOT_WARM)
    differs = [
        f"{key}: {one.status}"
        for one in judged.verdicts
        if (key := f"{one.github_id}/{one.id}/{one.index}") in serial.passed
        and one.wall_s is not None
        and serial.passed[key] != one.passed
    ]
    return Point(
        way=way, concurrency=concurrency, wall_s=judged.wall_s, differs=tuple(sorted(differs))
    )


def summarize(measured: Measured) -> Summary:
    figures = [
        Figure(
            name=f"ML-Bench's way, {measured.executed} programs", value=measured.serial_s, unit="s"
        )
    ]
    for point in measured.points:
        name = f"{point.way}, {point.concurrency} at once"
        if point.wall_s is None:
            figures.append(Figure(name=name, value=None, note=point.note))
            continue
        note = f"{measured.serial_s / point.wall_s:.1f} times as fast; "
        note += f"{len(point.differs)} verdicts differ"
        if point.differs:
            note += f" ({'; '.join(point.differs[:4])})"
        figures.append(Figure(name=name, value=point.wall_s, unit="s", note=note))
    return Summary(figures=tuple(figures))
