"""Command: mlbench-exec as its users start it, what it writes, and what it leaves behind."""

import contextlib
import json
import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

EXECUTABLE = Path(sysconfig.get_path("scripts")) / "mlbench-exec"
# Differs from run to run: what is measured, and which sandbox was free.
MEASURED = {
    "wall_s",
    "counted_s",
    "cpu_s",
    "stalled_s",
    "warm",  # from the second snippet of a sandbox on
    "peak_memory_bytes",
    "started_at",
    "slot",
}
POLL_S = 0.02

Line = dict[str, Any]


class Command:
    """One `mlbench-exec run`, which can be started again; its temporary files are its own."""

    def __init__(
        self,
        home: Path,
        outputs: Path,
        *options: str | Path,
        program: Sequence[str | Path] = (EXECUTABLE, "run"),
    ) -> None:
        self.folder = home / "run"
        self.log = home / "log.txt"
        self._temporary = home / "tmp"
        self._temporary.mkdir(parents=True)
        self._line = [*program, outputs, "--out", self.folder, *options]
        self._families: set[tuple[int, int]] = set()
        self._pids: set[int] = set()

    def start(self) -> subprocess.Popen[bytes]:
        """Start it in a session of its own, as a terminal would."""
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                self._line,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self._temporary)},
                start_new_session=True,
            )
        self._pids.add(process.pid)
        return process

    def run(self, *, within_s: float = 120.0) -> int:
        """Run it to its end; the exit code."""
        process = self.start()
        try:
            return process.wait(within_s)
        except BaseException:
            process.terminate()
            process.wait(30)
            raise

    def wait_for_verdicts(self, process: subprocess.Popen[bytes], count: int) -> None:
        """Wait until so many are written; the processes of that moment are watched from then on."""
        until = time.monotonic() + 90
        while len(self.verdicts()) < count:
            assert process.poll() is None, f"ended too early: {self.said()}"
            assert time.monotonic() < until, f"too slow: {self.said()}"
            time.sleep(POLL_S)
        self._families |= _family(process.pid)

    @contextlib.contextmanager
    def held_at(self, process: "subprocess.Popen[bytes]", count: int) -> Iterator[None]:
        """Hold the engine still once so many are written, however slow this process is."""
        until = time.monotonic() + 180
        while len(self.verdicts()) < count:
            assert process.poll() is None, f"ended too early: {self.said()}"
            assert time.monotonic() < until, f"too slow: {self.said()}"
            time.sleep(POLL_S)
        process.send_signal(signal.SIGSTOP)
        try:
            self._families |= _family(process.pid)
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def verdicts(self) -> list[Line]:
        return _whole_lines(self.folder / "verdicts.jsonl")

    def unjudged(self) -> list[Line]:
        return _whole_lines(self.folder / "unjudged.jsonl")

    def results(self) -> list[Line]:
        return sorted(_whole_lines(self.folder / "results.jsonl"), key=_place)

    def summary(self) -> Line:
        """summary.json without its timings."""
        content: Line = json.loads((self.folder / "summary.json").read_text())
        del content["timings"]
        return content

    def said(self) -> str:
        return self.log.read_text()

    def leftovers(self) -> set[str]:
        """What is on this machine of every process that was started, and of its sandboxes."""
        found = {f"container {name}" for name in self.containers()}
        found |= {f"file {path}" for path in self._temporary.iterdir()}
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found |= {f"mount {line}" for line in mounts if str(self._temporary) in line}
        found |= {f"process {pid}" for pid, start in self._families if _started(pid) == start}
        for pid in self._pids:
            found |= {f"cgroup {path}" for path in _cgroups(_mark_of(pid))}
            found |= {f"process {other}" for other in _in_cgroup(_mark_of(pid))}
        return found

    def containers(self) -> list[str]:
        if "docker" not in self._line:
            return []
        label = f"label=mlbench-exec.run={self.folder}"
        listed = subprocess.run(
            ["docker", "ps", "--all", "--quiet", "--filter", label],
            capture_output=True,
            text=True,
            check=True,
        )
        return listed.stdout.split()


def comparable(verdicts: Iterable[Line]) -> list[Line]:
    """What two runs of the same outputs must agree on, in one order."""
    kept = ({k: v for k, v in line.items() if k not in MEASURED} for line in verdicts)
    return sorted(kept, key=_place)


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def mlbench_data(name: str) -> Path:
    """A file of ML-Bench's data; skips the test where there is none."""
    folder = os.environ.get("MLBENCH_DATA")
    if folder is None:
        pytest.skip(f"MLBENCH_DATA names no folder with {name}")
    return Path(folder) / name


def read_lines(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def skip_without_image(name: str) -> None:
    """Skip the test where the image is missing; with MLBENCH_REQUIRE_DOCKER=1, fail it."""
    found = subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=False)
    if found.returncode == 0:
        return
    if os.environ.get("MLBENCH_REQUIRE_DOCKER") == "1":
        pytest.fail(f"MLBENCH_REQUIRE_DOCKER=1, but there is no image {name}: make images")
    pytest.skip(f"there is no image {name}: make images")


def _place(line: Line) -> tuple[int, int, int]:
    return line["github_id"], line["id"], line.get("index", 0)


def _whole_lines(path: Path) -> list[Line]:
    """Also while the file is being written: the last line may be there in part."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; nothing for what has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] in {"Z", "X"} else fields


def _started(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _processes() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def _family(pid: int) -> set[tuple[int, int]]:
    """A process and all below it, each with its start time, since numbers are used again."""
    seen = {other: fields for other in _processes() if (fields := _stat(other))}
    family, grown = {pid}, 0
    while grown != len(family):
        grown = len(family)
        family |= {other for other, fields in seen.items() if int(fields[1]) in family}
    return {(other, int(seen[other][19])) for other in family if other in seen}


def _mark_of(pid: int) -> str:
    """What the names of an engine's cgroups and folders begin with: its namespace and number."""
    namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    return f"mlbench-exec-{namespace}-{pid}-"


def _in_cgroup(name: str) -> set[int]:
    found = set()
    for pid in _processes():
        try:
            if name in Path(f"/proc/{pid}/cgroup").read_text() and _stat(pid):
                found.add(pid)
        except OSError:
            continue
    return found


def _cgroups(prefix: str) -> set[str]:
    folders = (folder for folder, _, _ in os.walk("/sys/fs/cgroup"))
    return {folder for folder in folders if Path(folder).name.startswith(prefix)}
