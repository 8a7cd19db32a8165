"""The program's side: from fork to exec, giving up everything on the way.

Nested level: its surroundings were made before, with an init that is its parent.
"""

from __future__ import annotations

import errno
import os
import resource
import time

from mlbench_exec.agent import kernel
from mlbench_exec.agent.kernel import signal

TYPE_CHECKING = False  # a warm interpreter has this module, and needs no more than it
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from mlbench_exec.agent.world import World

# A snippet's own, beside those of its processes and users; by their names in /proc/self/ns.
NAMESPACES = {
    "mnt": kernel.CLONE_NEWNS,
    "ipc": kernel.CLONE_NEWIPC,
    "uts": kernel.CLONE_NEWUTS,
}
HIDDEN = "/.mlbench"  # where a sandbox's root has what is ours
# What is said on the report: when it started, or why it didn't.
STARTED, UNUSABLE, FAILED = "started", "unusable", "failed"
SCRIPT = "temp.py"
NOT_EXECUTABLE = 126
# By the agent; the last two by any Python.
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ)
MAX_PENDING_SIGNALS = 4096
MAX_MESSAGE_QUEUE_BYTES = 819200  # what Linux gives by default


class Unusable(Exception):
    """The environment isn't there: the message says what is missing."""


class Program:
    """What to run: argv's first word is looked up on the environment's PATH."""

    def __init__(
        self,
        language: str,
        code: bytes,
        cwd: str,
        workdir: str,
        variables: dict[str, str],
        python: str | None,
        mended: str | None,
    ) -> None:
        self.language = language
        self.code = code
        self.cwd = cwd
        self.workdir = workdir
        self.variables = variables
        self.python = python
        self.mended = mended

    def command(self) -> tuple[str, list[str | bytes]]:
        if self.language == "bash":
            return which("bash", self.variables), ["bash", "-c", self.code]
        path = self.python or which("python", self.variables)
        name = "python" if os.path.basename(path) == "python" else path
        return path, [name, SCRIPT]


def which(name: str, variables: dict[str, str]) -> str:
    for folder in variables.get("PATH", os.defpath).split(":"):
        path = os.path.join(folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise Unusable("there is no %s on the environment's PATH (%s)" % (name, variables.get("PATH")))


def become(
    world: World, program: Program, limits: dict[str, Any], out: int, err: int, report: int
) -> NoReturn:
    """In a fork: become the snippet."""
    try:
        outer_proc = None
        if world.nested:
            be_first_to_go()
            outer_proc = mount_proc()
        else:
            prepare_folder(program)
        settle(program, out, err)
        path, argv = program.command()
        confine(world, limits, outer_proc)
        tell(report, STARTED, time.monotonic())
        try:
            os.execve(path, argv, program.variables)
        except (OSError, ValueError) as error:
            os.write(2, _why_not_started(program, path, error))
        os._exit(NOT_EXECUTABLE)
    except Unusable as error:
        tell(report, UNUSABLE, str(error))
    except BaseException as error:  # noqa: BLE001 - the parent must hear of anything at all
        tell(report, FAILED, "%s: %s" % (type(error).__name__, error))
    finally:
        os._exit(1)


def tell(report: int, word: str, *said: object) -> None:
    """One line of words to the agent: of text, for it comes from beside a snippet."""
    line = " ".join(str(one) for one in (word, *said)).replace("\n", " ")
    os.write(report, line.encode("utf-8", "replace") + b"\n")


def mount_proc() -> int:
    """Mount the snippet's own /proc; return the fd of the one that it covers.

    Read-only: /proc/sys obeys the user id, not capabilities.
    """
    outer = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("proc", "/proc", "proc", flags)
    return outer


def settle(program: Program, out: int, err: int) -> None:
    """A session of its own, the snippet's folder, and its three streams."""
    os.umask(0o022)
    os.setsid()
    os.chdir(program.cwd)
    stdin = os.open("/dev/null", os.O_RDONLY)
    for source, target in ((stdin, 0), (out, 1), (err, 2)):
        os.dup2(source, target)


def prepare_folder(program: Program) -> None:
    """Write the snippet's script; `Unusable` where its folder isn't there."""
    if not os.path.isdir(program.cwd):
        raise Unusable("there is no folder %s in the sandbox" % program.cwd)
    os.umask(0o022)
    if program.language != "python":
        return
    path = os.path.join(program.cwd, SCRIPT)
    try:
        os.unlink(path)  # whatever the repository has there, a link or a FIFO included
    except FileNotFoundError:
        pass
    with open(path, "wb") as file:
        file.write(program.code)


def confine(
    world: World,
    limits: dict[str, Any],
    outer_proc: int | None,
    signals: bool = True,
    beside: int = 0,
) -> None:
    """Take on the snippet's limits and give up every right, for all that is executed from here on.

    `signals` says whether what the agent ignores is set back. `beside` processes are ours, and
    counted with the snippet's.
    """
    if world.nested:
        kernel.unshare(kernel.CLONE_NEWUSER)
        map_user(world.inner_uid, world.uid, world.inner_gid, world.gid, outer_proc)
    else:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        be_first_to_go()
    _set_rlimits(world, limits, beside)
    if signals:
        for number in IGNORED:
            signal.signal(number, signal.SIG_DFL)
    kernel.drop_capabilities(bounding=world.nested)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if world.filter:
        kernel.install_filter(world.filter)


def be_first_to_go() -> None:
    """When memory runs out, before anything else on this machine."""
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(fd, b"1000")
    os.close(fd)


def _why_not_started(program: Program, path: str, error: Exception) -> bytes:
    """What a program that can't be executed says; `Unusable` where its interpreter is missing."""
    if isinstance(error, OSError) and error.errno == errno.ENOENT:
        raise Unusable("%s can't be started: %s" % (path, error.strerror)) from None
    if isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.ENOMEM):
        raise error  # for want of processes or memory, which is not the program's doing
    why = error.strerror if isinstance(error, OSError) else error  # a NUL byte in a bash snippet
    return ("mlbench-exec: %s: %s\n" % (program.language, why)).encode()


def map_user(
    inner_uid: int, uid: int, inner_gid: int, gid: int, proc_fd: int | None = None
) -> None:
    """Map one user and one group of this process's new user namespace to those outside."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", "%d %d 1" % (inner_uid, uid)),
        ("gid_map", "%d %d 1" % (inner_gid, gid)),
    ):
        path = "self/" + name if proc_fd is not None else "/proc/self/" + name
        fd = os.open(path, os.O_WRONLY, dir_fd=proc_fd)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _set_rlimits(world: World, limits: dict[str, Any], beside: int) -> None:
    def lower(kind: int, value: int) -> None:
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(kind, (value, value))

    lower(resource.RLIMIT_CORE, 1)  # 0 would still feed a piped core_pattern
    lower(resource.RLIMIT_NOFILE, limits["files"])
    # Counted by user id, so they are shared with whoever has the same one on this machine.
    lower(resource.RLIMIT_SIGPENDING, MAX_PENDING_SIGNALS)
    lower(resource.RLIMIT_MSGQUEUE, MAX_MESSAGE_QUEUE_BYTES)
    if world.nproc and limits["pids"]:
        lower(resource.RLIMIT_NPROC, limits["pids"] + beside)
    if limits["memory"] and not world.counters.has_memory:
        lower(resource.RLIMIT_DATA, limits["memory"])
