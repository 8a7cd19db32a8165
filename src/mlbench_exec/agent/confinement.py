"""Steps into namespaces, and those that take limits on and rights away."""

from __future__ import annotations

import ctypes
import os
import resource
import struct

from mlbench_exec.agent import kernel
from mlbench_exec.agent.kernel import signal
from mlbench_exec.agent.steps import Step, Steps, address, writing

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any

# A snippet's own, beside those of its processes and users; by their names in /proc/self/ns.
NAMESPACES = {
    "mnt": kernel.CLONE_NEWNS,
    "ipc": kernel.CLONE_NEWIPC,
    "uts": kernel.CLONE_NEWUTS,
}
# Ignored by the agent; the last two by any Python.
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ)
MAX_PENDING_SIGNALS = 4096
MAX_MESSAGE_QUEUE_BYTES = 819200  # what Linux gives by default


def confined(world: Any, limits: dict[str, Any], beside: int, proc: int, has_python: bool) -> Steps:
    """The snippet's limits, and every right given up, for all that is executed from here on.

    `beside` processes are ours, and counted with the snippet's. `proc` is a descriptor of the /proc
    that it can still be found in. `has_python` says that this process goes on as a Python, which
    sets signals itself.
    """
    steps = Steps()
    if world.nested:
        steps += Steps(Step("unshare", kernel.CLONE_NEWUSER, said="unshare(CLONE_NEWUSER)"))
        steps += user_mapped(world.inner_uid, world.uid, world.inner_gid, world.gid, proc)
    steps += limited(world, limits, beside)
    if not has_python:
        nothing = bytes(kernel.SIGACTION_BYTES)
        steps += Steps(*[Step("rt_sigaction", one, nothing, 0, 8) for one in IGNORED])
    steps += capabilities_dropped(bounding=world.nested)
    steps += Steps(prctl(kernel.PR_SET_NO_NEW_PRIVS, 1))
    return steps + filtered(world.filter) if world.filter else steps


def entered(namespaces: list[int]) -> Steps:
    return Steps(*[Step("setns", fd, kind) for fd, kind in zip(namespaces, NAMESPACES.values())])


def pid_namespace(own: int) -> Steps:
    """For the next fork to be pid 1 of a new namespace below that behind `own`.

    A process makes one child namespace only, unless it points back to its own first.
    """
    return Steps(
        Step("setns", own, kernel.CLONE_NEWPID),
        Step("unshare", kernel.CLONE_NEWPID, said="unshare(CLONE_NEWPID)"),
    )


def peak_forgotten() -> Steps:
    """This process's peak of memory, which whoever borrows it has for its own after an exec."""
    path = "/proc/self/clear_refs"
    return writing(kernel.AT_FDCWD, path, b"5") if os.path.exists(path) else Steps()


def user_mapped(
    inner_uid: int, uid: int, inner_gid: int, gid: int, proc: int = kernel.AT_FDCWD
) -> Steps:
    """One user and one group of this process's new user namespace mapped to those outside.

    `proc` is a descriptor of a /proc that this process isn't in, where it has left its own.
    """
    folder = "/proc/self/" if proc == kernel.AT_FDCWD else "self/"
    return (
        writing(proc, folder + "setgroups", b"deny")
        + writing(proc, folder + "uid_map", b"%d %d 1" % (inner_uid, uid))
        + writing(proc, folder + "gid_map", b"%d %d 1" % (inner_gid, gid))
    )


def prctl(option: int, argument: int = 0, argument3: int = 0) -> Step:
    return Step("prctl", option, argument, argument3, 0, 0, said="prctl(%d)" % option)


def capabilities_dropped(bounding: bool) -> Steps:
    """Every capability given up; with `bounding`, also the means to get one by an exec.

    Without CAP_SETPCAP (a container's process) `bounding` is out of reach: no_new_privs then
    keeps an exec from gaining what the process no longer has.
    """
    steps = [prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)]
    if bounding:
        steps.append(prctl(kernel.PR_SET_SECUREBITS, kernel.SECBITS_ALL_LOCKED))
        for capability in range(kernel.count_capabilities()):
            steps.append(prctl(kernel.PR_CAPBSET_DROP, capability))
    nobodys = kernel.CAPABILITY_HEADER, bytes(kernel.CAPABILITY_SETS_BYTES)
    return Steps(*steps, Step("capset", *nobodys))


def filtered(program: bytes) -> Steps:
    """A seccomp filter, given as the bytes of a BPF program; no_new_privs must be on."""
    instructions = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // 8, address(instructions))
    step = Step("seccomp", 1, 0, ctypes.create_string_buffer(described, len(described)))
    return Steps(step, kept=(instructions,))


def limited(world: Any, limits: dict[str, Any], beside: int) -> Steps:
    """Its rlimits. `beside` processes are ours, and counted with the snippet's."""

    def lower(kind: int, value: int) -> Step:
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        both = ctypes.create_string_buffer(struct.pack("=QQ", value, value), 16)
        return Step("prlimit64", 0, kind, both, said="setrlimit(%d)" % kind)

    steps = [
        lower(resource.RLIMIT_CORE, 1),  # 0 would still feed a piped core_pattern
        lower(resource.RLIMIT_NOFILE, limits["files"]),
        # Counted by user id, so they are shared with whoever has the same one on this machine.
        lower(resource.RLIMIT_SIGPENDING, MAX_PENDING_SIGNALS),
        lower(resource.RLIMIT_MSGQUEUE, MAX_MESSAGE_QUEUE_BYTES),
    ]
    if world.nproc and limits["pids"]:
        steps.append(lower(resource.RLIMIT_NPROC, limits["pids"] + beside))
    if limits["memory"] and not world.counters.has_memory:
        steps.append(lower(resource.RLIMIT_DATA, limits["memory"]))
    return Steps(*steps)
