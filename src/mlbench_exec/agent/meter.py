"""What a snippet uses, and what the fair clock has to know of it."""

from __future__ import annotations

import os
import time

from mlbench_exec.agent.clock import FairClock, reachable

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Callable, Iterator, Tuple

    Key = Tuple[int, int]  # pid and tid

NEARLY_BYTES = 1 << 20  # memory is charged in batches
SHORTEST_S = 0.01  # the counters of what runs move with the scheduler's tick, 1 to 10 ms
ASKING_NS = 100_000  # of CPU time a turn: Python's threads ask for their lock in less
DEEP_NS = 1_000_000_000  # in uninterruptible sleep, as if ready, with next to no CPU time
DEEP_SHARE = 10  # so many times its CPU time a program may wait for others at its locks
# Of anonymous and shared memory in memory.stat: version 1 with its children, version 2, version 1.
MEMORY_NAMES = ((b"total_rss", b"total_shmem"), (b"anon", b"shmem"), (b"rss", b"shmem"))
LATE_NS = 20_000_000  # by which what ran is told of late, at most
UNSEEN_NS = 1_000_000  # of CPU time that no thread owns up to


class Seen:
    """A thread at one look; nanoseconds."""

    __slots__ = ("asked", "is_ready", "owed", "pending", "ran", "turns", "waited")

    def __init__(
        self,
        ran: int,
        waited: int,
        pending: int,
        is_ready: bool,
        turns: int = 0,
        asked: int = 0,
        owed: int = 0,
    ) -> None:
        self.ran = ran
        self.waited = waited
        self.pending = pending  # of a wait that isn't over yet
        self.is_ready = is_ready
        self.turns = turns  # how often it got a CPU
        self.asked = asked  # waits of which it isn't known yet what for
        self.owed = owed  # what it ran and waited to run, not told of yet


NEW = Seen(0, 0, 0, False)
STARTED = Seen(0, 0, 0, True)


class Look:
    """All threads at one moment, with what they ran and waited since the look before."""

    __slots__ = ("cpus", "ran", "ready", "runners", "threads", "waited", "worked")

    def __init__(
        self,
        threads: dict[Key, Seen],
        ran: int,
        waited: int,
        worked: int,
        runners: int,
        ready: int,
        cpus: float,
    ) -> None:
        self.threads = threads
        self.ran, self.waited = ran, waited
        self.worked = worked  # ran, and waited for a turn that was no mere asking
        self.runners = runners  # threads that ran or wanted to
        self.ready = ready
        self.cpus = cpus  # that the ready ones may use


