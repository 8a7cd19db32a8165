"""System calls on lists, made before they are due.

A process that borrows its parent's memory can work off such a list (see `native`), and a copy of a
Python then copies no page for it; and what was done once is done again at once. Where it isn't
known how, Python makes the same calls.
"""

from __future__ import annotations

import ctypes
import os
import struct

from mlbench_exec.agent import kernel

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any, Tuple, Union

    Argument = Union[int, bytes, "ctypes.Array[Any]"]
    Failure = Tuple["Step", int]  # and its errno

STEP = struct.Struct("=8q")  # a call's number, six arguments, and how to make it
TIMES = struct.Struct("=4q")
USES, SAVES = 1, 2  # the result saved last, as its first argument; its own result


class Step:
    """One system call. `said` is what an error calls it, `how` the sum of the above."""

    __slots__ = ("args", "call", "how", "said")

    def __init__(self, call: str, *args: Argument, how: int = 0, said: str = "") -> None:
        self.call, self.args, self.how, self.said = call, args, how, said or call

    def __repr__(self) -> str:
        return "<Step %s%r>" % (self.call, self.args)


class Steps:
    """Some of them in order, also as bytes for machine code, which hold addresses.

    They are valid as long as this is there, with `kept`, what arguments refer to.
    """

    __slots__ = ("data", "kept", "steps")

    def __init__(self, *steps: Step, kept: tuple[object, ...] = ()) -> None:
        self.steps, self.kept = steps, kept
        self.data = b"".join([_packed(step) for step in steps])

    def __add__(self, other: Steps) -> Steps:
        both = Steps(kept=self.kept + other.kept)
        both.steps, both.data = self.steps + other.steps, self.data + other.data
        return both


def _packed(step: Step) -> bytes:
    args = [one if isinstance(one, int) else address(one) for one in step.args]
    return STEP.pack(kernel.number_of(step.call), *args, *[0] * (6 - len(args)), step.how)


def address(data: bytes | ctypes.Array[Any]) -> int:
    """Where it lies for as long as it is there."""
    if isinstance(data, bytes):
        return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
    return ctypes.addressof(data)


def work_off(steps: Steps) -> Failure | None:
    """Make the calls in Python, up to the first that fails."""
    saved = 0
    for step in steps.steps:
        args = list(step.args)
        if step.how & USES:
            args[0] = saved
        result, error = kernel.call(step.call, *args)
        if error:
            return step, error
        if step.how & SAVES:
            saved = result
    return None


def do(steps: Steps) -> None:
    """Make the calls, in this process; raises `kernel.Refused` for one that fails."""
    failure = work_off(steps)
    if failure is not None:
        raise refused(failure)


def refused(failure: Failure) -> kernel.Refused:
    step, error = failure
    return kernel.Refused(error, step.said)


def writing(folder_fd: int, path: str, text: bytes) -> Steps:
    """Write to a file that is there: of `path` in the folder behind the descriptor."""
    return Steps(
        Step("openat", folder_fd, path.encode(), kernel.O_WRITE, how=SAVES, said=path),
        Step("write", 0, text, len(text), how=USES, said="write(%s)" % path),
        Step("close", 0, how=USES),
    )


def mounting(kind: str, target: str, flags: int, options: str = "") -> Step:
    names = kind.encode(), os.fsencode(target), kind.encode()
    said = "mount(%s on %s)" % (kind, target)
    return Step("mount", *names, flags, os.fsencode(options) if options else 0, said=said)


class Maker:
    """Makes mounts and folders in this process, and knows the steps that would make them again."""

    def __init__(self) -> None:
        self._made: list[Step] = []

    def steps(self) -> Steps:
        return Steps(*self._made)

    def do(self, *steps: Step) -> None:
        """Raises `kernel.Refused`, and then they aren't among its own."""
        do(Steps(*steps))
        self._made += steps

    def mount(self, kind: str, target: str, flags: int, options: str = "") -> None:
        self.do(mounting(kind, target, flags, options))

    def bind(self, source: str, target: str, recursive: bool = False) -> None:
        flags = kernel.MS_BIND | (kernel.MS_REC if recursive else 0)
        names = os.fsencode(source), os.fsencode(target)
        self.do(Step("mount", *names, 0, flags, said="mount(%s on %s)" % (source, target)))

    def set_attributes(self, target: str, attributes: int, recursive: bool = False) -> None:
        """Add to those of a mount."""
        flags = kernel.AT_RECURSIVE if recursive else 0
        wanted = kernel.MOUNT_ATTRIBUTES.pack(attributes, 0, 0, 0)
        where = kernel.AT_FDCWD, os.fsencode(target)
        said = "mount_setattr(%s)" % target
        self.do(Step("mount_setattr", *where, flags, wanted, len(wanted), said=said))

    def make_folder(self, path: str, mode: int = 0o777) -> None:
        name = os.fsencode(path)
        self.do(Step("mkdirat", kernel.AT_FDCWD, name, mode, said="mkdir(%s)" % path))

    def make_folders(self, path: str) -> None:
        """It and those above it, as far as they aren't there."""
        if not os.path.isdir(path):
            self.make_folders(os.path.dirname(path))
            self.make_folder(path)

    def make_file(self, path: str, data: bytes = b"") -> None:
        name, flags = os.fsencode(path), os.O_CREAT | os.O_EXCL | kernel.O_WRITE
        self.do(
            Step("openat", kernel.AT_FDCWD, name, flags, 0o644, how=SAVES, said=path),
            Step("write", 0, data, len(data), how=USES, said="write(%s)" % path),
            Step("close", 0, how=USES),
        )

    def set_mode(self, path: str, mode: int) -> None:
        name = os.fsencode(path)
        self.do(Step("fchmodat", kernel.AT_FDCWD, name, mode, said="chmod(%s)" % path))

    def set_times(self, path: str, accessed_ns: int, modified_ns: int) -> None:
        times = TIMES.pack(*divmod(accessed_ns, 10**9), *divmod(modified_ns, 10**9))
        name = os.fsencode(path)
        self.do(Step("utimensat", kernel.AT_FDCWD, name, times, 0, said="utime(%s)" % path))
