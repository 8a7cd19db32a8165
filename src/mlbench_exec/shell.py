"""Shell: an interactive bash in the very sandbox that snippets get.

It is a snippet: a small program in it makes a pseudo-terminal, starts bash there, and speaks with
this side over a Unix socket, whose folder is one more mount, read-only. So the agent, the view and
the limits are those of every snippet, all but the time.
"""

import errno
import fcntl
import math
import os
import secrets
import shlex
import shutil
import signal
import struct
import tempfile
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from mlbench_exec.backends.identity import local_name
from mlbench_exec.engine import Engine
from mlbench_exec.environments import Environment, Mount
from mlbench_exec.errors import InputError, MLBenchExecError
from mlbench_exec.sandbox import Job, Limits, Observation, Sandbox
from mlbench_exec.settings import Settings

DEFAULT_TIME_S = 24 * 3600.0
CONNECT_WITHIN_S = 120.0  # with an activation before it
TARGET = "/mlbench-shell"
SOCKET = "socket"
TOKEN_BYTES = 32
CHUNK = 1 << 16
END_OF_INPUT = b"\x04"

# In the sandbox, by whatever Python is there: frames of a letter, a length and a payload come in,
# what the terminal shows goes out.
PROGRAM = """
import fcntl, os, pty, select, socket, struct, sys, termios
link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
link.connect(sys.argv[1])
link.sendall(sys.argv[2].encode())
pid, terminal = pty.fork()
if pid == 0:
    os.environ["PS1"] = sys.argv[3]
    os.environ.setdefault("TERM", "xterm")
    os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
waiting = b""
while True:
    ready = select.select([link, terminal], [], [])[0]
    if terminal in ready:
        try:
            shown = os.read(terminal, 65536)
        except OSError:
            shown = b""
        if not shown:
            break
        link.sendall(shown)
    if link in ready:
        got = link.recv(65536)
        if not got:
            os.kill(pid, 1)
            break
        waiting += got
        while len(waiting) >= 5:
            length = struct.unpack(">I", waiting[1:5])[0]
            if len(waiting) < 5 + length:
                break
            kind, payload, waiting = waiting[:1], waiting[5 : 5 + length], waiting[5 + length :]
            if kind == b"w":
                fcntl.ioctl(terminal, termios.TIOCSWINSZ, payload)
            while kind == b"d" and payload:
                payload = payload[os.write(terminal, payload) :]
status = os.waitpid(pid, 0)[1]
sys.exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
"""
COMMAND = """
for python in python python3; do
    command -v "$python" >/dev/null && exec "$python" -c {program} {socket} {token} {prompt}
done
echo "no Python is on the environment's PATH, and the shell needs one" >&2
exit 127
"""


async def run_shell(settings: Settings, name: str) -> int:
    """Connect this process's stdin and stdout to a shell in the environment; its exit code.

    Raises `InputError` for an unknown name, and what opening a sandbox raises.
    """
    async with Engine(settings, samples={}) as engine:
        known = {one.name: one for one in engine.environments}
        if name not in known:
            raise InputError(f"no environment is named {name}: there are {', '.join(known)}")
        with _socket_folder() as folder:
            mount = Mount(source=str(folder), target=TARGET)
            mounts = (*known[name].mounts, mount)
            environment = msgspec.structs.replace(known[name], mounts=mounts)
            await anyio.to_thread.run_sync(engine.backend.check, environment)
            sandbox = await engine.backend.open(environment, 0)
            try:
                seen = await _converse(sandbox, environment, settings, folder / SOCKET)
            finally:
                await sandbox.aclose()
    return _exit_code(seen)


def _exit_code(seen: Observation) -> int:
    if seen.limit is not None:
        raise MLBenchExecError(f"the shell met its {seen.limit} limit")
    if seen.exit_code is None:
        return 128 + (seen.signal or 0)
    if seen.exit_code == 127 and "needs one" in seen.stderr:
        raise MLBenchExecError(seen.stderr.strip())
    return seen.exit_code


