"""A snippet's surroundings: namespaces with its view, folder and script, made before it is there.

The agent makes them in itself, forks what is to live in them (or hands them to a warm interpreter,
which does), and goes home. A fork that made them would copy each page that it writes to meanwhile.
"""

from __future__ import annotations

import os

from mlbench_exec.agent import kernel, program, view
from mlbench_exec.agent.program import NAMESPACES, Program
from mlbench_exec.agent.world import World

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any

NO_LIMIT_SHM = 8 << 30


def make(world: World, one: Program, limits: dict[str, Any]) -> list[int]:
    """Make a snippet's surroundings; return descriptors of their NAMESPACES, in that order.

    Raises `Unusable` where the environment lacks the snippet's folder, and OSError.
    """
    try:
        _enter(world, one, limits)
        return namespaces()
    finally:
        _go_home(world)


def fork(
    world: World, one: Program, limits: dict[str, Any], out: int, err: int, report: int
) -> int:
    """Fork the snippet's init, or at the fresh level the snippet itself; return its pid.

    Raises as `make` does.
    """
    if not world.nested:
        return os.fork() or program.become(world, one, limits, out, err, report)
    pid = -1
    try:
        _enter(world, one, limits)
        kernel.new_pid_namespace(world.own_pid_ns)
        pid = os.fork()
    finally:
        if pid:
            _go_home(world)
        else:
            for fd in world.home:
                os.close(fd)  # an init needs no way there
    return pid or program.become(world, one, limits, out, err, report)


def namespaces() -> list[int]:
    """Descriptors of those that this process is in, in the order of NAMESPACES."""
    return [os.open("/proc/self/ns/" + name, os.O_RDONLY) for name in NAMESPACES]


def _enter(world: World, one: Program, limits: dict[str, Any]) -> None:
    kernel.unshare(sum(NAMESPACES.values()))
    kernel.sethostname("mlbench")
    shm = limits["memory"] // 2 if limits["memory"] else NO_LIMIT_SHM  # as Linux does
    view.enter(world.base, one.workdir, one.mended, limits["disk"], shm)
    program.prepare_folder(one)


def _go_home(world: World) -> None:
    for fd, kind in zip(world.home, NAMESPACES.values()):
        kernel.setns(fd, kind)
