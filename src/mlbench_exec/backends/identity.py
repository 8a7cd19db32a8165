"""Identity: marks by which the leftovers of an engine that died can be told from others'."""

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

PREFIX = "mlbench-exec-"
_NAME = re.compile(rf"{PREFIX}(\d+)-(\d+)(?:-.*)?")


def engine_identity() -> dict[str, Any]:
    """What tells this process from every other one, on this host and others, across boots."""
    return {
        "host": socket.gethostname(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pid": os.getpid(),
        "start": _start_time(os.getpid()),
    }


def is_dead(label: str) -> bool:
    """Whether the engine that wrote this label ran on this host and is no more."""
    own = engine_identity()
    try:
        other = json.loads(label)
        if other["host"] != own["host"]:
            return False
        return bool(
            other["boot"] != own["boot"] or _start_time(int(other["pid"])) != other["start"]
        )
    except (ValueError, TypeError, KeyError):
        return False


def _start_time(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


def local_name() -> str:
    """A name for this engine's folders on this host."""
    return f"{PREFIX}{os.getpid()}-{_start_time(os.getpid())}"


def is_dead_name(name: str) -> bool:
    """Whether a folder is named for an engine of this host that is no more."""
    match = _NAME.fullmatch(name)
    return match is not None and _start_time(int(match[1])) != int(match[2])