async def _converse(
    sandbox: Sandbox, environment: Environment, settings: Settings, path: Path
) -> Observation:
    """Run the program in the sandbox and carry bytes to and fro until it ends."""
    token = secrets.token_hex(TOKEN_BYTES // 2)
    job = make_job(environment, settings, token)
    seen: list[Observation] = []
    failures: list[MLBenchExecError] = []
    try:
        listener = await anyio.create_unix_listener(path, mode=0o666)
    except OSError as error:
        raise InputError(f"{path}: no socket can be made there ({error}): set TMPDIR") from error
    async with listener, anyio.create_task_group() as tasks:

        async def work() -> None:
            try:
                seen.append(await sandbox.run(job))
            except MLBenchExecError as error:
                failures.append(error)
            tasks.cancel_scope.cancel()

        tasks.start_soon(work)
        with anyio.move_on_after(CONNECT_WITHIN_S) as starting:
            stream = await _accept(listener, token)
            starting.deadline = math.inf
            async with stream:
                await _carry(stream)
                await anyio.sleep_forever()  # until `work` has seen the end
        failures.append(MLBenchExecError(f"the shell didn't start in {CONNECT_WITHIN_S:.0f} s"))
        tasks.cancel_scope.cancel()
    if failures:
        raise failures[0]
    return seen[0]


def make_job(environment: Environment, settings: Settings, token: str) -> Job:
    """The shell as a snippet: a day on the wall clock, where no time limit is asked for."""
    command = COMMAND.format(
        program=shlex.quote(PROGRAM),
        socket=f"{TARGET}/{SOCKET}",
        token=token,
        prompt=shlex.quote(f"({environment.name}) \\w \\$ "),
    )
    limits: Limits = msgspec.structs.replace(settings.limits, clock="wall")
    return Job(
        environment=environment,
        path="./",
        language="bash",
        code=command.encode(),
        time_limit_s=settings.time_limit_s or DEFAULT_TIME_S,
        limits=limits,
    )


async def _accept(listener: anyio.abc.SocketListener, token: str) -> anyio.abc.ByteStream:
    """The connection that knows the token; others are hung up on."""
    while True:
        stream = await listener.accept()
        said = b""
        with anyio.move_on_after(5):
            while len(said) < TOKEN_BYTES:
                try:
                    said += await stream.receive(TOKEN_BYTES - len(said))
                except anyio.EndOfStream:
                    break
        if secrets.compare_digest(said, token.encode()):
            return stream
        await stream.aclose()


async def _carry(stream: anyio.abc.ByteStream) -> None:
    """Both ways, until the shell's side ends."""
    with _raw_terminal():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_send_input, stream)
            if os.isatty(0):
                tasks.start_soon(_send_sizes, stream)
            try:
                while True:
                    shown = await stream.receive(CHUNK)
                    await anyio.to_thread.run_sync(_write_all, shown)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                tasks.cancel_scope.cancel()


async def _send_input(stream: anyio.abc.ByteStream) -> None:
    while data := await _read_input():
        await stream.send(frame(b"d", data))
    await stream.send(frame(b"d", END_OF_INPUT))


async def _read_input() -> bytes:
    try:
        await anyio.wait_readable(0)
    except OSError as error:
        if error.errno != errno.EPERM:  # a plain file is always readable, and can't be waited for
            raise
    return await anyio.to_thread.run_sync(os.read, 0, CHUNK)


async def _send_sizes(stream: anyio.abc.ByteStream) -> None:
    """The terminal's size now and whenever it changes."""
    with anyio.open_signal_receiver(signal.SIGWINCH) as changes:
        await stream.send(frame(b"w", _size()))
        async for _ in changes:
            await stream.send(frame(b"w", _size()))


def frame(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack(">I", len(payload)) + payload


def _size() -> bytes:
    return fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))


def _write_all(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Keys go to the shell as they are pressed, Ctrl-C too."""
    if not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextmanager
def _socket_folder() -> Iterator[Path]:
    """One that other users may enter and not list: the sandbox's user is another."""
    folder = Path(tempfile.mkdtemp(prefix=local_name() + "-shell-"))
    try:
        folder.chmod(0o711)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
