"""System calls that Python doesn't wrap, each raising OSError with the call's name."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

TYPE_CHECKING = False  # typing, and the other signal, import more than all that is needed here
if TYPE_CHECKING:
    import signal as signal
    from typing import Any
else:
    import _signal as signal  # noqa: F401 - for other modules

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
TMPFS = MS_NOSUID | MS_NODEV  # of each that a snippet gets
MNT_DETACH = 2

MOUNT_ATTRIBUTES = struct.Struct("=4Q")  # to set, to clear, propagation, user namespace
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_IDMAP = 0x00100000

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECBITS_ALL_LOCKED = 0xEF  # no root fixup, no setuid fixup, no keepcaps, no ambient; all locked

AT_FDCWD = -100
OPEN_HOW, RESOLVE_NO_MAGICLINKS = struct.Struct("=3Q"), 2
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4

LAST_SIGNAL = 64
CAPABILITY_HEADER, CAPABILITY_SETS_BYTES = struct.pack("=Ii", 0x20080522, 0), 24  # version 3
SIGACTION_BYTES = 32
CLOCK_MONOTONIC = 1
O_READ, O_WRITE = os.O_RDONLY | os.O_CLOEXEC, os.O_WRONLY | os.O_CLOEXEC

# Numbers shared by every architecture from 424 on; the rest by machine.
SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
SYS_PIDFD_OPEN = 434
SYS_RSEQ = 334  # on x86_64
RSEQ_SIGNATURE = 0x53053053
RSEQ_CPU_AT, RSEQ_FAILED = 4, -2  # what tells the C library to do without
# By machine: x86_64, aarch64.
_NUMBERS = {
    "capget": (125, 90),
    "capset": (126, 91),
    "clock_gettime": (228, 113),
    "close": (3, 57),
    "dup3": (292, 24),
    "execve": (59, 221),
    "fchdir": (81, 50),
    "fchmodat": (268, 53),
    "memfd_create": (319, 279),
    "mkdirat": (258, 34),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "openat": (257, 56),
    "openat2": (437, 437),
    "ppoll": (271, 73),
    "pivot_root": (155, 41),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "rt_sigaction": (13, 134),
    "seccomp": (317, 277),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "setsid": (112, 157),
    "umask": (95, 166),
    "unshare": (272, 97),
    "utimensat": (280, 88),
    "write": (1, 64),
}
_MACHINES = ("x86_64", "aarch64")
_MACHINE = os.uname().machine

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(OSError):
    """A system call that failed; `call` says which."""

    def __init__(self, number: int, call: str) -> None:
        OSError.__init__(self, number, "%s: %s" % (call, os.strerror(number)))
        self.call = call


def _check(result: int, call: str) -> int:
    if result == -1:
        raise Refused(ctypes.get_errno(), call)
    return result


def machine() -> str:
    return _MACHINE


def number_of(name: str) -> int:
    if machine() not in _MACHINES:
        raise Refused(errno.ENOSYS, "%s on %s" % (name, machine()))
    return _NUMBERS[name][_MACHINES.index(machine())]


def call(name: str, *args: Any) -> tuple[int, int]:
    """A system call's result, and its errno or 0. Integers, bytes and ctypes' arrays are passed."""
    passed = [ctypes.c_long(one) if isinstance(one, int) else one for one in args]
    nothing = [ctypes.c_long(0)] * (6 - len(args))
    result: int = _libc.syscall(number_of(name), *passed, *nothing)
    return result, ctypes.get_errno() if result == -1 else 0


def unshare(flags: int) -> None:
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare(0x%x)" % flags)


def setns(fd: int, kind: int) -> None:
    _check(_libc.syscall(number_of("setns"), fd, kind), "setns")


def umount(target: str) -> None:
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), "umount2(%s)" % target)


def pivot_root(new_root: str) -> None:
    """Make `new_root` the root and let go of the old one."""
    os.chdir(new_root)
    _check(_libc.syscall(number_of("pivot_root"), b".", b"."), "pivot_root(%s)" % new_root)
    umount(".")
    os.chdir("/")


def prctl(option: int, argument: int = 0, argument3: int = 0) -> int:
    ulong = ctypes.c_ulong
    result = _libc.prctl(
        ctypes.c_int(option), ulong(argument), ulong(argument3), ulong(0), ulong(0)
    )
    return _check(result, "prctl(%d)" % option)


def fork_address() -> int:
    """Where the C library's own fork is."""
    return ctypes.cast(_libc.fork, ctypes.c_void_p).value or 0


