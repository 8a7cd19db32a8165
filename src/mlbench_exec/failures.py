"""Failures: what a program that failed left behind, as a kind, an error's name and a detail.

Read from stderr, which the program wrote, so nothing here is proof. Everything takes time in
proportion to the text, and what is given back is bounded; it may hold any character.
"""

import re
import signal as signals
from collections import deque
from collections.abc import Iterator
from typing import Literal, Protocol

import msgspec

from mlbench_exec.verdicts import Status

__all__ = ["Failure", "Kind", "classify", "last_error"]

Kind = Literal[
    "limit",  # detail: memory, processes or disk, as the sandbox saw it
    "signal",  # detail: its name
    "network",  # it wanted one; detail: the host, where it is named
    "cuda",  # it wanted a GPU
    "missing_module",  # detail: the module or shared library
    "missing_file",  # detail: its path
    "argument",  # unknown, missing or unusable; detail: its name
    "command_not_found",  # detail: the command
    "permission",  # detail: the file
    "shell_syntax",
    "exception",  # any other of Python's
    "exit_code",  # nothing else can be read; detail: the exit code
]
DETAIL_CHARS = 200
_FAILED: frozenset[Status] = frozenset({"failed", "killed", "out_of_memory"})
LINE_CHARS = 2000  # of a line that are looked at for a detail

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NAME_CHARS = 200  # a longer one is no exception's name
_EXCEPTION = re.compile(r"((?:[^\W\d]\w*|<locals>)(?:\.(?:[^\W\d]\w*|<locals>))*)(?::|$)")
_TRACEBACK = "Traceback (most recent call last):"
_GROUP = "+ Exception Group " + _TRACEBACK
_GROUP_MARGIN = "  | "
_IGNORED = "Exception ignored "  # what a destructor raised: never why a program failed
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)

# Each pattern is matched against one line of at most LINE_CHARS. The first that matches counts.
_NETWORK_NAMES = frozenset(
    {
        "gaierror",
        "ClientConnectorDNSError",
        "LocalEntryNotFoundError",
        "NameResolutionError",
        "OfflineModeIsEnabled",
        "ServerNotFoundError",
    }
)
_NETWORK = re.compile(
    r"[Nn]ame resolution|Name or service not known|No address associated with hostname"
    r"|[Nn]etwork is unreachable|[Cc]ould ?n[o']t resolve host|unable to resolve host"
    r"|getaddrinfo failed|couldn't connect to 'https?:|Couldn't reach (?:'|http)"
    r"|[Oo]ffline mode is enabled|outgoing traffic has been disabled"
    r"|Cannot connect to host |Max retries exceeded with url"
)
_LOCAL_HOST = re.compile(r"localhost|127\.0\.0\.1|\[?::1\b")
_HOST = re.compile(
    r"https?://([\w.-]{1,100})|[Cc]ould not resolve host:? ([\w.-]{1,100})"
    r"|resolve host address '?([\w.-]{1,100})|[Hh]ost(?: |=)'?([\w-]{1,60}(?:\.[\w-]{1,60})+)"
    r"|resolve '([\w.-]{1,100})'"
)
_CUDA = re.compile(
    r"NVIDIA driver|No CUDA GPUs|not compiled with CUDA|CUDA (?:error|driver|unknown error)"
    r"|cuda runtime error|deserialize object on a CUDA device|CUDA(?: is)? not available"
    r"|lib(?:cuda|cudart|cublas|cudnn)\b|nvidia-smi: (?:command )?not found"
    r"|invalid device ordinal|[Nn]o GPU"
)
_MODULE = re.compile(
    r"No module named '?([\w.-]{1,200})|cannot import name '(\w{1,100})' from "
    r"(?:partially initialized module )?'([\w.]{1,200})'"
    r"|cannot import name '?([\w.]{1,100})"
)
_QUOTED_FILE = re.compile(r"No such file or directory: (?:b?(['\"])(.*)\1|(\S+))")
_FILE = re.compile(r"can't open file '(.*?)'|cannot open file '(.*?)'")
_PERMISSION = re.compile(r"Permission denied: (?:b?(['\"])(.*)\1|(\S+))")
_NAMED_ARGUMENT = re.compile(r"'([\w-]{1,100})'|argument (\S{1,100}):")
_QUOTED_END = re.compile(r"['\u2018](.{1,500})['\u2019]$")
_KEYWORD = re.compile(r"unexpected keyword argument '(\w{1,100})'")
_POSITIONAL = re.compile(
    r"missing \d+ required (?:positional|keyword-only) arguments?: ([^\n]{1,300})"
)
_SURPLUS = re.compile(r"takes (?:no|from|at most|exactly|\d+)[\w ]{0,60} arguments?\b")
_USAGE = (
    re.compile(r".{0,300}: error: (?:unrecognized|invalid) arguments?: (.*)"),
    re.compile(r".{0,300}: error: the following arguments are required: (.*)"),
    re.compile(r".{0,300}: error: (?:argument|ambiguous option:) (\S{1,200}?):? .*"),
    re.compile(r".{0,300}: error: (?:no such option|one of the arguments):? (.*)"),
    re.compile(r"Error: (?:No such option|Missing (?:option|argument)):? '?([\w<>./-]{1,100})"),
    re.compile(r"Error: Invalid value for '?([\w<>./-]{1,100})"),
    re.compile(r".{0,300}[Uu]nknown command line flag '([\w-]{1,100})'.*"),
    re.compile(r".{0,300}: (?:unrecognized|invalid|unknown) option (?:-- )?'?(\S{1,100}?)'?$"),
)
_SHELL_SYNTAX = re.compile(
    r".{1,300}: (?:(?:line )?\d{1,9}: )?(?:syntax error|[Ss]yntax error:|unexpected EOF) ?.*"
)


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a program failed, as far as it can be read."""

    kind: Kind
    error: str | None = None  # an exception's type, or what a shell's message is called
    detail: str | None = None  # what the kind says


class Ended(Protocol):
    """What is read of a verdict, or of a verdict's line in a journal."""

    @property
    def status(self) -> Status: ...
    @property
    def exit_code(self) -> int | None: ...
    @property
    def signal(self) -> int | None: ...
    @property
    def limit(self) -> str | None: ...
    @property
    def stderr(self) -> str: ...