class Meter:
    """Looks at every thread of the snippet: the pid namespace's other processes are the agent's.

    The kernel adds a wait to a thread's counter when it is over. So a thread that is ready to run
    at both looks is taken to have been ready in between; what neither counter explains is a wait
    in progress, which is settled when the kernel tells of it.
    """

    def __init__(
        self,
        cpus: float,
        own_pids: set[int],
        counters: Counters,
        proc: str = "/proc",
        now: Callable[[], float] = time.monotonic,
        pids_in: int | None = None,
    ) -> None:
        """`pids_in`: a descriptor of a /proc of processes alone, which is sooner listed."""
        self.cpus = cpus
        self.clock = FairClock()
        self._own = own_pids
        self._counters = counters
        self._proc = proc
        self._pids_in: int | str = proc if pids_in is None else pids_in
        self._now = now
        self._look = Look({}, 0, 0, 0, 0, 0, cpus)
        self._sleeper: Sleeper | None = None
        self._own_files: dict[int, int] = {}  # descriptors of what tells their times, by pid
        self._newborn = NEW  # what is assumed of a thread that wasn't there before
        self._deep = 0  # nanoseconds in which threads counted as ready in uninterruptible sleep
        self._has_missed = False  # a thread that ended while it was looked at
        self._own_ran, self._own_waited = self._own_times()
        self._used = counters.cpu_ns()
        self._last = now()

    @property
    def stalled_s(self) -> float:
        return self.clock.stalled_s

    @property
    def uncertain_s(self) -> float:
        return self.clock.uncertain_s

    @property
    def wanted(self) -> float:
        """CPUs that it could use at the last look."""
        return min(float(self._look.ready), self._look.cpus)

    @property
    def is_asleep(self) -> bool:
        """Whether it is one thread, which didn't run before the last look, or want to at it."""
        look = self._look
        return len(look.threads) == 1 and not look.ready and not look.ran

    @property
    def ran_s(self) -> float:
        """What the looks saw; without a cgroup's counter, what ended between two is missing."""
        return self.clock.ran_s

    def begin(self, started: float) -> None:
        """The program started at that moment, ready to run, maybe a while ago.

        What its surroundings took before is not its own.
        """
        self.clock = FairClock()
        self._last = min(started, self._now() - SHORTEST_S / 1000)
        self._look = Look({}, 0, 0, 0, 0, 1, self.cpus)
        self._newborn, self._deep = STARTED, 0
        self.sample(shortest_s=0.0)
        self._newborn = NEW
        for thread in self._look.threads.values():
            thread.asked = thread.owed = 0

    def sample(self, shortest_s: float = SHORTEST_S) -> bool:
        """Look, and tell the clock what happened since the last time; not twice in a moment."""
        now = self._now()
        dt = now - self._last
        if dt < shortest_s:
            return False
        self._wake()
        before, self._look, self._last = self._look, self._take_look(int(dt * 1e9)), now
        look = self._look
        used, own_waited = self._take_usage()
        has_all = used is None or used - look.ran < UNSEEN_NS
        self.clock.add(
            dt,
            look.ran / 1e9,
            look.waited / 1e9,
            (before.ready, look.ready),
            look.cpus,
            runners=look.runners,
            worked_s=look.worked / 1e9,
            used_s=None if used is None else used / 1e9,
            is_complete=has_all and look.threads.keys() == before.threads.keys(),
            own_delay_s=own_waited / 1e9,
        )
        return True

    def is_still(self) -> bool:
        """A look that costs little: whether the one thread that slept at the last one sleeps on.

        Where it does, nothing has happened meanwhile: nobody was there to do it.
        """
        if not self.is_asleep:
            return False
        if self._sleeper is None:
            ((key, thread),) = self._look.threads.items()
            try:
                self._sleeper = Sleeper(self._proc, key, thread)
            except OSError:
                return False
        if not self._sleeper.sleeps_on():
            return False
        own_waited = self._own_times()[1] - self._own_waited
        now = self._now()
        dt, self._last = now - self._last, max(now, self._last)
        self._own_waited += own_waited
        if dt > 0:
            self.clock.add(
                dt,
                0.0,
                0.0,
                (0, 0),
                self._look.cpus,
                runners=0,
                worked_s=0.0,
                used_s=0.0,
                is_complete=True,
                own_delay_s=own_waited / 1e9,
            )
        return True

    def let_go(self) -> None:
        """Close what was opened to look."""
        self._wake()
        while self._own_files:
            os.close(self._own_files.popitem()[1])

    def _wake(self) -> None:
        if self._sleeper is not None:
            self._sleeper.close()
            self._sleeper = None

    def _take_look(self, span: int) -> Look:
        ran = waited = worked = ready = runners = 0
        threads: dict[Key, Seen] = {}
        masks: list[frozenset[int]] = []
        self._has_missed = False
        seen = [one for pid in self.pids() for one in self._threads(pid)]
        states = {key: self._state(key) for key, *_ in seen}
        is_deep_ready = self._is_deep_ready(states, span)
        for key, run, delay, turns in seen:
            before = self._look.threads.get(key, self._newborn)
            if run < before.ran:
                before = NEW  # its number was used again
            if run - before.ran > span + LATE_NS:  # it was missed once, or took another's number
                before = Seen(
                    run - span,
                    delay,
                    before.pending,
                    before.is_ready,
                    before.turns,
                    before.asked,
                    before.owed,
                )
            is_ready = states[key] == b"R" or (is_deep_ready and states[key] == b"D")
            thread, work = judge_wait(
                before, settle(before, run, delay, is_ready, span), turns, span
            )
            if thread.is_ready:
                ready += 1
                masks += _affinity(key[1])
            runners += thread.is_ready or run > before.ran
            worked += work
            ran += run - before.ran
            waited += delay - before.waited + thread.pending - before.pending
            threads[key] = thread
        if not ready and (ran or self._has_missed):
            ready = self._look_again()
        return Look(threads, ran, waited, worked, runners, ready, reachable(masks, self.cpus))

    def _take_usage(self) -> tuple[int | None, int]:
        """Since the last time, nanoseconds: CPU time in the cgroup, the agent's waits."""
        used, own_ran, own_waited = self._counters.cpu_ns(), *self._own_times()
        more = None
        if used is not None and self._used is not None:
            more = max(0, used - self._used - own_ran + self._own_ran)
        waited = own_waited - self._own_waited
        self._used, self._own_ran, self._own_waited = used, own_ran, own_waited
        return more, waited

    def _look_again(self) -> int:
        """Threads that are ready, where none seemed to be while others came and went.

        One that went away while it was looked for was ready, or its parent now is.
        """
        keys = [key for pid in self.pids() for key, *_ in self._threads(pid)]
        return sum(self._state(key) == b"R" for key in keys) or int(self._has_missed)

    def pids(self) -> list[int]:
        return [
            int(name)
            for name in os.listdir(self._pids_in)
            if name.isdigit() and int(name) not in self._own
        ]

    def _own_times(self) -> tuple[int, int]:
        """What the agent ran and waited itself, nanoseconds."""
        ran = waited = 0
        for pid in self._own:
            if pid not in self._own_files:
                try:
                    path = "%s/%d/schedstat" % (self._proc, pid)
                    self._own_files[pid] = os.open(path, os.O_RDONLY)
                except OSError:
                    continue
            fields = _again(self._own_files[pid]).split()
            if len(fields) >= 2:
                ran, waited = ran + int(fields[0]), waited + int(fields[1])
        return ran, waited

    def _state(self, key: Key) -> bytes:
        """R for a thread that runs or is ready to."""
        path = "%s/%d/task/%d/stat" % (self._proc, *key)
        return _state_in(_read(path))

    def _is_deep_ready(self, states: dict[Key, bytes], span: int) -> bool:
        """Whether threads in uninterruptible sleep wait for one that has no CPU.

        They wait for a disk, or for a lock whose holder is ready to run: if it is none of these
        threads, it is somebody else's, and only on a machine that has more of those than CPUs. It
        is also what a parent is in whose child borrows its memory (vfork), for as long as that
        likes to sleep: so only a program that has computed may have waited like this for long.
        """
        here = states.values()
        if b"D" not in here or b"R" in here:
            return False
        if self._deep >= DEEP_NS + DEEP_SHARE * self.clock.ran_s * 1e9:
            return False
        text = b"\n" + _read("%s/stat" % self._proc, 1 << 20)
        is_crowded = (_find(text, b"procs_running") or 0) > (os.cpu_count() or 1)
        if _find(text, b"procs_blocked") != 0 or not is_crowded:
            return False
        self._deep += span
        return True

    def resident_pages(self, pid: int) -> int:
        try:
            return int(_read("%s/%d/statm" % (self._proc, pid)).split()[1])
        except (IndexError, ValueError):
            return 0

    def written_bytes(self) -> int:
        """What its processes and those that were waited for have written to disks, and the agent.

        One that ended without being waited for is missing.
        """
        total = 0
        for pid in {*self._own, *self.pids()}:
            text = b"\n" + _read("%s/%d/io" % (self._proc, pid))
            total += _find(text, b"write_bytes:") or 0
        return total

    def _threads(self, pid: int) -> Iterator[tuple[Key, int, int, int]]:
        folder = "%s/%d/task" % (self._proc, pid)
        try:
            names = os.listdir(folder)
        except OSError:
            self._has_missed = True
            return
        for name in names:
            try:
                fields = _read("%s/%s/schedstat" % (folder, name)).split()
                ran, waited, turns = map(int, fields[:3])
                yield (pid, int(name)), ran, waited, turns
            except ValueError:
                self._has_missed = True  # it ended in between

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


