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


def make(world: World, one: Program, limits: dict[str, Any]) -> tuple[int, list[int]]:
    """Make a snippet's surroundings.

    Return descriptors of a folder on the disk that it writes to, and of their NAMESPACES, in that
    order. Raises `Unusable` where the environment lacks the snippet's folder, and OSError.
    """
    disk_fd = -1
    try:
        disk_fd = _enter(world, one, limits)
        return disk_fd, namespaces()
    except BaseException:
        _close(disk_fd)
        raise
    finally:
        _go_home(world)


def fork(
    world: World, one: Program, limits: dict[str, Any], out: int, err: int, report: int
) -> tuple[int, int]:
    """Start a snippet in surroundings of its own.

    Return its init's pid, and a descriptor of a folder on the disk that it writes to. Raises as
    `make` does.
    """
    pid = disk_fd = -1
    try:
        disk_fd = _enter(world, one, limits)
        kernel.new_pid_namespace(world.own_pid_ns)
        pid = world.forker.fork(report)
    except BaseException:
        _close(disk_fd)
        raise
    finally:
        if pid:
            _go_home(world)
    return pid or program.become(world, one, limits, out, err, report), disk_fd


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def namespaces() -> list[int]:
    """Descriptors of those that this process is in, in the order of NAMESPACES."""
    return [os.open("/proc/self/ns/" + name, os.O_RDONLY) for name in NAMESPACES]


def _enter(world: World, one: Program, limits: dict[str, Any]) -> int:
    kernel.unshare(sum(NAMESPACES.values()))
    kernel.sethostname("mlbench")
    shm = limits["memory"] // 2 if limits["memory"] else NO_LIMIT_SHM  # as Linux does
    view.enter(world.base, one.workdir, one.mended, limits["disk"], shm)
    program.prepare_folder(one)
    return os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY)


def _go_home(world: World) -> None:
    for fd, kind in zip(world.home, NAMESPACES.values()):
        kernel.setns(fd, kind)
