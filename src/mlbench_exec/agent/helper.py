"""In a bash snippet's namespaces: the process that its `python` fronts call, confined like it.

It was forked from the warm interpreter, so a fork of it is a program that finds modules imported
ahead. Whoever kills it only makes later calls start cold.
"""

from __future__ import annotations

import _socket
import io
import os
import select
import stat
import sys

from mlbench_exec.agent import front, kernel
from mlbench_exec.agent.kernel import signal

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any

# What bash and the front change by themselves, and no module reads when it is imported.
ALLOWED = {"PWD", "OLDPWD", "SHLVL", "_"}


class Call:
    """What a front sends."""

    def __init__(self, data: bytes, fds: list[int]) -> None:
        fields = data.split(b"\0")
        self.name, self.real = fields[0].decode(), os.fsdecode(fields[1])
        self.umask, self.ignored, self.group = (int(one) for one in fields[2].split())
        self.targets = [int(one) for one in fields[3].split()]
        self.fds = fds
        self.cwd, self.surroundings, count = fields[4], fields[5], int(fields[6])
        self.arguments = [os.fsdecode(one) for one in fields[7 : 7 + count]]
        pairs = [one.split(b"=", 1) for one in fields[7 + count :] if b"=" in one]
        self.variables = {os.fsdecode(key): os.fsdecode(value) for key, value in pairs}


def surroundings() -> bytes:
    """As a front tells its own: what a program would inherit of it, and can't from here."""
    with open("/proc/self/limits", "rb") as file:
        limits = file.read()
    cores = repr(sorted(os.sched_getaffinity(0))).encode()
    return b"%d %d %s " % (os.getsid(0), os.getpriority(0, 0), cores) + limits


def listen() -> Any:
    listening = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    listening.bind(front.SOCKET)
    listening.listen(64)
    return listening


class Helper:
    def __init__(self, listening: Any, variables: dict[str, str]) -> None:
        self._listening = listening
        self._variables = _comparable(variables)
        self._running: dict[int, tuple[int, Any]] = {}  # by pidfd: the pid and its front

    def serve(self) -> Call:
        """Serve for ever; returns in a fork that is to become the called program."""
        os.setpgid(0, 0)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        poller = select.poll()
        poller.register(self._listening.fileno(), select.POLLIN)
        while True:
            for fd, _ in poller.poll():
                if fd == self._listening.fileno():
                    fd_, _ = self._listening._accept()
                    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd_)
                    call = self._take(client, poller)
                    if call is not None:
                        return call
                elif fd in self._running:
                    self._finish(fd, poller)
                else:
                    self._abandon(fd, poller)

    def _take(self, client: Any, poller: select.poll) -> Call | None:
        """Fork a program for a front, or tell it to start one; the call, in the program."""
        try:
            call = _receive(client)
        except (OSError, ValueError, IndexError):
            client.close()
            return None
        pid = -1
        if call.surroundings == surroundings() and _comparable(call.variables) == self._variables:
            try:
                pid = os.fork()
            except OSError:
                pass  # the front may have more luck
        if pid == 0:
            return call
        for fd in call.fds:
            os.close(fd)
        if pid < 0:
            client.close()
            return None
        pidfd = kernel.pidfd_open(pid)
        self._running[pidfd] = (pid, client)
        poller.register(pidfd, select.POLLIN)
        poller.register(client.fileno(), select.POLLIN)
        _send(client, started(pid))
        return None

    def _finish(self, pidfd: int, poller: select.poll) -> None:
        pid, client = self._running.pop(pidfd)
        _, status = os.waitpid(pid, 0)
        _send(client, ended(status))
        poller.unregister(pidfd)
        os.close(pidfd)
        try:
            poller.unregister(client.fileno())
        except KeyError:
            pass
        client.close()

    def _abandon(self, fd: int, poller: select.poll) -> None:
        """A front is gone: it was killed, and its program with it."""
        for pid, client in self._running.values():
            if client.fileno() == fd:  # or it has just been told that its program is gone, too
                poller.unregister(fd)
                os.kill(pid, signal.SIGKILL)


def become(call: Call) -> None:
    """Take over from the front all that a program has from its parent, but for what it is told."""
    os.setpgid(0, call.group)
    high = [kernel.above(fd, max(call.targets) + 1) for fd in call.fds]
    for fd, target in zip(high, call.targets):
        os.dup2(fd, target)
    kinds = [_kind(fd) for fd in (0, 1, 2)]
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in call.targets:
            try:
                os.close(int(name))
            except OSError:
                continue  # the listing's own
    os.chdir(call.cwd)
    os.umask(call.umask)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        is_int = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if is_int else signal.SIG_DFL)
    for each in range(1, signal.NSIG):
        if call.ignored >> (each - 1) & 1:
            signal.signal(each, signal.SIG_IGN)
    for fd, (kind, usual) in enumerate(zip(kinds, (stat.S_IFCHR, stat.S_IFIFO, stat.S_IFIFO))):
        if kind != usual:
            _open_stream(fd)
    if os.path.basename(sys.executable) != os.path.basename(call.real):
        sys.executable = call.real


def _kind(fd: int) -> int:
    status = os.fstat(fd)
    kind = stat.S_IFMT(status.st_mode)
    is_null = kind == stat.S_IFCHR and status.st_rdev == os.stat("/dev/null").st_rdev
    return kind if is_null or kind != stat.S_IFCHR else -1


def _open_stream(fd: int) -> None:
    """Make one of the three streams anew, as the interpreter makes it when it starts."""
    name = ("stdin", "stdout", "stderr")[fd]
    old = getattr(sys, name)
    is_unbuffered = getattr(old, "write_through", False)
    buffering, mode = 0 if is_unbuffered and fd else -1, "wb" if fd else "rb"
    buffer: Any = io.open(fd, mode, buffering, closefd=False)  # noqa: SIM115
    raw = getattr(buffer, "raw", buffer)
    raw.name = "<%s>" % name
    stream: Any = io.TextIOWrapper(
        buffer,
        old.encoding,
        old.errors,
        "\n",
        not is_unbuffered and (old.line_buffering or os.isatty(fd)),
        is_unbuffered,
    )
    stream.mode = "w" if fd else "r"
    setattr(sys, name, stream)
    setattr(sys, "__%s__" % name, stream)


def _comparable(variables: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in variables.items() if key not in ALLOWED}


def _receive(client: Any) -> Call:
    head, ancillary, _, _ = client.recvmsg(4, _socket.CMSG_SPACE(4 * front.MOST_FDS))
    fds: list[int] = []
    for _, _, data in ancillary:
        fds += memoryview(data[: len(data) // 4 * 4]).cast("i").tolist()
    size, body = int.from_bytes(head, "big"), b""
    while len(body) < size:
        chunk = client.recv(min(size - len(body), 1 << 16))
        if not chunk:
            raise ValueError("cut off")
        body += chunk
    return Call(body, fds)


def started(pid: int) -> bytes:
    """What a front is told first. Both are as long as it reads: they may arrive together."""
    return (b"Y%d" % pid).ljust(front.ANSWER_BYTES)


def ended(status: int) -> bytes:
    """And then, with the program's status as waitpid gives it."""
    return (b"%d" % status).ljust(front.ANSWER_BYTES)


def _send(client: Any, data: bytes) -> None:
    try:
        client.send(data)
    except OSError:
        pass  # it is gone
