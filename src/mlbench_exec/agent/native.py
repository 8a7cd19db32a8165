"""Machine code for what Python can't do: return twice from one call, and run in borrowed memory.

It is what is left of a fork without a copy: see `pid1`, and docs/decisions/0006-machine-code.md.
"""

from __future__ import annotations

import ctypes
import mmap

from mlbench_exec.agent import kernel
from mlbench_exec.agent.steps import STEP, Steps

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from mlbench_exec.agent.steps import Failure, Step

# Two functions for x86_64: long fork_below(Place *), and long work_off(Place *).
CODE = bytes.fromhex(
    "f30f1efa"  # fork_below: endbr64
    "53 55 4154 4155 4156"  # push rbx, rbp, r12, r13, r14
    "4889fb 31ed"  # rbx, ebp = place, 0
    "4c8b6360 4c8b7368 e8fd000000"  # run place.before
    "483d00f0ffff 0f87cf000000"  # an error: stopped
    "488b7b58"  # rdi = place.init_flags
    "31f6 31d2 4531d2 4531c0"  # esi = edx = r10d = r8d = 0
    "b838000000 0f05 4889c5"  # rbp = clone: an init, which borrows this memory
    "4885c0 0f88c7000000 742a"  # an error: to the end with it; in the init: below
    "48837b4800 0f85ba000000"  # where place.lost: to the end with its pid
    "488b8b80000000 488901"  # *place.pid = its pid
    "4c8b6370 4c8b7378 e8ac000000"  # run place.after
    "4889e8 e99b000000"  # to the end with its pid
    "bd01000000"  # init: ebp = 1
    "488b7b30 4885ff 7445"  # rdi = place.flags; where there are none: libc
    "4531d2 b838000000 0f05"  # r10d = 0; clone: the snippet, which borrows this memory as well
    "4885c0 7458 7824"  # forked: in it: snippet; an error: lost
    "488b7b50 be02000000 31d2 b848000000 0f05"  # fcntl(place.report, F_SETFD, 0)
    "488b3b 488b7308 488b5310"  # rdi, rsi, rdx = place.path, place.argv, place.envp
    "b83b000000 0f05"  # execve
    "48894348 bf7f000000"  # lost: place.lost, edi = rax, 127
    "b8e7000000 0f05"  # leave: exit_group(edi)
    "ff5318 b9f5ffffff 85c0 0f48c1"  # libc: eax = place.fork(), or -EAGAIN
    "4898 ebb4"  # rax = eax; to forked
    "f30f1efa 53 55 4154 4155 4156 4889fb 31ed"  # work_off: as above
    "4c8b6320 4c8b7328 e822000000"  # snippet: run place.steps
    "4c896338 48894340"  # stopped: place.stopped, place.result = r12, rax
    "85ed 740d"  # where ebp is 0: to the end with the result
    "bf7e000000 f6433101 75b3"  # in borrowed memory: leave with 126
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
WORK_OFF_AT = 0xDB
MEMORY_BYTES = 1 << 15  # of a place, and the steps behind it
MOST_ERRORS = 4095


class Place(ctypes.Structure):
    """What both functions are called with, at 8 bytes each; the code has their offsets."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("path", "argv", "envp"),  # of the init
            "fork",  # the C library's, which tells those who asked to hear of a fork
            *("steps", "steps_end"),  # the snippet's
            "flags",  # the snippet's clone's; where there are none, it is forked by `fork`
            *("stopped", "result"),  # behind which step, and what it said
            "lost",  # why an init could not fork or execute
            "report",  # a descriptor that the init is to have
            "init_flags",
            *("before", "before_end", "after", "after_end"),  # steps of the forking process
            "pid",  # where to write the init's
        )
    ]


class Code:
    """Both functions and their place. Raises OSError where they can't be had."""

    def __init__(self) -> None:
        if kernel.machine() != "x86_64":
            raise OSError("no machine code for " + kernel.machine())
        self._code = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._code[: len(CODE)] = CODE
        code = _address(self._code)
        kernel.make_executable(code, mmap.PAGESIZE)
        function = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_void_p)
        self._fork_below, self._work_off = function(code), function(code + WORK_OFF_AT)
        self._memory = mmap.mmap(-1, MEMORY_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.place = Place.from_buffer(self._memory)
        self._at = _address(self._memory)
        self._filled: tuple[Steps, Steps, Steps] = (NOTHING, NOTHING, NOTHING)

    def fork_below(self) -> int:
        self.place.stopped = self.place.result = self.place.lost = 0
        pid: int = self._fork_below(self._at)
        return pid

    def work_off(self) -> Failure | None:
        """Take the snippet's steps in this process."""
        self._work_off(self._at)
        return self.failure()

    def fits(self, steps: Steps) -> bool:
        return ctypes.sizeof(Place) + len(steps.data) <= MEMORY_BYTES

    def fill(self, before: Steps, steps: Steps, after: Steps) -> None:
        """Put the steps into their place, unless they are there; raises OSError for too many."""
        if (before, steps, after) == self._filled:
            return
        data = before.data + steps.data + after.data
        begin = ctypes.sizeof(Place)
        if begin + len(data) > MEMORY_BYTES:
            raise OSError("%d bytes of steps are too many" % len(data))
        self._memory[begin : begin + len(data)] = data
        place, at = self.place, self._at + begin
        place.before, at = at, at + len(before.data)
        place.before_end = place.steps = at
        place.steps_end = place.after = at = at + len(steps.data)
        place.after_end = at + len(after.data)
        self._filled = before, steps, after

    def failure(self) -> Failure | None:
        """What came of the steps, here or in the process that had borrowed this memory."""
        if not -MOST_ERRORS <= self.place.result < 0:
            return None
        behind = (self.place.stopped - self._at - ctypes.sizeof(Place)) // STEP.size
        listed: list[Step] = [step for steps in self._filled for step in steps.steps]
        return listed[behind - 1], -self.place.result


NOTHING = Steps()


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
