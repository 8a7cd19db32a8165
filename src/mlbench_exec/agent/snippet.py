"""One snippet, from fork to what was seen of it.

Nested level, as processes:

    agent              waits, drains pipes, samples, enforces limits
    └─ init            pid 1 of the snippet's own namespaces; reaps; its death kills all the rest
       └─ program      in the same namespaces, without capabilities; python or bash

Where it is warm, a warm interpreter stands between the agent and the init.

Fresh level: the agent is pid 1 of a container that serves this one snippet; there is no init.
"""

from __future__ import annotations

import _socket
import os
import resource
import select
import time

from mlbench_exec.agent import frames, kernel, surroundings, view
from mlbench_exec.agent.drain import Drain
from mlbench_exec.agent.interpreter import Interpreter
from mlbench_exec.agent.kernel import signal
from mlbench_exec.agent.meter import Meter
from mlbench_exec.agent.program import (
    FAILED,
    STARTED,
    TOLD,
    UNUSABLE,
    Program,
    Unusable,
)
from mlbench_exec.agent.world import World

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any

TICK_S = 0.05
FIRST_TICK_S = 0.01  # the sooner others hear that it sleeps, the sooner they start
LONG_TICK_S = 0.2  # where a single thread sleeps, and limits are kept without a look as well
NEWS = 0.3  # CPUs: a change worth a word
IDLE = 0.1  # CPUs: as good as none
ASLEEP = 0.25  # what is left of one after two looks at which nothing was ready
OF_AGE_S = 0.05  # only then is it told what it wants, or sooner if that is nothing
SHORT_TICK_S = 0.01  # where threads come and go on a busy machine
MARGIN = 1.25  # of the uncertainty: the last look may find that a little more was stolen
OVERTIME = 0.5  # of the limit: how long an uncertain clock may ask for more
FAR_OVER_BYTES = 1 << 30
HEADROOM_BYTES = 64 << 20  # of its cgroup, beside the limits on memory and disk
MAX_VICTIMS = 8  # after so many without success the whole snippet goes
LEFT_OVER_BYTES = 16 << 20
LET_GO_WITHIN_S = 1.0


class Broken(Exception):
    """This sandbox can't be used any more; the message says why."""


class TooBusy(Broken):
    """What else ran on this machine left too little for the snippet to be judged."""


def has_left_memory(world: World) -> bool:
    """Whether memory is still charged to this sandbox a second after its snippet's end.

    Sockets that were sent over themselves are collected lazily; closing one makes the kernel look.
    """
    most = world.memory_bytes + LEFT_OVER_BYTES
    if world.counters.is_surely_below(most):
        return False
    until = time.monotonic() + LET_GO_WITHIN_S
    while world.counters.memory_bytes() > most:
        if time.monotonic() > until:
            return True
        _socket.socket(_socket.AF_UNIX).close()
        time.sleep(0.005)
    return False


def tick_s(is_young: bool, is_sampling: bool, asleep_s: float, left_s: float) -> float:
    """How long to the next look: short at first, and where threads come and go on a busy machine.

    Longer where a single thread has slept as long before, for many sleep at once; but not where
    little is left of its time: nothing tells of what it does between the last look and its end.
    """
    if is_young:
        return FIRST_TICK_S
    if is_sampling:
        return SHORT_TICK_S
    return max(TICK_S, min(asleep_s, LONG_TICK_S, left_s / 2))


class ColdWanted(Exception):
    """This snippet may not be forked from a warm interpreter; the message says why."""


def run(
    world: World,
    program: Program,
    limits: dict[str, Any],
    interpreter: Interpreter | None = None,
) -> tuple[dict[str, Any], Drain, Drain]:
    """Run it to its end or limit; return what was seen, and both drained streams.

    With `interpreter` it is forked from that; raises `ColdWanted` when it is to run again without.
    """
    running = _Running(world, program, limits, interpreter)
    try:
        running.watch()
    finally:
        running.end()
    why = interpreter.refusal() if interpreter else None
    if why is not None:
        raise ColdWanted(why)
    return running.observation(), running.out, running.err


