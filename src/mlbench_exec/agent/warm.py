"""A warm interpreter: the environment's own Python, which forks a snippet's program when asked.

It is started as `python PLACE`, and this runs while `site` looks for a `sitecustomize`. A fork
that is to become a program returns from here, and the interpreter goes on starting as it always
does, with the program's path written where PLACE was: what the program then sees is what any
script sees, down to the last frame of a traceback.
"""

from __future__ import annotations

import _socket
import ctypes
import gc
import marshal
import mmap
import os
import struct
import sys
import time

from mlbench_exec.agent import (
    confinement,
    ending,
    finalizers,
    frames,
    front,
    helper,
    kernel,
    pid1,
    program,
    steps,
    terms,
)
from mlbench_exec.agent.kernel import signal
from mlbench_exec.agent.program import Program, Unusable

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any, Callable

POLL, POLLIN = struct.Struct("=ihh"), 1
VERSION_AT = 24  # in a dict, behind its references, type and size
OPENED = 16  # descriptors, at most, by what comes between our fork and its program
HUGE, MADV_COLLAPSE, FEWEST_PRESENT = 2 << 20, 25, 384  # of 512 pages


class World:
    """As much of the agent's World as a program's start needs."""

    nested = True

    def __init__(self, sent: dict[str, Any]) -> None:
        self.uid, self.gid = sent["uid"], sent["gid"]
        self.inner_uid, self.inner_gid = sent["inner_uid"], sent["inner_gid"]
        self.nproc = sent["nproc"]
        self.filter = sent["filter"]
        self.counters = Counters(sent["has_memory"])


class Counters:
    def __init__(self, has_memory: bool) -> None:
        self.has_memory = has_memory


def main(ahead: Any) -> Callable[[], None]:
    """Import what is asked for. Return what serves, and returns in forks that become programs.

    What is left over by then is let go here, and not in each of these forks.
    """
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, terms.CHANNEL)
    page = mmap.mmap(terms.PAGE, terms.PAGE_BYTES)
    os.close(terms.PAGE)
    os.set_inheritable(terms.CHANNEL, False)
    order = frames.read(terms.CHANNEL)
    server = _Server(World(order["world"]), channel, page, ahead, _places())
    for name in order["preload"]:
        frames.write(terms.CHANNEL, {"module": name, "problems": ahead.load(name)})
    ahead.recorder.stop()
    ahead.hide()
    gc.collect()
    finalizers.find(ahead)
    version_at = _version_reader()
    ahead.prepare(order["preload"], version_at)
    server.ending = ending.Ending(ahead, version_at)
    server.forker = pid1.Forker(is_alone=_is_alone())
    costs = {name: ahead.cost_s(name) for name in order["preload"]}
    ending.skip_libraries()
    for one in (ahead, server.ending):  # nor are these ever taken apart
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(vars(one)))
    _use_huge_pages()
    gc.collect()  # what all this has left is no program's
    gc.freeze()
    server.arm(order["variables"])
    steps.do(confinement.peak_forgotten())
    frames.write(terms.CHANNEL, {"ready": True, "costs": costs, "places": len(server.places)})
    return server.serve


def _is_alone() -> bool:
    """Whether no other threads run in this process, once libraries know that it forks."""
    fork = ctypes.PyDLL(None).fork
    pid = fork()
    if pid == 0:
        os._exit(0)
    if pid < 0:
        return False
    os.waitpid(pid, 0)  # OpenBLAS stopped its threads for that, and starts them when it needs them
    for _ in range(100):
        if len(os.listdir("/proc/self/task")) == 1:
            return True
        time.sleep(0.001)
    return False


def told_and_asked(pid: Any) -> steps.Steps:
    """The agent is told an init's pid, and its next request waited for."""
    asked = ctypes.create_string_buffer(POLL.pack(terms.CHANNEL, POLLIN, 0), POLL.size)
    return steps.Steps(
        steps.Step("write", terms.CHANNEL, pid, pid1.PID.size),
        steps.Step("ppoll", asked, 1, 0, 0, 8),
    )


