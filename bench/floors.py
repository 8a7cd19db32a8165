"""Floors: what the operating system itself asks for a Python that does nothing."""

import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from bench.judging import busy_s
from bench.places import PYTHON

NOTHING = "pass\n"
UNSHARE = ["unshare", "--user", "--map-root-user", "--pid", "--mount", "--ipc", "--uts", "--fork"]


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Some equal calls, `concurrency` at a time."""

    count: int
    concurrency: int
    wall_s: float
    cpu_s: float  # of the whole machine meanwhile
    starts_s: tuple[float, ...] = ()  # when each began

    @property
    def per_s(self) -> float:
        return self.count / self.wall_s

    @property
    def each_ms(self) -> float:
        """How long one took."""
        return 1000 * self.wall_s * self.concurrency / self.count


def timed(call: Callable[[], object], count: int, concurrency: int = 1) -> Rate:
    """Make `count` calls from `concurrency` threads."""

    def timed_call() -> float:
        began = time.monotonic()
        call()
        return began

    before, started = busy_s(), time.monotonic()
    with ThreadPoolExecutor(concurrency) as threads:
        calls = [threads.submit(timed_call) for _ in range(count)]
        starts_s = tuple(done.result() for done in calls)
    wall_s = time.monotonic() - started
    return Rate(
        count=count,
        concurrency=concurrency,
        wall_s=wall_s,
        cpu_s=busy_s() - before,
        starts_s=starts_s,
    )


def bare(count: int, concurrency: int = 1, code: str = NOTHING) -> Rate:
    """fork + exec of the Python that snippets get, and the wait for it."""
    return _run([], count, concurrency, code)


def unshared(count: int, concurrency: int = 1) -> Rate:
    """The same in fresh namespaces made by `unshare`."""
    return _run(UNSHARE, count, concurrency)


def _run(before: list[str], count: int, concurrency: int, code: str = NOTHING) -> Rate:
    with tempfile.TemporaryDirectory(prefix="mlbench-bench-") as folder:
        (Path(folder) / "temp.py").write_text(code)
        command = [*before, PYTHON, "temp.py"]

        def call() -> None:
            subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, check=True)

        return timed(call, count, concurrency)


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
