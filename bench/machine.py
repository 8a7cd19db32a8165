"""The machine that figures come from, in words: they mean little without it."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import msgspec


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    measured_at: str
    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    docker: str
    load_before: float  # processes that wanted a CPU when the measurement began


def describe() -> Machine:
    return Machine(
        measured_at=datetime.now(UTC).isoformat(timespec="minutes"),
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        kernel=os.uname().release,
        python=platform.python_version(),
        docker=_docker(),
        load_before=os.getloadavg()[0],
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _docker() -> str:
    ask = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return said.stdout.strip() or "none"
