"""Settings: what flags and library users choose, as one frozen value."""

import math
import os
import re
from pathlib import Path
from typing import Literal, Self

import msgspec

from mlbench_exec.environments import Mount
from mlbench_exec.errors import InputError
from mlbench_exec.sandbox import Limits

BackendChoice = Literal["auto", "docker", "local"]
Network = Literal["none", "bridge"]
Profile = Literal["strict", "mlbench"]

HUB_DATASET = "super-dainiu/ml-bench"
SIZE_LIMIT = 1 << 62
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a run can be told. The defaults are those of the command line.

    Raises `InputError` for numbers that nothing could run with.
    """

    dataset: str = HUB_DATASET
    split: str = "full"
    environments_file: Path | None = None
    backend: BackendChoice = "auto"
    concurrency: int | None = None  # None: as many as the cores and the memory allow
    limits: Limits = Limits()
    time_limit_s: float | None = None  # None: each environment's own
    network: Network = "none"
    mounts: tuple[Mount, ...] = ()
    gpus: str = "none"  # "none", "all", or device numbers "0,1"
    runtime: str | None = None  # Docker's, by name
    weights: Path | None = None  # a folder of `mlbench-exec weights`; what is in it is mounted
    until_pass: bool = False
    share_identical: bool = False
    patience_s: float = 120.0  # how long a backend that is lost in mid-run is waited for
    preload: bool = True  # False: each snippet starts an interpreter, and imports for itself
    preload_memory_bytes: int = 1 << 30  # of one sandbox's warm interpreters, beyond its limit
    fresh: bool = False  # docker: one container a snippet, even where nesting works

    def __post_init__(self) -> None:
        for name, value in (
            ("concurrency", self.concurrency),
            ("time limit", self.time_limit_s),
            ("cpus", self.limits.cpus),
        ):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name} {value}: give a number above 0")

    def with_profile(self, profile: Profile) -> Self:
        """`mlbench` is ML-Bench's own way: network, wall clock, no limits but time and disk."""
        if profile == "strict":
            return self
        limits = msgspec.structs.replace(
            self.limits, memory_bytes=None, cpus=None, pids=None, clock="wall"
        )
        return msgspec.structs.replace(self, limits=limits, network="bridge")

    @property
    def preload_bytes(self) -> int:
        """What the warm interpreters of one sandbox may hold together; 0: there are none."""
        return self.preload_memory_bytes if self.preload else 0

    def resolved_concurrency(self) -> int:
        """Sandboxes at once: what was asked, else what cores and memory admit, at least 1."""
        if self.concurrency is not None:
            return self.concurrency
        cores = len(os.sched_getaffinity(0))
        memory = self.limits.memory_bytes
        return max(1, min(cores, host_memory_bytes() // memory if memory else cores))


def host_memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def parse_size(text: str) -> int:
    """`8g`, `512m`, `1.5GiB` or plain bytes; binary multiples. Raises `InputError`."""
    match = re.fullmatch(r"(\d{1,19}(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    size = int(float(match[1]) * _SIZES[match[2]]) if match else 0
    if not 0 < size <= SIZE_LIMIT:
        raise InputError(f"{text!r} is not a size: write for instance 512m or 8g")
    return size


def parse_gpus(text: str) -> str:
    """`none`, `all`, or device numbers, `0,1`. Raises `InputError`."""
    if text not in {"none", "all"} and not re.fullmatch(r"\d+(,\d+)*", text, re.ASCII):
        raise InputError(f"--gpus {text!r}: write none, all, or device numbers such as 0,1")
    return text


def parse_mount(text: str) -> Mount:
    """`SRC:DST[:rw]`. Raises `InputError`."""
    parts = text.split(":")
    mode = parts.pop() if len(parts) == 3 and parts[2] in {"ro", "rw"} else "ro"
    target = "/" + os.path.normpath(parts[-1]).lstrip("/")
    if len(parts) != 2 or not all(parts) or not parts[1].startswith("/") or target == "/":
        raise InputError(
            f"--mount {text!r}: write SRC:DST or SRC:DST:rw, DST an absolute path below /"
        )
    source = str(Path(os.path.expanduser(parts[0])).absolute())
    return Mount(source=source, target=target, mode="rw" if mode == "rw" else "ro")
