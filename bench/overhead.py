"""Overhead: what it takes to judge a Python that does nothing, verdict in the journal."""

import msgspec

from bench import floors, peers, places
from bench.figures import Figure, Summary, Target, median, ratio, steady_rate
from bench.floors import NOTHING, Rate
from bench.judging import NOT_WARM, Judged, Request, Row, judge

CONCURRENCIES = (1, 8, 32)
COUNTS = {1: 100, 8: 1000, 32: 1000}  # a good many after the last sandbox is open
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
        # What is compared is measured in a row: these machines don't stay as fast as they are.
        for concurrency in sorted(counts, key=lambda at: at == 8):
            count = counts[concurrency]
            points += [_engine(backend, concurrency, count, warm=warm) for warm in (False, True)]
    if quick:
        return Measured(cores=cores, points=tuple(points))
    if (why := places.why_no_docker()) is not None:
        points.append(Point(way="docker cold", concurrency=8, note=why))
        return Measured(cores=cores, points=tuple(points))
    for concurrency, count in ((8, 80), (1, 30)):
        points.append(_of_calls("docker exec", peers.docker_exec(count, concurrency)))
    points.append(_llm_sandbox(80, 8))
    for concurrency, count in ((1, 6), (2, 12), (4, 48), (8, 48)):
        points.append(_of_calls("docker run", peers.docker_run(count, concurrency)))
        if concurrency == 4:  # between those that come to most, for the same reason as above
            points.append(_engine("docker", 8, 96, warm=False, fresh=True))
    return Measured(cores=cores, points=tuple(points))


def summarize(measured: Measured) -> Summary:
    figures = [
        Figure(
            name=f"{point.way}, {point.concurrency} at once",
            value=point.rate,
            unit="/s",
            note=point.note if point.rate is None else _details(point),
        )
        for point in measured.points
    ]
    seen = _Seen(measured)
    for way in ("docker cold", "docker warm", "local cold", "local warm"):
        share = ratio(seen.rate(way, 8), seen.rate("fork + exec", 8))
        if share is not None:
            name = f"{way}, 8 at once, to fork + exec"
            figures.append(Figure(name=name, value=share, unit="times"))
    return Summary(figures=tuple(figures), targets=_targets(seen, measured.cores))


def _details(point: Point) -> str:
    parts = {"each": point.each_ms, "CPU": point.cpu_ms, "beyond the program": point.own_ms}
    return ", ".join(f"{name} {value:.1f} ms" for name, value in parts.items() if value)


class _Seen:
    """Points by way and concurrency."""

    def __init__(self, measured: Measured) -> None:
        self._points = {(point.way, point.concurrency): point for point in measured.points}

    def rate(self, way: str, concurrency: int) -> float | None:
        point = self._points.get((way, concurrency))
        return point.rate if point else None

    def best(self, way: str) -> float | None:
        rates = (point.rate for (name, _), point in self._points.items() if name == way)
        return max((rate for rate in rates if rate), default=None)

    def beyond_floor_ms(self, way: str) -> float | None:
        """What one takes longer, one at a time, than fork + exec of the same Python."""
        one, floor = self._points.get((way, 1)), self._points.get(("fork + exec", 1))
        if one is None or floor is None or one.each_ms is None or floor.each_ms is None:
            return None
        return one.each_ms - floor.each_ms


def _targets(seen: _Seen, cores: int) -> tuple[Target, ...]:
    cold, warm = seen.rate("docker cold", 8), seen.rate("docker warm", 8)
    at_least: list[tuple[str, float | None, str, float]] = [
        ("docker, cold, 8 at once", ratio(cold, cores), "runs/s a core", 50),
        ("docker, warm, 8 at once", ratio(warm, cores), "runs/s a core", 80),
        ("docker, warm, to docker exec", ratio(warm, seen.rate("docker exec", 8)), "times", 10),
        (
            "docker, warm, to llm-sandbox's pool",
            ratio(warm, seen.rate("llm-sandbox's pool", 8)),
            "times",
            15,
        ),
        (
            "one fresh container a snippet, to the best of docker run",
            ratio(seen.rate("docker fresh", 8), seen.best("docker run")),
            "times",
            0.9,
        ),
    ]
    return (
        *(
            Target(name=name, value=value, unit=unit, wanted=wanted, sense="at least")
            for name, value, unit, wanted in at_least
        ),
        *(
            Target(
                name=f"{way}, 1 at once: beyond fork + exec",
                value=seen.beyond_floor_ms(way),
                unit="ms",
                wanted=10,
                sense="below",
            )
            for way in ("docker cold", "docker warm", "local cold", "local warm")
        ),
    )


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
