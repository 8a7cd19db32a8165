"""Failed: a summary's failures for people: their kinds in words, the most frequent first. Pure."""

from collections import Counter
from collections.abc import Mapping

from mlbench_exec.summary import FailureCount, Summary

__all__ = ["KINDS", "about", "by_kind", "ranked"]

KINDS: Mapping[str, str] = {
    "limit": "limit",
    "signal": "signal",
    "network": "wanted a network",
    "cuda": "wanted a GPU",
    "missing_module": "missing module",
    "missing_file": "missing file",
    "argument": "argument",
    "command_not_found": "command not found",
    "permission": "permission denied",
    "shell_syntax": "shell syntax",
    "exception": "exception",
    "exit_code": "exit code",
}


def about(error: str | None, detail: str | None) -> str:
    """What tells one failure of a kind from another: its detail, else its error."""
    return detail or error or ""


def by_kind(summary: Summary) -> list[tuple[str, int]]:
    """Over all repositories."""
    counts = Counter[str]()
    for failures in summary.failures.values():
        for one in failures:
            counts[one.kind] += one.count
    return counts.most_common()


def ranked(summary: Summary) -> list[tuple[str, FailureCount]]:
    """Each way to fail in each repository, with the repository's name."""
    found = ((name, one) for name, failures in summary.failures.items() for one in failures)
    return sorted(found, key=lambda pair: -pair[1].count)
