"""Overhead: what it takes to judge a Python that does nothing, verdict in the journal."""

import msgspec

from bench import floors, peers, places
from bench.figures import Figure, Summary, Target, median, ratio, steady_rate
from bench.floors import NOTHING, Rate
from bench.judging import NOT_WARM, Judged, Request, Row, judge

CONCURRENCIES = (1, 8, 32)
COUNTS = {1: 100, 8: 480, 32: 800}
QUICK_COUNTS = {1: 10, 8: 40}
MOSTLY = 0.9


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One way, at one concurrency. `rate` is None where it wasn't measured, `note` says why."""

    way: str
    concurrency: int
    rate: float | None = None  # a second, once it is under way
    each_ms: float | None = None  # from one start to the next of the same slot
    cpu_ms: float | None = None  # of the whole machine, for each
    own_ms: float | None = None  # the engine: wall-clock time outside of the program, for each
    note: str = ""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    cores: int
    points: tuple[Point, ...]


def measure(cores: int, *, quick: bool = False) -> Measured:
    counts = QUICK_COUNTS if quick else COUNTS
    backends = ["local"] if quick or places.why_no_docker() else ["local", "docker"]
    calls = 10 if quick else 100
    points = [
        *(_of_calls("fork + exec", floors.bare(calls, at)) for at in (1, 8)),
        *(_of_calls("unshare + exec", floors.unshared(calls, at)) for at in (1, 8)),
        _of_calls("ML-Bench's way", peers.in_one_folder(calls)),
    ]
    for backend in backends:
        for concurrency, count in counts.items():
            points += [_engine(backend, concurrency, count, warm=warm) for warm in (False, True)]
    if quick:
        return Measured(cores=cores, points=tuple(points))
    if (why := places.why_no_docker()) is not None:
        points.append(Point(way="docker cold", concurrency=8, note=why))
        return Measured(cores=cores, points=tuple(points))
    points.append(_engine("docker", 8, 48, warm=False, fresh=True))
    for concurrency, count in ((1, 6), (2, 12), (4, 24), (8, 32)):
        points.append(_of_calls("docker run", peers.docker_run(count, concurrency)))
    for concurrency, count in ((1, 30), (8, 80)):
        points.append(_of_calls("docker exec", peers.docker_exec(count, concurrency)))
    points.append(_llm_sandbox(80, 8))
    return Measured(cores=cores, points=tuple(points))


def summarize(measured: Measured) -> Summary:
    figures = []
    for point in measured.points:
        name = f"{point.way}, {point.concurrency} at once"
        if point.rate is None:
            figures.append(Figure(name=name, value=None, unit="/s", note=point.note))
            continue
        figures.append(Figure(name=name, value=point.rate, unit="/s", note=_details(point)))
    return Summary(figures=tuple(figures), targets=_targets(measured))


def _details(point: Point) -> str:
    parts = {"each": point.each_ms, "CPU": point.cpu_ms, "beyond the program": point.own_ms}
    return ", ".join(f"{name} {value:.1f} ms" for name, value in parts.items() if value)


def _targets(measured: Measured) -> tuple[Target, ...]:
    rates = {(point.way, point.concurrency): point.rate for point in measured.points}
    own = {(point.way, point.concurrency): point.own_ms for point in measured.points}
    cold, warm = rates.get(("docker cold", 8)), rates.get(("docker warm", 8))
    best_run = max((r for (way, _), r in rates.items() if way == "docker run" and r), default=None)
    bare = rates.get(("fork + exec", 8))
    found: list[tuple[str, float | None, str, float, str]] = [
        ("docker, cold, 8 at once", ratio(cold, measured.cores), "runs/s a core", 50, "at least"),
        ("docker, warm, 8 at once", ratio(warm, measured.cores), "runs/s a core", 80, "at least"),
        (
            "docker, warm, to docker exec",
            ratio(warm, rates.get(("docker exec", 8))),
            "times",
            10,
            "at least",
        ),
        (
            "docker, warm, to llm-sandbox's pool",
            ratio(warm, rates.get(("llm-sandbox's pool", 8))),
            "times",
            15,
            "at least",
        ),
        (
            "one fresh container a snippet, to the best of docker run",
            ratio(rates.get(("docker fresh", 8)), best_run),
            "times",
            0.9,
            "at least",
        ),
        (
            "docker, cold, 1 at once: beyond the program",
            own.get(("docker cold", 1)),
            "ms",
            10,
            "below",
        ),
        (
            "local, cold, 1 at once: beyond the program",
            own.get(("local cold", 1)),
            "ms",
            10,
            "below",
        ),
    ]
    targets = [
        Target(
            name=name,
            value=value,
            unit=unit,
            wanted=wanted,
            sense=msgspec.convert(sense, Target.__annotations__["sense"]),
        )
        for name, value, unit, wanted, sense in found
    ]
    share = ratio(cold, bare)
    if share is not None:  # no target: what the machine's own floor leaves to reach
        targets.append(
            Target(
                name="docker, cold, to fork + exec, 8 at once",
                value=share,
                unit="times",
                wanted=0,
                sense="at least",
            )
        )
    return tuple(targets)


def _engine(
    backend: str, concurrency: int, count: int, *, warm: bool, fresh: bool = False
) -> Point:
    way = f"{backend} {'fresh' if fresh else 'warm' if warm else 'cold'}"
    with places.plain(backend) as place:
        request = Request(
            environments=place.toml,
            backend=backend,
            concurrency=concurrency,
            warm=warm,
            fresh=fresh,
        )
        rows = [Row(github_id=1, id=n, outputs=(NOTHING,)) for n in range(count)]
        return point_of(way, concurrency, judge(rows, request), wants_warm=warm)


def point_of(way: str, concurrency: int, judged: Judged, *, wants_warm: bool) -> Point:
    """What one run of the engine shows; pure."""
    wrong = [one for one in judged.verdicts if one.status != "passed"]
    if wrong or judged.unjudged:
        return Point(
            way=way,
            concurrency=concurrency,
            note=f"{len(wrong)} failed, {judged.unjudged} unjudged",
        )
    if wants_warm and judged.warm_share < MOSTLY:
        return Point(way=way, concurrency=concurrency, note=NOT_WARM)
    rate = steady_rate(judged.starts_s)
    count = len(judged.verdicts)
    each_ms = 1000 * concurrency / rate if rate else None
    program_ms = 1000 * median(one.wall_s or 0 for one in judged.verdicts)
    return Point(
        way=way,
        concurrency=concurrency,
        rate=rate,
        each_ms=each_ms,
        cpu_ms=1000 * judged.machine_cpu_s / count,
        own_ms=each_ms - program_ms if each_ms and concurrency == 1 else None,
    )


def _of_calls(way: str, rate: Rate) -> Point:
    return Point(
        way=way,
        concurrency=rate.concurrency,
        rate=rate.per_s,
        each_ms=rate.each_ms,
        cpu_ms=1000 * rate.cpu_s / rate.count,
    )


def _llm_sandbox(count: int, concurrency: int) -> Point:
    way = "llm-sandbox's pool"
    try:
        import bench.llm_sandbox_pool as pool
    except ImportError:
        return Point(way=way, concurrency=concurrency, note=peers.NO_LLM_SANDBOX)
    return _of_calls(way, pool.run(count, concurrency))
