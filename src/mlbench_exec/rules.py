"""Rules: ML-Bench's static checks, and the verdict that an observation deserves."""

import msgspec

from mlbench_exec import failures
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
    "is_too_close",
    "skipped_verdict",
    "static_verdict",
    "status_of",
]


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


def is_too_close(observation: Observation, time_limit_s: float) -> bool:
    """Whether the verdict could be another if the clock is wrong by as much as it may be.

    What ended well passes on either side of the limit.
    """
    distance_s = abs(observation.counted_s - time_limit_s)
    return observation.exit_code != 0 and distance_s < observation.uncertain_s


def error_of(observation: Observation) -> str | None:
    """The last failure that stderr names: an exception's type as Python prints it, or one of
    `CommandNotFound`, `NoSuchFile` and `PermissionDenied`. None where nothing failed.

    Takes time in proportion to the text, whatever it holds.
    """
    if observation.exit_code == 0 or observation.limit == "time":
        return None
    return failures.last_error(observation.stderr)


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
