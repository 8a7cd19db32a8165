"""Peers: other ways to run a Python that does nothing, and ML-Bench's way to run a whole corpus."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue

import msgspec

from bench.floors import NOTHING, Rate, timed
from bench.judging import Row
from bench.places import PLAIN_IMAGE, PYTHON, Place

NO_LLM_SANDBOX = "llm-sandbox isn't installed: make bench does that"


def docker_run(count: int, concurrency: int) -> Rate:
    """A container for each, locked down about as ours are."""
    command = ["docker", "run", "--rm", "--network", "none", "--cap-drop", "ALL"]
    command += ["--security-opt", "no-new-privileges", PLAIN_IMAGE, PYTHON, "-c", NOTHING]
    return timed(
        lambda: subprocess.run(command, stdin=subprocess.DEVNULL, check=True), count, concurrency
    )


def docker_exec(count: int, concurrency: int) -> Rate:
    """Containers that stay, and a `docker exec` for each; nothing is cleaned in between."""
    with _containers(concurrency) as names:

        def call() -> None:
            name = names.get()
            command = ["docker", "exec", name, PYTHON, "-c", NOTHING]
            subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
            names.put(name)

        return timed(call, count, concurrency)


@contextlib.contextmanager
def _containers(count: int) -> Iterator["SimpleQueue[str]"]:
    names: SimpleQueue[str] = SimpleQueue()
    started = [f"mlbench-bench-{uuid.uuid4().hex[:12]}" for _ in range(count)]
    try:
        for name in started:
            command = ["docker", "run", "--detach", "--rm", "--network", "none", "--name", name]
            subprocess.run(
                [*command, PLAIN_IMAGE, "sleep", "3600"], check=True, stdout=subprocess.DEVNULL
            )
            names.put(name)
        yield names
    finally:
        subprocess.run(["docker", "kill", *started], check=False, capture_output=True)


def in_one_folder(count: int) -> Rate:
    """ML-Bench's way: one process at a time, all in the same folder, over the same file."""
    with tempfile.TemporaryDirectory(prefix="mlbench-bench-") as folder:

        def call() -> None:
            (Path(folder) / "temp.py").write_text(NOTHING)
            subprocess.run([PYTHON, "temp.py"], cwd=folder, stdin=subprocess.DEVNULL, check=True)

        return timed(call, count)


class Serial(msgspec.Struct, frozen=True, kw_only=True):
    """What ML-Bench's way came to: whether each output passed, by row and index."""

    passed: dict[str, bool]  # by "github_id/id/index"
    wall_s: float


def one_after_another(rows: Iterable[Row], places: Iterable[Place], which: set[str]) -> Serial:
    """Execute outputs as ML-Bench does: serially, on the wall clock, in folders that aren't reset.

    The folders are copies, made once. `which` are those to execute, as "github_id/id/index": the
    others fail a static check, which comes first there too.
    """
    passed: dict[str, bool] = {}
    with tempfile.TemporaryDirectory(prefix="mlbench-bench-") as home:
        copies: dict[int, tuple[Place, Path]] = {}
        for place in places:
            copy = Path(home) / place.name
            shutil.copytree(place.workdir, copy, symlinks=True)
            copies[place.github_id] = (place, copy)
        started = time.monotonic()
        for row in rows:
            place, folder = copies[row.github_id]
            for index, code in enumerate(row.outputs):
                key = f"{row.github_id}/{row.id}/{index}"
                if key in which:
                    passed[key] = _passes(code, row, place, folder / row.path)
        return Serial(passed=passed, wall_s=time.monotonic() - started)


def _passes(code: str, row: Row, place: Place, folder: Path) -> bool:
    if row.type == "Bash Script":
        command = ["bash", "-c", code]
    else:
        (folder / "temp.py").write_text(code)
        command = [place.python, "temp.py"]
    path = f"{Path(place.python).parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(place.limit_s) == 0
    except subprocess.TimeoutExpired:
        return True  # its rule: what still runs passes
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
