"""The `python` on a bash snippet's PATH: hands a call over to a warm interpreter, or starts one.

It is shipped as text and runs as `python -I -S`, so it imports nothing that isn't built in but
`_socket`. What it can't hand over exactly, it doesn't: then it becomes the real interpreter.
"""

from __future__ import annotations

from mlbench_exec.agent import program

RUN = program.HIDDEN + "/run"
SOCKET = RUN + "/python"
MOST_FDS = 64
ANSWER_BYTES = 16
SOURCE = """#!%(python)s -IS
import posix, sys
REAL, NAME, FOLDER, SOCKET = %(real)r, %(name)r, %(folder)r, %(socket)r
environ = dict(posix.environ)
if b"PATH" in environ:
    environ[b"PATH"] = b":".join(
        one for one in environ[b"PATH"].split(b":") if one != FOLDER.encode()
    )
if environ.get(b"_", b"").startswith(FOLDER.encode() + b"/"):
    environ[b"_"] = REAL.encode()
arguments = sys.argv[1:]
def surroundings():
    with open("/proc/self/limits", "rb") as file:
        limits = file.read()
    return b"%%d %%d %%s " %% (
        posix.getsid(0), posix.getpriority(0, 0), repr(sorted(posix.sched_getaffinity(0))).encode()
    ) + limits
def hand_over():
    if not arguments or arguments[0][:1] in ("", "-"):
        return
    if posix.stat(arguments[0]).st_mode & 0o170000 != 0o100000:
        return
    with open("/proc/self/status", "rb") as file:
        status = dict(line.split(b":", 1) for line in file)
    if int(status[b"SigBlk"], 16):
        return
    ignored = int(status[b"SigIgn"], 16) & ~(1 << 12) & ~(1 << 24)
    fds = []
    for one in posix.listdir("/proc/self/fd"):
        try:
            if posix.get_inheritable(int(one)):
                fds.append(int(one))
        except OSError:
            pass
    if len(fds) > %(most)d or {0, 1, 2} - set(fds):
        return
    import _socket
    mask = posix.umask(0o22)
    posix.umask(mask)
    fields = [
        NAME.encode(), REAL.encode(), b"%%d %%d %%d" %% (mask, ignored, posix.getpgid(0)),
        b" ".join(b"%%d" %% fd for fd in fds), posix.getcwdb(), surroundings(),
        b"%%d" %% len(arguments),
    ]
    fields += [one.encode("utf-8", "surrogateescape") for one in arguments]
    fields += [key + b"=" + value for key, value in environ.items()]
    data = b"\\0".join(fields)
    helper = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    helper.connect(SOCKET)
    packed = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
    helper.sendmsg([len(data).to_bytes(4, "big")], [(_socket.SOL_SOCKET, 1, packed)])
    helper.sendall(data)
    answer = helper.recv(%(answer)d)
    if answer[:1] != b"Y":
        return
    import _signal
    pid = int(answer[1:])
    def forward(number, frame):
        try:
            posix.kill(pid, number)
        except OSError:
            pass
    for number in range(1, 65):
        if number not in (9, 17, 19, 32, 33) and not ignored >> number - 1 & 1:
            try:
                _signal.signal(number, forward)
            except (OSError, ValueError):
                pass
    status = int(helper.recv(%(answer)d) or b"9")
    if status & 0x7F:
        _signal.signal(status & 0x7F, _signal.SIG_DFL) if status & 0x7F != 9 else None
        posix.kill(posix.getpid(), status & 0x7F)
    posix._exit(status >> 8)
try:
    hand_over()
except (OSError, ValueError):
    pass
posix.execve(REAL, [NAME] + arguments, environ)
"""


def source(python: str, name: str, real: str, folder: str, socket: str) -> str:
    """The front named `name` in `folder`, for the interpreter `real`."""
    return SOURCE % {
        "python": python,
        "name": name,
        "real": real,
        "folder": folder,
        "socket": socket,
        "most": MOST_FDS,
        "answer": ANSWER_BYTES,
    }
