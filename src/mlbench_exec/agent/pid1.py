"""A fork with a pid 1 of its own between it and its parent: a snippet's init.

The init waits for every process, tells how the snippet's own one ended, and by its death kills all
the rest. As a fork it would be a copy of a whole Python for that. So where we know how (`native`),
the forking process lends it its memory, as vfork does, until it has forked the snippet and executed
a program of some twenty-five instructions. A snippet that executes a program borrows that memory as
well, until it has.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time

from mlbench_exec.agent import kernel
from mlbench_exec.agent.kernel import signal
from mlbench_exec.agent.native import NOTHING, Code
from mlbench_exec.agent.program import TOLD
from mlbench_exec.agent.steps import Steps, do, refused, work_off

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import NoReturn

    from mlbench_exec.agent.program import Execution
    from mlbench_exec.agent.steps import Failure

PATH = "/.mlbench/init"  # where a sandbox's root has the program
SNIPPET = 2  # the pid of what is forked, in its namespace
LAST_CHARACTER = 255  # an init is told its descriptor as one
PID = struct.Struct("=q")
BORROWING = 0x4111  # CLONE_VM | CLONE_VFORK | SIGCHLD
COPYING = 0  # by the C library's own fork
CLONE_PARENT = 0x8000
# The program of an init, for x86_64. Its argument is one character: the descriptor to write to.
INIT = bytes.fromhex(
    "488b442408 0fb618"  # ebx = argv[0][0]
    "83cfff 488d7424e0 31d2 4531d2 b83d000000 0f05"  # again: wait4(-1, place, 0, NULL)
    "85c0 782b"  # nobody is left: rest
    "83f802 75e3"  # not pid 2: again
    "bf01000000 488d7424e8 b8e4000000 0f05"  # clock_gettime(CLOCK_MONOTONIC, place + 8)
    "89df 488d7424e0 ba18000000 b801000000 0f05"  # write(ebx, place, 24)
    "ebbd"  # again
    "b822000000 0f05 ebb4"  # rest: pause, again
)
ADDRESS = 0x400000  # of the program in memory
ELF_HEADERS_BYTES = 64 + 56


class Forker:
    """Forks so: by machine code where that is known to work, and by two forks elsewhere.

    With `is_alone` false, because other threads run in this process, it is by two.
    """

    def __init__(self, is_alone: bool = True) -> None:
        self.pid = ctypes.create_string_buffer(PID.size)  # of the init, for steps after a fork
        self._forks = False  # by machine code
        self._code: Code | None = None
        try:
            self._code = Code()
        except OSError:
            return  # another machine, or not allowed here
        path, self._arguments = ctypes.c_char_p(os.fsencode(PATH)), (ctypes.c_char_p * 2)()
        place, arguments = self._code.place, ctypes.addressof(self._arguments)
        place.path, place.argv = ctypes.cast(path, ctypes.c_void_p).value, arguments
        place.envp = arguments + ctypes.sizeof(ctypes.c_char_p)  # the end of its arguments
        self._path = path
        place.fork, place.pid = kernel.fork_address(), ctypes.addressof(self.pid)
        self._sequences = kernel.Sequences()
        python = ctypes.pythonapi
        self._before_fork, self._after_fork = python.PyOS_BeforeFork, python.PyOS_AfterFork_Parent
        self._in_child = python.PyOS_AfterFork_Child
        self._forks = is_alone and kernel.is_new_glibc() and os.path.exists(PATH)

    def do(self, steps: Steps) -> None:
        """Take the steps in this process; OSError for one that fails."""
        if self._code is None or not self._code.fits(steps):
            return do(steps)
        self._code.fill(NOTHING, steps, NOTHING)
        failure = self._code.work_off()
        if failure is not None:
            raise refused(failure)

    def start(self, report: int, before: Steps, execution: Execution) -> int:
        """Take the steps `before`, then fork a snippet, which takes the execution's.

        The first fork after the steps before is to be a pid namespace's first. Return its init's
        pid; OSError if there is none. The init tells on `report`, and why there is no program is
        told as `Execution.explain` does.
        """
        if self._code is None or not self._forks or report > LAST_CHARACTER:
            self.do(before)
            return _fork_twice(report) or execution.become()
        self._code.fill(before, execution.steps, NOTHING)
        self._prepare(report, BORROWING, BORROWING)
        pid = self._code.fork_below()
        if self._code.place.lost:
            os.waitpid(pid, 0)
        self._check(pid)
        failure = self._code.failure()
        if failure is not None:
            execution.explain(failure)
        return pid

    def copy(
        self, report: int, before: Steps, steps: Steps, after: Steps
    ) -> tuple[int, Failure | None]:
        """Fork a snippet that is a copy of this process, and takes the steps, likewise.

        Return its init's pid, which is a child of our parent's where that can be, and in the
        snippet 0 and the step that failed. This process takes those `after`, which may refer to
        `pid`.
        """
        # The init has our handlers until it has become its program, and that one is Python's.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            if self._code is None:
                pid = self._copy_twice(report, before, after)
                return pid, None if pid else work_off(steps)
            self._code.fill(before, steps, after)
            if self._forks and report <= LAST_CHARACTER:
                pid = self._copy(report)
                return pid, None if pid else self._code.failure()
            pid = self._copy_twice(report, before, after)
            return pid, None if pid else self._code.work_off()
        finally:
            signal.signal(signal.SIGINT, previous)

    def _copy(self, report: int) -> int:
        assert self._code is not None
        self._prepare(report, COPYING, BORROWING | CLONE_PARENT)
        self._before_fork()
        pid = self._code.fork_below()
        if pid == 0:
            self._sequences.register()
            self._in_child()
            return 0
        self._after_fork()
        self._check(pid)
        return pid

    def _copy_twice(self, report: int, before: Steps, after: Steps) -> int:
        do(before)
        pid = _fork_twice(report)
        if pid:
            PID.pack_into(self.pid, 0, pid)
            work_off(after)
        return pid

    def _prepare(self, report: int, flags: int, init_flags: int) -> None:
        assert self._code is not None
        self._arguments[0] = bytes([report])
        place = self._code.place
        place.report, place.flags, place.init_flags = report, flags, init_flags

    def _check(self, pid: int) -> None:
        """Raise where there is no init, or no snippet below it."""
        assert self._code is not None
        failure, lost = self._code.failure(), self._code.place.lost
        if pid < 0:
            raise refused(failure) if failure is not None else kernel.Refused(-pid, "clone")
        if lost:
            raise kernel.Refused(-lost, "clone or execve")


def _fork_twice(report: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        pid = os.fork()
    except BaseException:  # noqa: BLE001 - this is no second agent
        os._exit(127)
    if pid:
        os.closerange(0, report)
        os.closerange(report + 1, 256)
        _reap(report)
    return 0


def _reap(report: int) -> NoReturn:
    """Do in Python what the program does."""
    try:
        while True:
            try:
                pid, status = os.waitpid(-1, 0)
            except ChildProcessError:
                signal.pause()
                continue
            if pid == SNIPPET:
                now = time.monotonic()
                os.write(report, TOLD.pack(status, int(now), int(now % 1 * 1e9)))
    finally:
        os._exit(127)


def write_program(path: str) -> None:
    """Write the init's program as an executable of one segment, where we know how."""
    if kernel.machine() != "x86_64":
        return
    start = ELF_HEADERS_BYTES
    size = start + len(INIT)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, ADDRESS + start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, ADDRESS, ADDRESS, size, size, mmap.PAGESIZE)
    with open(path, "wb") as file:
        file.write(identity + header + segment + INIT)
    os.chmod(path, 0o755)