class Sleeper:
    """What tells of a thread whether it sleeps on.

    To read an open file is a third of opening it as well. Raises OSError where one has gone.
    """

    def __init__(self, proc: str, key: Key, thread: Seen) -> None:
        folder = "%s/%d/task/%d/" % (proc, *key)
        self._counters = b"%d %d %d\n" % (thread.ran, thread.waited, thread.turns)
        self._fds: list[int] = []
        try:
            for name in ("schedstat", "stat"):
                self._fds.append(os.open(folder + name, os.O_RDONLY))
        except OSError:
            self.close()
            raise

    def sleeps_on(self) -> bool:
        counters, state = self._fds
        return _again(counters) == self._counters and _state_in(_again(state)) == b"S"

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


def settle(before: Seen, ran: int, waited: int, is_ready: bool, span: int) -> Seen:
    """The thread now, `span` nanoseconds later, with the part of its wait not told of yet."""
    unexplained = span - (ran - before.ran) - (waited - before.waited)
    pending = before.pending + unexplained
    if not before.is_ready:
        pending = unexplained // 2  # it began to wait at some moment in between
    return Seen(ran, waited, max(0, pending) if is_ready else 0, is_ready)


def judge_wait(before: Seen, now: Seen, turns: int, span: int) -> tuple[Seen, int]:
    """The thread now, and the nanoseconds that it ran or waited for work.

    A wait is told of when it's over, and what it was for shows only then: whoever gets a CPU,
    does next to nothing and sleeps again asked for a lock, and would not have been ready at the
    same time as the lock's holder if nobody had been in the way. A wait that was longer than the
    look is spread over those that follow: no thread did more than one thread can.
    """
    ran = now.ran - before.ran
    asked = before.asked + now.waited - before.waited + now.pending - before.pending
    if not ran and not now.is_ready:
        return _told(now, turns, 0, 0), 0  # asleep: what it did before is told of, or too late
    owed = before.owed + ran
    if ran >= ASKING_NS * max(1, turns - before.turns):
        owed, asked = owed + asked, 0
    elif not now.is_ready:
        asked = 0
    work = max(0, min(owed, span))
    return _told(now, turns, asked, owed - work), work