def classify(verdict: Ended) -> Failure | None:
    """Why an executed output failed; None for one that passed or was not executed.

    What the sandbox saw goes before what the program said, and the last thing that it said
    before all others. Exceptions that were raised while another was handled count with it: a
    library's own error about a file is one about the network where that is its cause.
    """
    if verdict.status not in _FAILED:
        return None
    found = _last(verdict.stderr)
    error = found.error if found else None
    if verdict.status == "out_of_memory":
        return Failure(kind="limit", error=error, detail="memory")
    if verdict.signal is not None:
        return Failure(kind="signal", error=error, detail=_signal_name(verdict.signal))
    if verdict.limit in {"pids", "disk"}:
        return Failure(kind="limit", error=error, detail=verdict.limit)
    if found is not None:
        return found
    code = verdict.exit_code
    if code is not None and 128 < code <= 192:  # as a shell reports its child's end
        return Failure(kind="signal", detail=_signal_name(code - 128))
    return Failure(kind="exit_code", detail=None if code is None else str(code))


def last_error(stderr: str) -> str | None:
    """The last failure with a name: an exception's type as Python prints it, or one of
    `CommandNotFound`, `NoSuchFile` and `PermissionDenied`; None where there is none."""
    named = (found.error for found in _failures(stderr) if found.error is not None)
    last = deque(named, maxlen=1)
    return last[0] if last else None


def _last(stderr: str) -> Failure | None:
    last = deque(_failures(stderr), maxlen=1)
    return last[0] if last else None


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


# Reading stderr.


def _failures(stderr: str) -> Iterator[Failure]:
    """Every failure that the text names, in its order.

    A traceback is its header (or, for a syntax error, a `File` line), indented lines, and the
    first line that isn't indented: the exception. Anything else there means that the traceback
    was cut or interleaved, and names nothing.
    """
    inside = in_group = ignored = False
    cause: Failure | None = None  # the exception before, while it may turn out to be a cause
    chained = False
    for line in _lines(stderr):
        if not line:
            if inside:
                inside, ignored = False, ignored and in_group
        elif line.startswith(_IGNORED):
            inside, ignored = False, True
        elif line.endswith(_TRACEBACK):  # at the end only: a progress bar may stand before it
            inside, in_group = True, line.endswith(_GROUP)
        elif line.startswith('  File "'):
            if not inside:
                inside, in_group = True, False
        elif not inside:
            if line in _CHAINED:
                chained = True
            elif failure := _said_outside(line):
                yield failure
        elif in_group and not line.startswith(_GROUP_MARGIN):
            inside = False
        else:
            text = line.removeprefix(_GROUP_MARGIN) if in_group else line
            if text.startswith(" "):
                continue
            found = _EXCEPTION.match(text[:_NAME_CHARS])
            if found and not ignored:
                failure = _of_exception(found[1], text[found.end() :].strip())
                if chained and cause is not None and cause.kind in {"network", "cuda"}:
                    failure = Failure(kind=cause.kind, error=failure.error, detail=cause.detail)
                cause, chained = failure, False
                yield failure
            elif not found and not in_group and (shell := _shell_failure(text)):
                yield shell
            inside = ignored = False


def _lines(text: str) -> Iterator[str]:
    """The lines without colours, one at a time, with their indentation."""
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        line = text[start:end]
        yield (_ANSI.sub("", line) if "\x1b" in line else line).rstrip()
        start = end + 1


def _of_exception(name: str, message: str) -> Failure:
    kind, detail = _kind_of(name.rpartition(".")[2], message[:LINE_CHARS])
    return Failure(kind=kind, error=name, detail=_bounded(detail))