def is_new_glibc() -> bool:
    """Whether this is the GNU C library, of a version in which a fork may have its parent's id."""
    try:
        version = _libc.gnu_get_libc_version
    except AttributeError:
        return False
    version.restype = ctypes.c_char_p
    try:
        major, minor = version().split(b".")[:2]
        return (int(major), int(minor)) >= (2, 26)
    except ValueError:
        return False


class Sequences:
    """The restartable sequences of a thread, which what borrows memory loses; for x86_64."""

    def __init__(self) -> None:
        self._at = 0
        try:
            is_used = ctypes.c_uint.in_dll(_libc, "__rseq_size").value
            offset = ctypes.c_ssize_t.in_dll(_libc, "__rseq_offset").value
        except ValueError:
            return  # glibc before 2.35
        if is_used:
            _libc.pthread_self.restype = ctypes.c_void_p  # where the thread pointer points to
            self._at = _libc.pthread_self() + offset

    def register(self) -> None:
        """Register them again."""
        if self._at and _libc.syscall(SYS_RSEQ, ctypes.c_void_p(self._at), 32, 0, RSEQ_SIGNATURE):
            ctypes.c_int.from_address(self._at + RSEQ_CPU_AT).value = RSEQ_FAILED


def make_executable(address: int, size: int) -> None:
    """Have memory read and executed, no longer written to."""
    result = _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_int(5))
    _check(result, "mprotect(PROT_READ | PROT_EXEC)")


def open_plainly(path: str, flags: int) -> int:
    """Open without following links that lead to what a process has open (Linux 5.6 on)."""
    if "\0" in path:
        raise ValueError("embedded null byte")
    how = OPEN_HOW.pack(flags, 0, RESOLVE_NO_MAGICLINKS)
    fd, error = call("openat2", AT_FDCWD, os.fsencode(path), how, len(how))
    if error in (errno.ENOSYS, errno.EPERM):  # an old kernel, or what has never heard of it
        return os.open(os.path.realpath(path), flags)
    if error:
        raise Refused(error, "open(%s)" % path)
    return fd


def pidfd_open(pid: int) -> int:
    return _check(_libc.syscall(SYS_PIDFD_OPEN, pid, 0), "pidfd_open")


def above(fd: int, lowest: int) -> int:
    """A copy of a descriptor with a number from `lowest` on."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD, lowest)


def memfd(size: int) -> int:
    """A file of `size` bytes that only its descriptor leads to."""
    fd = _check(_libc.syscall(number_of("memfd_create"), b"mlbench", 0), "memfd_create")
    os.ftruncate(fd, size)
    return fd


def bind_idmapped(source: str, target: str, userns_fd: int) -> None:
    """Bind `source` on `target` with owners translated by the user namespace behind the fd."""
    tree = _check(
        _libc.syscall(
            SYS_OPEN_TREE,
            AT_FDCWD,
            os.fsencode(source),
            ctypes.c_uint(OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC),
        ),
        "open_tree(%s)" % source,
    )
    try:
        wanted = MOUNT_ATTRIBUTES.pack(MOUNT_ATTR_IDMAP, 0, 0, userns_fd)
        _, error = call("mount_setattr", tree, b"", AT_EMPTY_PATH, wanted, len(wanted))
        if error:
            raise Refused(error, "mount_setattr(%s)" % target)
        result = _libc.syscall(
            SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH
        )
        _check(result, "move_mount(%s)" % target)
    finally:
        os.close(tree)


def default_signals() -> None:
    """Give every signal its default action, the C library's two among them.

    Those can't be set through the library, and whoever started us may have left them ignored.
    """
    number = number_of("rt_sigaction")
    action = ctypes.create_string_buffer(SIGACTION_BYTES)  # all zeros: SIG_DFL, no flags, no mask
    for signum in range(1, LAST_SIGNAL + 1):
        _libc.syscall(number, signum, action, None, ctypes.c_size_t(8))  # not for KILL and STOP


def keep_capabilities() -> None:
    """Let the program that this process executes next have every capability it has itself."""
    header = ctypes.create_string_buffer(CAPABILITY_HEADER, len(CAPABILITY_HEADER))
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then their upper halves
    _check(_libc.syscall(number_of("capget"), header, sets), "capget")
    for half in (0, 3):
        sets[half + 2] = sets[half + 1]
    _check(_libc.syscall(number_of("capset"), header, sets), "capset")
    for capability in range(count_capabilities()):
        if sets[1 + 3 * (capability // 32)] & (1 << capability % 32):
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)


def count_capabilities() -> int:
    """How many this kernel has: they have the numbers from 0 on."""
    count = 0
    while _libc.prctl(PR_CAPBSET_READ, ctypes.c_ulong(count), 0, 0, 0) >= 0:
        count += 1
    return count
