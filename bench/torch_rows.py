"""Torch: the rows of github_id 9, each of which imports it first."""

import ast
import json
import resource
import subprocess
import time
from pathlib import Path

import msgspec

from bench import places
from bench.figures import Figure, Summary, Target, median, ratio
from bench.judging import NOT_WARM, Judged, Request, Row, judge
from bench.places import Place

GITHUB_ID = 9
ROWS = 24
HEAVY = {253, 262}  # gigabytes each, and most of a minute: they would drown the others
IMPORT = "import torch\nprint(torch.zeros(2).sum())\n"
IMPORTS = 8
MOSTLY = 0.5


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run them: seconds for each snippet, by its row's id."""

    name: str
    wall_s: dict[int, float] = {}
    cpu_s: dict[int, float] = {}
    import_wall_s: float | None = None  # of a snippet that imports torch and no more
    note: str = ""


def measure(*, quick: bool = False) -> list[Way]:
    python, dataset = places.torch_python(), places.data("mlbench_full.jsonl")
    if quick or python is None or dataset is None:
        return [
            Way(name=name, note="MLBENCH_EAP_PYTHON and MLBENCH_DATA name a Python and the rows")
            for name in ("python temp.py", "cold", "warm")
        ]
    rows = read_rows(dataset)
    with places.torch(python) as place:
        return [_direct(rows, place), _engine(rows, place, False), _engine(rows, place, True)]


def read_rows(dataset: Path) -> list[Row]:
    """The dataset's own answers; a comment names the arguments that some of them don't."""
    found = []
    for line in dataset.read_text().splitlines():
        row = json.loads(line)
        if row["github_id"] == GITHUB_ID and row["id"] not in HEAVY:
            names = " ".join(str(value) for value in ast.literal_eval(row["arguments"]).values())
            code = f"{row['output']}\n# {names}\n"
            found.append(
                Row(
                    github_id=GITHUB_ID,
                    id=row["id"],
                    outputs=(code,),
                    arguments=row["arguments"],
                    path=row["path"],
                )
            )
    return found


def _imports() -> list[Row]:
    return [Row(github_id=GITHUB_ID, id=n, outputs=(IMPORT,)) for n in range(IMPORTS)]


def _direct(rows: list[Row], place: Place) -> Way:
    wall: dict[int, float] = {}
    cpu: dict[int, float] = {}
    for row in rows:
        wall[row.id], cpu[row.id] = _once(row.outputs[0], place, row.path)
    imports = [_once(IMPORT, place, "./")[0] for _ in range(IMPORTS)]
    return Way(name="python temp.py", wall_s=wall, cpu_s=cpu, import_wall_s=median(imports))


def _once(code: str, place: Place, path: str) -> tuple[float, float]:
    folder = Path(place.workdir) / path
    (folder / "temp.py").write_text(code)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(
        [place.python, "temp.py"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    wall_s, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall_s, cpu_s


def _engine(rows: list[Row], place: Place, warm: bool) -> Way:
    name = "warm" if warm else "cold"
    request = Request(
        environments=place.toml,
        backend="local",
        concurrency=1,
        warm=warm,
        memory_bytes=8 << 30,
        time_limit_s=place.limit_s,
    )
    judged, imports = judge(rows, request), judge(_imports(), request)
    return way_of(name, judged, imports, wants_warm=warm)


def way_of(name: str, judged: Judged, imports: Judged, *, wants_warm: bool) -> Way:
    """What two runs of the engine show; pure."""
    if wants_warm and judged.warm_share < MOSTLY:
        return Way(name=name, note=NOT_WARM)
    executed = [one for one in judged.verdicts if one.wall_s is not None]
    return Way(
        name=name,
        wall_s={one.id: one.wall_s or 0 for one in executed},
        cpu_s={one.id: one.cpu_s or 0 for one in executed},
        # The first one finds nothing in the caches, or no interpreter that is warm already.
        import_wall_s=median([one.wall_s or 0 for one in imports.verdicts][1:]),
    )


def summarize(measured: list[Way]) -> Summary:
    figures = []
    for way in measured:
        if not way.wall_s:
            figures.append(Figure(name=f"rows, {way.name}", value=None, note=way.note))
            continue
        figures += [
            Figure(
                name=f"rows, {way.name}",
                value=1000 * median(way.wall_s.values()),
                unit="ms",
                note=f"median of {len(way.wall_s)}; {1000 * median(way.cpu_s.values()):.0f} ms "
                "of CPU",
            ),
            Figure(
                name=f"import torch, {way.name}",
                value=1000 * way.import_wall_s if way.import_wall_s else None,
                unit="ms",
            ),
        ]
    by_name = {way.name: way.import_wall_s for way in measured}
    return Summary(
        figures=tuple(figures),
        targets=(
            Target(
                name="import torch, cold to warm",
                value=ratio(by_name.get("cold"), by_name.get("warm")),
                unit="times",
                wanted=30,
                sense="at least",
            ),
        ),
    )
