"""Identity: marks by which the leftovers of an engine that died can be told from others'."""

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

PREFIX = "mlbench-exec-"
_NAME = re.compile(rf"{PREFIX}(\d+)-(\d+)-(\d+)(?:-.*)?")


def engine_identity() -> dict[str, Any]:
    """What tells this process from every other one, on this host and others, across boots."""
    return {
        "host": socket.gethostname(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pids": _pid_namespace(),
        "pid": os.getpid(),
        "start": _start_time(os.getpid()),
    }


def is_dead(label: str) -> bool:
    """Whether the engine that wrote this label ran on this host and is no more."""
    own = engine_identity()
    try:
        other = json.loads(label)
        if other["host"] != own["host"] or other["pids"] != own["pids"]:
            return False  # its process numbers mean nothing here
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
    return f"{PREFIX}{_pid_namespace()}-{os.getpid()}-{_start_time(os.getpid())}"


def is_dead_name(name: str) -> bool:
    """Whether a folder is named for an engine of this host that is no more."""
    match = _NAME.fullmatch(name)
    if match is None or match[1] != _pid_namespace():
        return False
    return _start_time(int(match[2])) != int(match[3])


def _pid_namespace() -> str:
    """The number of the namespace in which process numbers are this process's own."""
    return os.readlink("/proc/self/ns/pid").strip("pid:[]")