class _Server:
    def __init__(
        self, world: World, channel: Any, page: mmap.mmap, ahead: Any, places: list[int]
    ) -> None:
        self.world: Any = world  # all that is used of a World
        self.channel, self.page, self.ahead = channel, page, ahead
        self.places = places
        self.held = bytearray(_wide(terms.PLACE))  # by each of them
        self.ending: Any = None
        self.forker: Any = None
        self.start = program.Start(self.world, has_python=True)
        self.before = confinement.pid_namespace(os.open("/proc/self/ns/pid", os.O_RDONLY))
        self.after = self.steps = steps.Steps()
        self.asked: Any = None
        self.folder: str | None = None  # of a program that starts as this process is
        self.highest = self.beyond = 0  # its descriptors

    def arm(self, variables: dict[str, str]) -> None:
        """Become what every program starts as: a page that a fork writes to it has to copy."""
        if "LC_CTYPE" in os.environ:  # Python sets it where the locale is C's
            variables["LC_CTYPE"] = os.environ["LC_CTYPE"]
        self._set_variables(variables)
        self.ahead.arm(self._charge, self._refuse)
        self.ending.begin(False)
        self.highest = max(int(name) for name in os.listdir("/proc/self/fd"))

    def serve(self) -> None:
        try:
            while not self._answer(*self._receive()):
                pass
        except BaseException as error:  # noqa: BLE001 - if `site` saw it, it would run a script here
            os.write(2, ("%s: %s" % (type(error).__name__, error)).encode("utf-8", "replace"))
            os._exit(1)

    def _answer(self, kind: bytes, request: dict[str, Any], fds: list[int]) -> bool:
        """Do what is asked; True in a program."""
        if kind == b"F":
            return self._fork(request, fds)
        self.ahead.show("resource", True)  # wait4 imports it
        _, status, usage = os.wait4(request["pid"], 0)
        self.ahead.show("resource", False)
        frames.write(terms.CHANNEL, {"status": status, "usage": list(usage)})
        return False

    def _receive(self) -> tuple[bytes, dict[str, Any], list[int]]:
        data, ancillary, _, _ = self.channel.recvmsg(
            terms.MOST_ASKED_BYTES, _socket.CMSG_SPACE(4 * 8), _socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            os._exit(0)  # the agent is gone
        fds = memoryview(ancillary[0][2]).cast("i").tolist() if ancillary else []
        return data[:1], marshal.loads(data[1:]), fds

    def _fork(self, request: dict[str, Any], fds: list[int]) -> bool:
        """Fork a program with an init of its own; True in the program."""
        report, others = fds[2], fds[4:]
        order = others.pop() if request["language"] == "bash" else -1
        if (request, fds) != self.asked:
            self._prepare(request, fds, others)
        telling = _Telling(report)
        # Until it is asked again it runs nothing in Python, which would copy what a fork shares.
        pid, failure = self.forker.copy(report, self.before, self.steps, self.after)
        if pid:
            return False
        with telling:
            if failure is not None:
                raise steps.refused(failure)
            if order >= 0:
                self._bash(order, report)
            else:
                self._python(report)
        return True

    def _prepare(self, request: dict[str, Any], fds: list[int], namespaces: list[int]) -> None:
        """What is done for a program before it is forked, and stays as it is for the next one."""
        out, err, _, cwd, *_ = fds
        is_bash = request["language"] == "bash"
        start = self.start.steps(request["limits"], cwd, out, err, front.RUN if is_bash else None)
        self.steps = confinement.entered(namespaces) + start
        closing = steps.Steps(*[steps.Step("close", fd) for fd in fds])
        self.after = closing + told_and_asked(self.forker.pid)
        self.beyond = max(self.highest, *fds) + 1 + OPENED
        if not is_bash:
            self.ending.is_exotic = request["is_exotic"]
            if request["folder"] != self.folder:
                self.folder = request["folder"]
                self._set_arguments(self.folder, program.SCRIPT, [])
        self.asked = request, fds

    def _python(self, report: int) -> None:
        """Become a program; what it doesn't have to do here was done before."""
        folder = os.getcwd()
        if folder != self.folder:  # a link leads to it
            self._set_arguments(folder, program.SCRIPT, [])
        terms.STARTS.pack_into(self.page, terms.STARTS_AT, 1)
        _tell_started(report)
        os.closerange(terms.CHANNEL, self.beyond)

    def _bash(self, order: int, report: int) -> None:
        """Become bash, and leave a helper behind; returns in a program that bash's front calls."""
        os.close(terms.CHANNEL)
        request = frames.read(order)
        one = Program(**request["program"])
        variables = dict(one.variables)
        variables["PATH"] = "%s:%s" % (request["fronts"], variables["PATH"])
        path, argv = one.command()
        listening = helper.listen()
        between = os.fork()
        if between == 0:
            if os.fork():
                os._exit(0)  # so that the helper is init's child, not bash's
            _close_all_but(listening.fileno())
            called = helper.Helper(listening, one.variables).serve()
            listening.detach()  # its number may be one of the program's own
            helper.become(called)
            return self._called(called)
        os.waitpid(between, 0)
        _tell_started(report)
        _close_all_but()
        kernel.default_signals()
        try:
            os.execve(path, argv, variables)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            os.write(2, ("mlbench-exec: bash: %s\n" % why).encode())
        os._exit(program.NOT_EXECUTABLE)

    def _called(self, call: helper.Call) -> None:
        """Become what a front was called for."""
        script, *arguments = call.arguments
        self._set_variables(call.variables)
        self._set_arguments(os.getcwd(), script, arguments, call.name)
        self.ahead.look_again()
        self.ending.begin(terms.is_exotic(_text_of(script)))
        count = terms.STARTS.unpack_from(self.page, terms.STARTS_AT)[0]
        terms.STARTS.pack_into(self.page, terms.STARTS_AT, count + 1)

    def _charge(self, seconds: float) -> None:
        charged = terms.CHARGED.unpack_from(self.page, 0)[0]
        terms.CHARGED.pack_into(self.page, 0, charged + seconds)

    def _refuse(self, reason: str) -> None:
        """Have this snippet run again, cold: its view goes, with all but what an rw mount got."""
        text = reason.encode("utf-8", "replace")[: terms.REASON_BYTES - 1]
        self.page[terms.REASON_AT : terms.REASON_AT + len(text) + 1] = text + b"\0"
        terms.STARTS.pack_into(self.page, terms.REFUSED_AT, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    def _set_variables(self, variables: dict[str, str]) -> None:
        if dict(os.environ) != variables or list(os.environ) != list(variables):
            for key in list(os.environ):
                del os.environ[key]
            os.environ.update(variables)

    def _set_arguments(
        self, folder: str, script: str, arguments: list[str], name: str | None = None
    ) -> None:
        """Have the interpreter go on as `NAME SCRIPT ARGUMENTS…` would in this folder."""
        is_whole = script.startswith("/") or sys.version_info < (3, 9)
        path = script if is_whole else "%s/%s" % (folder, script)
        data = _wide(path + "\0")
        if len(data) > len(self.held):
            raise ValueError("%s is too long" % path)
        as_it_was = bytes(self.held[: len(data)])
        for address in self.places:
            if ctypes.string_at(address, len(data)) == as_it_was:
                ctypes.memmove(address, data, len(data))
        self.held[: len(data)] = data
        sys.argv[:] = [script, *arguments]  # the same lists, whoever else has them
        original: list[str] | None = vars(sys).get("orig_argv")  # from 3.10 on
        if original is not None:
            original[:] = [name or original[0], script, *arguments]


class _Telling:
    """Whatever goes wrong before a program runs is said on the report, and ends the process."""

    def __init__(self, report: int) -> None:
        self.report = report

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            return
        try:
            if isinstance(error, Unusable):
                program.tell(self.report, program.UNUSABLE, str(error))
            else:
                said = "%s: %s" % (type(error).__name__, error)
                program.tell(self.report, program.FAILED, said)
        finally:
            os._exit(1)


def _version_reader() -> Callable[[int], int] | None:
    """What reads a dict's version by its address; None where dicts have none that we know of.

    CPython had one up to 3.12, a number that every change of the dict makes another.
    """
    if sys.implementation.name != "cpython" or sys.version_info >= (3, 13):
        return None

    def version_at(address: int) -> int:
        return int(ctypes.c_uint64.from_address(address + VERSION_AT).value)

    tried: dict[str, int] = {}
    versions = [version_at(id(tried)), version_at(id(tried))]
    for value in (1, 2):
        tried["key"] = value
        versions.append(version_at(id(tried)))
    del tried["key"]
    versions.append(version_at(id(tried)))
    is_one = versions[0] == versions[1] and len(set(versions)) == 4
    return version_at if is_one else None


def _wide(text: str) -> bytes:
    return text.encode("utf-32-le", "surrogatepass")


def _text_of(script: str) -> bytes | None:
    """What a program is made of; None where it can't be read, as Python will say."""
    try:
        with open(script, "rb") as file:
            return file.read()
    except OSError:
        return None


def _use_huge_pages() -> None:
    """Have the kernel lay small pages together where it can: a fork then copies a short table."""
    madvise = ctypes.CDLL(None).madvise
    with open("/proc/self/maps") as file:
        lines = file.read().splitlines()
    try:
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    except OSError:
        return  # not told here: a fork only takes longer
    for line in lines:
        words = line.split()
        if words[1] != "rw-p" or (len(words) > 5 and words[5] != "[heap]"):
            continue
        start, end = (int(part, 16) for part in words[0].split("-"))
        for address in range(-(-start // HUGE) * HUGE, end - HUGE + 1, HUGE):
            there = os.pread(pagemap, HUGE // 512, address // 512)[7::8]  # 8 bytes a page of 4096
            if sum(byte >> 7 for byte in there) > FEWEST_PRESENT:
                madvise(ctypes.c_void_p(address), ctypes.c_size_t(HUGE), MADV_COLLAPSE)
    os.close(pagemap)


def _tell_started(report: int) -> None:
    os.write(report, program.TOLD.pack(program.STARTED, *divmod(time.monotonic_ns(), 10**9)))


def _close_all_but(*kept: int) -> None:
    """Close every descriptor but the three streams' and these."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue  # the listing's own


def _places() -> list[int]:
    """Where this interpreter keeps the path that it was told to run, as wide characters.

    They lie somewhere in what it may write to. So long a path can't slip between looks that are
    less than its filling apart.
    """
    prefix, filling = _wide(terms.PREFIX), _wide(terms.FILLING + "\0")
    dash, apart = filling[:4], len(terms.FILLING) * 3  # three quarters of it, and whole characters
    found = []
    mem = os.open("/proc/self/mem", os.O_RDONLY)
    with open("/proc/self/maps") as file:
        lines = file.read().splitlines()
    # What is looked for is never copied to where it would be found: these are new mappings.
    look, around = mmap.mmap(-1, len(dash)), mmap.mmap(-1, len(prefix) + 2 * len(filling))
    for line in lines:
        where, mode = line.split()[:2]
        if not mode.startswith("rw"):
            continue
        start, end = (int(part, 16) for part in where.split("-"))
        at = start
        while at < end:
            if _read(mem, at, look) < len(dash) or look[:] != dash:
                at += apart
                continue
            begin = max(start, at - len(prefix) - len(filling))
            size = min(_read(mem, begin, around), end - begin)
            head = around.find(prefix, 0, size)
            rest = head + len(prefix)
            if head >= 0 and around.find(filling, rest, size) == rest:
                found.append(begin + head)
            at += len(filling)
    os.close(mem)
    return found


def _read(mem: int, at: int, into: mmap.mmap) -> int:
    """Read memory as far as that can be, and return how much."""
    try:
        return os.preadv(mem, [into], at)
    except OSError:
        return 0
