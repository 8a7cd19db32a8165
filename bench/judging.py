"""Judging: one run of the whole engine, journal and all, in a process of its own."""

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import msgspec

from mlbench_exec.run import Evaluation
from mlbench_exec.sandbox import Limits
from mlbench_exec.settings import Settings
from mlbench_exec.verdicts import Verdict

NOT_WARM = "most of it did not run warm"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A row with the outputs to judge for it."""

    github_id: int
    id: int
    outputs: tuple[str, ...]
    type: str = "Python Code"
    path: str = "./"
    arguments: str = "{}"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to judge, and how."""

    environments: str  # a TOML file's text
    backend: str
    concurrency: int
    warm: bool = False
    fresh: bool = False
    memory_bytes: int = 512 << 20
    time_limit_s: float | None = None


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `cpu_s` and `peak_bytes` are the engine's own process alone."""

    verdicts: tuple[Verdict, ...]
    wall_s: float
    cpu_s: float
    peak_bytes: int
    machine_cpu_s: float  # of everything on this machine meanwhile
    unjudged: int = 0

    @property
    def starts_s(self) -> list[float]:
        moments = [one.started_at for one in self.verdicts if one.started_at]
        return [datetime.fromisoformat(moment).timestamp() for moment in moments]

    @property
    def warm_share(self) -> float:
        executed = [one for one in self.verdicts if one.wall_s is not None]
        return sum(one.warm for one in executed) / len(executed) if executed else 0.0


class _Order(msgspec.Struct, frozen=True, kw_only=True):
    home: str
    request: Request


class _Own(msgspec.Struct, frozen=True, kw_only=True):
    wall_s: float
    cpu_s: float
    peak_bytes: int


def judge(rows: Iterable[Row], request: Request, *, keep: bool = True) -> Judged:
    """Judge the rows; `keep` says whether their verdicts are wanted. Raises if it can't end."""
    with tempfile.TemporaryDirectory(prefix="mlbench-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        _write(home, rows, request)
        order = msgspec.json.encode(_Order(home=folder, request=request))
        before = busy_s()
        child = subprocess.run(
            [sys.executable, "-m", "bench.judging"], input=order, capture_output=True, check=False
        )
        machine_cpu_s = busy_s() - before
        if child.returncode != 0:
            raise RuntimeError(f"the engine ended with {child.returncode}: {child.stderr.decode()}")
        own = msgspec.json.decode(child.stdout, type=_Own)
        run = home / "run"
        lines = (run / "verdicts.jsonl").read_bytes().splitlines() if keep else []
        return Judged(
            verdicts=tuple(msgspec.json.decode(line, type=Verdict) for line in lines),
            wall_s=own.wall_s,
            cpu_s=own.cpu_s,
            peak_bytes=own.peak_bytes,
            machine_cpu_s=machine_cpu_s,
            unjudged=len((run / "unjudged.jsonl").read_bytes().splitlines()),
        )


def busy_s() -> float:
    """CPU seconds that this machine has spent since it started, on anything."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / 100


def _write(home: Path, rows: Iterable[Row], request: Request) -> None:
    (home / "environments.toml").write_text(request.environments)
    with (home / "rows.jsonl").open("w") as dataset, (home / "outputs.jsonl").open("w") as outputs:
        for row in rows:
            fields = {
                "github_id": row.github_id,
                "id": row.id,
                "github": f"https://example.org/{row.github_id}",
                "repo_id": row.github_id,
                "path": row.path,
                "arguments": row.arguments,
                "instruction": "",
                "oracle": "",
                "type": row.type,
                "output": "",
                "prefix_code": "",
            }
            dataset.write(json.dumps(fields) + "\n")
            line = {"github_id": row.github_id, "id": row.id, "output": row.outputs}
            outputs.write(json.dumps(line) + "\n")


def _settings(order: _Order) -> Settings:
    request, home = order.request, Path(order.home)
    return Settings(
        dataset=str(home / "rows.jsonl"),
        environments_file=home / "environments.toml",
        backend="docker" if request.backend == "docker" else "local",
        concurrency=request.concurrency,
        limits=Limits(memory_bytes=request.memory_bytes),
        time_limit_s=request.time_limit_s,
        preload=request.warm,
        fresh=request.fresh,
    )


def _main() -> None:
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=_Order)
    home = Path(order.home)
    evaluation = Evaluation(str(home / "outputs.jsonl"), home / "run", _settings(order))
    started = time.monotonic()
    asyncio.run(evaluation.run())
    wall_s = time.monotonic() - started
    used = resource.getrusage(resource.RUSAGE_SELF)
    own = _Own(wall_s=wall_s, cpu_s=used.ru_utime + used.ru_stime, peak_bytes=_peak_bytes())
    sys.stdout.buffer.write(msgspec.json.encode(own))


def _peak_bytes() -> int:
    """Of this process alone: what getrusage tells may be of the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    _main()
