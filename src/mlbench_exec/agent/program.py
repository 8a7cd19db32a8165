"""The program's side: from fork to exec, giving up everything on the way.

Nested level: an init, pid 1 of namespaces that were made for it, gives up everything, starts
python or bash, and reaps. Fresh level: there is no init.
"""

from __future__ import annotations

import errno
import gc
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
STARTED, ENDED = "started", "ended"  # what is said on the report: when, and how and when
UNUSABLE, FAILED = "unusable", "failed"  # why
SCRIPT = "temp.py"
NOT_EXECUTABLE = 126
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
    """In a fork: become the snippet's init, or at the fresh level the snippet itself."""
    try:
        if world.nested:
            _init(world, program, limits, out, err, report)
        else:
            _program(world, program, limits, out, err, report)
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


def _init(
    world: World, program: Program, limits: dict[str, Any], out: int, err: int, report: int
) -> NoReturn:
    """Pid 1 of the snippet's namespaces: start the program, reap.

    It gives up everything itself, and what it starts inherits that: starting a program then needs
    no second copy of this process. Only one capability stays in its permitted set, so that the
    program, which has none, may not trace it; exec doesn't hand it on.
    """
    gc.disable()
    be_first_to_go()
    outer_proc = mount_proc()
    os.chdir(program.cwd)
    path, argv = program.command()
    nothing = os.open("/dev/null", os.O_RDONLY)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    confine(world, limits, outer_proc, signals=False, beside=1, keep=kernel.CAP_LEASE)
    os.close(outer_proc)
    tell(report, STARTED, time.monotonic())
    try:
        pid = _start(path, argv, program.variables, (nothing, out, err))
    except (OSError, ValueError) as error:
        os.write(err, _why_not_started(program, path, error))
        tell(report, ENDED, NOT_EXECUTABLE << 8, time.monotonic())
        pid = -1
    os.close(out)
    os.close(err)
    reap(pid, report)


def mount_proc() -> int:
    """Mount the snippet's own /proc; return the fd of the one that it covers.

    Read-only: /proc/sys obeys the user id, not capabilities.
    """
    outer = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("proc", "/proc", "proc", flags)
    return outer


def reap(pid: int, report: int) -> NoReturn:
    """Wait for every process, for ever; report the end of `pid`."""
    while True:
        try:
            ended, status = os.waitpid(-1, 0)
        except ChildProcessError:
            signal.pause()
            continue
        if ended == pid:
            tell(report, ENDED, status, time.monotonic())


def _start(
    path: str, argv: list[str | bytes], variables: dict[str, str], streams: tuple[int, int, int]
) -> int:
    """Start the program in a session of its own; OSError or ValueError if it can't be."""
    try:
        return kernel.spawn(path, argv, variables, streams)
    except NotImplementedError:
        pass
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kernel.default_signals()
            os.setsid()
            for target, fd in enumerate(streams):
                os.dup2(fd, target)
            os.execve(path, argv, variables)
        except OSError as error:
            os.write(tell, b"%d" % (error.errno or errno.EIO))
        finally:
            os._exit(NOT_EXECUTABLE)
    os.close(tell)
    number = os.read(told, 16)  # nothing once the program runs: its exec has closed `tell`
    os.close(told)
    if number:
        raise OSError(int(number), os.strerror(int(number)))
    return pid


def _program(
    world: World, program: Program, limits: dict[str, Any], out: int, err: int, report: int
) -> NoReturn:
    """Fresh level: this process becomes the snippet."""
    prepare_folder(program)
    settle(program, out, err)
    path, argv = program.command()
    confine(world, limits, None)
    tell(report, STARTED, time.monotonic())
    try:
        os.execve(path, argv, program.variables)
    except (OSError, ValueError) as error:
        os.write(2, _why_not_started(program, path, error))
    os._exit(NOT_EXECUTABLE)


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
    keep: int | None = None,
) -> None:
    """Take on the snippet's limits and give up every right, for all that is executed from here on.

    `signals` says whether their actions are set back. `beside` processes of ours are counted with
    the snippet's. `keep` is a capability that stays permitted.
    """
    if world.nested:
        kernel.unshare(kernel.CLONE_NEWUSER)
        map_user(world.inner_uid, world.uid, world.inner_gid, world.gid, outer_proc)
    else:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        be_first_to_go()
    _set_rlimits(world, limits, beside)
    if signals:
        kernel.default_signals()
    kernel.drop_capabilities(bounding=world.nested, keep=keep)
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
