"""The program's side: what a fork has to do to become a snippet, giving up everything on the way.

Nested level: its surroundings were made before, and its parent is an init.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from mlbench_exec.agent import kernel
from mlbench_exec.agent.confinement import confined, prctl
from mlbench_exec.agent.steps import (
    SAVES,
    USES,
    Step,
    Steps,
    address,
    mounting,
    refused,
    work_off,
    writing,
)

TYPE_CHECKING = False  # a warm interpreter has this module, and needs no more than it
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from mlbench_exec.agent.steps import Failure

HIDDEN = "/.mlbench"  # where a sandbox's root has what is ours
# What is said on a report: why there is no program, as a line of text; and in numbers, with seconds
# and nanoseconds of the clock, that it started, or with which status it ended, as waitpid gives it.
UNUSABLE, FAILED = "unusable", "failed"
TOLD = struct.Struct("=i4xqq")
STARTED = -1
SCRIPT = "temp.py"
EXECUTION = "execve"
NOT_EXECUTABLE = 126
# What says that the folder isn't there, and not that the machine is in trouble.
NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES)


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
            return self.which("bash"), ["bash", "-c", self.code]
        path = self.python or self.which("python")
        name = "python" if os.path.basename(path) == "python" else path
        return path, [name, SCRIPT]

    def which(self, name: str) -> str:
        path = self.variables.get("PATH", os.defpath)
        for folder in path.split(":"):
            found = os.path.join(self.cwd, folder, name)
            if os.path.isfile(found) and os.access(found, os.X_OK):
                return found
        raise Unusable("there is no %s on the environment's PATH (%s)" % (name, path))

    def open_folder(self) -> int:
        """A descriptor of its folder, with its script in it; `Unusable` where it isn't there.

        What leads there may be a snippet's, so no link of /proc is followed: it would be ours.
        """
        try:
            folder = kernel.open_plainly(self.cwd, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in NO_FOLDER:
                raise
            raise Unusable("there is no folder %s in the sandbox" % self.cwd) from None
        try:
            self._write_script(folder)
        except BaseException:
            os.close(folder)
            raise
        return folder

    def _write_script(self, folder: int) -> None:
        os.umask(0o022)
        if self.language != "python":
            return
        try:
            os.unlink(SCRIPT, dir_fd=folder)  # whatever the repository has there
        except FileNotFoundError:
            pass
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        script = os.open(SCRIPT, flags, 0o666, dir_fd=folder)
        try:
            left = memoryview(self.code)
            while left:
                left = left[os.write(script, left) :]
        finally:
            os.close(script)


class Start:
    """What makes a fork a snippet, but for its program: the same for each of this sandbox's.

    `has_python` says that the fork goes on as a Python, which sets signals itself.
    """

    def __init__(self, world: Any, has_python: bool = False) -> None:
        self._world, self._has_python = world, has_python
        self._proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)  # a snippet has its own there
        self._confinements: dict[tuple[int, ...], Steps] = {}
        self._asked: tuple[object, ...] = ()  # what the execution was last made from
        self._execution: Execution
        # When memory runs out, it goes before anything else on this machine.
        first_to_go = writing(self._proc, "self/oom_score_adj", b"1000")
        if world.nested:  # read-only: /proc/sys obeys the user id, not capabilities
            flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
            self._first = first_to_go + Steps(mounting("proc", "/proc", flags))
        else:  # before it is dumpable again, what is its own in /proc is root's
            self._first = Steps(prctl(kernel.PR_SET_DUMPABLE, 1)) + first_to_go

    def steps(
        self, limits: dict[str, Any], cwd: int, out: int, err: int, helper_at: str | None = None
    ) -> Steps:
        """In its namespaces, with descriptors of its folder and of two of its streams.

        `helper_at` is a folder that a helper of ours needs, which is a process more.
        """
        first = self._first
        if helper_at is not None:
            first += Steps(mounting("tmpfs", helper_at, kernel.TMPFS, "size=64k,mode=0755"))
        settling = Steps(
            Step("umask", 0o022),
            Step("setsid"),
            Step("fchdir", cwd),
            Step("openat", kernel.AT_FDCWD, b"/dev/null", kernel.O_READ, how=SAVES),
            Step("dup3", 0, 0, 0, how=USES),
            Step("dup3", out, 1, 0),
            Step("dup3", err, 2, 0),
        )
        return first + settling + self._confinement(limits, 0 if helper_at is None else 1)

    def execution(
        self, one: Program, limits: dict[str, Any], cwd: int, out: int, err: int, report: int
    ) -> Execution:
        """All that a fork has to do; the last one again, where nothing but a script differs."""
        path, argv = one.command()
        asked = path, argv, one.variables, limits, cwd, out, err, report
        if asked != self._asked:
            before = self.steps(limits, cwd, out, err)
            self._execution = Execution(one, path, argv, before, report, err)
            self._asked = asked
        return self._execution

    def _confinement(self, limits: dict[str, Any], beside: int) -> Steps:
        """The snippet's limits, and every right given up, for all that is executed from here on.

        `beside` processes are ours, and counted with the snippet's.
        """
        key = limits["files"], limits["pids"], limits["memory"], beside
        if key not in self._confinements:
            self._confinements[key] = confined(
                self._world, limits, beside, self._proc, self._has_python
            )
        return self._confinements[key]


class Execution:
    """All steps of a fork that executes a program, and what is to say where one fails."""

    def __init__(
        self,
        one: Program,
        path: str,
        argv: list[str | bytes],
        before: Steps,
        report: int,
        err: int,
    ) -> None:
        self._language, self._path, self._report, self._err = one.language, path, report, err
        strings = [word if isinstance(word, bytes) else os.fsencode(word) for word in argv]
        pairs = [os.fsencode("%s=%s" % pair) for pair in one.variables.items()]
        news = ctypes.create_string_buffer(TOLD.pack(STARTED, 0, 0), TOLD.size)
        file = os.fsencode(path)
        execution = Step("execve", file, _pointers(strings), _pointers(pairs), said=EXECUTION)
        if any(b"\0" in word for word in (file, *strings, *pairs)):
            execution = Step("dup3", 0, 0, 0, said=EXECUTION)  # invalid as well
        self.steps = before + Steps(
            Step("clock_gettime", kernel.CLOCK_MONOTONIC, address(news) + TOLD.size - 16),
            Step("write", report, news, TOLD.size),
            execution,
            kept=(strings, pairs),
        )

    def explain(self, failure: Failure) -> None:
        """On the report what is ours, and in the program's place what is its own."""
        step, error = failure
        if step.said != EXECUTION or error in (errno.EAGAIN, errno.ENOMEM):
            tell(self._report, FAILED, refused(failure))
        elif error == errno.ENOENT:
            said = "%s can't be started: %s" % (self._path, os.strerror(error))
            tell(self._report, UNUSABLE, said)
        else:
            why = os.strerror(error) if step.call == EXECUTION else "embedded null byte"
            os.write(self._err, ("mlbench-exec: %s: %s\n" % (self._language, why)).encode())

    def become(self) -> NoReturn:
        """In a fork: become the snippet."""
        try:
            failure = work_off(self.steps)
            if failure is not None:
                self.explain(failure)
        except BaseException as error:  # noqa: BLE001 - the agent must hear of anything at all
            tell(self._report, FAILED, "%s: %s" % (type(error).__name__, error))
        finally:
            os._exit(NOT_EXECUTABLE)


def _pointers(strings: list[bytes]) -> Any:
    return (ctypes.c_char_p * (len(strings) + 1))(*strings)


def tell(report: int, word: str, said: object) -> None:
    """One line to the agent: of text, for it comes from beside a snippet."""
    line = ("%s %s" % (word, said)).replace("\n", " ")
    os.write(report, line.encode("utf-8", "replace") + b"\n")