class _Running:
    def __init__(
        self,
        world: World,
        program: Program,
        limits: dict[str, Any],
        interpreter: Interpreter | None,
    ) -> None:
        self.world, self.program, self.limits = world, program, limits
        self._is_fair = limits["clock"] == "fair"
        self.interpreter = interpreter
        self.ooms = world.counters.oom_kills()
        self.kernel_before = world.counters.kernel_bytes()
        self.limit_hits = world.counters.own_limit_hits()
        self.refused = world.counters.pids_refused()
        self.victims: set[int] = set()  # killed by the memory watch
        self.limit: str | None = None
        self.status: int | None = None  # as waitpid gives it
        self.failure: str | dict[str, str] | None = None
        self.has_started = False
        self.began = time.time() - 1  # by the clock that files are stamped with
        self.started = 0.0
        self.ended = 0.0
        self.peak = 0
        self.cpu_s = 0.0
        self.max_rss = 0
        self.disk_full = False
        self._wanted = 1.0  # CPUs
        self._told: float | None = None
        self._asleep_since: float | None = None
        self._next_sample = time.monotonic() + TICK_S
        self._report = b""
        if not world.nested:
            self.free_before, self.size_before = _free("/"), _size_of(program.workdir)
            self.children_before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out, err, report = os.pipe(), os.pipe(), os.pipe()
        ends = (out[1], err[1], report[1])
        try:
            if interpreter is not None:
                self.pid, self.disk_fd = interpreter.fork(world, program, limits, ends)
            elif world.nested:
                self.pid, self.disk_fd = surroundings.fork(world, program, limits, *ends)
            else:
                self.pid = self._fork_fresh(*ends)
        except BaseException:
            for pipe in (out, err, report):
                os.close(pipe[0])
            raise
        finally:
            for fd in ends:
                os.close(fd)
        self.out = Drain(out[0], limits["output"])
        self.err = Drain(err[0], limits["output"])
        self.report_fd = report[0]
        self.pidfd = None if world.nested else kernel.pidfd_open(self.pid)
        cores = len(os.sched_getaffinity(0))
        own = world.own_pids | {self.pid} if world.nested else world.own_pids  # init is ours
        cpus = min(limits["cpus"] or cores, cores)
        self.meter = Meter(cpus, own, world.counters, pids_in=world.pids_in)
        if not world.nested:
            self.written_before = self.meter.written_bytes()

    def _fork_fresh(self, out: int, err: int, report: int) -> int:
        cwd = self.program.open_folder()
        try:
            execution = self.world.start.execution(self.program, self.limits, cwd, out, err, report)
            return os.fork() or execution.become()
        finally:
            os.close(cwd)

    def watch(self) -> None:
        poller = select.poll()
        for fd in (self.out.fd, self.err.fd, self.report_fd):
            poller.register(fd, select.POLLIN)
        if self.pidfd is not None:
            poller.register(self.pidfd, select.POLLIN)
        poller.register(self.world.control_fd, 0)  # only its hang-up
        deadline = time.monotonic() + 60  # for the start, before the snippet's own clock
        while self.status is None and self.failure is None and self.limit is None:
            now = time.monotonic()
            if now >= self._next_sample:
                self._sample()
                self._reap_orphans()
                self._next_sample = time.monotonic() + self._tick_s(now)
                now = time.monotonic()
            wait_s = self._next_sample - now
            if self.has_started:
                left_s = self._left_s(now)
                if left_s <= 0 and self._is_over_time():
                    self.limit = "time"
                    break
                wait_s = min(wait_s, left_s)
            elif now > deadline:
                raise Broken("the snippet did not start within 60 s")
            for fd, event in poller.poll(max(5, int(wait_s * 1000) + 1)):
                self._handle(fd, event, poller)

    def _tick_s(self, now: float) -> float:
        is_sampling = self._is_fair and self.meter.clock.is_sampling
        asleep_s = 0.0 if self._asleep_since is None else now - self._asleep_since
        left_s = self._left_s(now) if asleep_s else 0.0
        return tick_s(self._is_young(now), is_sampling, asleep_s, left_s)

    def _is_young(self, now: float) -> bool:
        return self.has_started and self._told is None and now - self.started < OF_AGE_S

    def _handle(self, fd: int, event: int, poller: select.poll) -> None:
        if fd == self.world.control_fd:
            raise frames.HostGone
        if fd == self.report_fd:
            self._read_report(poller)
        elif fd == self.pidfd:
            self._reap_orphans()
        else:
            drain = self.out if fd == self.out.fd else self.err
            drain.pull()
            if not drain.is_open:
                poller.unregister(fd)

    def _reap_orphans(self) -> None:
        """Fresh level: the agent is pid 1, and what lost its parent is its child."""
        while not self.world.nested:
            try:
                pid, status, _ = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.status, self.ended = status, time.monotonic()

    def _read_report(self, poller: select.poll) -> None:
        chunk = os.read(self.report_fd, 65536)
        if not chunk:
            poller.unregister(self.report_fd)
            if self.world.nested and self.status is None and self.failure is None:
                self.failure = "lost"  # init died: killed for memory, or by a fault
            return
        self._report += chunk
        while self._report:
            if self._report[:1].isalpha():  # what is told in numbers never begins so
                line, found, rest = self._report.partition(b"\n")
                if not found:
                    return
                word, _, said = line.decode("utf-8", "replace").partition(" ")
                self.failure = {word: said}
            else:
                if len(self._report) < TOLD.size:
                    return
                rest = self._report[TOLD.size :]
                self._hear(*TOLD.unpack(self._report[: TOLD.size]))
            self._report = rest

    def _hear(self, status: int, seconds: int, nanoseconds: int) -> None:
        when = seconds + nanoseconds / 1e9
        if status != STARTED:
            self.status, self.ended = status, when
            return
        self.has_started, self.started = True, when
        self.meter.begin(self.started)
        self._next_sample = self.started + FIRST_TICK_S

    def _counted(self, now: float) -> float:
        stalled = self.meter.stalled_s if self._is_fair else 0.0
        return max(0.0, now - self.started - stalled) + self._charged_s()

    def _charged_s(self) -> float:
        """What the imports would have taken that a warm interpreter saved.

        Where a program forged it, it is still no figure that spoils sums: its limit, and no more.
        """
        if self.interpreter is None:
            return 0.0
        return min(self.interpreter.charged_s(), float(self.limits["time"]))

    def _uncertain(self) -> float:
        return self.meter.uncertain_s if self._is_fair else 0.0

    def _time(self) -> float:
        """Where the snippet is stopped: past the limit by as much as the clock is uncertain.

        So a snippet that ends close to its limit can be told from one that doesn't.
        """
        limit = float(self.limits["time"])
        return limit + min(MARGIN * self._uncertain(), OVERTIME * limit)

    def _left_s(self, now: float) -> float:
        """Until it is over time, if nobody takes a CPU from it meanwhile."""
        if now - self.started > self.limits["cap"]:
            raise TooBusy(
                "after %.0f s of wall-clock time the snippet had got only %.1f s to run: "
                "the machine is too busy" % (now - self.started, self._counted(now))
            )
        return self._time() - self._counted(now)

    def _is_over_time(self) -> bool:
        self.meter.sample()  # what was stolen since the last look doesn't count
        return self._left_s(time.monotonic()) <= 0

    def _sample(self) -> None:
        if self.interpreter and self.interpreter.refusal() is not None:
            self.failure = "refused"
        is_bounded = self.world.nested and self.world.counters.has_memory
        is_asleep = self._asleep_since is not None and self._told == 0.0
        if is_asleep and self.meter.is_still():
            return
        if self.meter.sample() and self.has_started:
            if not (is_bounded and self.meter.is_asleep):
                self._asleep_since = None
            elif self._asleep_since is None:
                self._asleep_since = time.monotonic()
            if self.limits.get("tell"):
                self._tell_demand()
        limit = self.limits["memory"]
        if is_bounded and self._is_young(time.monotonic()):
            most = self.world.memory_bytes + (limit or 0)
            if not limit or self.world.counters.is_surely_below(most):
                self._disk_bytes()
                return  # to add it up takes long
        used, everything = self._memory_bytes()
        self.peak = max(self.peak, used)
        if limit and used > limit + max(limit // 4, FAR_OVER_BYTES):
            self.limit = "memory"  # killing one process after another would be too slow
        elif limit and used > limit:
            self._kill_biggest()
        elif limit and everything > limit + self.limits["disk"] + HEADROOM_BYTES:
            self.limit = "memory"  # nothing tells for which of its processes
        if not self.world.nested and self._has_outgrown_disk():
            self.limit = "disk"

    def _tell_demand(self) -> None:
        """So that no more snippets are started than the CPUs have time for."""
        self._wanted += (self.meter.wanted - self._wanted) / 2
        cpus = self._wanted if self._wanted >= IDLE else 0.0
        if self._told is None:
            if self._wanted <= ASLEEP:
                cpus = self._wanted = 0.0  # it has started, and sleeps
            is_news = cpus == 0 or time.monotonic() - self.started >= OF_AGE_S
        else:
            is_news = abs(cpus - self._told) >= NEWS or cpus == 0.0 < self._told
        if is_news:
            if not select.select([], [frames.OUT], [], 0)[1]:
                return  # nobody reads now: it's said later
            self._told = cpus
            frames.tell_host({"type": "demand", "cpus": round(self._told, 2)})

    def _kill_biggest(self) -> None:
        """Do as the kernel would at a limit of its own: one process at a time, the biggest first.

        Where nothing is left to kill (the memory is in /dev/shm), the snippet ends.
        """
        pids = self.meter.pids()
        if self.world.nested:
            pids = [pid for pid in pids if pid != self.pid]  # init holds nothing, and reaps
        biggest = max(pids, key=self.meter.resident_pages, default=None)
        if self._memory_bytes()[0] <= self.limits["memory"]:
            return  # what was over has ended by itself, and nobody else is to pay for it
        if (
            biggest is None
            or not self.meter.resident_pages(biggest)
            or len(self.victims) >= MAX_VICTIMS
        ):
            self.limit = "memory"
            return
        self.victims.add(biggest)
        _kill(biggest)

    def _memory_bytes(self) -> tuple[int, int]:
        """What its limit is for; and all that its cgroup bounds.

        That is with what the kernel holds for it, and what it wrote. The cgroup has more room
        where there are warm interpreters, and that is not the snippet's.
        """
        written = self._disk_bytes()
        if not self.world.counters.has_memory:
            return self.meter.resident_bytes(), 0
        memory, kernel = self.world.counters.charged()
        memory -= self.world.memory_bytes
        return max(0, memory - written), memory + max(0, kernel - self.kernel_before)

    def _has_outgrown_disk(self) -> bool:
        """Fresh level: a container's layer has no size limit, so it is watched.

        The file system's free space is shared with others, so it only raises the suspicion: at
        once for one whose processes say that they wrote as much, and later for any. (They don't
        tell of everything: what wrote and ended without being waited for isn't counted.)
        """
        most = self.limits["disk"], view.inodes_for(self.limits["disk"])
        gone = _less(self.free_before, _free("/"))
        if not _is_over(gone, most):
            return False
        if _is_over(_less(_size_of(self.program.workdir), self.size_before), most):
            return True
        has_written = self.meter.written_bytes() - self.written_before >= most[0]
        if not has_written and not _is_over(gone, (2 * most[0] + (256 << 20), 2 * most[1])):
            return False
        if self._has_written_elsewhere(most):
            return True
        raise TooBusy("the disk is filling up, and not by the snippet")

    def _has_written_elsewhere(self, most: tuple[int, int]) -> bool:
        """Whether it was the snippet: found out once it is dead, for the walk is long.

        What it wrote to files that have no name any more is free again by its death.
        """
        written = _size_of("/", since=self.began)
        before = _free("/")
        _kill(-1)
        self._reap_orphans()
        time.sleep(LET_GO_WITHIN_S)
        freed = _less(_free("/"), before)
        return _is_over((written[0] + freed[0], written[1] + freed[1]), most)

    def _disk_bytes(self) -> int:
        """What the snippet has written: its tmpfs pages count as memory of the cgroup too."""
        if not self.has_started:
            return 0
        try:
            status = os.statvfs(self.disk_fd if self.world.nested else "/tmp")
        except OSError:
            return 0
        self.disk_full = self.disk_full or status.f_bfree == 0 or status.f_ffree == 0
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def end(self) -> None:
        """Kill everything the snippet started, wait for it to be gone, read what is left."""
        self._disk_bytes()
        if not self.ended:
            self.ended = time.monotonic()
        self.meter.sample()
        self.meter.let_go()
        if self.world.nested:
            _kill(self.pid)
            if self.interpreter:
                self.cpu_s, self.max_rss = self.interpreter.reap(self.pid)
            else:
                _, _, usage = os.wait4(self.pid, 0)
                self.cpu_s, self.max_rss = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
            os.close(self.disk_fd)
        else:
            self._end_fresh()
        for drain in (self.out, self.err):
            drain.pull_rest()
            os.close(drain.fd)
        os.close(self.report_fd)
        if self.pidfd is not None:
            os.close(self.pidfd)

    def _end_fresh(self) -> None:
        while True:
            _kill(-1)
            try:
                pid, status, _ = os.wait4(-1, 0)
            except ChildProcessError:
                break
            if pid == self.pid and self.status is None and self.limit is None:
                self.status = status
        after, before = resource.getrusage(resource.RUSAGE_CHILDREN), self.children_before
        self.cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.max_rss = after.ru_maxrss * 1024

    def observation(self) -> dict[str, Any]:
        killed = self.world.counters.oom_kills() - self.ooms
        ooms = killed + len(self.victims)
        if self.limit == "memory":
            ooms = max(ooms, 1)
        if isinstance(self.failure, dict):
            if UNUSABLE in self.failure:
                raise Unusable(self.failure[UNUSABLE])
            raise Broken(self.failure.get(FAILED, "its init process said what it never says"))
        if killed and self.limit_hits == self.world.counters.own_limit_hits():
            raise TooBusy("the machine, not the snippet's own limit, ran out of memory")
        if self.failure == "lost" and not ooms:
            raise Broken("the snippet's init process died")
        if self.world.nested and self.status is not None and not self.has_started:
            raise Broken("the program died before it started")
        wall = self.ended - self.started if self.has_started else 0.0
        stalled = min(self.meter.stalled_s, wall)
        charged = self._charged_s()
        counted = wall - (stalled if self._is_fair else 0.0) + charged
        if (self._is_fair or charged) and not self.limit and counted >= self.limits["time"]:
            self.limit = "time"  # it ended by itself, past the limit, or saved imports that are
        code = number = None
        if self.limit is None and self.status is not None:
            if os.WIFSIGNALED(self.status):
                number = os.WTERMSIG(self.status)
            else:
                code = os.WEXITSTATUS(self.status)
        elif self.failure == "lost":
            number = int(signal.SIGKILL)
        return {
            "exit_code": code,
            "signal": number,
            "limit": self.limit or self._limit_met(ooms),
            "oom_kills": ooms,
            "wall_s": wall,
            "counted_s": counted,
            "cpu_s": max(self.cpu_s, self.meter.ran_s),  # the kernel drops the times of the killed
            "stalled_s": stalled,
            "uncertain_s": self._uncertain(),
            "peak_memory_bytes": max(self.peak, self.max_rss),
            "stdout": self.out.text(),
            "stderr": self.err.text(),
            "stdout_bytes": self.out.total,
            "stderr_bytes": self.err.total,
            "warm": bool(self.interpreter and self.interpreter.starts()),
        }

    def _limit_met(self, ooms: int) -> str | None:
        """The limit that an ended snippet met, as far as the kernel tells."""
        if ooms:
            return "memory"
        if self.world.counters.pids_refused() > self.refused:
            return "pids"
        return "disk" if self.disk_full else None


def _free(path: str) -> tuple[int, int]:
    """Bytes and inodes."""
    status = os.statvfs(path)
    return status.f_bfree * status.f_frsize, status.f_ffree


def _size_of(folder: str, since: float | None = None) -> tuple[int, int]:
    """Bytes and files below a folder, on its own file system; `since`: of those changed later."""
    size = count = 0
    device = os.lstat(folder).st_dev
    for path, folders, files in os.walk(folder):
        if since is not None:
            folders[:] = [name for name in folders if _device_of(path, name) == device]
        for name in files + folders:
            try:
                status = os.lstat(os.path.join(path, name))
            except OSError:
                continue
            if since is None or status.st_ctime >= since:
                size += status.st_blocks * 512
                count += 1
    return size, count


def _device_of(folder: str, name: str) -> int | None:
    try:
        return os.lstat(os.path.join(folder, name)).st_dev
    except OSError:
        return None


def _less(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] - other[0], one[1] - other[1]


def _is_over(used: tuple[int, int], most: tuple[int, int]) -> bool:
    return used[0] >= most[0] or used[1] >= most[1]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
