"""Words: how reports name statuses, and write times and sizes."""

from collections.abc import Mapping

from mlbench_exec.verdicts import Status

__all__ = ["LABELS", "duration", "size"]

LABELS: Mapping[Status, str] = {
    "passed": "passed",
    "passed_at_limit": "at limit",
    "failed": "failed",
    "wrong_arguments": "wrong args",
    "wrong_type": "wrong type",
    "out_of_memory": "oom",
    "killed": "killed",
    "skipped": "skipped",
}


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def size(count: float) -> str:
    """Bytes, to three figures."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
