"""A fork with a pid 1 of its own between it and its parent: a snippet's init.

The init waits for every process, tells how the snippet's own one ended, and by its death kills all
the rest. As a fork it would be a copy of a whole Python for that. So where we know how, the forking
process lends it its memory (as vfork does) until it has forked the snippet and executed a program
of some twenty-five instructions; and a snippet that executes a program borrows that memory as well,
until it has. That takes machine code: Python can't return twice from a call.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time

from mlbench_exec.agent import kernel
from mlbench_exec.agent.kernel import signal
from mlbench_exec.agent.program import TOLD
from mlbench_exec.agent.steps import STEP, Steps, do, refused, work_off

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from mlbench_exec.agent.program import Execution
    from mlbench_exec.agent.steps import Failure, Step

PATH = "/.mlbench/init"  # where a sandbox's root has the program
SNIPPET = 2  # the pid of what is forked, in its namespace
LAST_CHARACTER = 255  # an init is told its descriptor as one

# Two functions for x86_64: long fork_below(place), and long work_off(place).
CODE = bytes.fromhex(
    "f30f1efa"  # fork_below: endbr64
    "53 55 4154 4155 4156"  # push rbx, rbp, r12, r13, r14
    "4889fb 31ed"  # rbx, ebp = place, 0
    "4c8b6360 4c8b7368 e8e8000000"  # run place.before
    "483d00f0ffff 0f87ba000000"  # an error: stopped
    "488b7b58"  # rdi = place.init_flags
    "31f6 31d2 4531d2 4531c0"  # esi = edx = r10d = r8d = 0
    "b838000000 0f05 4889c5"  # rbp = clone: an init, which borrows this memory
    "4885c0 0f88b2000000 742a"  # an error: to the end with it; in the init: below
    "48837b4800 0f85a5000000"  # where place.lost: to the end with its pid
    "488b8b80000000 488901"  # *place.pid = its pid
    "4c8b6370 4c8b7378 e897000000"  # run place.after
    "4889e8 e986000000"  # to the end with its pid
    "bd01000000"  # init: ebp = 1
    "488b7b30 4c8b5318"  # rdi, r10 = place.flags, place.tid
    "b838000000 0f05"  # clone: the snippet, with this memory or a copy of it
    "4885c0 7447 7824"  # in it: below; an error: lost
    "488b7b50 be02000000 31d2 b848000000 0f05"  # fcntl(place.report, F_SETFD, 0)
    "488b3b 488b7308 488b5310"  # rdi, rsi, rdx = place.path, place.argv, place.envp
    "b83b000000 0f05"  # execve
    "48894348 bf7f000000"  # lost: place.lost, edi = rax, 127
    "b8e7000000 0f05"  # leave: exit_group(edi)
    "f30f1efa 53 55 4154 4155 4156 4889fb 31ed"  # work_off: as above
    "4c8b6320 4c8b7328 e822000000"  # snippet: run place.steps
    "4c896338 48894340"  # stopped: place.stopped, place.result = r12, rax
    "85ed 740d"  # where ebp is 0: to the end with the result
    "bf7e000000 f6433101 75c4"  # in borrowed memory: leave with 126
    "31c0"  # rax = 0
    "415e 415d 415c 5d 5b c3"  # end: pop r14, r13, r12, rbp, rbx; return
    "31c0"  # run, from r12 to r14: rax = 0
    "4d39f4 7444"  # next: where r12 is r14: over
    "498b0424"  # rax = the step's call
    "498b7c2408 498b742410 498b542418 4d8b542420 4d8b442428 4d8b4c2430"  # its arguments
    "41f644243801 490f45fd"  # where it USES what was saved: rdi = r13
    "0f05"
    "41f644243802 4c0f45e8"  # where it SAVES: r13 = rax
    "4983c440"  # r12 += sizeof(step)
    "483d00f0ffff 76b7"  # where rax is no error: next
    "c3"  # over: return
)
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


# What both are called with: path, argv and envp of an init, tid, steps' begin and end, flags; what
# comes of it: stopped, result, lost; report, init_flags, before's and after's begin and end, pid.
PLACE = struct.Struct("=7q 3q 2q 4q q")
RESULTS = struct.Struct("=3q")
RESULTS_AT, STEPS_AT, PLACE_BYTES = 56, 192, 1 << 15
WORK_OFF_AT = 0xC6  # in CODE
MOST_ERRORS = 4095
BORROWING = 0x4111  # CLONE_VM | CLONE_VFORK | SIGCHLD
COPYING = 0x1200011  # CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD
CLONE_PARENT = 0x8000
POINTER_BYTES = 8
PID = struct.Struct("=q")
NOTHING = Steps()


class Forker:
    """Forks so: by machine code where that is known to work, and by two forks elsewhere.

    With `is_plain` false it is by two: libraries in C may have asked to be told of a fork, to stop
    their threads, say, and only the C library's own fork tells them.
    """

    def __init__(self, is_plain: bool = True) -> None:
        self.pid = ctypes.create_string_buffer(PID.size)  # of the init, for steps after a fork
        self._fork_below: Any = None
        self._work_off: Any = None
        self._filled: tuple[object, ...] = ()
        self._listed: tuple[Step, ...] = ()
        if kernel.machine() != "x86_64":
            return
        self._code = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._code[: len(CODE)] = CODE
        code = _address(self._code)
        try:
            kernel.make_executable(code, mmap.PAGESIZE)
        except OSError:
            return  # not allowed here
        function = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_void_p)
        self._work_off = function(code + WORK_OFF_AT)
        self._place = mmap.mmap(-1, PLACE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._at = _address(self._place)
        self._init = ctypes.c_char_p(os.fsencode(PATH)), (ctypes.c_char_p * 2)()
        self._tid = kernel.tid_address()
        if is_plain and self._tid and kernel.is_new_glibc() and os.path.exists(PATH):
            self._threads = kernel.Registered()
            self._fork_below = function(code)

    def take(self, steps: Steps) -> None:
        """Take the steps in this process; OSError for one that fails."""
        if self._work_off is None or STEPS_AT + len(steps.data) > PLACE_BYTES:
            return do(steps)
        self._fill(0, NOTHING, steps, NOTHING, COPYING, 0)
        self._work_off(self._at)
        self._raise_failure()

    def start(self, report: int, before: Steps, steps: Steps, execution: Execution) -> int:
        """Take the steps `before`, then fork a snippet that takes its own and executes a program.

        The first fork after the steps before is to be a pid namespace's first. Return its init's
        pid; OSError if there is none. The init tells on `report`, and why there is no program is
        told as `Execution.explain` does.
        """
        if self._fork_below is None or report > LAST_CHARACTER:
            self.take(before)
            return _fork_twice(report) or execution.become(steps)
        self._fill(report, before, steps + execution.steps, NOTHING, BORROWING, BORROWING)
        pid: int = self._fork_below(self._at)
        if self._is_lost():
            os.waitpid(pid, 0)
        self._check(pid)
        failure = self._failure()
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
        if self._work_off is not None:
            init_flags = BORROWING | CLONE_PARENT
            self._fill(report, before, steps, after, COPYING, init_flags)
        # The init has our handlers until it has become its program, and that one is Python's.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            if self._fork_below is not None and report <= LAST_CHARACTER:
                pid = self._copy()
                return pid, None if pid else self._failure()
            do(before)
            pid = _fork_twice(report)
            if pid:
                PID.pack_into(self.pid, 0, pid)
                work_off(after)
                return pid, None
            if self._work_off is None:
                return 0, work_off(steps)
            self._work_off(self._at)
            return 0, self._failure()
        finally:
            signal.signal(signal.SIGINT, previous)

    def _copy(self) -> int:
        python = ctypes.pythonapi
        python.PyOS_BeforeFork()
        pid: int = self._fork_below(self._at)
        if pid == 0:
            self._threads.register()
            python.PyOS_AfterFork_Child()
            return 0
        python.PyOS_AfterFork_Parent()
        self._check(pid)
        return pid

    def _fill(
        self,
        report: int,
        before: Steps,
        steps: Steps,
        after: Steps,
        flags: int,
        init_flags: int,
    ) -> None:
        """Put them where the code finds them, unless they are there."""
        wanted = report, before, steps, after, flags
        if wanted == self._filled:
            return
        path, argv = self._init
        if report <= LAST_CHARACTER:
            argv[0] = bytes([report])
        data = before.data + steps.data + after.data
        if STEPS_AT + len(data) > PLACE_BYTES:
            raise OSError("%d bytes of steps are too many" % len(data))
        begin = self._at + STEPS_AT
        steps_at = begin + len(before.data)
        after_at = steps_at + len(steps.data)
        arguments = ctypes.addressof(argv)
        place = PLACE.pack(
            *(ctypes.cast(path, ctypes.c_void_p).value, arguments, arguments + POINTER_BYTES),
            *(self._tid, steps_at, after_at, flags),
            *(0, 0, 0),
            *(report, init_flags, begin, steps_at, after_at, begin + len(data)),
            ctypes.addressof(self.pid),
        )
        self._place[:STEPS_AT] = place.ljust(STEPS_AT, b"\0")
        self._place[STEPS_AT : STEPS_AT + len(data)] = data
        self._listed = before.steps + steps.steps + after.steps
        # What borrows this memory writes into it what came of the steps.
        self._filled = wanted if flags == COPYING else ()

    def _failure(self) -> Failure | None:
        """What came of the steps, here or in the process that had borrowed this memory."""
        stopped, result, _ = RESULTS.unpack_from(self._place, RESULTS_AT)
        if not -MOST_ERRORS <= result < 0:
            return None
        at = stopped - self._at - STEPS_AT - STEP.size
        return self._listed[at // STEP.size], -result

    def _is_lost(self) -> bool:
        """Whether there was an init that could not fork or execute its program."""
        return bool(RESULTS.unpack_from(self._place, RESULTS_AT)[2])

    def _check(self, pid: int) -> None:
        """Raise where there is no init, or no snippet below it."""
        if pid < 0:
            self._raise_failure()
            raise kernel.Refused(-pid, "clone")
        if self._is_lost():
            lost = RESULTS.unpack_from(self._place, RESULTS_AT)[2]
            raise kernel.Refused(-lost, "clone or execve")

    def _raise_failure(self) -> None:
        failure = self._failure()
        if failure is not None:
            raise refused(failure)


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


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
