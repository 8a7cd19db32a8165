"""Explain: why a verdict is what it is, in a sentence or two for people. Pure."""

import signal

from mlbench_exec.samples import Sample
from mlbench_exec.verdicts import Verdict

__all__ = ["why"]

NAMED = 5  # missing arguments that are spelled out


def why(verdict: Verdict, sample: Sample | None = None, code: str | None = None) -> str:
    """The reason for the status; the sample and the code, where they are at hand, say more."""
    return " ".join((_reason(verdict, sample, code), *_circumstances(verdict)))


def _reason(verdict: Verdict, sample: Sample | None, code: str | None) -> str:
    took = _seconds(verdict.counted_s)
    match verdict.status:
        case "passed":
            return f"It ended with exit code 0 after {took}, which passes."
        case "passed_at_limit":
            return (
                f"It was still running at its time limit, after {took} that count. "
                "ML-Bench passes what runs that long."
            )
        case "failed":
            named = (
                f" The last error that stderr names is {verdict.error}." if verdict.error else ""
            )
            return f"It ended with exit code {verdict.exit_code} after {took}.{named}"
        case "killed":
            return f"{_signal(verdict.signal)} ended it after {took}; the signal was not ours."
        case "out_of_memory":
            return f"It failed after it, or a process of it, ran out of memory, after {took}."
        case "wrong_arguments":
            return (
                f"{_missing(sample, code)} ML-Bench wants every argument's value in the code, "
                "so it was not executed."
            )
        case "wrong_type":
            return f"{_wrong_type(sample)} so it was not executed."
        case "skipped":
            return "An earlier output of its row passed, and --until-pass leaves out the rest."


def _circumstances(verdict: Verdict) -> list[str]:
    found = []
    if verdict.limit not in (None, "time") and verdict.status != "out_of_memory":
        found.append(f"It met its {verdict.limit} limit.")
    if verdict.attempts > 1:
        found.append(f"This was attempt {verdict.attempts}: the sandbox before it failed.")
    if verdict.contended:
        found.append("The machine was too busy at first: it was judged again alone.")
    return found


def _missing(sample: Sample | None, code: str | None) -> str:
    if sample is None or code is None:
        return "It doesn't name every argument of its row."
    lowered = code.lower()
    missing = [
        f"{name} = {value}"
        for name, value in sample.arguments.items()
        if value.lower() not in lowered
    ]
    if not missing:
        return "It doesn't name every argument of its row."
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    return f"It doesn't name {', '.join(missing[:NAMED])}{more}."


def _wrong_type(sample: Sample | None) -> str:
    if sample is None:
        return "It is Python where bash is asked for, or the reverse,"
    if sample.wants == "bash":
        return (
            "The row asks for a bash script, and nothing in the code is a script's name "
            "followed by a space (.sh or .py),"
        )
    return (
        "The row asks for Python, and a script's name followed by a space (.sh or .py) makes "
        "ML-Bench take the code for bash,"
    )


def _signal(number: int | None) -> str:
    try:
        return f"{signal.Signals(number or 0).name} (signal {number})"
    except ValueError:
        return f"Signal {number}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "an unknown time"
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"