def _kind_of(name: str, message: str) -> tuple[Kind, str | None]:
    """An exception's kind and detail, from the last part of its name and its first line."""
    if name in _NETWORK_NAMES or _wants_network(message):
        return "network", _first(_HOST, message)
    if _CUDA.search(message):
        return "cuda", None
    match name:
        case "ModuleNotFoundError" | "ImportError":
            return "missing_module", _module(message)
        case "PermissionError":
            found = _PERMISSION.search(message)
            return "permission", (found[2] or found[3]) if found else None
        case "FileNotFoundError":
            return "missing_file", _quoted(message)
        case "TypeError":
            if found := _KEYWORD.search(message) or _POSITIONAL.search(message):
                return "argument", found[1]
            if _SURPLUS.search(message):
                return "argument", None
        case "ArgumentError" | "UnrecognizedFlagError" | "IllegalFlagValueError":
            return "argument", _first(
                re.compile(r"'([\w-]{1,100})'|argument (\S{1,100}):"), message
            )
    if "No such file or directory" in message:
        return "missing_file", _quoted(message)
    return "exception", None


def _said_outside(line: str) -> Failure | None:
    """What a line outside of any traceback says."""
    return _usage_failure(line) or _shell_failure(line) or _tool_failure(line)


def _usage_failure(line: str) -> Failure | None:
    """How argparse, optparse, click, absl and getopt refuse a command line."""
    if "rror: " not in line and "option" not in line and "flag" not in line:
        return None
    for pattern in _USAGE:
        if found := pattern.match(line[:LINE_CHARS]):
            return Failure(kind="argument", detail=_bounded(found[1]))
    return None


def _shell_failure(line: str) -> Failure | None:
    """What a shell, a usual command or the interpreter says when it can't start something."""
    if line.startswith(" "):
        return None
    short = line if len(line) <= LINE_CHARS else line[: LINE_CHARS // 2] + line[-LINE_CHARS // 2 :]
    if ": can't open file " in line:
        detail = _bounded(_first(_FILE, short))
        if "[Errno 13]" in line:
            return Failure(kind="permission", error="PermissionDenied", detail=detail)
        return Failure(kind="missing_file", error="NoSuchFile", detail=detail)
    if line.endswith((": command not found", ": not found")):
        is_dash = line.endswith(": not found") and "sh: " in line[:_NAME_CHARS]
        if not (is_dash or line.endswith(": command not found")):
            return None
        command = short.rpartition(": ")[0].rpartition(": ")[2]
        if command == "nvidia-smi":
            return Failure(kind="cuda", error="CommandNotFound", detail=command)
        return Failure(kind="command_not_found", error="CommandNotFound", detail=_bounded(command))
    if line.endswith(": No such file or directory"):
        return Failure(kind="missing_file", error="NoSuchFile", detail=_path(short))
    if line.endswith(": Permission denied"):
        return Failure(kind="permission", error="PermissionDenied", detail=_path(short))
    if "yntax error" in line[:LINE_CHARS] and _SHELL_SYNTAX.match(short):
        return Failure(kind="shell_syntax")
    return None


def _tool_failure(line: str) -> Failure | None:
    """What wget, curl, git and pip say where there is no network."""
    if line.startswith((" ", "\t")) or not line[:LINE_CHARS].strip():
        return None
    short = line[:LINE_CHARS]
    if short.startswith(("wget:", "curl:", "fatal:", "ERROR:", "error:")) and _wants_network(short):
        return Failure(kind="network", detail=_bounded(_first(_HOST, short)))
    return None


def _wants_network(text: str) -> bool:
    """Whether a message tells of an unreachable network; one to this very machine is none."""
    found = _NETWORK.search(text)
    if found is None:
        return False
    return not (found[0].startswith(("Max", "Cannot")) and _LOCAL_HOST.search(text))


def _module(message: str) -> str | None:
    before, found_it, _ = message.partition(": cannot open shared object file")
    if found_it:
        return before.rpartition(" ")[2]
    found = _MODULE.search(message)
    if found is None:
        return None
    return f"{found[3]}.{found[2]}" if found[2] else found[1] or found[4]


def _quoted(message: str) -> str | None:
    found = _QUOTED_FILE.search(message)
    if found is not None:
        return found[2] if found[2] is not None else found[3]
    return _path(message) if message.endswith(": No such file or directory") else None


def _path(line: str) -> str | None:
    """The part before the message: a path, also `cannot access 'PATH'`."""
    before = line.rpartition(": ")[0].rpartition(": ")[2]
    quoted = _QUOTED_END.search(before)
    return _bounded(quoted[1] if quoted else before)


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    """The first group that matched."""
    found = pattern.search(text)
    return next((group for group in found.groups() if group), None) if found else None


def _bounded(detail: str | None) -> str | None:
    if not detail or not (detail := detail.strip()):
        return None
    return detail if len(detail) <= DETAIL_CHARS else detail[: DETAIL_CHARS - 1] + "…"
