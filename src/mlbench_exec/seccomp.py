"""Seccomp: the system calls that a snippet, and its container, may make.

The snippet's filter lets everything through but a list, since a benchmark's programs call what
they like; the container's profile lets nothing through but a list, since Docker's kind are lists
of what is allowed and ours has to work where the snippet's filter is not set.
"""

import errno
import json
import struct
import sys
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from itertools import groupby
from operator import itemgetter
from typing import Any

from mlbench_exec.errors import InputError

__all__ = ["MACHINES", "container_profile", "snippet_filter"]

MACHINES: Mapping[str, int] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # to AUDIT_ARCH_*

_CLONE_NEW = 0x7E020000  # the flags of every namespace that clone makes; time's is unshare's alone
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, 32-bit, Linux 2.6, or: tell me
_TIOCSTI, _TIOCLINUX, _TIOCSETD = 0x5412, 0x541C, 0x5423
_F_SETLEASE, _F_NOTIFY = 1024, 1026  # a lease makes whoever opens the file wait
_SET_ID = 0o4000  # in a writable mount a set-user-id file would outlive the sandbox
_MAKES_FILE = 0x400040  # O_CREAT, O_TMPFILE: only then does open look at a mode
# What a process may do to itself and its children, but not to pid 1: that may be the agent.
_OF_PROCESS = (
    "prlimit64",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setparam",
    "sched_setscheduler",
)
_PR_SCHED_CORE = 62  # would keep others off the sibling of its core
_MAP_HUGETLB, _MFD_HUGETLB = 0x40000, 0x4  # a pool that no limit of a sandbox counts
_FAMILIES = _AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_TYPE_MASK = 1, 2, 0xF
_PROTOCOLS = (0, 1, 6, 17, 58)  # the type's own, ICMP (as datagrams: ping), TCP, UDP, ICMPv6
_NETLINK_ROUTE = 0  # libc lists the interfaces with it; nobody changes them without capabilities


