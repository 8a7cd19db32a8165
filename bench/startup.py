"""Start-up: how long until sandboxes have served once, and what an idle one holds in memory."""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import anyio
import msgspec

from bench import places
from bench.figures import Figure, Summary, Target
from bench.floors import NOTHING
from mlbench_exec import Engine, Limits, Settings
from mlbench_exec.environments import Environment, load_environments
from mlbench_exec.samples import Sample
from mlbench_exec.sandbox import Job, Sandbox

LABEL = "mlbench-exec.engine"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    backend: str
    sandboxes: int
    took_s: float
    idle_bytes: float | None  # of each: what its processes hold, shared pages by their share


def measure(*, quick: bool = False) -> list[Measured]:
    backends = ["local"] if quick or places.why_no_docker() else ["local", "docker"]
    sizes = (2,) if quick else (8, 32)
    return [anyio.run(_at, backend, count) for backend in backends for count in sizes]


async def _at(backend: str, count: int) -> Measured:
    with places.plain(backend) as place, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "environments.toml"
        file.write_text(place.toml)
        settings = Settings(
            backend="docker" if backend == "docker" else "local",
            environments_file=file,
            limits=Limits(memory_bytes=256 << 20),
        )
        environments = load_environments(file)
        environment = environments.for_github_id(place.github_id)
        assert environment is not None
        sample = _sample(place.github_id)
        engine = Engine(settings, samples={sample.key: sample}, environments=environments)
        sandboxes: list[Sandbox] = []
        async with engine:
            started = time.monotonic()
            try:
                async with anyio.create_task_group() as tasks:
                    for slot in range(count):
                        tasks.start_soon(_open, engine, environment, slot, sandboxes)
                took_s = time.monotonic() - started
                roots = await anyio.to_thread.run_sync(_roots, backend)
                idle = await anyio.to_thread.run_sync(_held_bytes, roots)
            finally:
                with anyio.CancelScope(shield=True):
                    for sandbox in sandboxes:
                        await sandbox.aclose()
    return Measured(
        backend=backend,
        sandboxes=count,
        took_s=took_s,
        idle_bytes=idle / count if len(roots) == count else None,
    )


async def _open(
    engine: Engine, environment: Environment, slot: int, sandboxes: list[Sandbox]
) -> None:
    sandbox = await engine.backend.open(environment, slot)
    sandboxes.append(sandbox)
    await sandbox.run(
        Job(
            environment=environment,
            path="./",
            language="python",
            code=NOTHING.encode(),
            time_limit_s=60,
            limits=engine.settings.limits,
        )
    )


def _sample(github_id: int) -> Sample:
    return Sample(
        github_id=github_id, id=1, repository="r", path="./", arguments={}, type="Python Code"
    )


def _roots(backend: str) -> list[int]:
    """The first process of every sandbox that this process has opened."""
    if backend == "local":
        return [
            pid
            for pid, parent in _parents().items()
            if parent == os.getpid() and b"mlbench_exec.agent" in _command(pid)
        ]
    line = '{{.ID}} {{.Label "' + LABEL + '"}}'
    listed = subprocess.run(
        ["docker", "ps", "--no-trunc", "--filter", f"label={LABEL}", "--format", line],
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = (row.split(" ", 1) for row in listed.stdout.splitlines())
    own = [name for name, label in pairs if json.loads(label)["pid"] == os.getpid()]
    ask = ["docker", "inspect", "--format", "{{.State.Pid}}", *own]
    found = subprocess.run(ask, capture_output=True, text=True, check=True) if own else None
    return [int(word) for word in found.stdout.split()] if found else []


def _held_bytes(roots: list[int]) -> int:
    """Of these processes and all below them: private memory, and their share of what is shared."""
    parents = _parents()
    family = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(_pss(pid) for pid in family)


def _parents() -> dict[int, int]:
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
        except OSError:
            continue
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def summarize(measured: list[Measured]) -> Summary:
    figures = []
    for one in measured:
        note = f"{one.idle_bytes / 1e6:.1f} MB each when idle" if one.idle_bytes else ""
        figures.append(
            Figure(
                name=f"{one.backend}, {one.sandboxes} sandboxes",
                value=one.took_s,
                unit="s",
                note=note,
            )
        )
    targets = tuple(
        Target(
            name=f"an idle agent, {one.backend}, one of {one.sandboxes}",
            value=one.idle_bytes / 1e6 if one.idle_bytes else None,
            unit="MB",
            wanted=12,
            sense="below",
        )
        for one in measured
    )
    return Summary(figures=tuple(figures), targets=targets)
