"""Rules: ML-Bench's static checks, and the verdict that an observation deserves."""

import re
from collections import deque
from collections.abc import Iterator

import msgspec

from mlbench_exec.samples import Language, Sample
from mlbench_exec.sandbox import Observation
from mlbench_exec.verdicts import PASSING, Status, Verdict

__all__ = [
    "StaticCheck",
    "arguments_ok",
    "check",
    "detect_language",
    "error_of",
    "executed_verdict",
    "skipped_verdict",
    "static_verdict",
    "status_of",
]

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NAME_CHARS = 200  # a longer one is no exception's name
_EXCEPTION = re.compile(r"((?:[^\W\d]\w*|<locals>)(?:\.(?:[^\W\d]\w*|<locals>))*)(?::|$)")
_TRACEBACK = "Traceback (most recent call last):"
_GROUP = "+ Exception Group " + _TRACEBACK
_GROUP_MARGIN = "  | "
_IGNORED = "Exception ignored "  # what a destructor raised: never why a program failed


class StaticCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What can be said about an output without running it."""

    arguments_ok: bool
    type_ok: bool

    @property
    def ok(self) -> bool:
        """Whether the output is to be executed."""
        return self.arguments_ok and self.type_ok


def arguments_ok(sample: Sample, code: str) -> bool:
    """Whether the output names every argument's value, in upper or lower case."""
    lowered = code.lower()
    return all(str(value).lower() in lowered for value in sample.arguments.values())


def detect_language(code: str) -> Language:
    """What ML-Bench takes the code for: a script's name followed by a space makes it bash."""
    return "bash" if ".sh " in code or ".py " in code else "python"


def check(sample: Sample, code: str) -> StaticCheck:
    """Both static checks; the verdict names arguments first, then the type."""
    return StaticCheck(
        arguments_ok=arguments_ok(sample, code),
        type_ok=detect_language(code) == sample.wants,
    )


def status_of(observation: Observation) -> Status:
    """The verdict that an execution deserves.

    The exit code decides: where only a child ran out of memory and the snippet ended well, it
    passed; where it failed after that, also by a shell's 137, memory is named as the reason.
    """
    if observation.limit == "time":
        return "passed_at_limit"
    if observation.exit_code == 0:
        return "passed"
    if observation.limit == "memory" or observation.oom_kills > 0:
        return "out_of_memory"
    if observation.signal is not None:
        return "killed"
    return "failed"


def error_of(observation: Observation) -> str | None:
    """The last failure that stderr names: an exception's type as Python prints it, or one of
    `CommandNotFound`, `NoSuchFile` and `PermissionDenied`. None where nothing failed.

    Takes time in proportion to the text, whatever it holds.
    """
    if observation.exit_code == 0 or observation.limit == "time":
        return None
    last = deque(_failures(observation.stderr), maxlen=1)
    return last[0] if last else None


def static_verdict(sample: Sample, index: int, code_hash: str, checks: StaticCheck) -> Verdict:
    """The verdict on an output that fails a static check. Raises `ValueError` if it fails none."""
    if checks.ok:
        raise ValueError(f"output {index} of {sample.key} passes the static checks")
    status: Status = "wrong_type" if checks.arguments_ok else "wrong_arguments"
    return _unexecuted(sample, index, code_hash, checks, status)


def skipped_verdict(sample: Sample, index: int, code_hash: str, checks: StaticCheck) -> Verdict:
    """The verdict on an output that was left out, because an earlier one of its row passed."""
    return _unexecuted(sample, index, code_hash, checks, "skipped")


def executed_verdict(
    sample: Sample,
    index: int,
    code_hash: str,
    checks: StaticCheck,
    observation: Observation,
    *,
    environment: str,
    attempts: int,
    contended: bool,
    started_at: str,
    slot: int,
) -> Verdict:
    """The verdict on an output that was executed, with everything that was seen of it."""
    status = status_of(observation)
    return Verdict(
        github_id=sample.github_id,
        id=sample.id,
        index=index,
        status=status,
        passed=status in PASSING,
        arguments_ok=checks.arguments_ok,
        type_ok=checks.type_ok,
        exit_code=observation.exit_code,
        signal=observation.signal,
        limit=observation.limit,
        wall_s=observation.wall_s,
        counted_s=observation.counted_s,
        cpu_s=observation.cpu_s,
        stalled_s=observation.stalled_s,
        peak_memory_bytes=observation.peak_memory_bytes,
        stdout=observation.stdout,
        stderr=observation.stderr,
        stdout_bytes=observation.stdout_bytes,
        stderr_bytes=observation.stderr_bytes,
        error=error_of(observation),
        environment=environment,
        warm=observation.warm,
        attempts=attempts,
        contended=contended,
        started_at=started_at,
        slot=slot,
        output_hash=code_hash,
    )


def _unexecuted(
    sample: Sample, index: int, code_hash: str, checks: StaticCheck, status: Status
) -> Verdict:
    return Verdict(
        github_id=sample.github_id,
        id=sample.id,
        index=index,
        status=status,
        passed=False,
        arguments_ok=checks.arguments_ok,
        type_ok=checks.type_ok,
        output_hash=code_hash,
    )


def _failures(stderr: str) -> Iterator[str]:
    """Every failure that the text names, in its order.

    A traceback is its header (or, for a syntax error, a `File` line), indented lines, and the
    first line that isn't indented: the exception. Anything else there means that the traceback
    was cut or interleaved, and names nothing.
    """
    inside = in_group = ignored = False
    for line in _lines(stderr):
        if line.startswith(_IGNORED):
            inside, ignored = False, True
        elif line.endswith(_TRACEBACK):  # at the end only: a progress bar may stand before it
            inside, in_group = True, line.endswith(_GROUP)
        elif line.startswith('  File "'):
            if not inside:
                inside, in_group = True, False
        elif not inside:
            if failure := _shell_failure(line):
                yield failure
        elif in_group and not line.startswith(_GROUP_MARGIN):
            inside = False
        else:
            text = line.removeprefix(_GROUP_MARGIN) if in_group else line
            if text.startswith(" "):
                continue
            found = _EXCEPTION.match(text[:_NAME_CHARS])
            if found and not ignored:
                yield found[1]
            elif not found and not in_group and (failure := _shell_failure(text)):
                yield failure
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


def _shell_failure(line: str) -> str | None:
    """What a shell, a usual command or the interpreter says when it can't start something."""
    if line.startswith(" "):
        return None
    if ": can't open file " in line:
        return "PermissionDenied" if "[Errno 13]" in line else "NoSuchFile"
    if line.endswith(": command not found"):
        return "CommandNotFound"
    if line.endswith(": not found") and "sh: " in line[:_NAME_CHARS]:  # dash
        return "CommandNotFound"
    if line.endswith(": No such file or directory"):
        return "NoSuchFile"
    if line.endswith(": Permission denied"):
        return "PermissionDenied"
    return None