def snippet_filter(machine: str) -> bytes:
    """The BPF program (struct sock_filter, little endian) that a snippet runs under.

    `machine` is what uname says; raises `InputError` for one without a table. A refused call
    fails with EPERM, or with what says best to a library that it should do without: ENOSYS,
    EAFNOSUPPORT, EPROTONOSUPPORT. A call of another architecture kills the process.
    """
    if machine not in MACHINES:
        raise InputError(
            f"no seccomp filter for machine {machine!r}: use one of {', '.join(MACHINES)}"
        )
    decisions = _decisions(machine)
    starts = sorted({0} | set(decisions) | {number + 1 for number in decisions})
    ranges = [(start, decisions.get(start, _ALLOW)) for start in starts]
    # What is too new to be known, and on x86_64 the x32 calls, numbered from 0x40000000.
    ranges.append((_table()["newest"] + 1, _fail(errno.ENOSYS)))
    # Neighbours of one kind are one range: the kernel compiles this for each snippet.
    ranges = [next(alike) for _, alike in groupby(ranges, key=itemgetter(1))]
    program = [
        *_load(_ARCH),
        *_if_any(_EQUAL, [MACHINES[machine]], [*_load(_NUMBER), *_search(ranges)], _KILL),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def container_profile() -> dict[str, Any]:
    """The profile of an agent's container, as Docker's `--security-opt seccomp=FILE` reads it.

    It lets the agent make namespaces and mounts: the kernel asks for capabilities in a user
    namespace of one's own there, and a snippet has its filter besides. `clone3`, whose flags no
    filter can see, may pass for that reason; a profile that checks clone's must answer ENOSYS.
    """
    table = _table()
    return {
        # An unknown call looks absent, so that libc falls back on an older one. (Docker 20.10
        # overlooks the number and gives EPERM, but ENOSYS for calls newer than all that we name.)
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "archMap": [  # without sub-architectures: a 32-bit or x32 call kills its thread
            {"architecture": f"SCMP_ARCH_{machine.upper()}", "subArchitectures": []}
            for machine in MACHINES
        ],
        "syscalls": [
            _rule(table["ordinary"]["names"]),
            _rule(table["agent_only"]),
            *(_rule(["personality"], value) for value in _PERSONALITIES),
            *(_rule(["socket", "socketpair"], family) for family in _FAMILIES),
            {
                "names": sorted(table["refused"]),
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": errno.EPERM,
            },
        ],
    }


def _rule(names: Iterable[str], first_argument: int | None = None) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": sorted(names), "action": "SCMP_ACT_ALLOW"}
    if first_argument is not None:  # an int: a register's upper half is not part of it
        low_word = {"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0xFFFFFFFF}
        rule["args"] = [low_word | {"valueTwo": first_argument}]
    return rule


@cache
def _table() -> dict[str, Any]:
    text = resources.files("mlbench_exec").joinpath("syscalls.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


# The filter is put together from pieces of code that always return, so each can stand anywhere.

_Code = list[tuple[int, int, int, int]]  # each a struct sock_filter: code, jt, jf, k

_LOAD_WORD, _AND, _RETURN = 0x20, 0x54, 0x06
_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW: _Code = [(_RETURN, 0, 0, 0x7FFF0000)]
_KILL: _Code = [(_RETURN, 0, 0, 0x80000000)]  # the whole process


def _fail(number: int) -> _Code:
    return [(_RETURN, 0, 0, 0x00050000 | number)]


def _load(offset: int) -> _Code:
    return [(_LOAD_WORD, 0, 0, offset)]


def _argument(index: int) -> _Code:
    """Load an argument's low word; the kernel takes each that is checked here for 32 bits."""
    return _load(_ARGUMENTS + 8 * index)


def _if_any(test: int, values: Iterable[int], then: _Code, otherwise: _Code) -> _Code:
    """Go on with `then` where the test holds for one of the values. `otherwise` lies between,
    and a jump reaches 255 instructions."""
    ordered = list(values)
    last = len(ordered) - 1
    tests = [(test, last - i + len(otherwise), 0, value) for i, value in enumerate(ordered)]
    return [*tests, *otherwise, *then]


def _search(ranges: list[tuple[int, _Code]]) -> _Code:
    """Find the range that the loaded number is in by halving; each has its start and code."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    upper, lower = _search(ranges[middle:]), _search(ranges[:middle])
    return _if_any(_AT_LEAST, [ranges[middle][0]], upper, lower)


def _decisions(machine: str) -> dict[int, _Code]:
    """What to do with each call that isn't simply allowed, by number."""
    table = _table()
    special = _special()
    found = {}
    for section in ("agent_only", "refused", "checked"):
        for name, numbers in table[section].items():
            number = numbers if isinstance(numbers, int) else numbers.get(machine)
            if number is not None:
                found[number] = special[name] if section == "checked" else _fail(errno.EPERM)
    return found


def _special() -> dict[str, _Code]:
    refuse = _fail(errno.EPERM)
    socket = _socket()
    return {
        "clone": [*_argument(0), *_if_any(_ANY_BIT, [_CLONE_NEW], refuse, _ALLOW)],
        "clone3": _fail(errno.ENOSYS),  # its flags lie in memory; libc falls back on clone
        "ioctl": [
            *_argument(1),
            *_if_any(_EQUAL, [_TIOCSTI, _TIOCLINUX, _TIOCSETD], refuse, _ALLOW),
        ],
        "fcntl": [*_argument(1), *_if_any(_EQUAL, [_F_SETLEASE, _F_NOTIFY], refuse, _ALLOW)],
        **{n: [*_argument(0), *_if_any(_EQUAL, [1], refuse, _ALLOW)] for n in _OF_PROCESS},
        "setpriority": _kind_and_process(2, refuse),
        "ioprio_set": _kind_and_process(3, refuse),
        "chmod": _mode(1),
        "fchmod": _mode(1),
        "fchmodat": _mode(2),
        "fchmodat2": _mode(2),
        "creat": _mode(1),
        "mknod": _mode(1),
        "mknodat": _mode(2),
        "open": _mode_if_made(1),
        "openat": _mode_if_made(2),
        "openat2": _fail(errno.ENOSYS),  # its mode lies in memory; nobody needs it
        "personality": [*_argument(0), *_if_any(_EQUAL, _PERSONALITIES, _ALLOW, refuse)],
        "prctl": [*_argument(0), *_if_any(_EQUAL, [_PR_SCHED_CORE], refuse, _ALLOW)],
        "mmap": [*_argument(3), *_if_any(_ANY_BIT, [_MAP_HUGETLB], _fail(errno.ENOMEM), _ALLOW)],
        "memfd_create": [
            *_argument(1),
            *_if_any(_ANY_BIT, [_MFD_HUGETLB], _fail(errno.ENOMEM), _ALLOW),
        ],
        # They would flush the machine's disks, and what a snippet wrote is gone with it anyway.
        "sync": _fail(0),
        "syncfs": _fail(0),
        "socket": socket,
        "socketpair": socket,
    }


def _kind_and_process(user: int, refuse: _Code) -> _Code:
    """Not of pid 1, nor of all that a user has, which is said by the kind `user`."""
    whose = [*_argument(1), *_if_any(_EQUAL, [1], refuse, _ALLOW)]
    return [*_argument(0), *_if_any(_EQUAL, [user], refuse, whose)]


def _mode(index: int) -> _Code:
    """Refuse a mode with the set-user-id bit."""
    return [*_argument(index), *_if_any(_ANY_BIT, [_SET_ID], _fail(errno.EPERM), _ALLOW)]


def _mode_if_made(index: int) -> _Code:
    """The same for open, whose mode counts only where a file may be made."""
    return [*_argument(index), *_if_any(_ANY_BIT, [_MAKES_FILE], _mode(index + 1), _ALLOW)]


def _socket() -> _Code:
    """Unix sockets; TCP and UDP, but nothing raw; and to ask for the network's interfaces."""
    protocol = _fail(errno.EPROTONOSUPPORT)
    internet = [
        *_argument(1),
        (_AND, 0, 0, _SOCK_TYPE_MASK),
        *_if_any(
            _EQUAL,
            [_SOCK_STREAM, _SOCK_DGRAM],
            [*_argument(2), *_if_any(_EQUAL, _PROTOCOLS, _ALLOW, protocol)],
            _fail(errno.EPERM),
        ),
    ]
    netlink = [*_argument(2), *_if_any(_EQUAL, [_NETLINK_ROUTE], _ALLOW, protocol)]
    family = _if_any(_EQUAL, [_AF_NETLINK], netlink, _fail(errno.EAFNOSUPPORT))
    family = _if_any(_EQUAL, [_AF_INET, _AF_INET6], internet, family)
    return [*_argument(0), *_if_any(_EQUAL, [_AF_UNIX], _ALLOW, family)]


def main() -> None:
    """Write the container's profile to stdout, as backends/docker_seccomp.json holds it."""
    sys.stdout.write(json.dumps(container_profile(), indent=2) + "\n")


if __name__ == "__main__":
    main()