def _told(now: Seen, turns: int, asked: int, owed: int) -> Seen:
    return Seen(now.ran, now.waited, now.pending, now.is_ready, turns, asked, owed)


def _read(path: str, size: int = 1024) -> bytes:
    """The first bytes of a small file; nothing where it has gone."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(fd, size)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _again(fd: int) -> bytes:
    """An open file from its beginning; nothing where what it tells of has gone."""
    try:
        return os.pread(fd, 1024, 0)
    except OSError:
        return b""


def _state_in(stat: bytes) -> bytes:
    return stat.rpartition(b")")[2][1:2]


def _affinity(tid: int) -> list[frozenset[int]]:
    """The thread's CPUs, as a list of one; of none where it has gone."""
    try:
        return [frozenset(os.sched_getaffinity(tid))]
    except OSError:
        return []


class Counters:
    """The kernel's own counters for this sandbox's cgroup, v1 or v2; absent ones read as 0.

    Opened before the root changes: the files stay readable whatever the view shows.
    """

    def __init__(self, folders: dict[str, str]) -> None:
        memory, pids = folders.get("memory"), folders.get("pids")
        self._memory = _open(memory, "memory.stat")
        self._ooms = _open(memory, "memory.events") or _open(memory, "memory.oom_control")
        self._failures = _open(memory, "memory.failcnt")  # version 1 alone, as the next three
        self._most = _open(memory, "memory.max_usage_in_bytes")
        self._charge = _open(memory, "memory.usage_in_bytes") or _open(memory, "memory.current")
        limit = _open(memory, "memory.limit_in_bytes")  # which nobody changes
        self._limit = _number(limit)
        if limit is not None:
            os.close(limit)
        self._kernel = _open(memory, "memory.kmem.usage_in_bytes")
        self._pids = _open(pids, "pids.events")
        self._usage = _open(folders.get("cpuacct"), "cpuacct.usage")  # version 1
        self._cpu = _open(pids, "cpu.stat") if self._usage is None else None

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
        return 0 < self._limit - NEARLY_BYTES <= _number(self._most)

    def pids_refused(self) -> int:
        return _field(self._pids, b"max")

    def cpu_ns(self) -> int | None:
        """CPU time of all that ever ran here, nanoseconds; None where nobody counts it."""
        if self._usage is None:
            microseconds = _find(_text(self._cpu), b"usage_usec")
            return None if microseconds is None else microseconds * 1000
        try:
            return int(os.pread(self._usage, 32, 0))
        except (OSError, ValueError):
            return None

    def is_surely_below(self, limit: int) -> bool:
        """Whether all that is charged, cached pages as well, is no more; soon known if it is so."""
        return 0 < _number(self._charge) <= limit

    def memory_bytes(self) -> int:
        """Anonymous and shared memory: what can't be dropped like a file's cached pages."""
        return _memory_in(_text(self._memory))

    def kernel_bytes(self) -> int:
        """What the kernel holds for its processes: bytes in sockets, page tables, and more."""
        if self._kernel is not None:
            return _number(self._kernel)
        return _kernel_in(_text(self._memory))

    def charged(self) -> tuple[int, int]:
        """Both at once: the kernel takes long to add up what it tells of them."""
        text = _text(self._memory)
        kernel = _kernel_in(text) if self._kernel is None else _number(self._kernel)
        return _memory_in(text), kernel


def _memory_in(text: bytes) -> int:
    for anonymous, shared in MEMORY_NAMES:
        found = _find(text, anonymous)
        if found is not None:
            return found + (_find(text, shared) or 0)
    return 0


def _kernel_in(text: bytes) -> int:
    held = (_find(text, b"kernel") or 0) - (_find(text, b"slab_reclaimable") or 0)
    return max(0, held) + (_find(text, b"sock") or 0)


def own_cgroups() -> dict[str, str]:
    """Where a container sees its own cgroup: mounted as the root of each hierarchy."""
    if os.path.exists("/sys/fs/cgroup/memory.stat"):
        return {"memory": "/sys/fs/cgroup", "pids": "/sys/fs/cgroup"}
    return {name: "/sys/fs/cgroup/" + name for name in ("memory", "pids", "cpuacct")}


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


def _text(fd: int | None) -> bytes:
    try:
        return b"\n" + os.pread(fd, 16384, 0) if fd is not None else b""
    except OSError:
        return b""


def _find(text: bytes, name: bytes) -> int | None:
    """The number on the line of this name. Not all lines are taken apart: it's asked often."""
    _, found, rest = text.partition(b"\n" + name + b" ")
    value = rest.partition(b"\n")[0]
    return int(value) if found and value.isdigit() else None


def _field(fd: int | None, name: bytes) -> int:
    return _find(_text(fd), name) or 0
