"""A snippet's surroundings: namespaces with its view, folder and script, made before it is there.

The agent makes them in itself, forks what is to live in them (or hands them to a warm interpreter,
which does), and goes home. A fork that made them would copy each page that it writes to meanwhile.
How it made a view it knows, and makes the next one so.
"""

from __future__ import annotations

import os

from mlbench_exec.agent import view
from mlbench_exec.agent.confinement import NAMESPACES
from mlbench_exec.agent.program import Program
from mlbench_exec.agent.steps import Step, Steps, do
from mlbench_exec.agent.world import World

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any

NO_LIMIT_SHM = 8 << 30
MOST_VIEWS = 64  # that it is remembered how to make


def make(world: World, one: Program, limits: dict[str, Any]) -> tuple[int, list[int]]:
    """Make a snippet's surroundings.

    Return descriptors of a folder on the disk that it writes to, and of what to fork it in: its
    folder, and its NAMESPACES in that order. Raises `Unusable` where the environment lacks the
    folder, and OSError.
    """
    disk = cwd = -1
    try:
        disk, cwd = _enter(world, one, limits)
        return disk, [cwd, *namespaces()]
    except BaseException:
        _close(disk)
        _close(cwd)
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
    disk = cwd = -1
    try:
        disk, cwd = _enter(world, one, limits)
        execution = world.start.execution(one, limits, cwd, out, err, report)
        pid = world.forker.start(report, world.before_fork, execution)
        return pid, disk
    except BaseException:
        _close(disk)
        raise
    finally:
        _close(cwd)
        _go_home(world)


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def namespaces() -> list[int]:
    """Descriptors of those that this process is in, in the order of NAMESPACES."""
    return [os.open("/proc/self/ns/" + name, os.O_RDONLY) for name in NAMESPACES]


def apart() -> Steps:
    """Namespaces of its own for this process."""
    name = b"mlbench"
    return Steps(Step("unshare", sum(NAMESPACES.values())), Step("sethostname", name, len(name)))


def _enter(world: World, one: Program, limits: dict[str, Any]) -> tuple[int, int]:
    key = one.workdir, one.mended, limits["disk"], limits["memory"]
    if not _enter_again(world, key):
        do(apart())
        shm = limits["memory"] // 2 if limits["memory"] else NO_LIMIT_SHM  # as Linux does
        made = view.enter(world.base, one.workdir, one.mended, limits["disk"], shm)
        if len(world.views) >= MOST_VIEWS:
            world.views.clear()
        world.views[key] = apart() + made
    disk = os.open("/tmp", os.O_PATH | os.O_DIRECTORY)
    try:
        return disk, one.open_folder()
    except BaseException:
        os.close(disk)
        raise


def _enter_again(world: World, key: tuple[Any, ...]) -> bool:
    """Whether it could be entered as the last time: what lies below a mount may have changed."""
    try:
        world.forker.do(world.views[key])
        return True
    except KeyError:
        return False
    except OSError:
        del world.views[key]
        _go_home(world)
        return False


def _go_home(world: World) -> None:
    world.forker.do(world.homeward)
