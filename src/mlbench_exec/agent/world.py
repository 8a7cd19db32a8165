"""World: what stays the same for every snippet of this sandbox."""

from __future__ import annotations

import os

from mlbench_exec.agent import pid1, program, steps
from mlbench_exec.agent.base import Base
from mlbench_exec.agent.meter import Counters, own_cgroups

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any


class World:
    """Made once by `setup`; `spec` is the host's setup message."""

    def __init__(self, spec: dict[str, Any], control_fd: int) -> None:
        self.nested: bool = spec["nested"]
        self.base = Base(spec)
        self.filter: bytes = spec["filter"]
        self.counters = Counters(own_cgroups() if spec["cgroups"] is None else spec["cgroups"])
        self.nproc = False
        self.own_pids = {1, os.getpid()}
        self.variables: dict[str, str] = spec["variables"]
        self.control_fd = control_fd
        self.own_pid_ns = -1
        self.pids_in: int | None = None  # a /proc of processes alone, where the kernel has such
        self.before_fork = self.homeward = steps.Steps()  # what is due before and after a snippet
        # How to make views that were made before, by what they depend on.
        self.views: dict[tuple[Any, ...], steps.Steps] = {}
        self.start: program.Start  # the last two are made in the sandbox's own namespaces
        self.forker: pid1.Forker  # nested level
        self.memory_bytes = 0  # charged to this sandbox while no snippet runs
        self.owner: list[int] | None = None  # user and group of the first workdir
        self.uid, self.gid = os.getuid(), os.getgid()
        self.inner_uid = self.inner_gid = self.uid
        # By environment: its variables and its mended layer, or why it can't be used.
        self.prepared: dict[str, tuple[dict[str, str], str | None] | str] = {}
        self.warm_bytes: int = spec["warm_bytes"]  # what warm interpreters may hold together
