"""A fork with a pid 1 of its own between it and its parent: a snippet's init.

The init waits for every process, tells how the snippet's own one ended, and by its death kills all
the rest. As a fork it would be a copy of a whole Python for that. So where we know how, the forking
process lends it its memory (as vfork does) until it has forked the snippet and executed a program
of some twenty-five instructions. That takes machine code: Python can't return twice from a call.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time

from mlbench_exec.agent import kernel
from mlbench_exec.agent.kernel import signal

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any, NoReturn

PATH = "/.mlbench/init"  # where a sandbox's root has the program
SNIPPET = 2  # the pid of what is forked, in its namespace
STATUS = struct.Struct("=i4xqq")  # what an init tells: as waitpid gives it; seconds, nanoseconds
LAST_CHARACTER = 255  # an init is told its descriptor as one

# long fork_below(path, argv, envp, tid), for x86_64.
FORK_BELOW = bytes.fromhex(
    "f30f1efa"  # endbr64
    "53 55 4154 4155"  # push rbx, rbp, r12, r13
    "4889fb 4889f5 4989d4 4989cd"  # rbx, rbp, r12, r13 = path, argv, envp, tid
    "bf11410000"  # edi = CLONE_VM | CLONE_VFORK | SIGCHLD
    "31f6 31d2 4531d2 4531c0"  # esi = edx = r10d = r8d = 0
    "b838000000 0f05"  # clone: an init, which uses this memory until it executes another program
    "4885c0 7532"  # to the end with its pid, or an error
    "bf11002001"  # in the init: edi = CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD
    "4d89ea"  # r10 = tid
    "b838000000 0f05"  # clone: the snippet, with a copy of this memory
    "4885c0 741e"  # in the snippet: to the end with 0
    "7810"  # an error: exit
    "4889df 4889ee 4c89e2"  # rdi, rsi, rdx = path, argv, envp
    "b83b000000 0f05"  # execve
    "bf7f000000 b8e7000000 0f05"  # exit_group(127)
    "415d 415c 5d 5b c3"  # pop r13, r12, rbp, rbx; return
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


class Forker:
    """Forks so: by machine code where that is known to work, and by two forks elsewhere.

    With `is_plain` false it is by two: libraries in C may have asked to be told of a fork, to stop
    their threads, say, and only the C library's own fork tells them.
    """

    def __init__(self, is_plain: bool = True) -> None:
        self._fork_in_c: Any = None
        self._tid = kernel.tid_address()
        if not is_plain or kernel.machine() != "x86_64" or not os.path.exists(PATH):
            return
        if not self._tid or not kernel.is_new_glibc():
            return
        memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[: len(FORK_BELOW)] = FORK_BELOW
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        try:
            kernel.make_executable(address, mmap.PAGESIZE)
        except OSError:
            return  # not allowed here
        self._memory = memory
        self._threads = kernel.Registered()
        pointers = [ctypes.c_void_p] * 4
        self._fork_in_c = ctypes.PYFUNCTYPE(ctypes.c_long, *pointers)(address)

    def fork(self, report: int) -> int:
        """Fork in a pid namespace that is yet to have its first process; OSError if that fails.

        Return the init's pid, and in the snippet 0. `report` is where the init tells.
        """
        # The init has our handlers until it has become its program, and that one is Python's.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            if self._fork_in_c is None or report > LAST_CHARACTER:
                return _fork_twice(report)
            return self._fork_below(report)
        finally:
            signal.signal(signal.SIGINT, previous)

    def _fork_below(self, report: int) -> int:
        words = (ctypes.c_char_p * 2)(bytes([report]))
        nothing = (ctypes.c_char_p * 1)()
        path = ctypes.c_char_p(os.fsencode(PATH))
        os.set_inheritable(report, True)
        python = ctypes.pythonapi
        python.PyOS_BeforeFork()
        pid: int = self._fork_in_c(path, words, nothing, self._tid)
        if pid == 0:
            self._threads.register()
            python.PyOS_AfterFork_Child()
        else:
            python.PyOS_AfterFork_Parent()
        os.set_inheritable(report, False)
        if pid < 0:
            raise kernel.Refused(-pid, "clone")
        return pid


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
                os.write(report, STATUS.pack(status, int(now), int(now % 1 * 1e9)))
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
