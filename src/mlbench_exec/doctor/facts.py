"""Facts: what was found on a machine, as one frozen value, so that checks need no machine."""

from collections.abc import Mapping
from typing import Any

import msgspec


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """`sysctls` and `selinux` are None, or lack a name, where the kernel hasn't got it."""

    system: str = "Linux"
    kernel: str = "6.8.0"
    uid: int = 1000
    cores: int = 8
    memory_bytes: int = 32 << 30
    sysctls: Mapping[str, int] = {}
    apparmor: bool = False
    selinux: str | None = None  # enforcing or permissive
    cgroup_version: int | None = 2
    own_cgroups: bool = True  # whether this process may make some with limits


class Daemon(msgspec.Struct, frozen=True, kw_only=True):
    """What answered at Docker's socket; `error`: nothing did."""

    where: str = "the default socket"
    error: str | None = None
    version: Mapping[str, Any] = {}
    info: Mapping[str, Any] = {}


class Image(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    environments: tuple[str, ...]
    size: int | None = None  # bytes; None: it isn't here


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    use: str
    free: int


class Try(msgspec.Struct, frozen=True, kw_only=True):
    """One program, run through a backend; `problem`: it could not be."""

    backend: str
    level: str = ""
    problem: str | None = None
    seconds: float = 0.0
    was_tried: bool = True  # False: the backend starts, but there is nothing to run a program in


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    host: Host = Host()
    daemon: Daemon = Daemon()
    images: tuple[Image, ...] = ()
    weights_folder: str = ""
    weights_here: int = 0
    weights_known: int = 0
    gpus: tuple[str, ...] = ()
    gpu_problem: str | None = None
    disks: tuple[Disk, ...] = ()
    sandboxes: int = 1  # at once, by default
    sandbox_memory_bytes: int = 8 << 30
    tries: tuple[Try, ...] = ()
