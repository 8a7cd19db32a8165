"""What a snippet uses, and how long it was ready to run but had no CPU."""

from __future__ import annotations

import os
import time
from typing import Iterator, Tuple

Seen = Tuple[int, int, int]  # nanoseconds: ran, waited, and of a wait that isn't over yet
NEW: Seen = (0, 0, 0)
NEARLY_BYTES = 1 << 20  # memory is charged in batches
SHORTEST_S = 0.01  # the counters of what runs move with the scheduler's tick, 1 to 10 ms


class Meter:
    """Samples every process of the snippet: the pid namespace's others are the agent's.

    The fair clock's rule, for an interval of length `dt`: the threads together ran for R and
    waited for a CPU for D, both from /proc/PID/task/TID/schedstat. At full speed they would have
    run for min(R + D, cpus * dt). What is missing to that was stolen from them; where they
    wanted more than one CPU it is spread over as many.

    The kernel adds a wait to its counter when it is over. So a thread that is ready to run, and
    whose counters have not moved since the last sample, is taken to have waited all the time.
    """

    def __init__(self, cpus: float, own_pids: set[int], proc: str = "/proc") -> None:
        self.cpus = cpus
        self.stalled_s = 0.0
        self.ran_s = 0.0  # what the samples saw; what ended between two of them is missing
        self.seen: dict[tuple[int, str], Seen] = {}  # by pid and tid
        self._own = own_pids
        self._proc = proc
        self._last = time.monotonic()

    def sample(self) -> None:
        now = time.monotonic()
        dt = now - self._last
        if dt < SHORTEST_S:
            return
        ran = delayed = 0
        seen: dict[tuple[int, str], Seen] = {}
        for pid in self.pids():
            for key, run, delay in self._threads(pid):
                before = self.seen.get(key, NEW)
                if (run, delay) == before[:2] and self._is_waiting(key):
                    waited = int(dt * 1e9)
                    seen[key] = (run, delay, before[2] + waited)
                    delayed += waited
                    continue
                ran += max(0, run - before[0])
                delayed += max(0, delay - before[1] - before[2])
                seen[key] = (run, delay, 0)
        self.seen = seen
        self.ran_s += ran / 1e9
        self.stalled_s += stalled(ran / 1e9, delayed / 1e9, dt, self.cpus)
        self._last = now

    def pids(self) -> list[int]:
        return [
            int(name)
            for name in os.listdir(self._proc)
            if name.isdigit() and int(name) not in self._own
        ]

    def _is_waiting(self, key: tuple[int, str]) -> bool:
        """Whether a thread is ready to run."""
        try:
            with open("%s/%d/task/%s/stat" % (self._proc, key[0], key[1]), "rb") as file:
                return file.read(512).rpartition(b")")[2].split()[0] == b"R"
        except (OSError, IndexError):
            return False

    def resident_pages(self, pid: int) -> int:
        try:
            with open("%s/%d/statm" % (self._proc, pid), "rb") as file:
                return int(file.read().split()[1])
        except (OSError, IndexError, ValueError):
            return 0

    def _threads(self, pid: int) -> Iterator[tuple[tuple[int, str], int, int]]:
        folder = "%s/%d/task" % (self._proc, pid)
        try:
            names = os.listdir(folder)
        except OSError:
            return
        for name in names:
            try:
                with open("%s/%s/schedstat" % (folder, name), "rb", buffering=0) as file:
                    fields = file.read(128).split()
                yield (pid, name), int(fields[0]), int(fields[1])
            except (OSError, IndexError, ValueError):
                continue  # it ended in between

    def resident_bytes(self) -> int:
        """Memory of all processes, shared pages counted once (PSS); costly, so ask seldom."""
        total = 0
        for pid in self.pids():
            try:
                with open("%s/%d/smaps_rollup" % (self._proc, pid), "rb") as file:
                    for line in file:
                        if line.startswith(b"Pss:"):
                            total += int(line.split()[1]) * 1024
                            break
            except (OSError, IndexError, ValueError):
                continue
        return total


def stalled(ran_s: float, delayed_s: float, dt: float, cpus: float) -> float:
    """Seconds of `dt` in which the snippet could have run and was not let."""
    wanted = min(ran_s + delayed_s, cpus * dt)
    if dt <= 0 or wanted <= ran_s:
        return 0.0
    return (wanted - ran_s) * min(1.0, dt / wanted)


class Counters:
    """The kernel's own counters for this sandbox's cgroup, v1 or v2; absent ones read as 0.

    Opened before the root changes: the files stay readable whatever the view shows.
    """

    def __init__(self, folders: dict[str, str]) -> None:
        memory, pids = folders.get("memory"), folders.get("pids")
        self._memory = _open(memory, "memory.stat")
        self._ooms = _open(memory, "memory.events") or _open(memory, "memory.oom_control")
        self._failures = _open(memory, "memory.failcnt")  # version 1 alone, as the next two
        self._most = _open(memory, "memory.max_usage_in_bytes")
        self._limit = _open(memory, "memory.limit_in_bytes")
        self._pids = _open(pids, "pids.events")

    @property
    def has_memory(self) -> bool:
        return self._memory is not None

    def oom_kills(self) -> int:
        return _field(self._ooms, b"oom_kill")

    def own_limit_hits(self) -> int:
        """How often this cgroup met its own memory limit, which a whole machine's OOM doesn't."""
        if self._failures is None:
            return _field(self._ooms, b"oom")
        return _number(self._failures) + self.has_met_limit()  # not all kernels count both ways

    def has_met_limit(self) -> bool:
        """Version 1: whether this cgroup was ever full. After that its limit tells no more."""
        return 0 < _number(self._limit) - NEARLY_BYTES <= _number(self._most)

    def pids_refused(self) -> int:
        return _field(self._pids, b"max")

    def memory_bytes(self) -> int:
        """Anonymous and shared memory: what can't be dropped like a file's cached pages."""
        fields = _fields(self._memory)
        if b"total_rss" in fields:  # version 1, with its children
            return fields[b"total_rss"] + fields.get(b"total_shmem", 0)
        return fields.get(b"anon", fields.get(b"rss", 0)) + fields.get(b"shmem", 0)


def own_cgroups() -> dict[str, str]:
    """Where a container sees its own cgroup: mounted as the root of each hierarchy."""
    if os.path.exists("/sys/fs/cgroup/memory.stat"):
        return {"memory": "/sys/fs/cgroup", "pids": "/sys/fs/cgroup"}
    return {name: "/sys/fs/cgroup/" + name for name in ("memory", "pids")}


def _number(fd: int | None) -> int:
    try:
        return int(os.pread(fd, 32, 0)) if fd is not None else 0
    except (OSError, ValueError):
        return 0


def _open(folder: str | None, name: str) -> int | None:
    try:
        return os.open(os.path.join(folder, name), os.O_RDONLY) if folder else None
    except OSError:
        return None


def _fields(fd: int | None) -> dict[bytes, int]:
    if fd is None:
        return {}
    try:
        words = os.pread(fd, 16384, 0).split()
    except OSError:
        return {}
    return {name: int(value) for name, value in zip(words[::2], words[1::2]) if value.isdigit()}


def _field(fd: int | None, name: bytes) -> int:
    return _fields(fd).get(name, 0)
